"""Listings of every format, valid and invalid."""

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
from fewtokens.data.footage import find_footage
from fewtokens.data.tars import read_member
from fewtokens.jobs.sources import find_sources
from fewtokens.video import write


def save_image(path: Path, gray: int = 128, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), gray, np.uint8)).save(path)
    return path


def save_clip(path: Path, frames: int = 12, fps: float = 12.0) -> Path:
    """Writes a video whose frame n has the gray value 20 * n."""
    path.parent.mkdir(parents=True, exist_ok=True)
    gray = torch.arange(frames).reshape(-1, 1, 1, 1) * 20
    return write(path, gray.expand(-1, 3, 32, 48).to(torch.uint8), fps)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label in ("2", "10", "1"):
        for n in range(4):
            save_image(tmp_path / "set" / label / f"{n}.png", 20 * n)
    (tmp_path / "set" / "1" / ".hidden.png").write_bytes(b"")
    (tmp_path / "set" / "1" / "notes.txt").write_text("not an image")
    return tmp_path / "set"


def test_folders(folder):
    listing = read_listing(folder)
    assert listing.classes == ("1", "2", "10")
    assert len(listing.items) == 12
    assert listing.items[0].labels == (0,)
    assert listing.items[-1].path.endswith("10/3.png")
    assert not listing.multi_label


def test_splits_are_stratified_and_repeatable(folder):
    listing = read_listing(folder)
    training, test = listing.split(0.25, seed=3)
    assert [item.labels for item in test.items] == [(0,), (1,), (2,)]
    assert set(training.items) | set(test.items) == set(listing.items)
    assert not set(training.items) & set(test.items)
    assert listing.split(0.25, seed=3)[1] == test
    assert listing.split(0.25, seed=4)[1] != test
    with pytest.raises(ValueError, match="validation fraction"):
        listing.split(0.0)


def test_csv_and_jsonl(tmp_path):
    save_image(tmp_path / "a.png")
    save_image(tmp_path / "b c.png")
    (tmp_path / "list.csv").write_text("path,label,start,end\na.png,cat,1.5,2\nb c.png,dog,,\ngone.png,dog,,\n,dog,,\n")
    listing = read_listing(tmp_path / "list.csv")
    assert listing.classes == ("cat", "dog")
    assert [(i.start, i.end) for i in listing.items] == [(1.5, 2.0), (None, None)]
    assert listing.missing == ("gone.png",)
    assert listing.skipped == (f"{tmp_path / 'list.csv'}, line 5: no path or no label",)
    lines = [{"path": "a.png", "label": ["x", "y"]}, {"path": "b c.png", "label": ["y"]}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\nnot json\n")
    multi_label = read_listing(tmp_path / "list.jsonl")
    assert multi_label.multi_label
    assert [i.labels for i in multi_label.items] == [(0, 1), (1,)]
    assert len(multi_label.skipped) == 1
    target = ClipData(multi_label, Transform(8), training=False)[0].target
    assert target.tolist() == [1, 1]
    (tmp_path / "bad.csv").write_text("path,label,start\na.png,cat,soon\n")
    with pytest.raises(ValueError, match="line 2: start and end must be seconds"):
        read_listing(tmp_path / "bad.csv")


@pytest.mark.parametrize("line", ["{} 3", "{},3", "{} , 3", "{}\t3"])
def test_kinetics_lists(tmp_path, line):
    save_image(tmp_path / "v" / "a b.png")
    (tmp_path / "train.txt").write_text(line.format("v/a b.png") + "\n\nonlyonefield\n")
    listing = read_listing(tmp_path / "train.txt")
    assert listing.items[0].path == str(tmp_path / "v" / "a b.png")
    assert listing.classes[listing.items[0].labels[0]] == "3"
    # Numbers are class indices, so all lower ones are classes too.
    assert len(listing.classes) == 4
    assert len(listing.skipped) == 1


def test_csv_of_kinetics(tmp_path):
    save_clip(tmp_path / "train" / "riding a bike" / "abc-_1_000003_000013.mp4")
    save_clip(tmp_path / "xyz_000000_000010.mp4")
    (tmp_path / "train.csv").write_text(
        "label,youtube_id,time_start,time_end,split\nriding a bike,abc-_1,3,13,train\nsinging,xyz,0,10,train\n"
        "singing,lost,0,10,train\nsinging,,,\n"
    )
    listing = read_listing(tmp_path / "train.csv")
    assert listing.classes == ("riding a bike", "singing")
    assert len(listing.items) == 2
    assert listing.missing == ("singing/lost_000000_000010.mp4",)
    assert len(listing.skipped) == 1


def test_charades(tmp_path):
    save_clip(tmp_path / "46GP8.mp4")
    save_clip(tmp_path / "N11GT.mp4")
    (tmp_path / "Charades_v1_train.csv").write_text(
        "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"
        '46GP8,HR43,Kitchen,6,7,Yes,"A person, cooking.",food,d,c092 11.90 21.20;c147 0.00 12.60;c092 22.0 23.0,30.25\n'
        "N11GT,HR43,Kitchen,6,7,Yes,s,o,d,,30.25\n"
        "GONE1,HR43,Kitchen,6,7,Yes,s,o,d,c001 0 1,30.25\n"
    )
    listing = read_listing(tmp_path / "Charades_v1_train.csv")
    assert len(listing.classes) == 157
    assert listing.multi_label
    assert [item.labels for item in listing.items] == [(92, 147), ()]
    assert listing.missing == ("GONE1.mp4",)


def test_avid(tmp_path):
    save_clip(tmp_path / "yrpxojhg.mp4")
    labels = {"yrpxojhg.mp4": "playing harmonica", "ovpgieoc.mp4": "none", "lost.mp4": "origami"}
    (tmp_path / "avid_train.json").write_text(json.dumps(labels))
    listing = read_listing(tmp_path / "avid_train.json")
    assert listing.classes == ("playing harmonica",)
    assert listing.missing == ("lost.mp4",)
    assert listing.skipped == ("ovpgieoc.mp4: has no class",)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="invalid JSON"):
        read_listing(tmp_path / "broken.json")


def test_metadata_of_hugging_face(tmp_path):
    """VideoFolder and ImageFolder: metadata with the column file_name."""
    save_image(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,cat\n")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "label": "cat"}\n')
    for name in ("metadata.csv", "metadata.jsonl"):
        listing = read_listing(tmp_path / name)
        assert [item.path for item in listing.items] == [str(tmp_path / "a.png")] and listing.classes == ("cat",)


def test_fiftyone(tmp_path):
    """A folder as `dataset.export(dataset_type=FiftyOneDataset)` writes it; also as footage, and as videos of a job."""
    save_clip(tmp_path / "data" / "a.mp4")
    save_clip(tmp_path / "elsewhere" / "b.mp4")
    samples = [
        {"_id": {"$oid": "64c0"}, "filepath": "data/a.mp4", "tags": ["train"],
         "ground_truth": {"_cls": "Classification", "label": "cat"},
         "model": {"_cls": "Classification", "label": "dog"},
         "boxes": {"_cls": "Detections", "detections": []}},
        {"filepath": str(tmp_path / "elsewhere" / "b.mp4"),
         "ground_truth": {"_cls": "Classifications", "classifications": [{"label": "dog"}, {"label": "cat"}]}},
        {"filepath": "data/gone.mp4", "ground_truth": {"_cls": "Classification", "label": "dog"}},
        {"filepath": 7},
    ]  # fmt: skip
    path = tmp_path / "samples.json"
    path.write_text(json.dumps({"samples": samples}))
    (tmp_path / "metadata.json").write_text("{}")
    for source in (tmp_path, path):
        listing = read_listing(source)
        assert listing.classes == ("cat", "dog") and listing.multi_label and listing.missing == ("data/gone.mp4",)
        assert [(Path(item.path).name, item.labels) for item in listing.items] == [("a.mp4", (0,)), ("b.mp4", (1, 0))]
        assert len(listing.skipped) == 1 and "sample 4" in listing.skipped[0]
    assert [Path(item.path).name for item in find_footage(tmp_path).items] == ["a.mp4", "b.mp4"]
    assert [Path(name).name for name, _ in find_sources([str(tmp_path)])] == ["a.mp4", "b.mp4", "gone.mp4"]
    # Two fields of labels, none of them the ground truth.
    samples[0]["second"] = samples[0].pop("ground_truth")
    path.write_text(json.dumps({"samples": samples[:1]}))
    with pytest.raises(ValueError, match=r"no labels in 1 line.*labels in several fields: model, second"):
        read_listing(tmp_path)
    assert len(find_footage(tmp_path).items) == 1
    path.write_text(json.dumps({"samples": [{"filepath": "../x.mp4"}]}))
    with pytest.raises(ValueError, match="outside"):
        read_listing(tmp_path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="samples"):
        read_listing(tmp_path)


def test_webdataset(tmp_path):
    pixels = io.BytesIO()
    Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(pixels, "PNG")
    video = save_clip(tmp_path / "clip.mp4").read_bytes()
    members = {
        "../../escape.png": pixels.getvalue(), "../../escape.cls": b"1", "b.mp4": video, "b.json": b'{"label": 3}',
        "c.png": pixels.getvalue(), "d.cls": b"2",
    }  # fmt: skip
    with tarfile.open(tmp_path / "set-000.tar", "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    listing = read_listing(tmp_path / "set-000.tar")
    assert listing == read_listing(tmp_path)
    assert [listing.classes[item.labels[0]] for item in listing.items] == ["1", "3"]
    assert len(listing.skipped) == 2
    data = ClipData(listing, Transform(16), View(frames=3), training=False)
    batch = collate([data[0], data[1]])
    assert batch["broken"] == []
    assert float(batch["clips"][0].mean()) == pytest.approx(200 / 255, abs=1e-3)
    assert not (tmp_path.parent / "escape.png").exists()
    intact = (tmp_path / "set-000.tar").read_bytes()
    item = listing.items[1]
    (tmp_path / "set-000.tar").write_bytes(intact[: item.offset + 100])
    with pytest.raises(ValueError, match="cut short"):
        read_member(item.path, item.offset, item.size)
    assert "cut short" in data[1].broken
    (tmp_path / "set-000.tar").write_bytes(intact[:700])
    with pytest.raises(ValueError, match="is it complete"):
        read_listing(tmp_path / "set-000.tar")


class TestErrors:
    def test_missing_and_empty_sources(self, tmp_path):
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
        save_image(tmp_path / "elsewhere" / "a.png")
        assert len(read_listing(tmp_path / "list.csv", root=tmp_path / "elsewhere").items) == 1

    def test_classes_missing_in_training(self, folder):
        with pytest.raises(ValueError, match="training classes: '10'"):
            read_listing(folder, classes=("1", "2"))

    def test_names_outside_the_folder(self, tmp_path):
        (tmp_path / "list.csv").write_text("path,label\n../../etc/passwd,cat\n")
        with pytest.raises(ValueError, match="is outside"):
            read_listing(tmp_path / "list.csv")


class TestClips:
    def listing(self, tmp_path, frames=12):
        save_clip(tmp_path / "a" / "x.mp4", frames)
        save_clip(tmp_path / "b" / "y.mp4", frames)
        return read_listing(tmp_path)

    def grays(self, sample) -> list[int]:
        return (sample.clip.mean((2, 3, 4)) * 255 / 20).round().int().tolist()

    def test_strides_and_rates(self, tmp_path):
        listing = self.listing(tmp_path)
        center = ClipData(listing, Transform(16), View(frames=4, stride=2), training=False)
        assert self.grays(center[0]) == [[2, 4, 6, 8]]
        by_rate = ClipData(listing, Transform(16), View(frames=4, fps=6.0), training=False)
        assert self.grays(by_rate[0]) == [[2, 4, 6, 8]]
        three = ClipData(listing, Transform(16), View(frames=4, clips=3), training=False)
        assert self.grays(three[0]) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]

    def test_short_videos_repeat_their_last_frame(self, tmp_path):
        data = ClipData(self.listing(tmp_path, 3), Transform(16), View(frames=5, clips=2), training=False)
        assert self.grays(data[0]) == [[0, 1, 2, 2, 2]] * 2

    def test_parts_of_a_video(self, tmp_path):
        self.listing(tmp_path)
        (tmp_path / "l.csv").write_text("path,label,start,end\na/x.mp4,a,0.5,0.75\nb/y.mp4,b,90,95\n")
        data = ClipData(read_listing(tmp_path / "l.csv"), Transform(16), View(frames=3), training=False)
        assert self.grays(data[0]) == [[6, 7, 8]] or self.grays(data[0]) == [[7, 8, 9]]
        assert "no frame between 90" in data[1].broken

    def test_random_clips_depend_on_seed_epoch_and_index_only(self, tmp_path):
        listing = self.listing(tmp_path)
        make = lambda seed: ClipData(  # noqa: E731
            listing,
            Transform(16, scale=(1, 1.5), flip=0.5, color=1, gray=0.2),
            View(frames=4),
            training=True,
            seed=seed,
        )
        assert torch.equal(make(1)[(2, 0)].clip, make(1)[(2, 0)].clip)
        starts = {tuple(self.grays(ClipData(listing, Transform(16), View(frames=4), training=True)[(e, 0)])[0])
                  for e in range(12)}  # fmt: skip
        assert len(starts) > 3
        assert all(b - a == 1 for start in starts for a, b in itertools.pairwise(start))
        assert not torch.equal(make(1)[(2, 0)].clip, make(2)[(2, 0)].clip)

    def test_broken_files_are_reported_without_an_error(self, folder):
        listing = read_listing(folder)
        Path(listing.items[0].path).write_bytes(b"")
        Path(listing.items[1].path).write_bytes(Path(listing.items[2].path).read_bytes()[:40])
        data = ClipData(listing, Transform(16), training=False)
        batch = collate([data[n] for n in range(3)])
        assert len(batch["broken"]) == 2
        assert batch["index"].tolist() == [2]
        assert "clips" not in collate([data[0]])

    def test_small_images_are_enlarged_and_reported(self, folder):
        listing = read_listing(folder)
        assert collate([ClipData(listing, Transform(64), training=False)[0]])["enlarged"] == [0]
        assert collate([ClipData(listing, Transform(24), training=False)[0]])["enlarged"] == []

    def test_views(self, tmp_path):
        wide = torch.arange(60).float().expand(30, 60) * 4
        Image.fromarray(wide.byte().numpy()).convert("RGB").save(save_image(tmp_path / "a" / "w.png"))
        save_image(tmp_path / "b" / "w.png")
        data = ClipData(read_listing(tmp_path), Transform(30), View(crops=3), training=False)
        left, center, right = data[0].clip.mean((1, 2, 3, 4)).tolist()
        assert left < center < right

    def test_cached_images_are_equal(self, folder):
        listing = read_listing(folder)
        cached = ClipData(listing, Transform(16), training=False, keep=True)
        assert torch.equal(cached[3].clip, cached[3].clip)
        assert torch.equal(cached[3].clip, ClipData(listing, Transform(16), training=False)[3].clip)


def test_moving_digits_require_time():
    data = MovingDigits(80, frames=4, size=32, noise=0.0)
    assert len(data.classes) == 40
    assert torch.equal(data[(3, 5)].clip, data[(3, 5)].clip)
    assert not torch.equal(data[(3, 5)].clip, data[(4, 5)].clip)
    for label in range(4):
        frames, target = data[label].clip[0, :, 0], data[label].target
        assert int(target) == label
        axis, sign = {0: (1, -1), 1: (1, 1), 2: (0, -1), 3: (0, 1)}[label]
        shifts = [s for s in range(1, 6) if torch.equal(frames[0].roll(sign * s, axis), frames[1])]
        assert len(shifts) == 1
