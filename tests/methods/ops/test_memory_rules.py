"""Rules of memories that are full, against their definition on a list."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from fewtokens.core import registry
from fewtokens.methods.ops import memory_rules
from fewtokens.methods.ops.seeded import uniform_hash
from tests.helpers.frames import stream


def by_definition(features: torch.Tensor, cap: int, rule: str) -> list[tuple[torch.Tensor, int, int, int]]:
    """The slots (feature, mass, first, last) after all frames [T,C], by lists without any bookkeeping."""
    slots: list[tuple[torch.Tensor, int, int, int]] = []
    for t, feature in enumerate(features):
        slots.append((feature, 1, t, t))
        if len(slots) > cap:
            similarity = [float(F.cosine_similarity(a[0], b[0], dim=0)) for a, b in pairwise(slots)]
            k = similarity.index(max(similarity))
            (a, m, first, _), (b, n, start, last) = slots[k : k + 2]
            merged = {
                "weighted": ((m * a + n * b) / (m + n), m + n, first, last),
                "plain": ((a + b) / 2, m + n, first, last),
                "drop": (b, n, start, last),
            }[rule]
            slots[k : k + 2] = [merged]
    return slots


@pytest.mark.parametrize("rule", ["weighted", "plain", "drop"])
@pytest.mark.parametrize("cap", [1, 2, 7])
def test_adjacent_rules(rule, cap):
    (memory,) = registry.build(
        {
            "weighted": f"moviechat({cap}, short=1, slots=1)",
            "plain": f"moviechat({cap}, short=1, slots=1, variant='paper')",
            "drop": f"videoscan({cap})",
        }[rule]
    )
    tokens = stream(40, B=2, C=3)
    out = memory.read(memory.push(tokens))
    for b in range(2):
        expected = by_definition(tokens.features[b], cap, rule)
        torch.testing.assert_close(out.features[b], torch.stack([slot[0] for slot in expected]))
        assert out.sizes[b].tolist() == [slot[1] for slot in expected]
        assert out.meta["spans"][b] == [[slot[2] / 2, slot[3] / 2] for slot in expected]


def test_merge_down_by_definition():
    tokens = stream(18, C=3)
    (memory,) = registry.build("moviechat(4, short=18)")
    out = memory.read(memory.push(tokens))
    # The 18 frames are merged to 2 as if these were the cap, but all frames are there before the first merge.
    slots = [(feature, 1) for feature in tokens.features[0]]
    while len(slots) > 2:
        similarity = [float(F.cosine_similarity(a[0], b[0], dim=0)) for a, b in pairwise(slots)]
        k = similarity.index(max(similarity))
        (a, m), (b, n) = slots[k : k + 2]
        slots[k : k + 2] = [((m * a + n * b) / (m + n), m + n)]
    torch.testing.assert_close(out.features[0], torch.stack([slot[0] for slot in slots]))


def test_halving_keeps_indices_divisible_by_a_power_of_two():
    for cap in (1, 3, 4):
        (memory,) = registry.build(f"halving({cap})")
        state = None
        for t in range(40):
            state = memory.push(stream(1), state)
            stride = 1
            while len(range(0, t + 1, stride)) > cap:
                stride *= 2
            held = state.slots.seconds[0, state.slots.mask[0], 0]
            # Frames all have second 0, so their number is compared.
            assert len(held) == len(range(0, t + 1, stride))


def test_the_reservoir_is_algorithm_r():
    (memory,) = registry.build("reservoir(5, seed=3)")
    T = 1500
    state = memory.push(stream(T))
    slots = list(range(5))
    for t, number in enumerate(uniform_hash(3, T).tolist()):
        if t >= 5 and int(number * (t + 1)) < 5:
            slots[int(number * (t + 1))] = t
    assert (state.slots.seconds[0, :, 0] * 2).tolist() == slots


def test_merge_groups():
    tokens = stream(6, C=3)
    (memory,) = registry.build("ring(6)")
    slots = memory.push(tokens).slots
    merged = memory_rules.merge_groups(slots, torch.tensor([[0, 2, 0, 3, 2, 2]]), 4)
    x = tokens.features[0]
    torch.testing.assert_close(merged.features[0, 0, 0], x[[0, 2]].mean(0))
    torch.testing.assert_close(merged.features[0, 2, 0], x[[1, 4, 5]].mean(0))
    assert merged.mass.tolist() == [[2, 0, 3, 1]]
    torch.testing.assert_close(
        merged.seconds[0], torch.tensor([[0.5, 0, 1], [0, 0, 0], [5 / 3, 0.5, 2.5], [1.5, 1.5, 1.5]]).double()
    )
    # Groups of groups are weighted by frames.
    again = memory_rules.merge_groups(merged, torch.zeros(1, 4, dtype=torch.int64), 1)
    torch.testing.assert_close(again.features[0, 0, 0], x.mean(0))
