"""Every kind of list, with its ways to be wrong."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewtokens.data import ClipData, MovingDigits, Transform, View, collate, read_listing
from fewtokens.data.tars import read_member
from fewtokens.video import write


def picture(path: Path, grey: int = 128, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), grey, np.uint8)).save(path)
    return path


def clip(path: Path, frames: int = 12, fps: float = 12.0) -> Path:
    """Frame n is grey of 20 * n."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = torch.arange(frames).reshape(-1, 1, 1, 1) * 20
    return write(path, grey.expand(-1, 3, 32, 48).to(torch.uint8), fps)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label in ("2", "10", "1"):
        for n in range(4):
            picture(tmp_path / "set" / label / f"{n}.png", 20 * n)
    (tmp_path / "set" / "1" / ".hidden.png").write_bytes(b"")
    (tmp_path / "set" / "1" / "notes.txt").write_text("not a picture")
    return tmp_path / "set"


def test_folders(folder):
    found = read_listing(folder)
    assert found.classes == ("1", "2", "10")
    assert len(found.items) == 12
    assert found.items[0].labels == (0,)
    assert found.items[-1].path.endswith("10/3.png")
    assert not found.multi_label


def test_splits_are_of_every_class_and_repeatable(folder):
    found = read_listing(folder)
    training, test = found.split(0.25, seed=3)
    assert [item.labels for item in test.items] == [(0,), (1,), (2,)]
    assert set(training.items) | set(test.items) == set(found.items)
    assert not set(training.items) & set(test.items)
    assert found.split(0.25, seed=3)[1] == test
    assert found.split(0.25, seed=4)[1] != test
    with pytest.raises(ValueError, match="validation fraction"):
        found.split(0.0)


def test_csv_and_jsonl(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b c.png")
    (tmp_path / "list.csv").write_text("path,label,start,end\na.png,cat,1.5,2\nb c.png,dog,,\ngone.png,dog,,\n,dog,,\n")
    found = read_listing(tmp_path / "list.csv")
    assert found.classes == ("cat", "dog")
    assert [(i.start, i.end) for i in found.items] == [(1.5, 2.0), (None, None)]
    assert found.missing == ("gone.png",)
    assert found.left_out == (f"{tmp_path / 'list.csv'}, line 5: no path or no label",)
    lines = [{"path": "a.png", "label": ["x", "y"]}, {"path": "b c.png", "label": ["y"]}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\nnot json\n")
    several = read_listing(tmp_path / "list.jsonl")
    assert several.multi_label
    assert [i.labels for i in several.items] == [(0, 1), (1,)]
    assert len(several.left_out) == 1
    target = ClipData(several, Transform(8), training=False)[0].target
    assert target.tolist() == [1, 1]
    (tmp_path / "bad.csv").write_text("path,label,start\na.png,cat,soon\n")
    with pytest.raises(ValueError, match="line 2: start and end must be seconds"):
        read_listing(tmp_path / "bad.csv")


@pytest.mark.parametrize("line", ["{} 3", "{},3", "{} , 3", "{}\t3"])
def test_kinetics_lists(tmp_path, line):
    picture(tmp_path / "v" / "a b.png")
    (tmp_path / "train.txt").write_text(line.format("v/a b.png") + "\n\nonlyonefield\n")
    found = read_listing(tmp_path / "train.txt")
    assert found.items[0].path == str(tmp_path / "v" / "a b.png")
    assert found.classes[found.items[0].labels[0]] == "3"
    # Numbers are the classes: those below are there too.
    assert len(found.classes) == 4
    assert len(found.left_out) == 1


def test_kinetics_own_csv(tmp_path):
    clip(tmp_path / "train" / "riding a bike" / "abc-_1_000003_000013.mp4")
    clip(tmp_path / "xyz_000000_000010.mp4")
    (tmp_path / "train.csv").write_text(
        "label,youtube_id,time_start,time_end,split\nriding a bike,abc-_1,3,13,train\nsinging,xyz,0,10,train\n"
        "singing,lost,0,10,train\nsinging,,,\n"
    )
    found = read_listing(tmp_path / "train.csv")
    assert found.classes == ("riding a bike", "singing")
    assert len(found.items) == 2
    assert found.missing == ("singing/lost_000000_000010.mp4",)
    assert len(found.left_out) == 1


def test_charades(tmp_path):
    clip(tmp_path / "46GP8.mp4")
    clip(tmp_path / "N11GT.mp4")
    (tmp_path / "Charades_v1_train.csv").write_text(
        "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"
        '46GP8,HR43,Kitchen,6,7,Yes,"A person, cooking.",food,d,c092 11.90 21.20;c147 0.00 12.60;c092 22.0 23.0,30.25\n'
        "N11GT,HR43,Kitchen,6,7,Yes,s,o,d,,30.25\n"
        "GONE1,HR43,Kitchen,6,7,Yes,s,o,d,c001 0 1,30.25\n"
    )
    found = read_listing(tmp_path / "Charades_v1_train.csv")
    assert len(found.classes) == 157
    assert found.multi_label
    assert [item.labels for item in found.items] == [(92, 147), ()]
    assert found.missing == ("GONE1.mp4",)


def test_avid(tmp_path):
    clip(tmp_path / "yrpxojhg.mp4")
    said = {"yrpxojhg.mp4": "playing harmonica", "ovpgieoc.mp4": "none", "lost.mp4": "origami"}
    (tmp_path / "avid_train.json").write_text(json.dumps(said))
    found = read_listing(tmp_path / "avid_train.json")
    assert found.classes == ("playing harmonica",)
    assert found.missing == ("lost.mp4",)
    assert found.left_out == ("ovpgieoc.mp4: has no class",)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="invalid JSON"):
        read_listing(tmp_path / "broken.json")


def test_webdataset(tmp_path):
    pixels = io.BytesIO()
    Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(pixels, "PNG")
    film = clip(tmp_path / "film.mp4").read_bytes()
    members = {
        "../../escape.png": pixels.getvalue(), "../../escape.cls": b"1", "b.mp4": film, "b.json": b'{"label": 3}',
        "c.png": pixels.getvalue(), "d.cls": b"2",
    }  # fmt: skip
    with tarfile.open(tmp_path / "set-000.tar", "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = read_listing(tmp_path / "set-000.tar")
    assert found == read_listing(tmp_path)
    assert [found.classes[item.labels[0]] for item in found.items] == ["1", "3"]
    assert len(found.left_out) == 2
    data = ClipData(found, Transform(16), View(frames=3), training=False)
    batch = collate([data[0], data[1]])
    assert batch["broken"] == []
    assert float(batch["clips"][0].mean()) == pytest.approx(200 / 255, abs=1e-3)
    assert not (tmp_path.parent / "escape.png").exists()
    whole = (tmp_path / "set-000.tar").read_bytes()
    item = found.items[1]
    (tmp_path / "set-000.tar").write_bytes(whole[: item.offset + 100])
    with pytest.raises(ValueError, match="cut short"):
        read_member(item.path, item.offset, item.size)
    assert "cut short" in data[1].broken
    (tmp_path / "set-000.tar").write_bytes(whole[:700])
    with pytest.raises(ValueError, match="is it complete"):
        read_listing(tmp_path / "set-000.tar")


class TestWhatIsWrong:
    def test_nothing_there(self, tmp_path):
        with pytest.raises(ValueError, match="no such file"):
            read_listing(tmp_path / "none")
        with pytest.raises(ValueError, match="no labeled image or video"):
            read_listing(tmp_path)
        (tmp_path / "list.yaml").write_text("")
        with pytest.raises(ValueError, match="unknown list format"):
            read_listing(tmp_path / "list.yaml")

    def test_all_files_missing(self, tmp_path):
        (tmp_path / "list.csv").write_text("path,label\na.png,cat\n")
        with pytest.raises(ValueError, match="none of the 1 listed files"):
            read_listing(tmp_path / "list.csv")
        picture(tmp_path / "elsewhere" / "a.png")
        assert len(read_listing(tmp_path / "list.csv", root=tmp_path / "elsewhere").items) == 1

    def test_classes_of_the_test_alone(self, folder):
        with pytest.raises(ValueError, match="training classes: '10'"):
            read_listing(folder, classes=("1", "2"))

    def test_a_name_that_leads_out(self, tmp_path):
        (tmp_path / "list.csv").write_text("path,label\n../../etc/passwd,cat\n")
        with pytest.raises(ValueError, match="is outside"):
            read_listing(tmp_path / "list.csv")


class TestClips:
    def listing(self, tmp_path, frames=12):
        clip(tmp_path / "a" / "x.mp4", frames)
        clip(tmp_path / "b" / "y.mp4", frames)
        return read_listing(tmp_path)

    def greys(self, sample) -> list[int]:
        return (sample.clip.mean((2, 3, 4)) * 255 / 20).round().int().tolist()

    def test_strides_and_rates(self, tmp_path):
        found = self.listing(tmp_path)
        centre = ClipData(found, Transform(16), View(frames=4, stride=2), training=False)
        assert self.greys(centre[0]) == [[2, 4, 6, 8]]
        by_rate = ClipData(found, Transform(16), View(frames=4, fps=6.0), training=False)
        assert self.greys(by_rate[0]) == [[2, 4, 6, 8]]
        several = ClipData(found, Transform(16), View(frames=4, clips=3), training=False)
        assert self.greys(several[0]) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]

    def test_short_videos_hold_their_last_frame(self, tmp_path):
        data = ClipData(self.listing(tmp_path, 3), Transform(16), View(frames=5, clips=2), training=False)
        assert self.greys(data[0]) == [[0, 1, 2, 2, 2]] * 2

    def test_parts_of_a_video(self, tmp_path):
        self.listing(tmp_path)
        (tmp_path / "l.csv").write_text("path,label,start,end\na/x.mp4,a,0.5,0.75\nb/y.mp4,b,90,95\n")
        data = ClipData(read_listing(tmp_path / "l.csv"), Transform(16), View(frames=3), training=False)
        assert self.greys(data[0]) == [[6, 7, 8]] or self.greys(data[0]) == [[7, 8, 9]]
        assert "no frame between 90" in data[1].broken

    def test_drawn_clips_follow_from_seed_epoch_and_number(self, tmp_path):
        found = self.listing(tmp_path)
        make = lambda seed: ClipData(  # noqa: E731
            found, Transform(16, scale=(1, 1.5), flip=0.5, colour=1, grey=0.2), View(frames=4), training=True, seed=seed
        )
        assert torch.equal(make(1)[(2, 0)].clip, make(1)[(2, 0)].clip)
        starts = {tuple(self.greys(ClipData(found, Transform(16), View(frames=4), training=True)[(e, 0)])[0])
                  for e in range(12)}  # fmt: skip
        assert len(starts) > 3
        assert all(b - a == 1 for start in starts for a, b in itertools.pairwise(start))
        assert not torch.equal(make(1)[(2, 0)].clip, make(2)[(2, 0)].clip)

    def test_broken_files_are_told_not_raised(self, folder):
        found = read_listing(folder)
        Path(found.items[0].path).write_bytes(b"")
        Path(found.items[1].path).write_bytes(Path(found.items[2].path).read_bytes()[:40])
        data = ClipData(found, Transform(16), training=False)
        batch = collate([data[n] for n in range(3)])
        assert len(batch["broken"]) == 2
        assert batch["index"].tolist() == [2]
        assert "clips" not in collate([data[0]])

    def test_small_pictures_are_enlarged_and_told(self, folder):
        found = read_listing(folder)
        assert collate([ClipData(found, Transform(64), training=False)[0]])["enlarged"] == [0]
        assert collate([ClipData(found, Transform(24), training=False)[0]])["enlarged"] == []

    def test_views(self, tmp_path):
        wide = torch.arange(60).float().expand(30, 60) * 4
        Image.fromarray(wide.byte().numpy()).convert("RGB").save(picture(tmp_path / "a" / "w.png"))
        picture(tmp_path / "b" / "w.png")
        data = ClipData(read_listing(tmp_path), Transform(30), View(crops=3), training=False)
        left, centre, right = data[0].clip.mean((1, 2, 3, 4)).tolist()
        assert left < centre < right

    def test_kept_pictures_are_the_same(self, folder):
        found = read_listing(folder)
        kept = ClipData(found, Transform(16), training=False, keep=True)
        assert torch.equal(kept[3].clip, kept[3].clip)
        assert torch.equal(kept[3].clip, ClipData(found, Transform(16), training=False)[3].clip)


def test_moving_digits_need_time():
    data = MovingDigits(80, frames=4, size=32, noise=0.0)
    assert len(data.classes) == 40
    assert torch.equal(data[(3, 5)].clip, data[(3, 5)].clip)
    assert not torch.equal(data[(3, 5)].clip, data[(4, 5)].clip)
    for label in range(4):
        clip_, target = data[label].clip[0, :, 0], data[label].target
        assert int(target) == label
        axis, sign = {0: (1, -1), 1: (1, 1), 2: (0, -1), 3: (0, 1)}[label]
        moved = [s for s in range(1, 6) if torch.equal(clip_[0].roll(sign * s, axis), clip_[1])]
        assert len(moved) == 1
