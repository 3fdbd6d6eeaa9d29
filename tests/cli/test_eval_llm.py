"""`fewtokens eval videoqa` and `eval qa`: full runs, resumed runs, and one-line errors."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from fewtokens.cli import app
from fewtokens.selection import read
from fewtokens.video import synthetic, write
from tests.llm.test_composed import parts, saved_model  # noqa: F401  (fixtures)


def run(*words):
    return CliRunner().invoke(app, ["eval", *map(str, words)])


class TestGeneratedClips:
    def test_by_kind(self, saved_model):  # noqa: F811
        result = run(
            "videoqa",
            "--model",
            saved_model,
            "--with",
            "uniform(keep=5)",
            "--limit",
            20,
            "--frames",
            8,
            "--size",
            32,
            "--json",
        )
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert report["visual_tokens"] == 5
        assert report["all"]["count"] == 20
        assert sum(part["count"] for part in report["kinds"].values()) == 20
        # Random weights answer at chance.
        assert report["all"]["accuracy"] <= 0.3

    def test_a_stopped_run_resumes(self, saved_model, tmp_path):  # noqa: F811
        path = tmp_path / "replies.jsonl"
        words = (
            "videoqa",
            "--model",
            saved_model,
            "--limit",
            6,
            "--frames",
            8,
            "--size",
            32,
            "--kinds",
            "shape,count",
            "--out",
            path,
        )
        assert run(*words).exit_code == 0
        lines = path.read_text().splitlines()
        assert len(lines) == 7
        # Cut in the middle of the fourth reply; the first is changed, to recognize it.
        first = json.loads(lines[1]) | {"text": "kept"}
        path.write_text("\n".join([lines[0], json.dumps(first), *lines[2:4], lines[4][:20]]))
        result = run(*words)
        assert result.exit_code == 0, result.output
        again = path.read_text().splitlines()
        assert json.loads(again[1])["text"] == "kept"
        assert again[2:] == lines[2:]
        other = run(*words, "--seed", 3)
        assert other.exit_code == 2
        assert "other settings (seed)" in " ".join(other.output.split())

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--kinds", "shape,smell"), "smell"),
            (("--split", "exam"), "exam"),
            (("--with", "nosuch"), "no method called"),
            (("--frames", 2), "frames"),
        ],
    )
    def test_bad_input(self, saved_model, words, message):  # noqa: F811
        result = run("videoqa", "--model", saved_model, "--limit", 4, *words)
        assert result.exit_code == 2, result.output
        assert message in result.output
        assert "Traceback" not in result.output


class TestPublicSets:
    @pytest.fixture
    def nextqa(self, tmp_path):
        head = [
            "video",
            "frame_count",
            "width",
            "height",
            "question",
            "answer",
            "qid",
            "type",
            "a0",
            "a1",
            "a2",
            "a3",
            "a4",
        ]
        rows = [["11", "8", "32", "32", "what is it", "1", str(n), kind, "a", "b", "c", "d", "e"]
                for n, kind in enumerate(("CW", "TN", "CW"))]  # fmt: skip
        with (tmp_path / "test.csv").open("w", newline="") as file:
            csv.writer(file).writerows([head, *rows])
        (tmp_path / "videos").mkdir()
        write(tmp_path / "videos" / "11.mp4", synthetic("digits", frames=8, size=(32, 32)).frames, fps=8)
        return tmp_path

    def test_accuracy(self, saved_model, nextqa):  # noqa: F811
        result = run(
            "qa", "--model", saved_model, "--dataset", "nextqa", "--data", nextqa, "--with", "kmeans(keep=3)", "--json"
        )
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert report["visual_tokens"] == 3
        assert {"all", "CW", "TN"} <= report["accuracy"].keys()
        table = run("qa", "--model", saved_model, "--dataset", "nextqa", "--data", nextqa, "--limit", 2)
        assert table.exit_code == 0, table.output
        assert "TokDense" in table.output

    def test_parts_of_videos(self, saved_model, nextqa, monkeypatch):  # noqa: F811
        from fewtokens.data import qa_sets
        from fewtokens.llm import session

        asked = []
        monkeypatch.setattr(session, "read", lambda path, **options: asked.append(options) or read(path, **options))
        questions = [
            replace(each, start=start, end=end)
            for each, start, end in zip(
                qa_sets.load_questions("nextqa", nextqa, "test"), (None, 0.25, 0.5), (None, None, 0.75), strict=True
            )
        ]
        monkeypatch.setattr(qa_sets, "load_questions", lambda *words: questions)
        result = run("qa", "--model", saved_model, "--dataset", "nextqa", "--data", nextqa)
        assert result.exit_code == 0, result.output
        assert [(each["start"], each["end"]) for each in asked] == [(0.0, None), (0.25, None), (0.5, 0.75)]
        monkeypatch.setattr(qa_sets, "load_questions", lambda *words: [replace(questions[0], answer="")])
        result = run("qa", "--model", saved_model, "--dataset", "nextqa", "--data", nextqa)
        assert result.exit_code == 2 and "its answer is not published" in " ".join(result.output.split())

    def test_broken_videos(self, saved_model, nextqa):  # noqa: F811
        (nextqa / "videos" / "11.mp4").write_bytes(b"no video")
        result = run("qa", "--model", saved_model, "--dataset", "nextqa", "--data", nextqa)
        assert result.exit_code == 2
        assert "no question could be answered" in " ".join(result.output.split())

    def test_an_unknown_set(self, saved_model, nextqa):  # noqa: F811
        result = run("qa", "--model", saved_model, "--dataset", "trivia", "--data", nextqa)
        assert result.exit_code == 2
        assert "must be one of nextqa" in " ".join(result.output.split())
