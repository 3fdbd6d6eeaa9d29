"""Later turns on a cache: positions continue from those of its conversation."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch

from fewtokens.llm import attach
from fewtokens.llm.interface import CACHE_NAMES, cache_of, version
from tests.llm.tiny import FAMILIES, IMAGE, MROPE_FAMILIES, VIDEO, Prompt, batch, prompt, tiny

pytestmark = pytest.mark.parametrize("family", FAMILIES)

GREEDY = {
    "max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True,
    "suppress_tokens": [IMAGE, VIDEO],
}  # fmt: skip
A = (("text", 3), ("video", 4), ("text", 5))
B = (("text", 6), ("video", 2), ("text", 2))
FEW = "uniform(keep=0.5)"


def random_ids(count: int, seed: int, rows: int = 1) -> torch.Tensor:
    return torch.randint(2, 180, (rows, count), generator=torch.Generator().manual_seed(seed))


class Conversation:
    """One prompt, and questions after it."""

    def __init__(self, generate, example: Prompt, seed: int) -> None:
        self.generate, self.example, self.seed, self.out = generate, example, seed, None
        self.logits: list[torch.Tensor] = []

    def turn(self, **options) -> None:
        if self.out is None:
            inputs = copy.copy(self.example.inputs)
        else:
            self.seed += 1
            sequences = self.out.sequences
            ids = torch.cat([sequences, random_ids(4, self.seed, len(sequences))], 1)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": cache_of(self.out)}
        self.out = self.generate(**inputs, **(GREEDY | options))
        self.logits.append(torch.stack(self.out.logits, 1))


def run_conversations(family, spec, order, **options):
    """Returns the logits of conversations a, b and c (text only), whose turns are in this order."""
    model = tiny(family)
    prompts = {"a": prompt(family, *A), "b": prompt(family, *B, seed=7), "c": prompt(family, ("text", 9), seed=3)}
    with attach(model, spec, **options) as few:
        conversations = {name: Conversation(few.generate, prompts[name], ord(name)) for name in sorted(set(order))}
        for name in order:
            conversations[name].turn()
    return {name: conversation.logits for name, conversation in conversations.items()}


@pytest.mark.parametrize("positions", ["keep", "average", "renumber"])
def test_interleaved_conversations_equal_separate_ones(family, positions):
    mixed = run_conversations(family, FEW, "abcabcba", positions=positions)
    for name, logits in mixed.items():
        alone = run_conversations(family, FEW, name * len(logits), positions=positions)[name]
        assert len(alone) == len(logits) >= 2
        for actual, expected in zip(logits, alone, strict=True):
            assert torch.equal(actual, expected)


def test_interleaved_conversations_with_layer_methods(family):
    spec = "uniform(keep=0.5) | fastv(keep=0.5, layer=1) | dycoke_cache(keep=0.5, layer=2)"
    mixed = run_conversations(family, spec, "abab", positions="keep")
    for name, logits in mixed.items():
        alone = run_conversations(family, spec, name * 2, positions="keep")[name]
        assert torch.equal(logits[1], alone[1])


def test_a_later_turn_equals_a_pass_over_the_full_conversation(family):
    """Also for Qwen2.5-VL, whose own positions continue from the last frame instead of the last text token."""
    model, example = tiny(family), prompt(family, *A)
    with attach(model, "tome(keep=1.0)") as few:
        conversation = Conversation(few.generate, example, 0)
        conversation.turn()
        conversation.turn()
    ids = conversation.out.sequences
    full = dict(example.inputs) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in full:
        more = ids.shape[1] - full["mm_token_type_ids"].shape[1]
        full["mm_token_type_ids"] = torch.nn.functional.pad(full["mm_token_type_ids"], (0, more))
    with torch.no_grad():
        expected = model(**full).logits[:, -4:-1]
    torch.testing.assert_close(conversation.logits[1], expected.float(), rtol=1e-4, atol=1e-4)
    stock = Conversation(model.generate, example, 0)
    stock.turn()
    stock.turn()
    same = torch.allclose(stock.logits[1], expected, rtol=1e-4, atol=1e-4)
    assert same == (family != "qwen2_5_vl")


@pytest.mark.parametrize("positions", ["keep", "renumber"])
def test_every_way_to_pass_a_cache(family, positions):
    """All ids or the new ones, `generate` or a call, either name of the argument, with a mask or without."""
    model, example = tiny(family), prompt(family, *A)
    question = torch.randint(2, 180, (1, 4), generator=torch.Generator().manual_seed(1))
    cache_name = next(name for name in CACHE_NAMES if name in inspect.signature(model.forward).parameters)
    with attach(model, FEW, positions=positions) as few, torch.no_grad():
        first = few.generate(**example.inputs, **GREEDY)
        cache = cache_of(first)
        ids = torch.cat([first.sequences, question], 1)
        mask = torch.ones_like(ids)
        new = ids[:, cache.get_seq_length() :]

        def copied_cache(name=cache_name):
            return {name: copy.deepcopy(cache)}

        expected = few.generate(input_ids=ids, attention_mask=mask, **copied_cache(), **GREEDY).logits[0]
        for name in CACHE_NAMES:
            again = few.generate(input_ids=ids, attention_mask=mask, **copied_cache(name), **GREEDY).logits[0]
            assert torch.equal(again, expected)
        assert torch.equal(few.generate(ids, **copied_cache(), **GREEDY).logits[0], expected)
        only = few.generate(input_ids=new, attention_mask=mask, **copied_cache(), **GREEDY).logits[0]
        torch.testing.assert_close(only, expected, rtol=1e-5, atol=1e-5)
        for more in ({"attention_mask": mask}, {}):
            called = few(input_ids=new, use_cache=True, **more, **copied_cache()).logits[:, -1]
            torch.testing.assert_close(called, expected, rtol=1e-4, atol=1e-4)


def test_a_batch_of_conversations(family):
    model = tiny(family)
    same = family.startswith("llava")
    prompts = [prompt(family, ("text", 3 + n), ("video", 3 if same else 3 + n), ("text", 4), seed=n) for n in range(2)]
    both = batch(family, *prompts)
    with attach(model, FEW, items=both.items, positions="keep") as few:
        first = few.generate(**both.inputs, **GREEDY)
        short = few.last.inputs["attention_mask"]
        more = random_ids(4, 5)
        ids = torch.cat([first.sequences, more.expand(2, -1)], 1)
        mask = torch.nn.functional.pad(short, (0, ids.shape[1] - short.shape[1]), value=1)
        second = few.generate(input_ids=ids, attention_mask=mask, past_key_values=cache_of(first), **GREEDY)
    for number, alone in enumerate(prompts):
        with attach(model, FEW, items=alone.items, positions="keep") as few:
            actual = few.generate(**alone.inputs, **GREEDY)
            ids = torch.cat([actual.sequences, more], 1)
            expected = few.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache_of(actual), **GREEDY
            )
        torch.testing.assert_close(second.logits[0][number], expected.logits[0][0], rtol=1e-4, atol=1e-4)


def test_a_batch_without_a_mask_is_refused(family):
    both = batch(family, *(prompt(family, *A, seed=n) for n in range(2)))
    with attach(tiny(family), FEW, items=both.items, positions="keep") as few:
        first = few.generate(**both.inputs, **GREEDY)
        with pytest.raises(ValueError, match="requires their attention_mask"):
            few.generate(input_ids=first.sequences, past_key_values=cache_of(first), **GREEDY)


@pytest.mark.parametrize("positions", ["keep", "renumber"])
def test_prefill_in_chunks(family, positions):
    model, example = tiny(family), prompt(family, *A)
    with attach(model, FEW, positions=positions) as few:
        if version() < (5, 23):
            with pytest.raises(ValueError, match=r"requires transformers 5\.23"):
                few.generate(**example.inputs, prefill_chunk_size=8, **GREEDY)
            return
        full = Conversation(few.generate, example, 0)
        full.turn()
        full.turn()
        parts = Conversation(few.generate, example, 0)
        parts.turn(prefill_chunk_size=8)
        parts.turn(prefill_chunk_size=2)
    for actual, expected in zip(parts.logits, full.logits, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    with attach(model, "fastv(keep=0.5, layer=1)") as few, pytest.raises(ValueError, match="remove prefill_chunk_size"):
        few.generate(**example.inputs, prefill_chunk_size=8, **GREEDY)


def test_positional_arguments(family):
    model, example = tiny(family), prompt(family, *A)
    ids = example.inputs["input_ids"]
    rest = {name: value for name, value in example.inputs.items() if name != "input_ids"}
    with attach(model, FEW) as few, torch.no_grad():
        expected = few.generate(**example.inputs, **GREEDY).sequences
        assert torch.equal(few.generate(ids, **rest, **GREEDY).sequences, expected)
        assert torch.equal(few.generate(inputs=ids, **rest, **GREEDY).sequences, expected)
        assert torch.equal(few(ids, **rest).logits, few(**example.inputs).logits)


def test_mrope_ignores_the_deltas_of_another_conversation(family):
    """The deltas that the model stores for its last prompt are not used."""
    if family not in MROPE_FAMILIES:
        pytest.skip("positions of one axis")
    model, example = tiny(family), prompt(family, *A)
    logits = []
    for stale in (None, torch.tensor([[1000]])):
        with attach(model, FEW) as few:
            conversation = Conversation(few.generate, example, 0)
            conversation.turn()
            if stale is not None:
                model.model.rope_deltas = stale
            conversation.turn()
        logits.append(conversation.logits[1])
    assert torch.equal(*logits)


@pytest.mark.parametrize("positions", ["keep", "renumber"])
def test_a_static_cache(family, positions):
    """Two interleaved conversations, token by token."""
    from transformers import StaticCache

    model = tiny(family)
    prompts = [prompt(family, *A), prompt(family, *B, seed=7)]

    def answers(numbers):
        logits = {number: [] for number in numbers}
        caches = {number: StaticCache(config=model.config.get_text_config(), max_cache_len=96) for number in numbers}
        lengths = dict.fromkeys(numbers, 0)
        with attach(model, FEW, positions=positions) as few, torch.no_grad():
            for number in numbers:
                few(**prompts[number].inputs, past_key_values=caches[number], use_cache=True)
                lengths[number] = few.last.inputs["input_ids"].shape[1]
            for turn in range(4):
                for number in numbers:
                    ids = random_ids(3 if turn == 2 else 1, turn)
                    lengths[number] += ids.shape[1]
                    out = few(
                        input_ids=ids,
                        attention_mask=torch.ones(1, lengths[number], dtype=torch.int64),
                        past_key_values=caches[number],
                        use_cache=True,
                    )
                    logits[number].append(out.logits)
        return logits

    both = answers([0, 1])
    for number in (0, 1):
        for actual, expected in zip(both[number], answers([number])[number], strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
