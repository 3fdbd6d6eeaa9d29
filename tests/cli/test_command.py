"""The command as a user runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from fewtokens import Tokens
from fewtokens.cli import VERBS, app, doctor
from fewtokens.core import registry
from fewtokens.core.grid import Grid
from fewtokens.core.memory import Memory
from fewtokens.video import synthetic, write
from tests.helpers.clips import assert_same_tokens
from tests.helpers.data import data_path
from tests.video.makers import make_audio_only, make_video, moving_frames

COMMAND = Path(sys.executable).with_name("fewtokens")


def run(*words: object, code: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs `fewtokens ...` and checks the exit code; never a traceback."""
    done = subprocess.run([str(COMMAND), *map(str, words)], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def quick(*words: object, code: int = 0) -> Result:
    """The same in this process, where the packages are already imported."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, f"exit {done.exit_code}\n{done.output}"
    return done


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    video = synthetic("static", frames=20, size=(64, 96))
    return write(tmp_path_factory.mktemp("clips") / "clip.mp4", video.frames, 10)


def error_line(done: subprocess.CompletedProcess[str] | Result) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_help_has_two_examples_for_each_verb():
    listing = run("--help").stdout
    for verb in VERBS:
        assert verb in listing
        text = run(verb, "--help").stdout
        assert text.count(f"fewtokens {verb}") >= 2, verb


def test_version():
    assert run("--version").stdout.startswith("fewtokens 0.")


def test_demo(tmp_path):
    done = run("demo", "--out", tmp_path / "d", "--frames", 4, "--size", 64, "--keep", 0.3)
    for name in (
        "random",
        "uniform",
        "fewer_frames",
        "downsample",
        "mean_pool",
        "evs",
        "tome",
        "kmeans",
        "dpc_knn",
        "rlt",
    ):
        assert name in done.stdout
    assert "PSNR" in done.stdout
    assert "Now try" in done.stdout
    assert {p.name for p in (tmp_path / "d").iterdir()} == {"index.html", "static.png", "pan.png"}


def test_demo_runs_every_method_that_needs_only_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr("fewtokens.show.draw_sheet", lambda *args, **options: None)
    done = quick("demo", "--out", tmp_path, "--frames", 8, "--size", 64, "--json")
    kinds = {name: registry.get(name) for name in registry.names()}
    expected = {
        name
        for name, kind in kinds.items()
        if kind.stage in ("pixels", "tokens")
        and not kind.learned
        and not issubclass(kind, Memory)
        and set(registry.create_method(name).needs) <= {"pixels"}
    }
    assert {"grt", "visual_words", "dycoke", "grid_split"} <= expected
    for clip in json.loads(done.stdout)["clips"]:
        assert {row["method"] for row in clip["rows"]} == expected


def test_demo_json(tmp_path, monkeypatch):
    monkeypatch.setattr("fewtokens.show.draw_sheet", lambda *args, **options: None)
    done = quick("demo", "--out", tmp_path, "--frames", 3, "--size", 48, "--json")
    report = json.loads(done.stdout)
    assert len(report["clips"]) == 2
    rows = report["clips"][0]["rows"]
    assert {"random", "tome", "kmeans"} <= {row["method"] for row in rows}
    for row in rows:
        planned = registry.build(row["spec"])[0].planned_count(Grid(3, 3, 3))
        assert planned is None or row["tokens"] == planned


def test_a_perfect_copy_is_still_json(tmp_path, monkeypatch):
    monkeypatch.setattr("fewtokens.show.draw_sheet", lambda *args, **options: None)
    done = quick("demo", "--out", tmp_path, "--frames", 2, "--size", 32, "--keep", "1.0", "--json")
    report = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert report["clips"][0]["rows"][0]["psnr_db"] is None


def test_methods():
    rows = json.loads(quick("methods", "--json").stdout)
    by_name = {row["name"]: row for row in rows}
    assert by_name["rlt"]["stage"] == "pixels"
    assert by_name["rlt"]["budget"] == "threshold, or exact above a minimum"
    assert by_name["evs"]["budget"].endswith("exact above a minimum")
    assert by_name["rlt"]["streaming"] == "yes"
    assert by_name["tome"]["budget"] == "exact"
    assert "kmeans" in quick("methods").stdout
    text = quick("methods", "tome").stdout
    assert "arXiv 2210.09461" in text
    assert "CC BY-NC" in text
    assert "did you mean tome" in error_line(quick("methods", "tomee", code=2))
    assert error_line(quick("methods", "nope", code=2)).endswith(
        "no method called 'nope'; run 'fewtokens methods' to list all"
    )
    layers = json.loads(quick("methods", "--stage", "llm", "--json").stdout)
    assert {row["stage"] for row in layers} == {"llm"} and "fastv" in {row["name"] for row in layers}
    assert "tome_in_encoder" not in quick("methods", "--stage", "tokens").stdout
    assert "--stage must be one of" in error_line(quick("methods", "--stage", "nope", code=2))
    assert "not both" in error_line(quick("methods", "tome", "--stage", "llm", code=2))


def test_a_budget_below_the_minimum_is_noted(clip, tmp_path):
    words = ("--with", "evs", "--frames", 4, "--size", 64)
    done = quick("tokenize", clip, *words, "--keep", 0.1, "--out", tmp_path / "a.safetensors")
    # 8 x 4 x 6 patches; evs always keeps a full frame.
    assert "note: evs kept 24 tokens, more than the budget of 9: its minimum" in done.stderr.replace("\n", " ")
    done = quick("tokenize", clip, *words, "--keep", 0.5, "--out", tmp_path / "b.safetensors")
    assert "minimum" not in done.stderr


def test_doctor():
    report = json.loads(run("doctor", "--json").stdout)
    assert report["missing"] == []
    assert report["packages"]["torch"]["version"]
    # The smaller of the extras that list a package.
    assert report["packages"]["huggingface-hub"]["extra"] == "hf" and "mkdocs" not in report["packages"]
    assert report["decoders"]["h264"]
    assert "pip install" in run("doctor").stdout or "All packages are installed" in run("doctor").stdout


def test_doctor_names_the_command_for_each_package(monkeypatch):
    installed = {"transformers": "5.3.0", "huggingface-hub": "1.2.0", "av": None, "matplotlib": None, "peft": None}
    known = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: installed.get(name, known(name)))
    packages = doctor.examine()["packages"]
    # New enough for encoders, too old for video language models.
    assert packages["transformers"]["problem"] == "must be <5.25,>=5.0,>=5.19: pip install 'fewtokens[llm]'"
    assert packages["huggingface-hub"]["problem"] is None and "llm" in packages["huggingface-hub"]["extras"]
    assert packages["matplotlib"]["problem"] == "missing: pip install 'fewtokens[show]'"
    assert packages["peft"]["problem"] == "missing: pip install 'fewtokens[lora]'"
    assert doctor.examine()["missing"] == ["av"]


class TestTokenize:
    def test_one_video(self, clip, tmp_path):
        out = tmp_path / "a.safetensors"
        done = run("tokenize", clip, "--with", "tome(keep=0.1)", "--frames", 8, "--size", 64, "--out", out)
        assert "tokens of 192 cells" in done.stderr
        tokens = Tokens.load(out)
        assert tokens.count.tolist() == [19]
        assert tokens.meta["spec"].startswith("tome(keep=0.1")
        assert tokens.meta["encoder"]["id"] == "patches"
        assert tokens.meta["source"]["bytes"] == clip.stat().st_size
        assert tokens.meta["reading"]["frames"] == 8
        assert len(tokens.grid.times) == 8
        before = out.read_bytes()
        again = ("tokenize", clip, "--with", "tome(keep=0.1)", "--frames", 8, "--size", 64, "--out", out)
        assert "skipped" in quick(*again).stderr
        assert out.read_bytes() == before
        other = ("tokenize", clip, "--with", "tome(keep=0.2)", "--frames", 8, "--size", 64, "--out", out)
        assert "other settings" in error_line(quick(*other, code=2))
        quick(*other, "--overwrite")
        assert Tokens.load(out).count.tolist() == [38]

    def test_a_broken_video_does_not_stop_the_others(self, clip, tmp_path):
        bad = tmp_path / "bad.mp4"
        bad.write_text("no video")
        done = quick("tokenize", bad, clip, "--with", "kmeans", "--keep", 5, "--out", tmp_path / "o", "--json", code=1)
        report = json.loads(done.stdout)
        assert [row["tokens"] for row in report["done"]] == [5]
        listed = [json.loads(line) for line in (tmp_path / "o" / "failed.jsonl").read_text().splitlines()]
        assert listed == report["failed"]
        assert listed[0]["video"] == str(bad)
        bad.unlink()
        make_video(bad, moving_frames(6))
        quick("tokenize", bad, clip, "--with", "kmeans", "--keep", 5, "--out", tmp_path / "o")
        assert not (tmp_path / "o" / "failed.jsonl").exists()
        assert {p.name for p in (tmp_path / "o").iterdir()} == {"bad.safetensors", "clip.safetensors"}

    def test_many_videos_are_reported_in_order(self, clip, tmp_path):
        paths = [tmp_path / f"{number}.mp4" for number in range(7)]
        for number, path in enumerate(paths):
            if number in (2, 3):
                path.write_text("no video")
            else:
                make_video(path, moving_frames(4 + number))
        words = ("tokenize", *paths, "--with", "evs(keep=0.5)", "--size", 32, "--out", tmp_path / "o", "--json")
        report = json.loads(quick(*words, code=1).stdout)
        assert [Path(row["video"]).stem for row in report["done"]] == ["0", "1", "4", "5", "6"]
        assert [row["frames"] for row in report["done"]] == [4, 5, 8, 9, 10]
        assert [Path(row["video"]).stem for row in report["failed"]] == ["2", "3"]
        alone = tmp_path / "alone.safetensors"
        quick("tokenize", paths[5], *words[8:12], "--out", alone)
        assert torch.equal(Tokens.load(alone).features, Tokens.load(tmp_path / "o" / "5.safetensors").features)
        assert all(row["skipped"] for row in json.loads(quick(*words, code=1).stdout)["done"])

    def test_equal_names_from_two_folders(self, clip, tmp_path):
        for folder in ("x", "y"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "v.mp4").write_bytes(clip.read_bytes())
        run("tokenize", "x/v.mp4", "y/v.mp4", "--out", "o", cwd=tmp_path)
        assert {p.name for p in (tmp_path / "o").iterdir()} == {"x_v.mp4.safetensors", "y_v.mp4.safetensors"}

    def test_two_inputs_never_share_a_name(self, clip, tmp_path, monkeypatch):
        inputs = ["a_b/c.mp4", "a/b_c.mp4", "x/c.mp4", "x/b_c.mp4", "x/C.mp4", "../w/x/c.mp4", f"{'n' * 240}.mp4"]
        for name in inputs:
            (tmp_path / "w" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "w" / name).write_bytes(clip.read_bytes())
        monkeypatch.chdir(tmp_path / "w")
        words = ("--frames", 2, "--size", 32, "--json", "--out", "o")
        done = quick("tokenize", *inputs, *words)
        rows = json.loads(done.stdout)["done"]
        assert len(rows) == 6  # ../w/x/c.mp4 is x/c.mp4
        written = {p.name.casefold() for p in (tmp_path / "w" / "o").iterdir()}
        assert len(written) == 6
        for row in rows:
            source = Tokens.load(tmp_path / "w" / row["out"]).meta["source"]
            assert source["path"] == str(tmp_path / "w" / row["video"])
        again = json.loads(quick("tokenize", *inputs, *words).stdout)["done"]
        assert all(row["skipped"] for row in again)
        streams = ("--fps", 5, "--size", 32, "--json", "--out", "s", "--chunked", "--with", "rlt")
        rows = json.loads(quick("tokenize", *inputs, *streams).stdout)["done"]
        assert len({row["out"].casefold() for row in rows}) == 6

    @pytest.mark.parametrize("mode", ["file", "folder", "stream"])
    def test_existing_results_are_identified_by_their_source(self, clip, tmp_path, mode):
        for folder, kind in (("a", "static"), ("b", "pan")):
            write(tmp_path / folder / "clip.mp4", synthetic(kind, frames=6, size=(32, 32)).frames, 10)
        out = tmp_path / ("o.safetensors" if mode == "file" else "o")
        words = ("--size", 32, "--with", "rlt", "--out", out, *(["--chunked"] if mode == "stream" else []))
        quick("tokenize", tmp_path / "a" / "clip.mp4", *words)
        assert "skipped" in quick("tokenize", tmp_path / "a" / "clip.mp4", *words).stderr
        line = error_line(quick("tokenize", tmp_path / "b" / "clip.mp4", *words, code=2))
        assert str(tmp_path / "a" / "clip.mp4") in line
        assert str(tmp_path / "b" / "clip.mp4") in line
        assert "--overwrite" in line
        # The same path, other content.
        write(tmp_path / "a" / "clip.mp4", synthetic("pan", frames=6, size=(32, 32)).frames, 10)
        line = error_line(quick("tokenize", tmp_path / "a" / "clip.mp4", *words, code=2))
        assert "has changed" in line
        assert "--overwrite" in line
        quick("tokenize", tmp_path / "a" / "clip.mp4", *words, "--overwrite")
        # Another path, and no file at the old one: moved.
        (tmp_path / "a").rename(tmp_path / "c")
        assert "skipped" in quick("tokenize", tmp_path / "c" / "clip.mp4", *words).stderr

    def test_results_of_other_settings_or_an_earlier_version_are_rejected_in_one_line(self, clip, tmp_path):
        out = tmp_path / "a.safetensors"
        words = ("tokenize", clip, "--frames", 2, "--size", 32, "--out", out)
        quick(*words)
        other = error_line(quick("tokenize", clip, "--frames", 3, "--size", 32, "--out", out, code=2))
        assert "made with other settings: frames (2, now 3); give --overwrite" in other
        tokens = Tokens.load(out)
        before = {"path": "clip.mp4", "name": "clip", "bytes": clip.stat().st_size}
        tokens.replace(meta={**tokens.meta, "source": before}).save(out)
        assert "does not specify its source file" in error_line(quick(*words, code=2))

    def test_a_damaged_result_is_written_again_and_a_foreign_file_is_kept(self, clip, tmp_path):
        words = ("tokenize", clip, "--frames", 2, "--size", 32, "--with", "rlt", "--out", tmp_path / "o")
        out = tmp_path / "o" / "clip.safetensors"
        quick(*words)
        whole = out.read_bytes()
        for damaged in (whole[: len(whole) // 2], b"", whole.replace(b"shape", b"shapf")):
            out.write_bytes(damaged)
            lines = quick(*words).stderr.splitlines()
            assert len([line for line in lines if "writing it again" in line]) == 1
            assert Tokens.load(out).grid.T == 2
        save_file({"w": torch.zeros(3)}, out)  # somebody's weights
        foreign = out.read_bytes()
        assert "not written by fewtokens" in error_line(quick(*words, code=2))
        assert out.read_bytes() == foreign

    def test_a_damaged_stream_is_written_again(self, clip, tmp_path):
        words = ("tokenize", "--chunked", clip, "--size", 32, "--with", "rlt", "--chunk", 8, "--out", tmp_path / "o")
        folder = tmp_path / "o" / "clip"
        quick(*words)
        chunk = folder / "000001.safetensors"
        whole, before = chunk.read_bytes(), Tokens.load(chunk)
        for damage in (
            lambda: chunk.write_bytes(whole[:200]),
            chunk.unlink,
            lambda: (folder / "stream.json").write_text("{"),
            lambda: (folder / "stream.json").write_text('{"spec": 3}'),
        ):
            damage()
            assert "writing it again" in quick(*words).stderr
            assert_same_tokens(Tokens.load(chunk), before)
        # Tokens of a video named 000001.mp4 are not a chunk of an earlier run.
        quick("tokenize", clip, "--frames", 2, "--size", 32, "--out", chunk, "--overwrite")
        (folder / "stream.json").unlink()
        assert "whole video" in error_line(quick(*words, code=2))

    def test_names_that_are_not_utf_8(self, clip, tmp_path):
        video = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4"))
        video.write_bytes(clip.read_bytes())
        bad = Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.mp4"))
        bad.write_bytes(b"nothing")
        words = ("--frames", 2, "--size", 32, "--out", tmp_path / "o", "--json")
        report = json.loads(quick("tokenize", video, bad, *words, code=1).stdout)
        assert [row["video"] for row in report["done"]] == [str(video)]
        assert Tokens.load(report["done"][0]["out"]).meta["source"]["path"] == str(video)
        (line,) = (tmp_path / "o" / "failed.jsonl").read_text(encoding="utf-8").splitlines()
        assert json.loads(line)["video"] == str(bad)
        quick("show", report["done"][0]["out"], "--out", tmp_path / "a.png")
        assert "skipped" in quick("tokenize", video, *words[:-1]).stderr

    def test_partial_files_of_a_killed_run_are_removed(self, clip, tmp_path):
        words = ("tokenize", clip, "--frames", 2, "--size", 32, "--out", tmp_path / "o")
        quick(*words)
        partial = tmp_path / "o" / ".fewtokens-x.partial"
        partial.mkdir()
        (partial / "file").write_bytes(b"half")
        assert "skipped" in quick(*words).stderr
        assert [p.name for p in (tmp_path / "o").iterdir()] == ["clip.safetensors"]

    def test_a_truncated_file(self, tmp_path):
        path = make_video(tmp_path / "a.mp4", moving_frames(60), container={"movflags": "faststart"})
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
        out = tmp_path / "a.safetensors"
        assert "--allow-truncated" in error_line(quick("tokenize", path, "--out", out, code=2))
        quick("tokenize", path, "--allow-truncated", "--frames", 4, "--out", out)
        assert Tokens.load(out).grid.T == 4

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["missing.mp4"], "no such file"),
            (["empty.mp4"], "empty"),
            (["text.mp4"], "cannot be opened as a video"),
            (["sound.mp4"], "only audio"),
            (["clip.mp4", "--with", "nothing"], "no method called"),
            (["clip.mp4", "--with", "tome("], "cannot read the spec"),
            (["clip.mp4", "--with", "tome(keep=0)"], "keep must be"),
            (["clip.mp4", "--keep", "0"], "keep must be"),
            (["clip.mp4", "--keep", "-3"], "keep must be"),
            (["clip.mp4", "--keep", "a lot"], "--keep must be"),
            (["clip.mp4", "--with", "rlt(0.1)", "--keep", "0.5"], "--keep has no effect"),
            (["clip.mp4", "--frames", "0"], "invalid value for '--frames'"),
            (["clip.mp4", "--frames", "4", "--fps", "2"], "not both"),
            (["clip.mp4", "--size", "0"], "invalid value for '--size'"),
            (["clip.mp4", "--encoder", "nowhere/at/all"], "no such folder"),
            (["clip.mp4", "--device", "tpu"], "device must be"),
            (["clip.mp4", "--dtype", "int4"], "dtype must be"),
            (["clip.mp4", "--with", "tome_in_encoder(r=4)"], "does not support"),
            (["clip.mp4", "clip2.mp4"], "cannot go into one file"),
        ],
    )
    def test_bad_input_is_one_line_and_exit_code_2(self, clip, tmp_path, words, message):
        (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
        (tmp_path / "empty.mp4").write_bytes(b"")
        (tmp_path / "text.mp4").write_text("hello")
        if "sound.mp4" in words:
            make_audio_only(tmp_path / "sound.mp4")
        done = run("tokenize", *words, "--out", "o.safetensors", code=2, cwd=tmp_path)
        assert message in error_line(done)
        assert not (tmp_path / "o.safetensors").exists()

    def test_a_broken_checkpoint(self, clip, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
        (tmp_path / "model.safetensors").write_bytes(b"not weights")
        done = quick("tokenize", clip, "--encoder", tmp_path, "--out", tmp_path / "o.safetensors", code=2)
        assert "not a readable safetensors file" in error_line(done)

    def test_real_features(self, tmp_path):
        weights, video = data_path("weights", "dinov2-small"), data_path("clips", "mmaction_demo.mp4")
        out = tmp_path / "a.safetensors"
        words = ("--with", "tome_in_encoder(r=8) | kmeans(keep=32)", "--frames", 4, "--size", 112)
        quick("tokenize", video, "--encoder", weights, *words, "--out", out)
        tokens = Tokens.load(out)
        assert tokens.features.shape == (1, 32, 384)
        assert len(tokens.meta["encoder"]["fingerprint"]) == 64
        quick("show", out, "--out", tmp_path / "a.html")


class TestShow:
    def test_files_and_videos(self, clip, tmp_path):
        out = tmp_path / "a.safetensors"
        quick("tokenize", clip, "--with", "rlt", "--frames", 6, "--size", 64, "--out", out)
        for suffix in ("png", "html", "mp4"):
            quick("show", out, "--out", tmp_path / f"a.{suffix}")
            assert (tmp_path / f"a.{suffix}").stat().st_size > 1000
        quick("show", clip, out, "--with", "evs(keep=0.3)", "--frames", 4, "--out", tmp_path / "both.html")
        assert "must end in .html" in error_line(quick("show", clip, out, "--out", tmp_path / "b.png", code=2))

    def test_bad_input(self, clip, tmp_path):
        out = tmp_path / "a.safetensors"
        (tmp_path / "v.mp4").write_bytes(clip.read_bytes())
        quick("tokenize", tmp_path / "v.mp4", "--frames", 4, "--out", out)
        (tmp_path / "v.mp4").rename(tmp_path / "w.mp4")
        assert "--video" in error_line(quick("show", out, "--out", tmp_path / "a.png", code=2))
        quick("show", out, "--video", tmp_path / "w.mp4", "--out", tmp_path / "a.png")
        assert "suffix must be one of" in error_line(quick("show", out, "--out", tmp_path / "a.bmp", code=2))
        assert "style" in error_line(quick("show", out, "--style", "neon", "--out", tmp_path / "a.png", code=2))
        out.write_bytes(out.read_bytes()[:100])
        assert "cut short" in error_line(quick("show", out, "--out", tmp_path / "b.png", code=2))
        Tokens.from_cells(torch.zeros(1, 1, 2, 2, 3)).save(out)
        assert "was saved from Python without the path of its video" in error_line(
            quick("show", out, "--out", tmp_path / "b.png", code=2)
        )


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit of file sizes")
@pytest.mark.parametrize(
    "words",
    [
        ["tokenize", "CLIP", "--out", "o.safetensors"],
        ["tokenize", "--chunked", "CLIP", "--with", "rlt", "--out", "o"],
        ["show", "CLIP", "--out", "o.png"],
        ["show", "CLIP", "--out", "o.html"],
        ["words", "CLIP", "--words", "30", "--out", "o.safetensors"],
        ["bench", "CLIP", "--with", "uniform", "--keep", "0.5", "--repeats", "1", "--out", "o"],
    ],
)
def test_a_full_disk_is_one_line(clip, tmp_path, monkeypatch, words):
    """A limit on file sizes simulates a full disk: both make the write fail."""
    resource = pytest.importorskip("resource")
    monkeypatch.chdir(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        done = quick(*(clip if word == "CLIP" else word for word in words), code=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert "too large" in done.stderr.splitlines()[-1].lower()
    assert "Traceback" not in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".partial")]


def test_completion_is_offered_only_at_the_root():
    assert "--show-completion" in quick("--help").stdout
    assert "completion" not in quick("tokenize", "--help").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["tokenize", "CLIP", "--chunk", "8", "--events", "0.2", "--out", "o"],
            "--chunk and --events require --chunked",
        ),
        (["show", "o.safetensors", "--with", "tome", "--keep", "3", "--out", "a.png"], "--with and --keep"),
        (["tokenize", "CLIP", "--chunk", "8", "--out", "o"], "--chunk requires --chunked"),
        (["tokenize", "CLIP", "--batch", "8", "--out", "o"], "--batch has no effect with --encoder patches"),
        (["train", "tobo", "CLIP", "--device", "tpu", "--out", "o"], "--device must be auto or cpu"),
        (["show", "CLIP", "--video", "CLIP", "--out", "a.png"], "--video"),
        (["show", "CLIP", "--style", "mean", "--out", "a.html"], "--style"),
        (["show", "CLIP", "--out", "CLIP"], "would be overwritten"),
        (["cost", "vit_s16", "--grid", "1x2x2", "--accuracy", "5"], "--grid and --accuracy"),
        (["cost", "--with", "uniform", "--size", "32"], "--size"),
        (["cost", "vit_s16", "--repeats", "3"], "--time"),
        (["bench", "a.json", "b.json", "--compare", "--keep", "0.1"], "--keep"),
        (["bench", "CLIP", "--davis-size", "96", "--out", "o"], "--davis-size"),
        (["eval", "classify", "m", "--data", "d", "--shots", "3"], "--shots"),
        (["eval", "knn", "--data", "d", "--average", "logits"], "--average"),
        (["eval", "knn", "--data", "d", "--val", "d", "--val-share", "0.5"], "--val-share"),
        (["eval", "bc", "--task", "metaworld/hammer", "--write-demos", "o", "--seeds", "2"], "--seeds"),
        (["eval", "bc", "--data", "d", "--fresh"], "--fresh"),
    ],
)
def test_options_without_effect_are_rejected(clip, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in error_line(quick(*(clip if word == "CLIP" else word for word in words), code=2))
    assert not any(tmp_path.iterdir())


class TestTokensFromPython:
    def test_tokens_know_their_video(self, clip, tmp_path):
        import fewtokens

        out = tmp_path / "a.safetensors"
        tokens = fewtokens.tokenize(clip, "tome(keep=0.2)", frames=4, size=32)
        tokens.save(out)
        words = ("tokenize", clip, "--with", "tome(keep=0.2)", "--frames", 4, "--size", 32)
        quick("show", out, "--out", tmp_path / "a.png")
        assert "skipped" in quick(*words, "--out", out).stderr
        quick(*words, "--out", tmp_path / "b.safetensors")
        written = Tokens.load(tmp_path / "b.safetensors").meta
        assert {name: tokens.meta[name] for name in ("source", "reading", "spec", "seed")} == {
            name: written[name] for name in ("source", "reading", "spec", "seed")
        }
        # Without --frames the command reads 16, which Python records.
        fewtokens.tokenize(clip, "tome(keep=0.2)", size=32).save(tmp_path / "c.safetensors")
        assert "skipped" in quick(*words[:4], "--size", 32, "--out", tmp_path / "c.safetensors").stderr

    @pytest.mark.parametrize("size", [None, 32, (24, 40)])
    def test_a_video_that_was_read_knows_its_reading(self, clip, tmp_path, size):
        import fewtokens

        video = fewtokens.read(clip, size=size, start=0.1)
        pipeline = fewtokens.Pipeline("uniform(keep=0.5)", fewtokens.load_encoder("patches"))
        pipeline(video).save(tmp_path / "a.safetensors")
        quick("show", tmp_path / "a.safetensors", "--out", tmp_path / "a.html")
        again = fewtokens.read(clip, **video.reading)
        assert torch.equal(again.frames, video.frames)
        assert fewtokens.read(clip, pick=lambda times: [0]).reading is None

    def test_without_a_path(self, clip, tmp_path):
        import fewtokens

        out = tmp_path / "a.safetensors"
        video = fewtokens.read(clip, frames=4, size=32)
        tokens = fewtokens.tokenize(video.frames, "tome(keep=0.2)")
        assert "source" not in tokens.meta
        tokens.save(out)
        line = error_line(quick("show", out, "--out", tmp_path / "a.png", code=2))
        assert "saved from Python without the path of its video; give --video PATH" in line
        quick("show", out, "--video", clip, "--size", 32, "--out", tmp_path / "a.png")
        line = error_line(quick("tokenize", clip, "--out", out, code=2))
        assert "exists and was not written for this video; give --overwrite, or another --out" in line


class TestComparison:
    def test_specs_side_by_side(self, clip, tmp_path):
        words = ("show", clip, "--frames", 4, "--size", 32, "--with", "tome(keep=0.2)", "--with", "evs(keep=0.3)")
        quick(*words, "--out", tmp_path / "a.png")
        quick(*words, "--out", tmp_path / "a.html")
        page = (tmp_path / "a.html").read_text()
        (data,) = json.loads(re.search(r'type="application/json">(.*?)</script>', page, re.S).group(1))
        assert [result["name"] for result in data["results"]] == ["tome(keep=0.2)", "evs(keep=0.3)"]
        assert all(result["frames"] and "PSNR dB" in result["numbers"] for result in data["results"])
        assert "<title>clip.mp4: 4 frames, 24 cells</title>" in page
        quick(*words, "--out", tmp_path / "a.gif")
        with Image.open(tmp_path / "a.gif") as picture:
            assert picture.n_frames == 4

    def test_token_files(self, clip, tmp_path):
        for name, spec in (("a", "tome(keep=0.2)"), ("b", "tome(keep=0.3)"), ("c", "tome(keep=0.2)")):
            out = tmp_path / f"{name}.safetensors"
            quick("tokenize", clip, "--frames", 4, "--size", 32, "--with", spec, "--out", out)

        def names(*files: str) -> list[str]:
            quick("show", *(tmp_path / f"{name}.safetensors" for name in files), "--out", tmp_path / "o.html")
            text = (tmp_path / "o.html").read_text()
            (data,) = json.loads(re.search(r'type="application/json">(.*?)</script>', text, re.S).group(1))
            return [result["name"] for result in data["results"]]

        assert names("a", "b") == ["tome(keep=0.2)", "tome(keep=0.3)"]
        assert names("a", "b", "c") == ["a", "b", "c"]
        quick("show", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--out", tmp_path / "o.png")
        quick("tokenize", clip, "--frames", 3, "--size", 32, "--out", tmp_path / "d.safetensors")
        files = (tmp_path / "a.safetensors", tmp_path / "d.safetensors")
        assert "different videos or frames" in error_line(quick("show", *files, "--out", tmp_path / "p.png", code=2))

    def test_from_python(self, clip, tmp_path):
        import fewtokens.show

        tokens = fewtokens.tokenize(clip, "tome(keep=0.2)", frames=4, size=32)
        for suffix in ("png", "html", "gif"):
            assert fewtokens.show.draw(tokens, tmp_path / f"a.{suffix}").stat().st_size > 500
        fewtokens.show.compare(clip, ["tome(keep=0.2)", "rlt"], tmp_path / "b.png", frames=4, size=32)
        frames = fewtokens.read(clip, frames=4, size=32).frames
        fewtokens.show.compare(frames, ["tome(keep=0.2)"], tmp_path / "c.png")
        with pytest.raises(ValueError, match="pass their video"):
            fewtokens.show.draw(fewtokens.tokenize(frames, "tome"), tmp_path / "d.png")
        with pytest.raises(ValueError, match="at most 5 results, got 6"):
            fewtokens.show.compare(frames, ["tome"] * 6, tmp_path / "d.png")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "CLIP", "--frames", "2", "--frames", "3", "--out", "a.png"], "--frames is given 2 times"),
        (["tokenize", "CLIP", "--with", "tome", "--with", "evs", "--out", "o"], "--with is given 2 times"),
        (["tokenize", "CLIP", "--out", "a.pt"], "--out must be a .safetensors file or a folder, got a.pt"),
        (["bench", "CLIP", "--out", "a.json"], "--out must be a folder, got a.json"),
    ],
)
def test_options_given_twice_and_suffixes_of_files(clip, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in error_line(quick(*(clip if word == "CLIP" else word for word in words), code=2))
    assert not any(tmp_path.iterdir())
