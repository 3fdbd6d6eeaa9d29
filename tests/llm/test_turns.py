"""Later turns on kept caches: positions go on from those of the conversation that a cache is of."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch

from fewtokens.llm import attach
from fewtokens.llm.interface import CACHE_NAMES, cache_of, version
from tests.llm.tiny import FAMILIES, IMAGE, MROPED, VIDEO, Prompt, batch, prompt, tiny

pytestmark = pytest.mark.parametrize("family", FAMILIES)

GREEDY = {
    "max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True,
    "suppress_tokens": [IMAGE, VIDEO],
}  # fmt: skip
A = (("text", 3), ("video", 4), ("text", 5))
B = (("text", 6), ("video", 2), ("text", 2))
FEW = "uniform(keep=0.5)"


def words(count: int, seed: int, rows: int = 1) -> torch.Tensor:
    return torch.randint(2, 180, (rows, count), generator=torch.Generator().manual_seed(seed))


class Talk:
    """A conversation: one prompt, and questions after it."""

    def __init__(self, ask, asked: Prompt, seed: int) -> None:
        self.ask, self.asked, self.seed, self.out = ask, asked, seed, None
        self.logits: list[torch.Tensor] = []

    def turn(self, **options) -> None:
        if self.out is None:
            given = copy.copy(self.asked.inputs)
        else:
            self.seed += 1
            said = self.out.sequences
            ids = torch.cat([said, words(4, self.seed, len(said))], 1)
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": cache_of(self.out)}
        self.out = self.ask(**given, **(GREEDY | options))
        self.logits.append(torch.stack(self.out.logits, 1))


def talks(family, spec, order, **options):
    """The logits of conversations a, b and c (text alone), whose turns come in this order."""
    model = tiny(family)
    prompts = {"a": prompt(family, *A), "b": prompt(family, *B, seed=7), "c": prompt(family, ("text", 9), seed=3)}
    with attach(model, spec, **options) as few:
        made = {name: Talk(few.generate, prompts[name], ord(name)) for name in sorted(set(order))}
        for name in order:
            made[name].turn()
    return {name: talk.logits for name, talk in made.items()}


@pytest.mark.parametrize("positions", ["keep", "average", "renumber"])
def test_conversations_in_turns_are_those_alone(family, positions):
    mixed = talks(family, FEW, "abcabcba", positions=positions)
    for name, logits in mixed.items():
        alone = talks(family, FEW, name * len(logits), positions=positions)[name]
        assert len(alone) == len(logits) >= 2
        for one, two in zip(logits, alone, strict=True):
            assert torch.equal(one, two)


def test_conversations_inside_the_layers_too(family):
    spec = "uniform(keep=0.5) | fastv(keep=0.5, layer=1) | dycoke_cache(keep=0.5, layer=2)"
    mixed = talks(family, spec, "abab", positions="keep")
    for name, logits in mixed.items():
        alone = talks(family, spec, name * 2, positions="keep")[name]
        assert torch.equal(logits[1], alone[1])


def test_a_later_turn_is_a_pass_over_the_whole_conversation(family):
    """Also where transformers' own goes on from the last frame instead of the last word (Qwen2.5-VL)."""
    model, asked = tiny(family), prompt(family, *A)
    with attach(model, "tome(keep=1.0)") as few:
        talk = Talk(few.generate, asked, 0)
        talk.turn()
        talk.turn()
    ids = talk.out.sequences
    whole = dict(asked.inputs) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in whole:
        more = ids.shape[1] - whole["mm_token_type_ids"].shape[1]
        whole["mm_token_type_ids"] = torch.nn.functional.pad(whole["mm_token_type_ids"], (0, more))
    with torch.no_grad():
        wanted = model(**whole).logits[:, -4:-1]
    torch.testing.assert_close(talk.logits[1], wanted.float(), rtol=1e-4, atol=1e-4)
    stock = Talk(model.generate, asked, 0)
    stock.turn()
    stock.turn()
    same = torch.allclose(stock.logits[1], wanted, rtol=1e-4, atol=1e-4)
    assert same == (family != "qwen2_5_vl")


@pytest.mark.parametrize("positions", ["keep", "renumber"])
def test_every_way_to_bring_a_cache(family, positions):
    """All ids or the new ones, `generate` or a call, either name of the argument, with a mask or without."""
    model, asked = tiny(family), prompt(family, *A)
    asked_first = torch.randint(2, 180, (1, 4), generator=torch.Generator().manual_seed(1))
    own = next(name for name in CACHE_NAMES if name in inspect.signature(model.forward).parameters)
    with attach(model, FEW, positions=positions) as few, torch.no_grad():
        first = few.generate(**asked.inputs, **GREEDY)
        cache = cache_of(first)
        ids = torch.cat([first.sequences, asked_first], 1)
        mask = torch.ones_like(ids)
        new = ids[:, cache.get_seq_length() :]

        def kept(name=own):
            return {name: copy.deepcopy(cache)}

        wanted = few.generate(input_ids=ids, attention_mask=mask, **kept(), **GREEDY).logits[0]
        for name in CACHE_NAMES:
            again = few.generate(input_ids=ids, attention_mask=mask, **kept(name), **GREEDY).logits[0]
            assert torch.equal(again, wanted)
        assert torch.equal(few.generate(ids, **kept(), **GREEDY).logits[0], wanted)
        only = few.generate(input_ids=new, attention_mask=mask, **kept(), **GREEDY).logits[0]
        torch.testing.assert_close(only, wanted, rtol=1e-5, atol=1e-5)
        for more in ({"attention_mask": mask}, {}):
            called = few(input_ids=new, use_cache=True, **more, **kept()).logits[:, -1]
            torch.testing.assert_close(called, wanted, rtol=1e-4, atol=1e-4)


def test_a_batch_of_conversations(family):
    model = tiny(family)
    same = family.startswith("llava")
    prompts = [prompt(family, ("text", 3 + n), ("video", 3 if same else 3 + n), ("text", 4), seed=n) for n in range(2)]
    both = batch(family, *prompts)
    with attach(model, FEW, items=both.items, positions="keep") as few:
        first = few.generate(**both.inputs, **GREEDY)
        short = few.last.inputs["attention_mask"]
        more = words(4, 5)
        ids = torch.cat([first.sequences, more.expand(2, -1)], 1)
        mask = torch.nn.functional.pad(short, (0, ids.shape[1] - short.shape[1]), value=1)
        second = few.generate(input_ids=ids, attention_mask=mask, past_key_values=cache_of(first), **GREEDY)
    for number, alone in enumerate(prompts):
        with attach(model, FEW, items=alone.items, positions="keep") as few:
            one = few.generate(**alone.inputs, **GREEDY)
            ids = torch.cat([one.sequences, more], 1)
            two = few.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache_of(one), **GREEDY
            )
        torch.testing.assert_close(second.logits[0][number], two.logits[0][0], rtol=1e-4, atol=1e-4)


def test_prompts_side_by_side_need_a_mask(family):
    both = batch(family, *(prompt(family, *A, seed=n) for n in range(2)))
    with attach(tiny(family), FEW, items=both.items, positions="keep") as few:
        first = few.generate(**both.inputs, **GREEDY)
        with pytest.raises(ValueError, match="needs their attention_mask"):
            few.generate(input_ids=first.sequences, past_key_values=cache_of(first), **GREEDY)


@pytest.mark.parametrize("positions", ["keep", "renumber"])
def test_a_prompt_read_in_chunks(family, positions):
    model, asked = tiny(family), prompt(family, *A)
    with attach(model, FEW, positions=positions) as few:
        if version() < (5, 23):
            with pytest.raises(ValueError, match=r"need transformers 5\.23"):
                few.generate(**asked.inputs, prefill_chunk_size=8, **GREEDY)
            return
        whole = Talk(few.generate, asked, 0)
        whole.turn()
        whole.turn()
        parts = Talk(few.generate, asked, 0)
        parts.turn(prefill_chunk_size=8)
        parts.turn(prefill_chunk_size=2)
    for one, two in zip(parts.logits, whole.logits, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    with attach(model, "fastv(keep=0.5, layer=1)") as few, pytest.raises(ValueError, match="leave out prefill_chunk"):
        few.generate(**asked.inputs, prefill_chunk_size=8, **GREEDY)


def test_arguments_without_names(family):
    model, asked = tiny(family), prompt(family, *A)
    ids = asked.inputs["input_ids"]
    rest = {name: value for name, value in asked.inputs.items() if name != "input_ids"}
    with attach(model, FEW) as few, torch.no_grad():
        wanted = few.generate(**asked.inputs, **GREEDY).sequences
        assert torch.equal(few.generate(ids, **rest, **GREEDY).sequences, wanted)
        assert torch.equal(few.generate(inputs=ids, **rest, **GREEDY).sequences, wanted)
        assert torch.equal(few(ids, **rest).logits, few(**asked.inputs).logits)


def test_mrope_leaves_no_trace_of_another_conversation(family):
    """The model's own memory of the last prompt plays no part."""
    if family not in MROPED:
        pytest.skip("positions of one axis")
    model, asked = tiny(family), prompt(family, *A)
    found = []
    for trace in (None, torch.tensor([[1000]])):
        with attach(model, FEW) as few:
            talk = Talk(few.generate, asked, 0)
            talk.turn()
            if trace is not None:
                model.model.rope_deltas = trace
            talk.turn()
        found.append(talk.logits[1])
    assert torch.equal(*found)


@pytest.mark.parametrize("positions", ["keep", "renumber"])
def test_a_static_cache(family, positions):
    """Two conversations in turns, word by word."""
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
                    ids = words(3 if turn == 2 else 1, turn)
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
        for one, two in zip(both[number], answers([number])[number], strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
