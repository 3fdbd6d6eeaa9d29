"""Pre-decoded frames, identified by their source."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fewtokens.core import files
from fewtokens.data import packed
from fewtokens.data.footage import Footage, find_footage, open_frames
from fewtokens.data.packed import INDEX, pack_frames
from fewtokens.video import synthetic, write


@pytest.fixture
def videos(tmp_path) -> Path:
    for number in range(2):
        write(tmp_path / "videos" / f"{number}.mp4", synthetic("pan", frames=6, size=(32, 40), seed=number).frames, 10)
    return tmp_path / "videos"


def items(videos: Path) -> tuple[Footage, ...]:
    return find_footage(videos).items


def test_existing_files_are_skipped_for_relative_and_absolute_paths(videos, tmp_path, monkeypatch):
    first = pack_frames(items(videos), tmp_path / "out", short=16)
    assert (len(first.files), first.frames, first.unverified) == (2, 12, 0)
    before = {path: path.stat().st_mtime_ns for path in first.files}
    monkeypatch.chdir(tmp_path)
    again = pack_frames(items(Path("videos")), "out", short=16)
    assert again.frames == 0
    assert {path.resolve(): path.stat().st_mtime_ns for path in again.files} == before
    assert len(find_footage(tmp_path / "out").items) == 2


def test_other_sizes_and_changed_videos_are_refused_unless_fresh(videos, tmp_path):
    out = tmp_path / "out"
    pack_frames(items(videos), out, short=16)
    with pytest.raises(ValueError, match=r"short side of 16 pixels, 24 requested; use another --out, or --fresh"):
        pack_frames(items(videos), out, short=24)
    write(videos / "1.mp4", synthetic("pan", frames=4, size=(32, 40), seed=7).frames, 10)
    names = sorted(os.listdir(out))
    with pytest.raises(ValueError, match=r"1\.mp4, which has changed since"):
        pack_frames(items(videos), out, short=16)
    assert sorted(os.listdir(out)) == names
    result = pack_frames(items(videos), out, short=24, fresh=True)
    assert result.frames == 10
    assert [open_frames(path).shape[1] for path in result.files] == [24, 24]
    assert pack_frames(items(videos), out, short=24).frames == 0


def test_more_videos_of_another_size_are_refused(videos, tmp_path):
    pack_frames(items(videos)[:1], tmp_path / "out", short=16)
    with pytest.raises(ValueError, match="16 pixels, 24 requested"):
        pack_frames(items(videos)[1:], tmp_path / "out", short=24, fresh=True)
    assert pack_frames(items(videos), tmp_path / "out", short=16).frames == 6


def test_frames_without_an_index_line_are_incomplete(videos, tmp_path, monkeypatch):
    def interrupt(path, row):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "append_row", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pack_frames(items(videos), tmp_path / "out", short=16)
    monkeypatch.undo()
    write(videos / "0.mp4", synthetic("pan", frames=3, size=(32, 40), seed=7).frames, 10)
    result = pack_frames(items(videos), tmp_path / "out", short=16)
    assert (result.frames, result.unverified) == (9, 0)
    with (tmp_path / "out" / INDEX).open("a") as file:
        file.write('{"file": "0-')
    assert pack_frames(items(videos), tmp_path / "out", short=16).frames == 0


def test_frames_of_an_older_version(videos, tmp_path, monkeypatch):
    """They were named after the path as the user passed it, and there was no index."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    relative = items(Path("videos"))
    result = pack_frames(relative, out, short=16)
    for path, item in zip(result.files, relative, strict=True):
        path.rename(out / packed.file_name(item, item.name))
    (out / INDEX).unlink()
    with pytest.raises(ValueError, match="24 requested"):
        pack_frames(relative, out, short=24)
    again = pack_frames(relative, out, short=16)
    assert (again.frames, again.unverified) == (0, 2)
    assert len(find_footage(out).items) == 2
    assert pack_frames(items(videos), out, short=16).frames == 0


@pytest.mark.parametrize("line", ["[]", '{"file": "a"}', '{"file": 1, "source": "", "identity": "", "short": 1}', "x"])
def test_an_invalid_index(videos, tmp_path, line):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / INDEX).write_text(line + "\n\n")
    with pytest.raises(ValueError, match=r"frames\.jsonl: line 1"):
        pack_frames(items(videos), tmp_path / "out", short=16)


def test_a_full_disk_stops_and_the_next_call_resumes(videos, tmp_path, monkeypatch):
    default, calls = packed.write_frames, []

    def full(path, chunks):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device", str(path))
        return default(path, chunks)

    monkeypatch.setattr(packed, "write_frames", full)
    with pytest.raises(OSError, match="No space left"):
        pack_frames(items(videos), tmp_path / "out", short=16)
    monkeypatch.undo()
    assert pack_frames(items(videos), tmp_path / "out", short=16).frames == 6


def test_an_archive_with_the_suffix_of_an_array(tmp_path):
    with (tmp_path / "a.npy").open("wb") as file:
        np.savez(file, x=np.zeros(3))
    with pytest.raises(ValueError, match="must be an array, got an archive"):
        open_frames(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "head",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (2, -4, 4, 3)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (10**9, 4, 4, 3)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (999999999999, 999999999, 4, 3)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (2, 4, 4, 3)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1, 1, 1, 3)}",
        "{'descr': 7, 'fortran_order': 'x', 'shape': 'y'}",
        "{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (2, 4, 4, 3)}",
        "[" * 500,
        "'",
        "",
    ],
)
def test_invalid_headers(tmp_path, head):
    path = tmp_path / "a.npy"
    text = (head + "\n").encode("latin1")
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(96))
    with pytest.raises(ValueError, match=r"a\.npy") as error:
        open_frames(path)
    assert "\n" not in str(error.value)


def test_index_entries(videos, tmp_path):
    result = pack_frames(items(videos), tmp_path / "out", short=16)
    entries = [json.loads(line) for line in (tmp_path / "out" / INDEX).read_text().splitlines()]
    assert {entry["file"] for entry in entries} == {path.name for path in result.files}
    assert {Path(entry["source"]) for entry in entries} == {videos / "0.mp4", videos / "1.mp4"}
    assert torch.from_numpy(np.array(open_frames(result.files[0]))).shape == (6, 16, 20, 3)
