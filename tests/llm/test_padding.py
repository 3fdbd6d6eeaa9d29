"""Padding, and rows of a batch that keep all their columns, have no effect on other columns."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch

from fewtokens.core import registry
from fewtokens.core.kv_memory import TEXT, Columns, slot_info
from fewtokens.llm import attach
from fewtokens.llm.backends.base import backend_of
from fewtokens.llm.interface import cache_of
from fewtokens.llm.layers.kv_runtime import KVRuntime
from fewtokens.llm.session import video_key
from fewtokens.llm.speculative import speculate
from tests.llm import families
from tests.llm.test_families import positions, steps
from tests.llm.tiny import batch, prompt, tiny

TURN = torch.randint(2, 150, (2, 6), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("layer", [1, 2])
def test_a_row_that_keeps_all_columns_of_a_batch_with_deepstack(layer):
    """Features are added to all columns after the first layers, and the others are removed again."""
    model, video = tiny("qwen3_vl"), prompt("qwen3_vl", ("text", 3), ("video", 4), ("text", 5))
    image = prompt("qwen3_vl", ("text", 90), ("image",), ("text", 5), seed=4)  # the longest, without video tokens

    def logits(made: Any) -> torch.Tensor:
        with attach(model, f"fastv(keep=0.5, layer={layer})") as few:
            return few(**dict(made.inputs)).logits[0, -5:]

    torch.testing.assert_close(logits(batch("qwen3_vl", video, image)), logits(video), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spec", ["uniform(keep=0.9)", "uniform(keep=0.9) | fastv(keep=0.5, layer=1)"])
def test_padding_of_a_later_turn_is_not_seen_in_layers_with_windows(spec):
    model = families.layered("gemma3")
    made = [
        families.prompt("gemma3", ("text", 3), ("video", steps("gemma3")[0]), ("text", 5), seed=seed) for seed in (0, 4)
    ]
    both = families.batch("gemma3", *made)
    mask = torch.ones(2, 6, dtype=torch.int64)
    mask[0, :4] = 0

    def logits(turn: torch.Tensor) -> torch.Tensor:
        options = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
        with attach(model, spec, items=both.items, positions=positions("gemma3")) as few:
            first = few.generate(**copy.copy(both.inputs), **options)
            seen = torch.cat([few.last.inputs["attention_mask"], torch.ones(2, 1, dtype=torch.int64), mask], 1)
            ids = torch.cat([first.sequences, turn], 1)
            second = few.generate(
                input_ids=ids, attention_mask=seen, past_key_values=cache_of(first), **options
            )  # fmt: skip
            return second.logits[0]

    other = TURN.clone()
    other[0, :4] = torch.tensor([9, 8, 7, 6])
    assert torch.equal(logits(TURN), logits(other))


def test_a_later_turn_after_a_direct_call_with_padding():
    model = tiny("llava_onevision")
    short = prompt("llava_onevision", ("text", 3), ("video", 2), ("text", 5))
    long = prompt("llava_onevision", ("text", 13), ("video", 2), ("text", 9), seed=4)

    def logits(made: Any) -> torch.Tensor:
        with attach(model, "uniform(keep=0.5)") as few:
            first = few(**dict(made.inputs), use_cache=True)
            mask = few.last.inputs["attention_mask"]
            turn = TURN[:1].expand(len(mask), -1)
            mask = torch.cat([mask, torch.ones_like(turn)], 1)
            return few(input_ids=turn, attention_mask=mask, past_key_values=cache_of(first)).logits

    both = logits(batch("llava_onevision", short, long))
    torch.testing.assert_close(both[0], logits(short)[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both[1], logits(long)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl"])
def test_speculation_on_a_padded_prompt_without_a_video(family):
    model, ids = tiny(family), prompt(family, ("text", 9), seed=3).inputs["input_ids"]
    padded = torch.cat([torch.zeros(1, 6, dtype=torch.int64), ids], 1)
    mask = torch.cat([torch.zeros(1, 6, dtype=torch.int64), torch.ones_like(ids)], 1)
    expected = model.generate(input_ids=padded, attention_mask=mask, max_new_tokens=8, do_sample=False)
    found = speculate(model, {"input_ids": padded, "attention_mask": mask}, "uniform(keep=0.5)", max_new_tokens=8)
    assert found.tokens.flatten().tolist() == expected[0, padded.shape[1] :].tolist()


def test_passes_against_slots_in_several_threads():
    model = tiny("llava_onevision")
    (method,) = registry.build("videoscan_cache")
    runtimes = [KVRuntime(each, backend_of(each), method) for each in (model, copy.deepcopy(model))]
    columns = [
        Columns(each.embed(torch.arange(12) + 50 * n + 5), slot_info(TEXT, 12)) for n, each in enumerate(runtimes)
    ]
    expected = [each.run(own, each.empty())[1] for each, own in zip(runtimes, columns, strict=True)]
    wrong: list[str] = []

    def work(n: int) -> None:
        try:
            with torch.no_grad():
                for _ in range(30):
                    _, hidden, _ = runtimes[n].run(columns[n], runtimes[n].empty())
                    torch.testing.assert_close(hidden, expected[n])
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(n,)) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_folder_with_a_changed_frame_is_another_video(tmp_path):
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(b"frame")
    before = video_key(tmp_path)
    assert video_key(tmp_path) == before
    (tmp_path / "1.png").write_bytes(b"other")
    assert video_key(tmp_path) != before
