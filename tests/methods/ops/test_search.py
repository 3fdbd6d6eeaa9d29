"""The search for a threshold against the first of all steps that leaves enough tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fewtokens.methods.ops.search import find_threshold


class Counter:
    """Tokens of two videos that a threshold leaves: those whose value lies below it; also counts its calls."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.calls = values, 0

    def __call__(self, tau: Tensor, floor: Tensor) -> Tensor:
        assert bool((floor <= tau).all())
        self.calls += 1
        return (self.values < tau[:, None]).sum(1)

    def search(self, target: list[int], halvings: int) -> Tensor:
        most = torch.full((len(self.values),), self.values.shape[1])
        return find_threshold(self, torch.tensor(target), most, -1.0, 1.0, halvings=halvings)


def crowded(seed: int) -> Tensor:
    """Cosines in [-1, 1), most of them near 1, in runs of three equal values."""
    generator = torch.Generator().manual_seed(seed)
    return (1 - 2 * torch.rand(2, 400, generator=generator) ** 3).clamp(-0.999, 0.999).repeat_interleave(3, 1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("target", [[1, 1200], [100, 101], [302, 7], [1199, 600]])
@pytest.mark.parametrize("halvings", [5, 12])
def test_no_step_below_leaves_enough(seed, target, halvings):
    counter = Counter(crowded(seed))
    tau = counter.search(target, halvings)
    # The same steps, without rounding errors of their sums.
    step = ((tau + 1) * 2**halvings / 2).round()
    left, before = (counter(index / 2 ** (halvings - 1) - 1, torch.full((2,), -1.0)) for index in (step, step - 1))
    wanted = torch.tensor(target)
    assert bool((left >= wanted).all())
    assert bool(((left == wanted) | (before < wanted)).all())


def test_a_count_that_fits_ends_the_search():
    fits, misses = Counter(crowded(0)), Counter(crowded(0))
    fits.search([300, 300], 16)
    misses.search([301, 301], 16)  # values come in threes
    assert fits.calls < min(misses.calls, 16)  # 16 are those of bisection


def test_all_tokens_take_no_search():
    counter = Counter(crowded(0))
    assert counter.search([1200, 1200], 8).tolist() == [1.0, 1.0]
    assert counter.calls == 0
