"""A method receives the same cues in `attach`, in `Session` and in a composed model."""

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

NAMES = ("text", "frame_global", "pixels", "attention", "keys", "shift")


class Probe(Reducer):
    """Keeps every token, and records the cues of each video, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.cues: list[dict[str, Tensor]] = []
        self.tokens: list[Tokens] = []

    @property
    def needs(self) -> tuple[str, ...]:
        return NAMES

    def plan(self, tokens: Tokens, **cues: Any) -> Plan:
        self.cues += [{name: cues[name][b].detach().clone() for name in NAMES} for b in range(tokens.B)]
        self.tokens += list(tokens)
        return Plan.identity(tokens)


def cues_equal(first: dict[str, Tensor], second: dict[str, Tensor], **tolerance: float) -> bool:
    return all(
        first[name].shape == second[name].shape and torch.allclose(first[name], second[name], **tolerance)
        for name in NAMES
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_models_of_transformers(family):
    model, processor = loaded(family)
    with_attach, with_session, with_batch = Probe(), Probe(), Probe()
    inputs = {question: processor(model, CLIP, question) for question in (FIRST, SECOND)}
    session = Session(model, processor, Pipeline([with_session]), 8)
    items = [[("video", 8)]] if processor.backend.needs_items else None
    for question, prompt in inputs.items():
        with attach(model, Pipeline([with_attach]), items=items) as few:
            few.compress(**prompt)
        session.ask(CLIP, question, 1)
    assert len(with_attach.cues) == len(with_session.cues) == 2
    for first, second, prompt in zip(with_attach.cues, with_session.cues, inputs.values(), strict=True):
        assert cues_equal(first, second)
        ids = prompt["input_ids"][0]
        text = model.get_input_embeddings()(ids[(ids != VIDEO) & (ids != IMAGE)])
        assert torch.equal(first["text"], text)
    for first, tokens in zip(with_attach.cues, with_attach.tokens, strict=True):
        frames = tokens.features[0].unflatten(0, (tokens.grid.T, -1)).mean(1)
        assert torch.equal(first["frame_global"], frames)
        assert first["pixels"].shape[0] == tokens.grid.cells and float(first["pixels"].min()) >= 0
        assert float(first["pixels"].max()) <= 1
    # In a batch, with answers, padded on either side.
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
        with_batch.cues.clear()
        compress(model, batch, Pipeline([with_batch]), items=None if items is None else items * 2)
        for first in with_attach.cues:
            assert any(cues_equal(first, second, rtol=1e-4, atol=1e-5) for second in with_batch.cues)


def clips() -> list[Video]:
    return [synthetic("digits", frames=4, size=(32, 32), seed=seed) for seed in range(3)]


def test_a_composed_model(parts):  # noqa: F811
    """In `attach`, a session, a batch of questions of different lengths, and training, whose prompts have answers."""
    model = build(parts).eval()
    processor = ComposedProcessor(".", model, num_frames=4, read_size=32)
    with_attach, with_session, with_batch, in_training = (Probe() for _ in range(4))
    session = Session(model, processor, Pipeline([with_session]))
    for clip, question in zip(clips(), QUESTIONS, strict=True):
        with attach(model, Pipeline([with_attach])) as few:
            few.compress(**processor(model, clip, question))
        session.ask(clip, question, 1)
        text = model.tokenizer(f"<s>USER: \n{question} ASSISTANT:", add_special_tokens=False)["input_ids"]
        assert torch.equal(with_attach.cues[-1]["text"], model.get_input_embeddings()(torch.tensor(text)))
    assert all(cues_equal(first, second) for first, second in zip(with_attach.cues, with_session.cues, strict=True))
    frames = torch.stack([clip.frames for clip in clips()])
    model.compressor = Pipeline([with_batch])
    model.answer(model.encode_questions(QUESTIONS) | {"pixel_values_videos": frames}, max_new_tokens=1)
    model.compressor = Pipeline([in_training])
    lines = [encode_turns(model.tokenizer, [pair]) for pair in zip(QUESTIONS, ANSWERS, strict=True)]
    for left in (True, False):
        model(**collate_turns(lines, 0, left=left), pixel_values_videos=frames).loss.backward()
    assert (len(with_batch.cues), len(in_training.cues)) == (3, 6)
    for first in with_attach.cues:
        assert sum(cues_equal(first, second, rtol=1e-4, atol=1e-5) for second in with_batch.cues) == 1
        assert sum(cues_equal(first, second, rtol=1e-4, atol=1e-5) for second in in_training.cues) == 2


def test_a_prompt_without_a_question(parts):  # noqa: F811
    model = build(parts, "llama_vid")
    (ids, _) = encode_turns(model.tokenizer, [(QUESTIONS[0], ANSWERS[0])])
    frames = torch.stack([clip.frames for clip in clips()[:1]])
    with pytest.raises(ValueError, match="no text before its first label"):
        model(**collate_turns([(ids, ids)], 0), pixel_values_videos=frames)
