"""Parts of files as the videos of a job: the episodes of a LeRobot dataset, and "#t=" in a list."""

from __future__ import annotations

import json
import shutil

import pytest

from fewtokens import Tokens
from fewtokens.jobs import find_sources
from fewtokens.jobs.sources import split_part
from fewtokens.tokenizers.files import read_header
from fewtokens.video import read, synthetic, write
from tests.helpers.command import run
from tests.helpers.robots import FPS, KEYS, LENGTHS, frames, write_dataset

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WORDS = ("--size", "32", "--frames", "9", "--with", "uniform(keep=1.0)", "--workers", "1", "--json")


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_episodes(tmp_path, version):
    pytest.importorskip("pyarrow")
    folder = write_dataset(tmp_path / "set", version, KEYS)
    sources = find_sources([str(folder)])
    assert len({location for _, location in sources}) == len(sources) == 6
    out = tmp_path / "out"
    result = run("tokenize", folder, *WORDS, "--out", out)
    assert json.loads(result.stdout)["videos"] == 6
    files = sorted(out.glob("*.safetensors"))
    for camera in range(2):
        name = KEYS[camera].rpartition(".")[2]
        mine = [path for path in files if name in path.name and "episode_" in path.name]
        assert len(mine) == 3
        for n, path in enumerate(mine):
            tokens = Tokens.load(path)
            assert LENGTHS[n] == tokens.grid.T
            # Patches are normalized pixels.
            gray = tokens.features[0].float().reshape(LENGTHS[n], -1).mean(1)
            shown = frames(n, camera, LENGTHS[n]).mean((1, 2, 3)) / 255
            expected = sum((shown - mean) / std for mean, std in zip(MEAN, STD, strict=True)) / 3
            assert gray.tolist() == pytest.approx(expected.tolist(), abs=0.04)  # a step is 0.14
    again = json.loads(run("tokenize", folder, *WORDS, "--out", out).stdout)
    assert (again["new"], again["videos"]) == (0, 6)


def test_a_part_in_a_list(tmp_path):
    video = write(tmp_path / "film.mp4", synthetic("shapes", frames=20, size=(32, 48)).frames, FPS)
    odd = tmp_path / "odd.mp4#t=0,1"
    shutil.copy(video, odd)
    (tmp_path / "list.txt").write_text("film.mp4#t=0.5,1.2\nfilm.mp4#t=1.8,9\nodd.mp4#t=0,1\n", encoding="utf-8")
    assert split_part(str(odd)) == (str(odd), None)
    for name in ("film.mp4#t=", "film.mp4#t=,", "film.mp4#t=a,2", "film.mp4#t=-1,2", "#t=1,2"):
        assert split_part(name) == (name, None)
    out = tmp_path / "out"
    run("tokenize", tmp_path / "list.txt", *WORDS, "--start", "0.1", "--out", out)
    times = sorted(Tokens.load(path).grid.times.flatten().tolist() for path in out.glob("*.safetensors"))
    assert len(times) == 3
    assert times[1] == pytest.approx([0.6, 0.7, 0.8, 0.9, 1.0, 1.1])
    assert times[2] == pytest.approx([1.9])
    (path,) = [path for path in out.glob("*.safetensors") if Tokens.load(path).grid.T == 1]
    assert Tokens.load(path).meta["reading"]["start"] == pytest.approx(1.9)  # what `show` reads again
    run("show", path, "--out", tmp_path / "part.png")
    (tmp_path / "open.txt").write_text("film.mp4#t=1.8\nfilm.mp4#t=,0.1\nfilm.mp4#t=1.9,\n", encoding="utf-8")
    run("tokenize", tmp_path / "open.txt", *WORDS, "--out", tmp_path / "open")
    seconds = [Tokens.load(path).grid.times.flatten().tolist() for path in (tmp_path / "open").glob("*.safetensors")]
    assert sorted(seconds) == [pytest.approx([0.0]), pytest.approx([1.8, 1.9]), pytest.approx([1.9])]
    (tmp_path / "list.txt").write_text("film.mp4#t=5,6\n", encoding="utf-8")
    result = run("tokenize", tmp_path / "list.txt", *WORDS, "--out", tmp_path / "empty", code=1)
    assert "has no frame between 5.0 s and 6.0 s" in " ".join(result.output.split())


VERBS = {
    "tokenize": ("--with", "uniform(keep=1.0)"),
    "encode": ("--tokenizer", "tubelet(8, stride=(1, 8, 8)) | fsq((4, 4)) > tubelet(stride=(1, 8, 8))"),
    "bench": ("--with", "uniform", "--keep", "0.5", "--engine", "local"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_job_reads_only_the_part(verb, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("vector_quantize_pytorch")
    write(tmp_path / "film.mp4", synthetic("shapes", frames=20, size=(32, 48)).frames, FPS)
    (tmp_path / "list.txt").write_text("film.mp4#t=0.5,1.2\n", encoding="utf-8")
    words = ("--size", "32", "--workers", "1", "--out", tmp_path / "out", *VERBS[verb])
    run(verb, tmp_path / "list.txt", *words)
    (row,) = parquet.read_table(tmp_path / "out" / "manifest.parquet").to_pylist()
    assert (row["error"], row["frames"]) == (None, 7)
    if verb == "encode":
        (path,) = (tmp_path / "out").glob("*.safetensors")
        assert read_header(path)["meta"]["reading"]["start"] == 0.5
        run("decode", path, "--compare", tmp_path / "film.mp4", "--out", tmp_path / "part.mp4")
        assert len(read(tmp_path / "part.mp4")) == 7
