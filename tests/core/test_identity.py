"""Files and listings are told apart by place, size and time."""

import os
import time
from pathlib import Path

import pytest

from fewtokens.core.identity import identity, source_of


def _file(path, content=b"abc", when=1_700_000_000_000_000_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(when, when))
    return path


def test_the_same_listing_has_the_same_identity_from_anywhere(tmp_path, monkeypatch):
    files = [_file(tmp_path / name) for name in ("a.mp4", "b c.mp4", "ü.mp4")]
    whole = identity(files, ["cat", "dog"])
    assert len(whole) == 64
    assert identity(map(str, files), ("cat", "dog")) == whole
    monkeypatch.chdir(tmp_path)
    assert identity(["a.mp4", "./b c.mp4", "x/../ü.mp4"], ["cat", "dog"]) == whole


def test_everything_that_decides_a_result_changes_the_identity(tmp_path):
    a, b = _file(tmp_path / "x/clip.mp4"), _file(tmp_path / "y/clip.mp4")
    seen = {
        identity([a]),
        identity([b]),  # another folder, the same name, bytes and time
        identity([a, b]),
        identity([b, a]),
        identity([a, a]),
        identity([a], ["cat"]),
        identity([a], ["ca", "t"]),
        identity([a], ["cat", ""]),
        identity([], [str(a)]),
        identity([tmp_path / "gone"]),
        identity(["bad\0name"]),
        identity([os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4")]),
    }
    _file(a, b"abcd")
    seen.add(identity([a]))
    _file(a, b"abc", when=1_700_000_000_000_000_001)
    seen.add(identity([a]))
    a.unlink()
    seen.add(identity([a]))
    assert len(seen) == 15


def test_a_long_listing_is_fast(tmp_path):
    files = [_file(tmp_path / "one.mp4")] * 20_000
    begin = time.process_time()
    identity(files)
    assert time.process_time() - begin < 2


def test_source_of_a_file_and_of_a_folder(tmp_path, monkeypatch):
    _file(tmp_path / "frames/1.png", b"12", when=5_000_000_000)
    _file(tmp_path / "frames/2.png", b"345", when=7_000_000_001)
    _file(tmp_path / "frames/.hidden", b"678", when=9_000_000_000)
    monkeypatch.chdir(tmp_path)
    folder = {"path": str(tmp_path / "frames"), "bytes": 5, "mtime_ns": 7_000_000_001}
    assert source_of("frames") == folder
    assert source_of(Path("frames/1.png")) == {
        "path": str(tmp_path / "frames/1.png"), "bytes": 2, "mtime_ns": 5_000_000_000
    }  # fmt: skip
    with pytest.raises(OSError, match="gone"):
        source_of("gone")
