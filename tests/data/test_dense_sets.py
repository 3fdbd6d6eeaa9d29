"""The published layouts and lists of DAVIS, JHMDB and VIP; reading and writing masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fewtokens.data.dense_sets import check_paired, davis_sequences, jhmdb_clips, vip_videos
from fewtokens.data.masks import palette, read_masks, resize_masks, write_masks
from tests.helpers.dense import make_davis, make_jhmdb, make_vip, save_mask


class TestDavis:
    def test_lists(self, tmp_path):
        root = make_davis(tmp_path / "D", ("b", "a", "c"))
        (root / "ImageSets" / "2017" / "val.txt").write_text("c\nb\n")
        sequences, origin = davis_sequences(root)
        assert ([files.name for files in sequences], origin) == (["c", "b"], "2017/val")
        assert [p.name for p in sequences[0].images] == [f"{n:05}.jpg" for n in range(5)]
        assert [files.name for files in davis_sequences(root, "all")[0]] == ["a", "b", "c"]
        (root / "ImageSets" / "2016").mkdir()
        lines = [f"/JPEGImages/480p/a/{n:05}.jpg /Annotations/480p/a/{n:05}.png" for n in range(5)]
        (root / "ImageSets" / "2016" / "val.txt").write_text("\n".join(lines))
        assert [files.name for files in davis_sequences(root, "2016/val")[0]] == ["a"]

    def test_invalid_folders_and_lists(self, tmp_path):
        with pytest.raises(ValueError, match="not a DAVIS folder"):
            davis_sequences(tmp_path)
        root = make_davis(tmp_path / "D")
        with pytest.raises(ValueError, match="no such list"):
            davis_sequences(root, "2017/test")
        with pytest.raises(ValueError, match="under ImageSets"):
            davis_sequences(root, "../../secret")
        val_list = root / "ImageSets" / "2017" / "val.txt"
        for text, message in (
            ("one\nthree\n", "three not found in JPEGImages"),
            ("..\n", "not a folder name"),
            ("\n", "the list is empty"),
        ):
            val_list.write_text(text)
            with pytest.raises(ValueError, match=message):
                davis_sequences(root)
        val_list.unlink()
        masks = root / "Annotations" / "480p"
        (masks / "one" / "00003.png").unlink()
        (masks / "two" / "00000.png").unlink()
        one, two = davis_sequences(root)[0]
        with pytest.raises(ValueError, match="1 of 5 frames have no mask to score against, 00003"):
            check_paired(one)
        with pytest.raises(ValueError, match="first frame 00000 has no mask"):
            check_paired(two)
        for folder in masks.iterdir():
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        with pytest.raises(ValueError, match="no sequences"):
            davis_sequences(root)


def test_jhmdb_lists(tmp_path):
    pytest.importorskip("scipy")
    root = make_jhmdb(tmp_path / "jhmdb")
    clips, origin = jhmdb_clips(root)
    assert ([files.name for files in clips], origin) == (["jump/first", "run/second"], "all")
    assert len(clips[0].images) == 4 and clips[0].labels[0].is_file()
    (root / "splits").mkdir()
    (root / "splits" / "jump_test_split1.txt").write_text("first.avi 1\n")
    (root / "splits" / "run_test_split1.txt").write_text("second.avi 2\n")
    assert [files.name for files in jhmdb_clips(root)[0]] == ["run/second"]
    listing = tmp_path / "testlist.txt"
    listing.write_text(
        "/elsewhere/joint_positions/run/second/joint_positions.mat /elsewhere/Rename_Images/run/second\njump/first\n"
    )
    assert [files.name for files in jhmdb_clips(root, listing)[0]] == ["run/second", "jump/first"]
    for text, message in (
        ("jump/third", "jump/third not found"),
        ("jump", "ACTION/CLIP"),
        ("../..", "not a folder name"),
    ):
        listing.write_text(text)
        with pytest.raises(ValueError, match=message):
            jhmdb_clips(root, listing)
    with pytest.raises(ValueError, match="not a JHMDB folder"):
        jhmdb_clips(tmp_path)


def test_vip_uses_only_labeled_images(tmp_path):
    root = make_vip(tmp_path / "VIP")
    videos, origin = vip_videos(root)
    assert ([files.name for files in videos], origin) == (["videos2", "videos10"], "all")
    assert (
        [p.stem for p in videos[0].images]
        == [p.stem for p in videos[0].labels]
        == [f"{25 * t + 1:012}" for t in range(4)]
    )
    (root / "lists").mkdir()
    (root / "lists" / "val_videos.txt").write_text("videos10\n")
    assert [files.name for files in vip_videos(root)[0]] == ["videos10"]
    (root / "lists" / "val_videos.txt").write_text("videos3\n")
    with pytest.raises(ValueError, match="videos3 not found in Category_ids"):
        vip_videos(root)
    videos[0].labels[2].unlink()
    (root / "lists" / "val_videos.txt").unlink()
    assert len(vip_videos(root)[0][0].images) == 3
    with pytest.raises(ValueError, match="not a VIP folder"):
        vip_videos(tmp_path)


class TestMasks:
    def test_palette_of_davis(self):
        assert palette()[:5].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
        assert palette()[[8, 22, 255]].tolist() == [[64, 0, 0], [0, 192, 128], [224, 224, 192]]
        assert len(np.unique(palette(), axis=0)) == 256

    def test_round_trip(self, tmp_path):
        masks = torch.arange(255, dtype=torch.uint8).reshape(1, 15, 17)
        write_masks(masks, [tmp_path / "a" / "00000.png"])
        assert torch.equal(read_masks([tmp_path / "a" / "00000.png"]), masks)
        with Image.open(tmp_path / "a" / "00000.png") as image:
            assert image.mode == "P"
            assert image.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
        with pytest.raises(ValueError, match="values from 0 to 254, got 255"):
            write_masks(torch.full((1, 2, 2), 255), [tmp_path / "b.png"])
        assert not (tmp_path / "b.png").exists()

    def test_palette_void_gray_and_values(self, tmp_path):
        mask = np.array([[0, 3], [255, 1]], dtype=np.uint8)
        save_mask(tmp_path / "p.png", mask)
        save_mask(tmp_path / "g.png", mask, palette=False)
        assert read_masks([tmp_path / "p.png"])[0].tolist() == [[0, 3], [0, 1]]
        assert read_masks([tmp_path / "g.png"])[0].tolist() == [[0, 2], [3, 1]]
        assert read_masks([tmp_path / "g.png"], values=True)[0].tolist() == mask.tolist()

    def test_invalid_masks(self, tmp_path):
        Image.new("RGB", (4, 4)).save(tmp_path / "color.png")
        (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
        save_mask(tmp_path / "soft.png", np.arange(64, dtype=np.uint8).reshape(8, 8), palette=False)
        save_mask(tmp_path / "small.png", np.zeros((4, 4), dtype=np.uint8), palette=False)
        for names, message in (
            (["color"], "one channel"),
            (["broken"], "cannot be read as a mask"),
            (["missing"], "cannot be read as a mask"),
            (["soft"], "64 gray values"),
            (["small", "soft"], "different sizes"),
            ([], "no masks"),
        ):
            with pytest.raises(ValueError, match=message):
                read_masks([tmp_path / f"{name}.png" for name in names])

    def test_resize_to_nearest_pixel(self):
        mask = torch.arange(12).reshape(1, 3, 4)
        assert resize_masks(mask, (1, 2))[0].tolist() == [[5, 7]]
        assert resize_masks(mask, (6, 4))[0, ::2].tolist() == mask[0].tolist()


@pytest.mark.parametrize("change", ["", "mark", "crlf", "comments"])
def test_encodings_and_line_ends_of_lists(tmp_path, change):
    for name in ("bear", "two dogs"):
        for part in ("JPEGImages", "Annotations"):
            (tmp_path / part / "480p" / name).mkdir(parents=True)
    (tmp_path / "JPEGImages" / "480p" / "bear" / "folder.jpg").mkdir()
    for year in ("2016", "2017"):
        (tmp_path / "ImageSets" / year).mkdir(parents=True)
    text = {"crlf": "bear\r\ntwo dogs\r\n", "comments": "# by hand\n\nbear\n\ntwo dogs"}.get(change, "bear\ntwo dogs\n")
    (tmp_path / "ImageSets/2017/val.txt").write_bytes(text.encode("utf-8-sig" if change == "mark" else "utf-8"))
    sequences, _ = davis_sequences(tmp_path)
    assert [files.name for files in sequences] == ["bear", "two dogs"]
    assert sequences[0].images == []
    (tmp_path / "ImageSets/2016/val.txt").write_text("/JPEGImages/480p/bear/0.jpg /Annotations/480p/bear/0.png\n")
    assert [files.name for files in davis_sequences(tmp_path, "2016/val")[0]] == ["bear"]
    for line in ("/", "x/", "a/../b.png", "../x", "x" * 300, "a\\b", "bear /"):
        (tmp_path / "ImageSets/2016/val.txt").write_text(line + "\n")
        with pytest.raises(ValueError, match=r"not a folder name|not found in"):
            davis_sequences(tmp_path, "2016/val")
    (tmp_path / "ImageSets/2017/val.txt").write_bytes("bear\n".encode("utf-16"))
    with pytest.raises(ValueError, match="UTF-16"):
        davis_sequences(tmp_path)
