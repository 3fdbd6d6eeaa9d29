"""One cue maker for all runtimes: a method receives the same tensors in `attach`, `Session` and a composed model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.llm import Session, attach, compress
from fewtokens.llm.chat import collate_turns, encode_turns
from fewtokens.llm.prompts import ComposedProcessor
from fewtokens.video import Video, synthetic
from tests.llm.test_composed import ANSWERS, QUESTIONS, build, parts  # noqa: F401, a fixture
from tests.llm.test_session import CLIP, FIRST, SECOND, loaded
from tests.llm.tiny import FAMILIES, IMAGE, PAD, VIDEO

NAMES = ("text", "frame_global", "pixels")


class Probe(Reducer):
    """Keeps every token, and every cue that it is given: of each video, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Tensor]] = []
        self.tokens: list[Tokens] = []

    @property
    def needs(self) -> tuple[str, ...]:
        return NAMES

    def plan(self, tokens: Tokens, **cues: Any) -> Plan:
        self.seen += [{name: cues[name][b].detach().clone() for name in NAMES} for b in range(tokens.B)]
        self.tokens += list(tokens)
        return Plan.identity(tokens)


def same(one: dict[str, Tensor], two: dict[str, Tensor], **tolerance: float) -> bool:
    return all(
        one[name].shape == two[name].shape and torch.allclose(one[name], two[name], **tolerance) for name in NAMES
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_models_of_transformers(family):
    model, processor = loaded(family)
    attached, asked, batched = Probe(), Probe(), Probe()
    inputs = {question: processor(model, CLIP, question) for question in (FIRST, SECOND)}
    session = Session(model, processor, Pipeline([asked]), 8)
    items = [[("video", 8)]] if processor.backend.needs_items else None
    for question, prompt in inputs.items():
        with attach(model, Pipeline([attached]), items=items) as few:
            few.compress(**prompt)
        session.ask(CLIP, question, 1)
    assert len(attached.seen) == len(asked.seen) == 2
    for one, two, prompt in zip(attached.seen, asked.seen, inputs.values(), strict=True):
        assert same(one, two)
        ids = prompt["input_ids"][0]
        words = model.get_input_embeddings()(ids[(ids != VIDEO) & (ids != IMAGE)])
        assert torch.equal(one["text"], words)
    for one, tokens in zip(attached.seen, attached.tokens, strict=True):
        frames = tokens.features[0].unflatten(0, (tokens.grid.T, -1)).mean(1)
        assert torch.equal(one["frame_global"], frames)
        assert one["pixels"].shape[0] == tokens.grid.cells and float(one["pixels"].min()) >= 0
        assert float(one["pixels"].max()) <= 1
    # Side by side, with an answer each, padded on either side.
    for left in (True, False):
        lines = [prompt["input_ids"][0] for prompt in inputs.values()]
        answered = [torch.cat([line, torch.tensor([9, 8, 7][: 2 + n])]) for n, line in enumerate(lines)]
        labels = [torch.where(torch.arange(len(b)) < len(a), -100, b) for a, b in zip(lines, answered, strict=True)]
        batch: dict[str, Any] = collate_turns(list(zip(answered, labels, strict=True)), PAD, left=left)
        for name in inputs[FIRST]:
            if name == "mm_token_type_ids":
                batch[name] = 2 * (batch["input_ids"] == VIDEO).long()
            elif name not in batch:
                batch[name] = torch.cat([prompt[name] for prompt in inputs.values()])
        batched.seen.clear()
        compress(model, batch, Pipeline([batched]), items=None if items is None else items * 2)
        for one in attached.seen:
            assert any(same(one, two, rtol=1e-4, atol=1e-5) for two in batched.seen)


def clips() -> list[Video]:
    return [synthetic("digits", frames=4, size=(32, 32), seed=seed) for seed in range(3)]


def test_a_composed_model(parts):  # noqa: F811
    """In `attach`, a session, questions of several lengths side by side, and in training, which has the answers too."""
    model = build(parts).eval()
    processor = ComposedProcessor(".", model, num_frames=4, read_size=32)
    attached, asked, batched, trained = (Probe() for _ in range(4))
    session = Session(model, processor, Pipeline([asked]))
    for clip, question in zip(clips(), QUESTIONS, strict=True):
        with attach(model, Pipeline([attached])) as few:
            few.compress(**processor(model, clip, question))
        session.ask(clip, question, 1)
        text = model.tokenizer(f"<s>USER: \n{question} ASSISTANT:", add_special_tokens=False)["input_ids"]
        assert torch.equal(attached.seen[-1]["text"], model.get_input_embeddings()(torch.tensor(text)))
    assert all(same(one, two) for one, two in zip(attached.seen, asked.seen, strict=True))
    frames = torch.stack([clip.frames for clip in clips()])
    model.compressor = Pipeline([batched])
    model.answer(model.encode_questions(QUESTIONS) | {"pixel_values_videos": frames}, max_new_tokens=1)
    model.compressor = Pipeline([trained])
    lines = [encode_turns(model.tokenizer, [pair]) for pair in zip(QUESTIONS, ANSWERS, strict=True)]
    for left in (True, False):
        model(**collate_turns(lines, 0, left=left), pixel_values_videos=frames).loss.backward()
    assert (len(batched.seen), len(trained.seen)) == (3, 6)
    for one in attached.seen:
        assert sum(same(one, two, rtol=1e-4, atol=1e-5) for two in batched.seen) == 1
        assert sum(same(one, two, rtol=1e-4, atol=1e-5) for two in trained.seen) == 2


def test_a_question_that_is_all_label(parts):  # noqa: F811
    model = build(parts, "llama_vid")
    (ids, _) = encode_turns(model.tokenizer, [(QUESTIONS[0], ANSWERS[0])])
    frames = torch.stack([clip.frames for clip in clips()[:1]])
    with pytest.raises(ValueError, match="no words before its first label"):
        model(**collate_turns([(ids, ids)], 0), pixel_values_videos=frames)
