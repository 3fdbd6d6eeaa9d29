"""Thumbnails of keyframes and drafts, and features and scores that are kept on disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch

import fewtokens
from fewtokens.core import registry
from fewtokens.selection import PixelScorer, store
from fewtokens.selection.choose import FEATURES, SCORES
from fewtokens.video.decode import VideoFile
from fewtokens.video.footage import Footage, SmallFrames
from fewtokens.video.reader import _read_parallel
from tests.helpers.footage import FPS, Decoded, write_scenes

SELECT = "aks(keep=3, rate=8)"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "clip.mp4"
    write_scenes(path, 80, 50)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(store.VARIABLE, str(tmp_path / "cache"))
    forget()
    return tmp_path / "cache" / "selection"


def forget() -> None:
    FEATURES.clear()
    SCORES.clear()


def select(clip, **options):
    forget()  # as a new process
    return fewtokens.read(clip, select=SELECT, scorer="features", size=40, **options)


def test_another_process_decodes_no_thumbnails(clip, folder, tmp_path, monkeypatch):
    first = select(clip)
    assert len(list(folder.iterdir())) == 2  # features and scores
    decoded = Decoded(monkeypatch)
    assert select(clip).times.tolist() == first.times.tolist()
    moved = shutil.copy2(clip, tmp_path / "moved.mp4")  # with its time of modification
    assert select(moved).times.tolist() == first.times.tolist()
    assert decoded.counts == {40: 6}
    code = (
        "import sys, fewtokens; fewtokens.read(sys.argv[1], select=sys.argv[2], scorer='features', size=40)"
        "; print(len(fewtokens.selection.choose.FEATURES._values))"
    )
    out = subprocess.run([sys.executable, "-c", code, clip, SELECT], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "0"  # the scores alone are read
    assert len(list(folder.iterdir())) == 2


def test_what_a_key_depends_on(clip, folder, tmp_path, monkeypatch):
    decoded = Decoded(monkeypatch)

    def thumbnails() -> int:
        return decoded.counts.pop(64, 0)

    select(clip)
    assert thumbnails() == 80
    other = shutil.copy2(clip, tmp_path / "other.mp4")
    os.utime(other, (1, 1))
    for path, options in ((other, {}), (clip, {"end": 5}), (clip, {"near": 100.0}), (clip, {"video_stream": 0})):
        select(path, **options)
        assert thumbnails() > 0
        select(path, **options)
        assert thumbnails() == 0
    FEATURES.clear()
    fewtokens.read(clip, select="aks(keep=3, rate=4)", scorer="features", size=40)
    assert thumbnails() == 40


def test_only_scorers_that_say_so_are_stored(clip, folder):
    class Own(PixelScorer):
        pass

    forget()
    fewtokens.read(clip, select=SELECT, scorer=Own())
    assert not folder.exists()


def test_damaged_files_are_made_again_and_others_left_out(clip, folder):
    first = select(clip)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:40])
    assert select(clip).times.tolist() == first.times.tolist()
    assert select(clip).times.tolist() == first.times.tolist()
    assert store.stored("key", 2, lambda: torch.zeros(2, 3)).shape == (2, 3)
    assert store.stored("key", 3, lambda: torch.ones(3)).shape == (3,)


def test_the_cache_is_bounded_and_can_be_turned_off(folder, monkeypatch):
    made = []

    def make(key: str):
        return store.stored(key, 1000, lambda: made.append(key) or torch.zeros(1000))

    monkeypatch.setattr(store, "LIMIT", 3 * 4500)
    for key in "aabcadb":
        for age, path in enumerate(sorted(folder.glob("*"), key=lambda path: path.stat().st_mtime_ns)):
            os.utime(path, (1000 + age, 1000 + age))  # the resolution of the clock is coarse
        make(key)
    assert made == ["a", "b", "c", "d", "b"]  # b was the oldest when d was written
    assert len(list(folder.glob("*.safetensors"))) == 3
    monkeypatch.setenv(store.VARIABLE, "")
    make("a")
    assert made[-1] == "a" and store.cache_folder() is None


def test_a_folder_that_cannot_be_written(clip, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv(store.VARIABLE, str(tmp_path / "file"))
    assert len(select(clip)) == 3


def test_drafts_are_close_to_the_frames(clip):
    file = VideoFile.open(clip, None, False)
    indices = torch.arange(0, 80, 3).numpy()
    full, draft = (_read_parallel(each, indices, 24, None) for each in (file, file.as_draft(24)))
    assert draft.times.tolist() == full.times.tolist()
    difference = (full.frames.float() - draft.frames.float()).abs()
    assert difference.mean() < 1 and difference.flatten(1).mean(1).max() < 4


class TestNear:
    def test_the_nearest_keyframe_stands_for_a_candidate(self):
        times = torch.arange(40).numpy() / 4
        footage = Footage("x", times, torch.tensor([0, 8, 30]).numpy(), torch.arange(40).numpy(), None)
        seconds = torch.arange(0, 40, 4)  # keyframes at 0, 2 and 7.5
        assert footage.thumbnails(seconds, 64).index.tolist() == seconds.tolist()
        assert footage.thumbnails(seconds, 64, 0.5).index.tolist() == [0, 4, 8, 12, 16, 20, 24, 30, 30, 36]
        near = footage.thumbnails(seconds, 64, 1.0)
        assert near.index.tolist() == [0, 0, 8, 8, 16, 20, 24, 30, 30, 36]
        distinct, which = near.distinct()
        assert distinct.index.tolist() == [0, 8, 16, 20, 24, 30, 36]
        assert distinct.index[which].tolist() == near.index.tolist()
        assert distinct.times.tolist() == [index / 4 for index in distinct.index.tolist()]

    def test_shared_thumbnails_are_decoded_and_scored_once(self, clip, monkeypatch):
        forget()
        decoded = Decoded(monkeypatch)
        select = registry.create_method("max_min_frames", keep=4, rate=8)
        keys = len(VideoFile.open(clip, None, False).keyframes)
        video = fewtokens.read(clip, select=select, near=100.0, size=40)
        assert decoded.counts == {64: keys, 40: 4} and len(video.times.unique()) == 4
        assert video.reading["near"] == 100.0
        assert ((video.times * FPS).round() / FPS).tolist() == video.times.tolist()

    def test_errors(self, clip):
        for arguments, message in (
            ({"select": "aks", "scorer": "features", "near": -1.0}, "near must be a number of seconds of at least 0"),
            ({"near": 1.0}, "near= requires select="),
        ):
            with pytest.raises(ValueError, match=message):
                fewtokens.read(clip, **arguments)


def test_thumbnails_are_read_in_parts_of_bounded_size():
    frames = SmallFrames(torch.arange(4), torch.arange(4).numpy(), 224, None)
    assert 6 * 224**2 * frames.at_once <= 2**26 < 6 * 224**2 * (frames.at_once + 1)
