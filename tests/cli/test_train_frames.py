"""`train frames` as a job: the files of the plain command, done once, with broken videos in a list."""

from __future__ import annotations

import json
import tarfile

import pytest

from fewtokens.cli.train.frames_job import find, location_of
from fewtokens.data.footage import Footage, find_footage
from fewtokens.video import synthetic, write
from tests.cli.test_command import error_line, quick


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames") / "videos"
    for number in range(3):
        write(folder / f"{number}.mp4", synthetic("pan", frames=6, size=(32, 40), seed=number).frames, 10)
    return folder


def arrays(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.npy")}


def test_files_resumption_and_broken_videos(videos, tmp_path):
    source, plain, out = tmp_path / "in", tmp_path / "plain", tmp_path / "out"
    source.mkdir()
    for path in videos.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    (source / "1.mp4").write_text("no video", encoding="utf-8")
    quick("train", "frames", source, "--size", 16, "--out", plain)
    job = ("train", "frames", source, "--size", 16, "--engine", "local", "--workers", 1, "--per-shard", 2, "--out", out)
    report = json.loads(quick(*job, "--json", code=1).stdout)
    assert (report["videos"], report["new"], report["shards"], report["frames"]) == (2, 3, 2, 12)
    assert [failure["video"] for failure in report["failed"]] == [str(source / "1.mp4")]
    assert arrays(out) == arrays(plain) and len(arrays(out)) == 2
    assert len(find_footage(out).items) == 2  # what training reads
    (source / "1.mp4").write_bytes((videos / "1.mp4").read_bytes())
    assert json.loads(quick(*job, "--json", code=1).stdout)["new"] == 0
    done = quick(*job, "--retry")
    assert "3 videos in 3 shards (frames), 18 frames; 1 new" in " ".join(done.stderr.split())
    quick("train", "frames", source, "--size", 16, "--out", plain)
    assert arrays(out) == arrays(plain) and len(arrays(out)) == 3
    (out / "manifest/000001.jsonl").unlink()  # as if the job had been killed in this shard
    assert json.loads(quick(*job, "--json").stdout)["new"] == 1
    assert arrays(out) == arrays(plain)


def test_folders_of_the_other_kind_and_of_other_settings_are_refused(videos, tmp_path):
    plain, out = tmp_path / "plain", tmp_path / "out"
    pattern = ("train", "frames", videos / "[01].mp4", "--engine", "local", "--workers", 1)
    assert json.loads(quick(*pattern, "--size", 16, "--out", out, "--json").stdout)["videos"] == 2
    assert "other settings: short (16, now 24)" in error_line(quick(*pattern, "--size", 24, "--out", out, code=2))
    words = ("train", "frames", videos, "--size", 16)
    assert "holds a job; give --engine" in error_line(quick(*words, "--out", out, code=2))
    quick(*words, "--out", plain)
    line = error_line(quick(*words, "--engine", "local", "--out", plain, code=2))
    assert "decoded without --engine" in line
    assert "no such file or folder" in error_line(quick("train", "frames", videos / "[01].mp4", "--out", out, code=2))


def test_a_location_names_the_same_video(videos, tmp_path):
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(videos / "0.mp4", "a/clip.mp4")
    odd = tmp_path / "a#t=1,2::b.mp4"
    odd.write_bytes(b"")
    clip = str(videos / "1.mp4")
    parts = [Footage(clip, 1 / 3, 2.5), Footage(clip, None, 1e-7), Footage(clip, 0.0), Footage(str(odd), 1.0, 2.0)]
    for item in [Footage(clip), Footage(str(odd)), *find_footage(tmp_path / "shard.tar").items, *parts]:
        assert find(location_of(item)) == item
    for missing in (str(tmp_path / "shard.tar::none.mp4"), f"{clip}x#t=1,2", "none::a.mp4"):
        with pytest.raises(ValueError, match="no such file"):
            find(missing)
