"""The long-video questions: scripts are what they say, a perfect memory answers all, and margins between memories."""

from __future__ import annotations

import math

import pytest
import torch

import fewtokens
from fewtokens.core.tokens import Tokens
from fewtokens.evaluation.longvideo.questions import Recall, ask
from fewtokens.evaluation.longvideo.script import Script, stream


def test_a_script():
    script = Script.sample(20_000, seed=3)
    lengths = script.starts.diff().float()
    assert script.starts[0] == 0
    assert float(lengths.min()) >= 5
    assert float(lengths.mean()) == pytest.approx(90, abs=3 * 85 / len(lengths) ** 0.5)
    assert bool((script.scenes.diff() != 0).all())
    assert script.scenes.unique().tolist() == list(range(32))
    torch.testing.assert_close(script.codes.norm(dim=1), torch.ones(40))


def test_frames_are_the_same_in_any_parts():
    script = Script.sample(2500, seed=1)
    whole = script.frames(0, 2500)
    parts = [script.frames(start, min(start + 317, 2500)) for start in range(0, 2500, 317)]
    assert torch.equal(whole, torch.cat(parts))
    code = script.code(torch.arange(2500))
    code[script.needles] = torch.arange(32, 40)
    noise = whole - script.codes[code]
    assert float(noise.norm(dim=1).mean()) == pytest.approx(0.6, abs=0.01)


def test_a_memory_of_all_frames_answers_all():
    script = Script.sample(1500, num_needles=3)
    ring = fewtokens.create_method("ring", cap=1500)
    tokens = ring.read(ring.push(next(stream([script], 1500))))
    answers = ask(Recall.from_tokens(tokens, script), script)
    assert answers.pop("count error") == 0
    assert answers == dict.fromkeys(answers, 1.0)


def test_no_memory_guesses():
    answers = ask(None, Script.sample(36_000))
    assert answers["far"] < 0.2 and answers["needle"] == 0
    assert answers["order"] == answers["back"] == 0.5
    assert math.isnan(ask(None, Script.sample(60, num_needles=2))["back"])


def test_runs_and_overlapping_slots():
    recall = Recall(
        torch.tensor([5, 7, 5, 40, 5]),
        torch.tensor([1.0, 2, 3, 4, 5]),
        torch.tensor([0.0, 2, 3, 4, 5]),
        torch.tensor([4.0, 2, 3, 4, 5]),
        32,
    )
    assert recall.runs(5) == 2 and recall.runs(7) == 1 and recall.runs(1) == 0
    assert recall.runs(5, 4.5, 10) == 1
    assert recall.at(torch.tensor([0, 2, 9])).tolist() == [5, 7, 5]


def test_margins():
    """Those of an hour; the benchmark has 10 hours."""
    script = Script.sample(3600, seed=0)

    def answers(spec: str) -> dict[str, float]:
        (memory,) = fewtokens.build(spec)
        state = None
        for chunk in stream([script]):
            state = memory.push(chunk, state)
        return ask(Recall.from_tokens(memory.read(state), script), script)

    merged, ring = (answers(spec) for spec in ("videoscan(64, rule='merge')", "ring(64)"))
    assert merged["far"] > 0.95 and merged["needle"] == merged["order"] == 1
    assert ring["near"] == 1 and ring["far"] < 0.15 and ring["needle"] == 0
    assert isinstance(next(stream([script])), Tokens)
