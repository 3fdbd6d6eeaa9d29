"""`fewtokens ask` with tiny models in folders."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fewtokens.cli import app
from fewtokens.video import synthetic, write
from tests.llm.saved import save
from tests.llm.tiny import FAMILIES

FIRST, SECOND = "what happens", "how many people are there"
FEW = "kmeans(keep=5)"


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("clips") / "clip.mp4", synthetic("static", frames=12, size=(64, 96)).frames, 6)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save("llava_onevision", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setattr("fewtokens.cli.console.out.width", 200)


def ask(*words: object, code: int = 0) -> Result:
    done = CliRunner().invoke(app, ["ask", *map(str, words), "--device", "cpu"])
    assert done.exit_code == code, (done.output, done.exception)
    assert "Traceback" not in done.output
    return done


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers(family, clip, tmp_path):
    folder = save(family, tmp_path)
    words = (clip, FIRST, "--model", folder, "--with", FEW, "--frames", 6, "--max-new-tokens", 5)
    done = ask(*words)
    answers = json.loads(ask(*words, "--json").stdout)["answers"]
    assert [row["spec"] for row in answers] == [FEW]
    assert answers[0]["visual_tokens"] == 5 and answers[0]["new_tokens"] == 5 and answers[0]["cells"] > 5
    assert done.stdout == answers[0]["answer"] + "\n"
    assert f"5 visual tokens of {answers[0]['cells']}, first token after" in done.stderr


def test_selected_frames(clip, model):
    words = (clip, FIRST, "--model", model, "--with", "", "--max-new-tokens", 2)
    select = ("--select", "aks(keep=3, rate=6)", "--scorer", "features")
    (row,) = json.loads(ask(*words, *select, "--json").stdout)["answers"]
    assert row["cells"] == row["visual_tokens"] == 3 * 16
    for more, message in (
        (("--select", "aks"), "aks selects by relevance and requires a scorer"),
        ((*select, "--frames", 4), "--frames and --fps cannot be combined with --select"),
        (("--scorer", "features"), "--scorer requires --select"),
        (("--with", "aks | kmeans"), "it selects the frames that are read"),
        (("--select", "sevila", "--scorer", "model"), "the tokenizer has no token for 'yes'"),
    ):
        assert message in ask(*words[:4], *more, code=2).stderr


def test_frames_selected_by_the_model_itself(clip, tmp_path, monkeypatch):
    from tests.llm import saved

    monkeypatch.setattr(saved, "WORDS", (*saved.WORDS, "yes", "no"))
    folder = save("llava_onevision", tmp_path)
    words = (clip, FIRST, "--model", folder, "--with", "", "--max-new-tokens", 2, "--scorer", "model", "--json")
    done = ask(*words, "--select", "sevila(keep=4, frames=6)")
    (row,) = json.loads(done.stdout)["answers"]
    assert row["cells"] == row["visual_tokens"] == 4 * 16 and "note:" not in done.stderr
    done = ask(*words[:-1], "--select", "quota(tokens=200, frames=4)")
    assert "encodes all frames at full size" in done.stderr and "so the vision tower saves nothing" in done.stderr
    assert "tokens before methods, steps of several sizes: " in done.stderr


def test_questions_in_parts(clip, model):
    words = (clip, FIRST, "--model", model, "--with", FEW, "--frames", 6, "--max-new-tokens", 5, "--decompose", 2)
    done = ask(*words)
    (row,) = json.loads(ask(*words, "--json").stdout)["answers"]
    assert row["calls"] == len(row["parts"]) + 2 and row["visual_tokens"] == 5
    assert row["all_prompt_tokens"] > row["prompt_tokens"] and row["all_seconds"] > row["first_token_seconds"]
    assert done.stdout == row["answer"] + "\n"
    assert f"{row['calls']} calls of the model, {row['all_prompt_tokens']} tokens in their prompts" in done.stderr
    assert "--decompose must be at least 1" in ask(*words[:-1], 0, code=2).stderr
    assert "--decompose and --compare cannot be combined" in ask(*words, "--compare", code=2).stderr


def test_an_image(tmp_path):
    from tests.llm.test_messages import picture, save_with_images

    folder = save_with_images("qwen2_5_vl", tmp_path / "model")
    picture().save(tmp_path / "a.png")
    words = (tmp_path / "a.png", FIRST, "--model", folder, "--max-new-tokens", 3)
    full, few = json.loads(ask(*words, "--with", FEW, "--compare", "--json").stdout)["answers"]
    assert full["visual_tokens"] == full["cells"] == few["cells"] > few["visual_tokens"] == 5
    done = ask(*words, "--with", "evs(keep=0.5)", code=2)
    assert "evs compares frames, so it has no effect on images" in done.stderr


def test_compare(clip, model):
    words = (clip, FIRST, "--model", model, "--with", "kmeans", "--keep", 4, "--frames", 6, "--max-new-tokens", 5)
    full, few = json.loads(ask(*words, "--compare", "--json").stdout)["answers"]
    assert (full["spec"], few["spec"]) == ("full", "kmeans")
    assert full["visual_tokens"] == full["cells"] == few["cells"] == 6 * 16 and few["visual_tokens"] == 4
    assert full["prompt_tokens"] - few["prompt_tokens"] == 92
    for name in ("decode_seconds", "encode_seconds"):
        assert few[name] == full[name] > 0
    for row in (full, few):
        parts = sum(row[f"{stage}_seconds"] for stage in ("decode", "encode", "reduce", "prefill"))
        assert row["first_token_seconds"] == pytest.approx(parts) and row["tokens_per_second"] > 0
    assert 0 < few["memory_bytes"] < full["memory_bytes"]
    shown = ask(*words, "--compare").stdout
    for word in ("visual tokens", "decode", "encode", "reduce", "prefill", "first token", "tokens/s", "MiB"):
        assert word in shown
    assert f"full: {full['answer']}" in shown and f"kmeans: {few['answer']}" in shown


def test_tokens_in_the_last_layer(clip, model):
    words = (clip, FIRST, "--model", model, "--with", "uniform(keep=8) | fastv(keep=0.5, layer=2)",
             "--max-new-tokens", 3)  # fmt: skip
    full, few = json.loads(ask(*words, "--compare", "--json").stdout)["answers"]
    assert (few["visual_tokens"], few["layer_tokens"], full["layer_tokens"]) == (8, [8, 8, 4], [])
    assert "in the last layer" in ask(*words, "--compare").stdout
    assert "8 visual tokens of" in (done := ask(*words)).stderr and "(4 in the last layer)" in done.stderr


def test_several_questions_encode_once(clip, model, tmp_path, monkeypatch):
    from fewtokens.llm import session

    calls: list[Any] = []
    real = session.encode_visuals
    monkeypatch.setattr(session, "encode_visuals", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs))
    (tmp_path / "questions.txt").write_text(f"{SECOND}\n\n")
    words = (clip, FIRST, "--questions", tmp_path / "questions.txt", "--model", model, "--max-new-tokens", 3)
    done = ask(*words, "--with", FEW, "--fps", 3)
    assert len(calls) == 1
    assert done.stdout.index(FIRST) < done.stdout.index(SECOND)
    answers = json.loads(ask(*words, "--json", "--compare", "--with", "", "--layout", "collapse").stdout)["answers"]
    assert [row["question"] for row in answers] == [FIRST, FIRST, SECOND, SECOND]
    assert (
        answers[0]["encode_seconds"] > 0 == answers[2]["encode_seconds"]
        and answers[0]["answer"] == answers[1]["answer"]
    )


def test_a_note_if_the_model_has_no_chat_template(clip, tmp_path):
    folder = save("llava_onevision", tmp_path, with_template=False)
    done = ask(clip, FIRST, "--model", folder, "--with", FEW, "--max-new-tokens", 3)
    assert "note: " in done.stderr and "no chat template" in done.stderr


def test_errors_are_one_line(clip, model, tmp_path):
    def refused(message: str, *words: object) -> None:
        done = ask(*words, code=2)
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        assert len(lines) == 1 and re.search(message, lines[0]), done.stderr
        assert not done.stdout.strip()

    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    refused("no weights; the model must be a folder", clip, FIRST, "--model", bare, "--with", FEW)
    refused("no video language model of type 'bert'; supported types", clip, FIRST, "--model", other, "--with", FEW)
    refused("no such folder", clip, FIRST, "--model", tmp_path / "nowhere")
    question = (clip, FIRST, "--model", model)
    refused(
        "requires a vision tower with an attention-pooling head", *question, "--with", "fastvid(4, attention='probe')"
    )
    refused("needs sharpness .* of each block", *question, "--with", "vid_tldr")
    refused("no method", *question, "--with", "nothing_such")
    refused("the context of this model is 2048; use fewer", *question, "--with", FEW, "--max-new-tokens", 2045)
    refused("the context of this model is 2048; use fewer", *question, "--with", "", "--max-new-tokens", 1900)
    refused("--keep has no effect", *question, "--with", FEW, "--keep", 4)
    refused("--frames or --fps", *question, "--frames", 4, "--fps", 1)
    refused("frames must be a whole number of at least 1", *question, "--frames", 0)
    refused("layout must be one of", *question, "--layout", "heap")
    refused("positions must be one of", *question, "--positions", "none")
    refused("max_new_tokens must be", *question, "--max-new-tokens", 0)
    refused("dtype must be one of", *question, "--dtype", "int8")
    refused("no question", clip, "--model", model)
    refused("[Nn]o such file", clip, "--questions", tmp_path / "none.txt", "--model", model)
    refused("no such file", tmp_path / "none.mp4", FIRST, "--model", model)
    (tmp_path / "no.mp4").write_text("not a video")
    refused("no.mp4", tmp_path / "no.mp4", FIRST, "--model", model)
