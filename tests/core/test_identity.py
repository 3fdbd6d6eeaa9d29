"""Files and listings are identified by path, size and modification time."""

import os
import time
from pathlib import Path

import pytest

from fewtokens.core.identity import describe_source, identity


def _write(path, content=b"abc", mtime_ns=1_700_000_000_000_000_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


def test_the_identity_does_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    files = [_write(tmp_path / name) for name in ("a.mp4", "b c.mp4", "ü.mp4")]
    expected = identity(files, ["cat", "dog"])
    assert len(expected) == 64
    assert identity(map(str, files), ("cat", "dog")) == expected
    monkeypatch.chdir(tmp_path)
    assert identity(["a.mp4", "./b c.mp4", "x/../ü.mp4"], ["cat", "dog"]) == expected


def test_any_change_of_the_inputs_changes_the_identity(tmp_path):
    a, b = _write(tmp_path / "x/clip.mp4"), _write(tmp_path / "y/clip.mp4")
    identities = {
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
    _write(a, b"abcd")
    identities.add(identity([a]))
    _write(a, b"abc", mtime_ns=1_700_000_000_000_000_001)
    identities.add(identity([a]))
    a.unlink()
    identities.add(identity([a]))
    assert len(identities) == 15


def test_a_long_listing_is_fast(tmp_path):
    files = [_write(tmp_path / "one.mp4")] * 20_000
    start = time.process_time()
    identity(files)
    assert time.process_time() - start < 2


def test_source_of_a_file_and_of_a_folder(tmp_path, monkeypatch):
    _write(tmp_path / "frames/1.png", b"12", mtime_ns=5_000_000_000)
    _write(tmp_path / "frames/2.png", b"345", mtime_ns=7_000_000_001)
    _write(tmp_path / "frames/.hidden", b"678", mtime_ns=9_000_000_000)
    monkeypatch.chdir(tmp_path)
    folder = {"path": str(tmp_path / "frames"), "bytes": 5, "mtime_ns": 7_000_000_001}
    assert describe_source("frames") == folder
    assert describe_source(Path("frames/1.png")) == {
        "path": str(tmp_path / "frames/1.png"), "bytes": 2, "mtime_ns": 5_000_000_000
    }  # fmt: skip
    with pytest.raises(OSError, match="gone"):
        describe_source("gone")
