"""vLLM itself answers as transformers does with the same few rows; `make test-vllm`.

Each engine runs in a process of its own, several requests at once. Log-probabilities of the five best tokens are
compared at each of the generated ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.serve.engine.checkpoints import IDS, save
from tests.serve.engine.reference import FAMILIES
from tests.serve.engine.requests import REQUESTS

pytestmark = pytest.mark.skipif(util.find_spec("vllm") is None, reason="vLLM is not installed")
ROOT = Path(__file__).parents[3]
# Fewer columns than the prompts have, so that videos are split between chunks.
CHUNKS = {"max_num_batched_tokens": 16}
# Merge-type and keep-type methods, one that reads pixels, and the three ways to set them.
RUNS: dict[str, dict[str, Any]] = {
    "merged": {
        "spec": "kmeans(keep=0.4)",
        "engine": {"additional_config": {"fewtokens": {"spec": "kmeans(keep=0.4)"}}},
    },
    "kept": {
        "spec": "vidcom2(keep=0.5)",
        "engine": {"mm_processor_kwargs": {"fewtokens": "vidcom2(keep=0.5)"}} | CHUNKS,
    },
    "pixels": {
        "spec": "rlt(keep=0.4)",
        "engine": {"additional_config": {"fewtokens": {"spec": "rlt(keep=0.4)"}}},
    },
    "averaged": {
        "spec": "mean_pool(keep=0.3)",
        "engine": CHUNKS,
        "environment": {"FEWTOKENS_SPEC": "mean_pool(keep=0.3)"},
    },
}


def run(module: str, job: dict[str, Any], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Runs a module of this folder in a process and returns what it printed."""
    command = [sys.executable, "-m", f"tests.serve.engine.{module}", json.dumps(job)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | (environment or {}))
    lines = [line for line in process.stdout.splitlines() if line.startswith("RESULT ")]
    assert process.returncode == 0 and lines, process.stderr[-4000:]
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return result


def assert_same_answer(answer: dict[str, Any], by_hand: dict[str, Any]) -> None:
    """Equal tokens, and log-probabilities of the five best tokens of each step within 1e-5."""
    assert answer["tokens"] == by_hand["tokens"]
    steps = zip(answer["logprobs"], by_hand["logprobs"], strict=True)
    worst = max(abs(value - scores[int(token)]) for step, scores in steps for token, value in step.items())
    print(f"log-probabilities within {worst:.1e}")  # shown by -rP
    assert worst <= 1e-5


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    @cache
    def folder(family: str) -> str:
        path = tmp_path_factory.mktemp(family)
        save(family, path)
        return str(path)

    return folder


@pytest.fixture(scope="session")
def engine(checkpoints):
    @cache
    def answers(family: str, name: str) -> dict[str, Any]:
        kind = FAMILIES[family]
        model = str(Path(checkpoints(family), kind.published))
        job = {"model": model, "requests": kind.requests, "texts": kind.texts}
        return run("run", job | {"engine": kind.engine | RUNS[name]["engine"]}, RUNS[name].get("environment"))

    return answers


@pytest.fixture(scope="session")
def answers_by_hand(checkpoints):
    @cache
    def answers(family: str) -> dict[str, Any]:
        specs = [settings["spec"] for settings in RUNS.values()]
        job = {"family": family, "model": checkpoints(family), "specs": specs}
        return run("reference", job | {"requests": FAMILIES[family].requests})

    return answers


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_log_probabilities(family, name, engine, answers_by_hand):
    expected = answers_by_hand(family)[RUNS[name]["spec"]]
    for answer, by_hand in zip(engine(family, name)["answers"], expected, strict=True):
        # In Qwen3-VL the placeholders of all frames are in the first one, until the encoder has run.
        assert sorted(answer["prompt"]) == sorted(by_hand["prompt"])
        if family != "qwen3_vl":
            assert answer["prompt"] == by_hand["prompt"]
        assert_same_answer(answer, by_hand)


@pytest.mark.parametrize("family", FAMILIES)
def test_specs_do_not_share_cache_entries(family, engine):
    every = [engine(family, name)["hashes"] for name in RUNS]
    videos = [video for index in FAMILIES[family].requests for video in REQUESTS[index]["videos"]]
    for hashes in every:
        # Equal for equal videos, in one prompt or in several.
        assert [hashes.index(own) for own in hashes] == [videos.index(own) for own in videos]
    assert len({own for hashes in every for own in hashes}) == len(set(videos)) * len(RUNS)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_rows_give_other_answers(family, answers_by_hand):
    """The differences that the comparison would find are a hundred times its tolerance, or more."""
    merged, kept = (torch.tensor(answers_by_hand(family)[RUNS[n]["spec"]][0]["logprobs"]) for n in ("merged", "kept"))
    assert float((merged - kept).abs().max()) > 1e-3


def test_answers_depend_on_the_spec(engine):
    merged, kept = (engine("qwen2_5_vl", name)["answers"] for name in ("merged", "kept"))
    assert merged[0]["logprobs"] != kept[0]["logprobs"]
    assert merged[2]["tokens"] == kept[2]["tokens"]  # without a video


def test_the_number_of_rows_is_less_than_that_of_cells(engine):
    """The first video has 4 x 2 x 3 cells: floor(0.4 * 24) = 9 remain."""
    (prompt, *_) = [answer["prompt"] for answer in engine("qwen2_5_vl", "merged")["answers"]]
    assert prompt.count(IDS["<|video_pad|>"]) == 9


def test_an_encoder_that_does_not_reduce_its_rows_is_noticed(checkpoints, answers_by_hand):
    """By the comparison: vLLM itself takes the first rows, as many as a video has placeholders, without an error."""
    job = {"model": checkpoints("qwen2_5_vl"), "requests": [0], "texts": FAMILIES["qwen2_5_vl"].texts}
    (answer,) = run("run", job | {"engine": RUNS["merged"]["engine"], "keep_all_rows": True})["answers"]
    by_hand = answers_by_hand("qwen2_5_vl")[RUNS["merged"]["spec"]][0]
    assert len(answer["prompt"]) == len(by_hand["prompt"])
    with pytest.raises(AssertionError):
        assert_same_answer(answer, by_hand)


def test_a_model_that_is_not_served_does_not_ignore_a_spec(checkpoints):
    job = {"model": checkpoints("qwen2_5_vl"), "requests": [0], "texts": {}}
    other = {"hf_overrides": {"architectures": ["Qwen2VLForConditionalGeneration"]}}
    with pytest.raises(AssertionError, match="does not serve Qwen2VLForConditionalGeneration"):
        run("run", job | {"engine": RUNS["merged"]["engine"] | other})


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_prompts_as_embeddings(family, checkpoints, tmp_path):
    """`fewtokens.llm.embeds` without the plugin; vLLM counts the columns of such prompts, as positions="renumber".

    With a keep-type method: merged rows have another order there than in `fewtokens.serve`, which sorts them by cell.
    """
    spec, path = "vidcom2(keep=0.5)", str(tmp_path / "embeds.safetensors")
    job = {"family": family, "model": checkpoints(family), "requests": [0, 1]}
    lengths = run("embed", job | {"spec": spec, "path": path})["lengths"]
    expected = run("reference", job | {"specs": [spec], "renumber": True})[spec]
    assert lengths == [len(answer["prompt"]) for answer in expected]
    answers = run("run", job | {"prompt_embeds": path, "engine": {"enable_prompt_embeds": True}})["answers"]
    for answer, by_hand in zip(answers, expected, strict=True):
        assert_same_answer(answer, by_hand)
