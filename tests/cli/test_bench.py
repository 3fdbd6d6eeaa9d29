"""`fewtokens bench` and `tokenize --chunked` as a user runs them."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fewtokens import Tokens
from fewtokens.cli import app
from fewtokens.core import registry
from fewtokens.core.streaming import load
from fewtokens.video import synthetic, write
from tests.cli.test_command import error_line
from tests.cli.test_command import quick as run


def refused(*words: str) -> str:
    """Returns the one-line error of a command that exits with 2; runs in this process, which is faster."""
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2, done.output
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    return line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two videos, and a DAVIS folder with one sequence of a moving square."""
    root = tmp_path_factory.mktemp("bench")
    for kind in ("static", "pan"):
        write(root / "videos" / f"{kind}.mp4", synthetic(kind, frames=12, size=(64, 96)).frames, 10)
    for part in ("JPEGImages", "Annotations"):
        (root / "DAVIS" / part / "480p" / "square").mkdir(parents=True)
    for n in range(6):
        mask = np.zeros((96, 128), dtype=np.uint8)
        mask[16:80, 16 + 8 * n : 80 + 8 * n] = 255
        Image.fromarray(mask).save(root / "DAVIS" / "Annotations" / "480p" / "square" / f"{n:05}.png")
        Image.fromarray(mask // 2 + 40).save(root / "DAVIS" / "JPEGImages" / "480p" / "square" / f"{n:05}.jpg")
    return root


def read_rows(out) -> list[dict]:
    return json.loads((out / "results.json").read_text(encoding="utf-8"))["rows"]


def without_plots(monkeypatch):
    monkeypatch.setattr("fewtokens.show.plots.draw_trade_off", lambda *arguments, **options: None)


def untimed(out) -> dict:
    """The rows of both videos, without times."""
    return {
        f"{row['clip']} {row['keep']} {row['method']}": {
            name: value for name, value in row.items() if "_ms" not in name and name != "repeats"
        }
        for row in read_rows(out)
        if row["clip"] in ("static", "pan")
    }


@pytest.fixture(scope="module")
def finished(folder):
    words = (
        *("bench", folder / "videos", "--davis", folder / "DAVIS", "--davis-size", 96, "--size", 64, "--frames", 6),
        *("--with", "evs,tome_video(within='frame'),rlt", "--keep", "0.3,0.1", "--repeats", 2),
    )
    out = folder / "out"
    return run(*words, "--out", out), out, words


def test_everything_is_written(finished):
    done, out, _ = finished
    results = json.loads((out / "results.json").read_text())
    methods = ["full", *registry.BASELINES, "evs", "tome_video(within='frame')", "rlt"]
    assert {row["method"] for row in results["rows"]} == set(methods)
    assert {row["clip"] for row in results["rows"]} == {"static", "pan", "square"}
    assert len(results["rows"]) == 3 * (1 + 2 * (len(methods) - 1))
    by_key = {(row["clip"], row["method"], row["keep"]): row for row in results["rows"]}
    for (clip, method, keep), row in by_key.items():
        assert 0 < row["tokens"] <= max(1, keep * row["cells"])
        assert row["total_ms"] > 0
        assert ("j_and_f" in row) == (clip == "square")
        assert (row["method_ms"] is None) == (method in ("full", "rlt"))
    assert by_key["square", "full", 1.0]["j_and_f"] > 0.5
    # evs keeps at least one full frame, so tome merges its tokens down to a tenth.
    assert by_key["pan", "evs", 0.1]["spec"].startswith("evs(keep=0.1) | tome(keep=0.1")
    assert by_key["pan", "evs", 0.3]["spec"] == "evs(keep=0.3)"
    with (out / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(results["rows"])
    text = (out / "results.md").read_text()
    assert "## 10 % of the tokens" in text
    assert all(f"`{method}`" in text for method in methods)
    assert "`evs + tome`" in text and "- + tome: the method cannot reach this budget" in text
    assert "- cosine: " in text and "inf" not in text
    summary = {(line["keep"], line["method"]): line for line in results["summary"]}
    assert summary[0.1, "evs"]["label"] == by_key["pan", "evs", 0.1]["label"] == "evs + tome"
    assert summary[0.3, "evs"]["label"] == "evs"
    line = summary[0.3, "random"]
    rows = [by_key[clip, "random", 0.3] for clip in ("static", "pan", "square")]
    assert line["cosine"] == pytest.approx(sum(row["cosine"] for row in rows) / 3)
    assert summary[1.0, "full"]["neighbor_agreement"] == 1
    for name in ("cosine", "rare_cosine", "j_and_f", "psnr_db", "rank_correlation"):
        with Image.open(out / f"{name}.png") as picture:
            assert picture.width > 1000
        assert (out / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    tenth = [line for line in results["summary"] if line["keep"] == 0.1]
    assert [line["cosine"] for line in tenth] == sorted((line["cosine"] for line in tenth), reverse=True)
    assert [line["standing"] for line in tenth].count("best") == 1 and tenth[0]["standing"] == "best"
    assert "**best**" in text and "best has the best cosine at this budget" in text
    assert "for the remaining 50 measurements" in done.stderr
    page = (out / "index.html").read_text()
    assert page.count("data:image/jpeg") == 3 * 6
    assert "{{" not in page.split("<script")[0]
    assert "evs + tome" in page
    assert "random" in done.stdout and "evs + tome" in done.stdout and "exact" in done.stdout
    assert "3 clips: all tokens, and 8 methods at 2 budgets: 51 measurements" in done.stderr


def test_a_stopped_run_resumes(finished, folder):
    _, out, words = finished
    lines = (out / "rows.jsonl").read_text().splitlines()
    (out / "rows.jsonl").write_text("\n".join(lines[:20]) + "\n" + lines[20][:50])
    run(*words, "--out", out)
    again = (out / "rows.jsonl").read_text().splitlines()
    assert again[:20] == lines[:20]
    assert len(again) == len(lines) + 1  # the cut line stays in the file
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert len(rows) == len(lines)
    message = error_line(run(*[32 if word == 64 else word for word in words], "--out", out, code=2))
    assert "other settings: size" in message


def test_budgets_of_every_unit(folder, tmp_path):
    words = (
        "bench", folder / "videos/static.mp4", "--with", "tome", "--keep", "1.0,0.5,1,2/frame", "--frames", "2",
        "--size", "32", "--repeats", "1", "--device", "cpu", "--out", tmp_path,
    )  # fmt: skip
    done = run(*words)
    rows = [row for row in read_rows(tmp_path) if row["method"] == "tome"]
    assert [(row["keep"], row["tokens"]) for row in rows] == [(1.0, 12), (0.5, 6), (1, 1), ("2/frame", 4)]
    for title in ("100 % of the tokens", "50 % of the tokens", "1 tokens", "2 tokens per frame"):
        assert title in done.stdout and f"## {title}" in (tmp_path / "results.md").read_text()
    summary = json.loads((tmp_path / "results.json").read_text())["summary"]
    assert [line["clips"] for line in summary if line["method"] == "tome"] == [1] * 4
    assert not any(line["over_budget"] for line in summary)
    before = (tmp_path / "rows.jsonl").read_text()
    run(*words)
    assert (tmp_path / "rows.jsonl").read_text() == before


def test_a_quick_look(folder, tmp_path):
    words = ("--with", "uniform", "--keep", "0.1,0.5", "--size", 64, "--frames", 12, "--quick", "--sort", "total_ms")
    report = json.loads(run("bench", folder / "videos", *words, "--out", tmp_path / "out", "--json").stdout)
    assert report["settings"]["frames"] == 8 and {line["clips"] for line in report["summary"]} == {1}
    assert {line["keep"] for line in report["summary"]} == {1.0, 0.1}
    times = [line["total_ms"] for line in report["summary"][1:]]
    assert times == sorted(times)


def test_compare_two_runs(finished, tmp_path):
    _, out, _ = finished
    results = json.loads((out / "results.json").read_text())
    for line in results["summary"]:
        line["cosine"] -= 0.125
    (tmp_path / "later.json").write_text(json.dumps(results))
    done = run("bench", "--compare", out / "results.json", tmp_path / "later.json", "--json")
    assert {line["delta_cosine"] for line in json.loads(done.stdout)} == {-0.125}
    assert "Δ cosine" in run("bench", "--compare", out / "results.json", tmp_path / "later.json").stdout


def test_a_broken_clip_is_reported_and_skipped(folder, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    good = folder / "videos" / "pan.mp4"
    words = ("--frames", 4, "--size", 32, "--with", "uniform", "--keep", "8", "--repeats", 1, "--json")
    done = run("bench", tmp_path / "broken.mp4", good, *words, "--out", tmp_path / "out", code=1)
    report = json.loads(done.stdout)
    assert [failure["video"] for failure in report["failed"]] == [str(tmp_path / "broken.mp4")]
    assert {line["clips"] for line in report["summary"]} == {1}
    assert {line["tokens"] for line in report["summary"] if line["method"] == "random"} == {8}


def test_a_job_has_the_rows_of_the_plain_command(finished, folder, tmp_path, monkeypatch):
    _, plain, _ = finished
    without_plots(monkeypatch)  # to save time
    out, later = tmp_path / "out", tmp_path / "later.mp4"
    lines = [str(folder / "videos/pan.mp4"), "later.mp4", str(folder / "videos/static.mp4")]
    (tmp_path / "list.txt").write_text("\n".join(lines), encoding="utf-8")
    words = ["--size", "64", "--frames", "6", "--with", "evs,tome_video(within='frame'),rlt", "--keep", "0.3,0.1"]
    job = ("bench", tmp_path / "list.txt", *words, "--engine", "local", "--workers", 1, "--per-shard", 2, "--out", out)
    report = json.loads(run(*job, "--json", code=1).stdout)
    assert (report["shards"], report["new"]) == (2, 3)
    assert [failure["video"] for failure in report["failed"]] == [str(later)]
    rows = untimed(out)
    assert len(rows) == 2 * 17
    assert rows == untimed(plain)
    assert not any("_ms" in name for row in [*report["summary"], *read_rows(out)] for name in row)
    assert "Pareto front of cosine and tokens" in (out / "results.md").read_text(encoding="utf-8")
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 2 * 6 and "encoder ms" not in page
    # A shard that a killed job did not finish is done again, and all that is written is the same.
    before = {path: path.read_bytes() for path in out.iterdir() if path.suffix in (".json", ".csv", ".md", ".html")}
    shard = (out / "shards/000000.jsonl").read_bytes()
    for path in (out / "manifest/000000.jsonl", out / "shards/000000.jsonl"):
        path.unlink()
    assert json.loads(run(*job, "--json", code=1).stdout)["new"] == 2
    assert {path: path.read_bytes() for path in before} == before
    assert (out / "shards/000000.jsonl").read_bytes() == shard
    later.write_bytes((folder / "videos/pan.mp4").read_bytes())
    assert json.loads(run(*job, "--json", code=1).stdout)["new"] == 0  # a broken clip only when asked
    again = json.loads(run(*job, "--retry", "--json").stdout)
    assert (again["new"], again["failed"]) == (1, []) and {line["clips"] for line in again["summary"]} == {3}
    assert list(dict.fromkeys(row["clip"] for row in read_rows(out))) == ["pan", "later", "static"]
    video = str(folder / "videos/pan.mp4")
    engine = ["--engine", "local"]
    for line, message in (
        (["bench", str(tmp_path / "list.txt"), *engine, "--keep", "0.3", "--out", str(out)], "other settings: "),
        (["bench", video, *words, "--out", str(out)], "holds a job; give --engine"),
        (["bench", video, *words, *engine, "--out", str(plain)], "holds a run without --engine"),
        (["bench", video, *engine, "--sort", "total_ms", "--out", "o"], "measures no times"),
        (["bench", str(folder / "videos/*.mp4"), "--out", "o"], "a list or a pattern requires --engine"),
        (["bench", str(folder / "videos/*.avi"), *engine, "--out", "o"], "no videos"),
    ):
        assert message in refused(*line)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["VIDEO"], "--out"),
        (["--out", "o"], "give videos"),
        (["VIDEO", "--out", "o", "--keep", "2.0"], "keep must be"),
        (["VIDEO", "--out", "o", "--keep", ","], "at least one budget"),
        (["VIDEO", "--out", "o", "--sort", "speed"], "--sort must be one of cosine"),
        (["VIDEO", "--out", "o", "--sort", "j_and_f"], "requires --davis"),
        (["VIDEO", "--out", "o", "--sort", "rank_correlation"], "at least 3 clips, got 1"),
        (["VIDEO", "--out", "o", "--with", "tomme"], "did you mean"),
        (["VIDEO", "--out", "o", "--with", "visionzip"], "does not provide"),
        (["VIDEO", "--out", "o", "--with", "vid_tldr"], "between the blocks"),
        (["--davis", "nowhere", "--out", "o"], "not a DAVIS folder"),
        (["missing.mp4", "--out", "o"], "no such file"),
        (["--compare", "VIDEO"], "requires two results.json"),
        (["--compare", "VIDEO", "VIDEO"], "results.json of fewtokens bench"),
    ],
)
def test_bad_input(folder, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    video = str(folder / "videos" / "pan.mp4")
    assert message in refused("bench", *(video if word == "VIDEO" else word for word in words))


class TestStream:
    def test_chunks_equal_the_full_video(self, folder, tmp_path):
        video = folder / "videos" / "static.mp4"
        words = ("--with", "rlt", "--size", 64, "--fps", 10)
        chunked = run("tokenize", video, *words, "--chunked", "--chunk", 5, "--out", tmp_path / "s", "--json")
        run("tokenize", video, *words, "--out", tmp_path / "whole.safetensors")
        whole, joined = Tokens.load(tmp_path / "whole.safetensors"), load(tmp_path / "s" / "static")
        assert torch.equal(joined.features, whole.features)
        assert torch.equal(joined.assignment, whole.assignment)
        assert torch.equal(joined.sizes, whole.sizes)
        (row,) = json.loads(chunked.stdout)["done"]
        assert row["tokens"] == whole.N
        assert len(list((tmp_path / "s" / "static").glob("0*.safetensors"))) == 3
        again = run("tokenize", video, *words, "--chunked", "--chunk", 5, "--out", tmp_path / "s")
        assert "skipped" in again.stderr
        other = run("tokenize", video, *words, "--chunked", "--chunk", 4, "--out", tmp_path / "s", code=2)
        assert "other settings" in other.stderr

    def test_a_cut_is_an_event(self, tmp_path):
        still = synthetic("static", frames=40, size=(64, 96)).frames[:1].expand(40, -1, -1, -1).clone()
        still[25:] = 255 - still[25:]
        video = write(tmp_path / "cut.mp4", still, 10)
        done = run("tokenize", video, "--chunked", "--with", "dtd", "--out", tmp_path / "s", "--json")
        (event,) = json.loads(done.stdout)["done"][0]["events"]
        assert event["seconds"] == 2.5
        assert "00:02.50  scene changes" in done.stderr
        lines = (tmp_path / "s" / "cut" / "events.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [event]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--with", "tome"], "is not causal and cannot be streamed"),
            (["--with", "rlt | dtd"], "dtd cannot be streamed after rlt"),
            (["--with", "rlt", "--frames", "4"], "with --chunked; use --fps"),
            (["--with", "rlt", "--events", "1"], "must be in (0, 1)"),
            (["--with", "rlt", "--out", "one.safetensors"], "writes a folder"),
        ],
    )
    def test_bad_input(self, folder, tmp_path, monkeypatch, words, message):
        monkeypatch.chdir(tmp_path)
        words = words if "--out" in words else [*words, "--out", "o"]
        assert message in refused("tokenize", str(folder / "videos" / "pan.mp4"), "--chunked", *words)


def test_words(folder, tmp_path):
    path = tmp_path / "words.safetensors"
    run("words", folder / "videos" / "pan.mp4", "--words", 20, "--size", 64, "--frames", 4, "--out", path)
    spec = f"visual_words(words={str(path)!r}, distance=0.5)"
    run("tokenize", folder / "videos" / "pan.mp4", "--with", spec, "--size", 64, "--out", tmp_path / "t.safetensors")
    assert Tokens.load(tmp_path / "t.safetensors").N < 16 * 24
    message = error_line(
        run("words", folder / "videos" / "pan.mp4", "--words", 5000, "--size", 32, "--out", path, code=2)
    )
    assert "5000 patches are required" in message


def test_rows_of_another_source_are_rejected(folder, tmp_path):
    for folder_name, kind in (("a", "static"), ("b", "pan")):
        (tmp_path / folder_name).mkdir()
        (tmp_path / folder_name / "clip.mp4").write_bytes((folder / "videos" / f"{kind}.mp4").read_bytes())
    words = ["--frames", "2", "--size", "32", "--with", "uniform", "--keep", "0.5", "--repeats", "1"]
    words += ["--show", "0", "--out", str(tmp_path / "o")]
    first = CliRunner().invoke(app, ["bench", str(tmp_path / "a" / "clip.mp4"), *words])
    assert first.exit_code == 0, first.output
    line = refused("bench", str(tmp_path / "b" / "clip.mp4"), *words)
    assert str(tmp_path / "a" / "clip.mp4") in line
    assert str(tmp_path / "b" / "clip.mp4") in line
    row = json.loads((tmp_path / "o" / "results.json").read_text())["rows"][0]
    assert row["total_ms_spread"] is None  # one repeat has no spread


def test_methods_on_selected_frames(folder, monkeypatch):
    """A row of each method on the frames of a selector, next to one on as many evenly spaced frames."""
    words = ("bench", folder / "videos", "--size", 64, "--with", "tome", "--keep", "0.3", "--repeats", 1)
    select = ("--select", "max_min_frames(keep=4, rate='all')")
    out = folder / "selected"
    summary = json.loads(run(*words, *select, "--out", out, "--json").stdout)["summary"]
    by_method = {line["method"]: line for line in summary}
    chains = [method for method in by_method if method.startswith("max_min_frames(keep=4, rate='all') | ")]
    assert len(by_method) == 2 * len(chains) + 1
    chain = by_method["max_min_frames(keep=4, rate='all') | tome"]
    assert chain["tokens"] == by_method["tome"]["tokens"] < by_method["full"]["tokens"]
    assert chain["cosine"] != by_method["tome"]["cosine"]
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert {row["frames"] for row in rows} == {4}
    assert {row["spec"].split(" | ")[0] for row in rows if " | " in row["method"]} == {select[1]}
    rows_before = (out / "rows.jsonl").read_bytes()
    run(*words, *select, "--out", out)
    assert (out / "rows.jsonl").read_bytes() == rows_before  # resumed
    job = folder / "selected_job"
    without_plots(monkeypatch)
    run(*words[:-2], *select, "--engine", "local", "--workers", 1, "--out", job)
    assert untimed(job) == untimed(out)
    other = refused(*map(str, (*words, "--select", "uniform_frames(keep=4)", "--out", out)))
    assert "selecting" in other
    for more, message in (
        (("--with", "uniform_frames | tome"), "uniform_frames selects frames; give it as --select, not in --with"),
        ((*select, "--frames", 4), "--frames cannot be combined with --select"),
        (("--scorer", "features"), "--scorer requires --select"),
        (("--select", "aks"), "aks selects by relevance and requires a scorer"),
        (("--select", "kffocus"), "kffocus chooses frames of several sizes"),
    ):
        line = refused("bench", str(folder / "videos"), *map(str, more), "--out", str(folder / "none"))
        assert message in line
