"""Questions in words have certain answers, and a language model answers them from slots as one question alone would."""

from __future__ import annotations

import pytest
import torch

import fewtokens
from fewtokens.evaluation.longvideo.language import (
    END,
    KINDS,
    TIME,
    Question,
    Reads,
    SlotReader,
    Vocabulary,
    collate,
    name_of,
    orthonormal_codes,
    pose,
    read_time,
    rename,
    waves,
    with_codes,
    write_time,
)  # fmt: skip
from fewtokens.evaluation.longvideo.script import Script, stream

CODES = orthonormal_codes(10, 16)
SCRIPT = with_codes(Script.sample(900, seed=2, num_scenes=8, num_needles=2, dim=16), CODES)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_reader(hidden: int = 96) -> SlotReader:
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = Vocabulary(10, 15)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary.words), hidden_size=hidden, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    return SlotReader(LlamaForCausalLM(config), vocabulary, 16).eval()


@pytest.fixture(scope="module")
def reader() -> SlotReader:
    model = random_reader()
    model.align(CODES, generator())
    return model


@pytest.fixture(scope="module")
def reads() -> Reads:
    memory = fewtokens.create_method("videoscan", cap=24, rule="merge")
    tokens = memory.read(memory.push(next(stream([SCRIPT, SCRIPT], 900))))
    return Reads.from_tokens(tokens)


def test_answers_follow_from_the_script():
    shown = SCRIPT.shown(0, 900)
    questions = pose(SCRIPT, 12, generator())
    assert list(questions) == list(KINDS) and all(questions.values())
    for question in questions["far"] + questions["near"]:
        assert question.answer == (name_of(int(shown[int(question.second)])),) and TIME in question.words
    for question in questions["first"] + questions["last"] + questions["needle"]:
        seconds = (shown == int(question.words[-1].removeprefix("place"))).nonzero()
        assert read_time(question.answer) == question.target
        expected = seconds.min() if question.kind != "last" else seconds.max()
        # A needle may hide the first or last second of a scene.
        assert abs(int(expected) - question.target) <= 1
    for question in questions["order"]:
        first = [int((shown == int(question.words[n].removeprefix("place"))).nonzero()[0]) for n in (4, 6)]
        assert question.answer[0] == question.words[4 if first[0] < first[1] else 6]
    assert [question.answer[0] for question in questions["back"]].count("yes") * 2 == len(questions["back"])


def test_times_in_words():
    assert write_time(125) == ("2min", "5s") and read_time(("2min", "5s")) == 125
    for words in (("3min", "yes"), ("was", "5s"), ("5s",), ("5s", "2min"), ()):
        assert read_time(words) is None
    assert read_time(("5s", "2min")) is None and read_time(("place3",)) is None
    question = Question("first", ("when", "first", "place3"), 0, ("2min", "5s"), 125)
    assert question.is_right(("2min", "7s")) and not question.is_right(("2min", "8s"))


def test_names_are_a_rotation():
    """A memory of renamed frames holds the renamed slots."""
    names = torch.randperm(10, generator=generator(1))
    memory = fewtokens.create_method("moviechat", cap=8, short=1, slots=1)
    frames = next(stream([SCRIPT], 900))
    renamed = frames.replace(features=rename(frames.features, CODES, names))
    before, after = (memory.read(memory.push(tokens)) for tokens in (frames, renamed))
    torch.testing.assert_close(after.features, rename(before.features, CODES, names), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rename(CODES, CODES, names), CODES[names])


def test_reads_have_the_seconds_of_slots(reads):
    slot = reads[0:1].seconds[0, reads.mask[0]]
    assert slot[0, 1] == 0 and slot[-1, 2] == 899
    assert bool((slot[1:, 1] == slot[:-1, 2] + 1).all())
    assert bool((slot[:, 1] <= slot[:, 0]).all() and (slot[:, 0] <= slot[:, 2]).all())


def test_alignment_puts_codes_near_their_names(reader):
    words = reader.llm.get_input_embeddings().weight
    names = words[reader.vocabulary.encode([name_of(code) for code in range(10)])]
    assert (reader.projector(CODES) @ names.T).argmax(1).tolist() == list(range(10))
    second = reader.moment(waves(torch.tensor([187.0])))
    ids = reader.vocabulary.ids
    for first, last, word in (("0min", "14min", "3min"), ("0s", "59s", "7s")):
        part = slice(ids[first], ids[last] + 1)
        best = int((second @ words[part].T).argmax())
        assert reader.vocabulary.words[ids[first] + best] == word
    with pytest.raises(ValueError, match="10 codes require more than 82 channels, got 64"):
        random_reader(64).align(CODES, generator())


def test_a_question_is_answered_as_alone(reader, reads):
    questions = pose(SCRIPT, 2, generator(3))
    asked = [question for part in questions.values() for question in part]
    together = reader.answer(reads, *collate([asked, asked[:3]], reader.vocabulary))
    assert len(together[0]) == len(asked) and together[1][:3] == together[0][:3]
    empty = Reads(torch.zeros(1, 30, 16), torch.zeros(1, 30, 3), torch.zeros(1, 30, dtype=torch.bool))
    padded = Reads.concatenate([reads[0:1], empty])[0:1]
    for question, answer in zip(asked, together[0], strict=True):
        alone = reader.answer(padded, *collate([[question]], reader.vocabulary))
        assert alone == [[answer]]
    # Without the mask of many questions, and without padding.
    ids, seconds, begin = collate([asked[:1]], reader.vocabulary)
    prompt = ids[:, :, : int(begin)]
    slots = reader.embed_slots(reads[0:1])
    embedded = torch.cat([slots, reader.embed_words(prompt, seconds)[:, 0]], 1)
    positions = torch.cat([torch.zeros(slots.shape[1]), torch.arange(1, prompt.shape[2] + 1)]).long()[None]
    output = reader.llm(inputs_embeds=embedded, position_ids=positions).logits[0, -1].argmax()
    first = together[0][0][0] if together[0][0] else END
    assert reader.vocabulary.words[int(output)] == first


def test_padding_of_questions_is_not_learned(reader, reads):
    questions = [question for part in pose(SCRIPT, 1, generator()).values() for question in part]
    one = reader.loss(reads[0:1], *collate([questions], reader.vocabulary))
    both = reader.loss(reads, *collate([questions, []], reader.vocabulary))
    torch.testing.assert_close(one, both)
    one.backward()
    assert reader.projector.weight.grad is not None and bool(reader.projector.weight.grad.abs().sum() > 0)


def test_training_learns_what_was_at_the_end(reader, reads):
    """A few steps on one kind of question lower its loss by more than half."""
    model = random_reader()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    batch = collate([pose(SCRIPT, 8, generator())["near"]] * 2, model.vocabulary)
    losses = []
    for _ in range(12):
        loss = model.loss(reads, *batch)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2
