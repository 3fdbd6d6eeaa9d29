"""The relevance of frames by a video language model, against logits of one prompt at a time."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pytest
import torch

import fewtokens
from fewtokens.llm import ModelScorer, Session, load
from fewtokens.llm.relevance import PROMPT, answer_ids, yes_probability
from fewtokens.video import Video, synthetic, write
from fewtokens.video.footage import SmallFrames
from tests.llm import saved
from tests.llm.tiny import FAMILIES

FRAMES = synthetic("shapes", frames=5, size=(64, 96), seed=3).frames
QUESTION = "how many people"


@cache
def loaded(family: str):
    """A tiny model whose tokenizer knows the answers; only Yes and yes for yes, and only no for no."""
    from tempfile import TemporaryDirectory

    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        patch.setattr(saved, "WORDS", (*saved.WORDS, "Yes", "yes", "no"))
        return load(saved.save(family, Path(folder)), device="cpu")


def small_frames(frames):
    index = torch.arange(len(frames))
    return SmallFrames(index / 2, index.numpy(), 64, lambda part, size: frames[torch.from_numpy(part)])


def test_the_specification():
    """The logits of "yes" alone would rank the frames 0, 2, 1."""
    logits = torch.tensor([[3.0, 4.0], [1.0, -2.0], [2.5, 1.0]])
    scores = yes_probability(logits, torch.tensor([0]), torch.tensor([1]))
    assert scores.tolist() == pytest.approx([1 / (1 + math.exp(z)) for z in (1, -3, -1.5)])
    assert scores.argsort(descending=True).tolist() == [1, 2, 0]
    assert logits[:, 0].argsort(descending=True).tolist() == [0, 2, 1]


def test_probabilities_of_casings_are_added():
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    chances = logits.softmax(1)
    yes, no = chances[:, [1, 4, 6]].sum(1), chances[:, [2, 8]].sum(1)
    scores = yes_probability(logits, torch.tensor([1, 4, 6]), torch.tensor([2, 8]))
    torch.testing.assert_close(scores, yes / (yes + no))


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_logits_of_each_frame_alone(family):
    model, processor = loaded(family)
    vocabulary = processor.tokenizer.get_vocab()
    assert answer_ids(processor.tokenizer, "yes").tolist() == sorted([vocabulary["Yes"], vocabulary["yes"]])
    scorer = ModelScorer(model, processor, batch=2)
    scores = scorer.score(small_frames(FRAMES), QUESTION, None)
    expected = []
    for frame in FRAMES:
        video = Video(frame[None], torch.zeros(1, dtype=torch.float64))
        inputs = processor(model, video, PROMPT.replace("{question}", QUESTION))
        out = model.generate(
            **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        z = {word: float(out.logits[0][0, vocabulary[word]]) for word in ("Yes", "yes", "no")}
        odds = (math.exp(z["Yes"]) + math.exp(z["yes"])) / math.exp(z["no"])
        expected.append(odds / (1 + odds))
    assert scores.dtype == torch.float32 and len({round(score, 6) for score in expected}) == len(FRAMES)
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_the_prompt_changes_the_scores():
    model, processor = loaded("qwen2_vl")
    frames = small_frames(FRAMES)
    a, b = (ModelScorer(model, processor, prompt=prompt) for prompt in (PROMPT, "{question} are there people"))
    assert a.id != b.id and a.needs_question and not a.compares_features
    assert not torch.allclose(a.score(frames, QUESTION, None), b.score(frames, QUESTION, None))


def test_a_session_scores_with_its_own_model(tmp_path):
    model, processor = loaded("qwen2_vl")
    path = write(tmp_path / "clip.mp4", synthetic("shapes", frames=24, size=(64, 96), seed=1).frames, 8)
    session = Session(model, processor, "", select="sevila(keep=2, frames=6)", scorer="model")
    read: list[Video] = []
    real = session._read
    session._read = lambda *args: read.append(real(*args)) or read[-1]  # type: ignore[method-assign]
    answer = session.ask(path, QUESTION, 2)
    assert answer.tokens == answer.cells and answer.seconds["decode"] > 0
    scorer = ModelScorer(model, processor)
    candidates = fewtokens.read(path, frames=6, size=scorer.size)
    scores = scorer.score(small_frames(candidates.frames), QUESTION, None)
    best = scores.topk(2).indices.sort().values
    assert read[0].times.tolist() == candidates.times[best].tolist()
    session.ask(path, "what happens", 2)
    assert len(read) == 2  # another question, other scores


def test_errors():
    model, processor = loaded("qwen2_vl")
    for arguments, message in (
        ({"prompt": "is it relevant"}, "prompt must contain {question}"),
        ({"batch": 0}, "at least 1"),
        ({"size": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            ModelScorer(model, processor, **arguments)
    with pytest.raises(ValueError, match="no token for 'perhaps'"):
        answer_ids(processor.tokenizer, "perhaps")
    with pytest.raises(ValueError, match="scorer 'model' is the language model of a session"):
        fewtokens.read(FRAMES, select="sevila", question=QUESTION, scorer="model")
    with pytest.raises(ValueError, match="sevila selects by a question"):
        fewtokens.read(FRAMES, select="sevila", scorer="model")


@pytest.mark.parametrize("family", ["bytes", "metaspace"])
def test_the_casings_of_an_answer(family):
    """As in byte-level tokenizers, which tell a space before a word apart, and as in those with a leading "▁"."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "yes", "Yes", "Ġyes", "ĠYes", "▁yes", "▁Yes", "YES", "yesterday"]
    rules = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    if family == "bytes":
        rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        rules.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rules, unk_token="<unk>")
    assert answer_ids(tokenizer, "yes").tolist() == ([1, 2, 3, 4] if family == "bytes" else [5, 6])
