"""The long-video questions: scripts are what they say, a perfect memory answers all, and margins between memories."""

from __future__ import annotations

import math

import pytest
import torch

import fewtokens
from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.evaluation.longvideo.pictures import LOOKS, Pictures, Prototypes
from fewtokens.evaluation.longvideo.questions import Recall, ask, ask_by_distance
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


def test_the_first_part_of_a_script():
    script = Script.sample(600, num_needles=8)
    half = script.until(300)
    assert half.seconds == 300 and int(half.ends[-1]) == 300 and half.num_scenes == script.num_scenes
    assert torch.equal(half.shown(0, 300), script.shown(0, 300))
    assert torch.equal(half.frames(0, 300), script.frames(0, 300))
    assert 0 < len(half.needles) < 8
    assert math.isnan(ask(None, script.until(int(script.needles[0])))["needle"])


def test_answers_by_distance():
    script = Script.sample(3600)
    second = torch.arange(3600.0, dtype=torch.float64)
    known = script.shown(0, 3600)
    known[:3000] = -1  # forgotten: all that is more than ten minutes ago
    answers = ask_by_distance(Recall(known, second, second, second, script.num_scenes), script)
    assert answers == {"0-1 min ago": 1, "1-10 min ago": 1, "10-60 min ago": 0, "1-10 h ago": None}


def test_a_slot_of_several_frames_has_a_row_for_each():
    """TDC holds all frames of a chunk in a slot; with two tokens per frame, two tokens are a row."""
    script = Script.sample(6, num_scenes=8, num_needles=1, noise=0)
    memory = fewtokens.create_method("tdc", cap=2, dim=64, chunk=3, tokens=2)
    frames = script.codes[[0, 0, 1, 2, 2, 3]].repeat_interleave(2, 0)[None]
    read = memory.read(memory.push(Tokens.from_cells(frames, Grid(6, 1, 2))))
    recall = Recall.from_tokens(read, script, frame=2)
    assert recall.code.tolist() == [0, 0, 1, 2, 2, 3]
    assert recall.first.tolist() == [0, 0, 0, 3, 3, 3] and recall.last.tolist() == [2, 2, 2, 5, 5, 5]
    assert len(Recall.from_tokens(read, script, frame=6).code) == 2
    flipped = Recall.from_tokens(read, script, frame=2, project=lambda features: features.flip(1))
    assert flipped.code.tolist() != recall.code.tolist()


def test_pictures_are_the_same_in_any_parts():
    script = Script.sample(100, num_scenes=4, num_needles=2, mean=12)
    pictures = Pictures(script, 32)
    whole = pictures.frames(0, 100)
    assert whole.shape == (100, 3, 32, 32) and whole.dtype == torch.uint8
    parts = [pictures.frames(start, min(start + 13, 100)) for start in range(0, 100, 13)]
    assert torch.equal(whole, torch.cat(parts))
    change = (whole[1:].float() - whole[:-1].float()).abs().mean((1, 2, 3))
    cut = script.shown(0, 100).diff() != 0
    assert float(change[cut].min()) > float(change[~cut].median())
    with pytest.raises(ValueError, match=f"up to {LOOKS} codes, got 50"):
        Pictures(Script.sample(100, num_scenes=42))


def test_places_are_recognized_by_their_pixels():
    script = Script.sample(60, num_scenes=4, num_needles=2, mean=12)
    encoder = fewtokens.load_encoder("patches", device="cpu", patch_size=8)

    def encode(frames):
        return encoder(frames[:, None])[0].features.mean(1)

    prototypes = Prototypes.fit(encode, 6, size=32)
    features = prototypes.project(encode(Pictures(script, 32).frames(0, 60)))
    code = (torch.nn.functional.normalize(features, dim=1) @ prototypes.codes.T).argmax(1)
    assert float((code == script.shown(0, 60)).double().mean()) > 0.7  # 0.17 by chance
    torch.testing.assert_close(prototypes.script(script).codes, prototypes.codes)
