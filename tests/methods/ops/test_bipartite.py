"""Bipartite matching and merging against worked examples and a reference implementation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fewtokens.core.grid import Grid
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import (
    SKETCH_ERROR,
    best_match,
    bipartite_plan,
    merge_to,
    sketch,
    sketch_axes,
    top_matches,
)


def six_vectors(prefix: int = 0) -> Tokens:
    """Unit vectors at 0, 10, 90, 95, 180 and 40 degrees."""
    angle = torch.tensor([0.0, 10, 90, 95, 180, 40]).deg2rad()
    x = torch.stack([angle.cos(), angle.sin()], 1)
    extra = torch.zeros(1, prefix, 2) if prefix else None
    return Tokens.from_cells(x.reshape(1, 1, 1, 6, 2), prefix=extra)


def degrees(tokens: Tokens) -> list[float]:
    return [abs(math.degrees(math.atan2(y, x))) for x, y in tokens.features[0].tolist()]


def test_one_merge():
    tokens = six_vectors()
    out = tokens.apply(bipartite_plan(tokens.features, 1, tokens))
    assert out.sizes.tolist() == [[1, 1, 1, 2, 1]]
    assert degrees(out) == pytest.approx([0, 180, 10, 92.5, 40], abs=1e-3)
    # The mean of two unit vectors is not itself of unit length.
    assert out.features[0, 3].norm() == pytest.approx(math.cos(math.radians(2.5)), abs=1e-5)
    assert out.assignment.tolist() == [[0, 2, 3, 3, 1, 4]]


def test_two_merges():
    tokens = six_vectors()
    out = tokens.apply(bipartite_plan(tokens.features, 2, tokens))
    assert out.sizes.tolist() == [[1, 2, 2, 1]]


def test_merging_none_and_at_most_half():
    tokens = six_vectors()
    assert bipartite_plan(tokens.features, 100, tokens).count.tolist() == [3]
    out = tokens.apply(bipartite_plan(tokens.features, 0, tokens))
    assert sorted(degrees(out)) == pytest.approx(sorted(degrees(tokens)))


def test_class_token_shifts_the_halves_and_keeps_the_order():
    """With a class token first, patches 0, 2, 4 are at odd positions, in set B."""
    tokens = six_vectors(prefix=1)
    out = tokens.apply(bipartite_plan(tokens.features, 1, tokens))
    # A = 10, 95, 40 degrees; 95 merges into 90; the rest of A keeps its order, then B.
    assert degrees(out) == pytest.approx([10, 40, 0, 92.5, 180], abs=1e-3)
    assert out.prefix is tokens.prefix


def tome_by_loops(
    x: torch.Tensor, sizes: torch.Tensor, metric: torch.Tensor, r: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step for one sample without a class token, token by token."""
    n = len(x)
    if r == 0:
        return x, sizes
    m = metric / metric.norm(dim=1, keepdim=True)
    a, b = list(range(0, n, 2)), list(range(1, n, 2))
    pairs = []
    for i in a:
        similarity, j = max((float(m[i] @ m[j]), -j) for j in b)
        pairs.append((similarity, i, -j))
    pairs.sort(key=lambda pair: -pair[0])
    r = min(r, n // 2)
    total, mass = {j: x[j] * sizes[j] for j in b}, {j: sizes[j].clone() for j in b}
    for _, i, j in pairs[:r]:
        total[j] = total[j] + x[i] * sizes[i]
        mass[j] = mass[j] + sizes[i]
    rest = [i for _, i, _ in pairs[r:]]
    features = torch.stack([x[i] for i in rest] + [total[j] / mass[j] for j in b])
    return features, torch.stack([sizes[i] for i in rest] + [mass[j] for j in b])


@pytest.mark.parametrize("n", [2, 3, 8, 31, 64])
@pytest.mark.parametrize("r", [0, 1, 5, 100])
def test_against_loops(n, r):
    torch.manual_seed(n * 101 + r)
    x, metric, sizes = torch.randn(n, 7), torch.randn(n, 5), torch.randint(1, 5, (n,)).float()
    tokens = Tokens.from_cells(x.reshape(1, 1, 1, n, 7)).replace(sizes=sizes[None])
    out = tokens.apply(bipartite_plan(metric[None], r, tokens))
    features, mass = tome_by_loops(x, sizes, metric, r)
    torch.testing.assert_close(out.features[0], features)
    torch.testing.assert_close(out.sizes[0], mass)


def test_best_match_in_blocks(monkeypatch):
    a, b = F.normalize(torch.randn(2, 37, 6), dim=2), F.normalize(torch.randn(2, 29, 6), dim=2)
    expected = (a @ b.transpose(1, 2)).max(2)
    monkeypatch.setattr("fewtokens.methods.ops.bipartite._MAX_BLOCK_ENTRIES", 100)
    value, index = best_match(a, b)
    torch.testing.assert_close(value, expected.values)
    assert torch.equal(index, expected.indices)


@pytest.mark.parametrize("axes", [1, 3, 8, 64])
def test_the_best_matches_found_by_sketches(monkeypatch, axes):
    monkeypatch.setattr("fewtokens.methods.ops.bipartite._AXES", axes)
    generator = torch.Generator().manual_seed(axes)
    # Negative similarities, and rows of zeros that may not be matched.
    x = F.normalize(torch.randn(3, 80, 8, generator=generator), dim=2)
    a, b = x[:, :41].abs(), -x[:, 41:].abs()
    real_a = torch.arange(41) < torch.tensor([[41], [6], [20]])
    real_b = torch.arange(39) < torch.tensor([[39], [7], [20]])
    a, b, count = a * real_a[..., None], b * real_b[..., None], torch.tensor([7, 6, 0])
    value, index = top_matches(a, b, real_a, real_b, count)
    full_value, full_index = best_match(a, b, real_b)
    for video, k in enumerate(count.tolist()):
        top = full_value[video].masked_fill(~real_a[video], -3).argsort(descending=True)[:k]
        assert value[video].masked_fill(~real_a[video], -3).argsort(descending=True)[:k].tolist() == top.tolist()
        torch.testing.assert_close(value[video, top], full_value[video, top])
        assert torch.equal(index[video, top], full_index[video, top])


def test_sketches_bound_the_similarity_of_nearly_equal_rows():
    """What is left of a vector outside the axes is then lost in rounding."""
    torch.manual_seed(0)
    x = torch.randn(1, 64, 512).repeat_interleave(8, 1)
    x = F.normalize(x + 3e-4 * torch.randn_like(x) * torch.rand(1, 512, 1), dim=2)
    other = F.normalize(x + torch.randn_like(x) * torch.rand(1, 512, 1), dim=2)
    axes = sketch_axes(x)
    for y in (x, other):
        bound = sketch(x, axes) @ sketch(y, axes).transpose(1, 2)
        assert (x.double() @ y.double().transpose(1, 2) <= bound + SKETCH_ERROR).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("prefix", [0, 1])
def test_a_few_merges_by_sketches(monkeypatch, dtype, prefix):
    torch.manual_seed(prefix)
    start = torch.randn(3, prefix, 6, dtype=dtype) if prefix else None
    tokens = Tokens.from_cells(torch.randn(3, 4, 6, 5, 6).to(dtype), prefix=start)
    tokens = tokens.apply(Plan.keep(torch.arange(120) < torch.tensor([[120], [77], [119]])))
    target = torch.tensor([110, 77, 118])
    expected = merge_to(tokens, target)
    monkeypatch.setattr("fewtokens.methods.ops.bipartite._MANY", 2)
    monkeypatch.setattr("fewtokens.methods.ops.bipartite._MANY_PER_PAIR", 2)
    monkeypatch.setattr("fewtokens.methods.ops.bipartite._AXES", 3)
    plan = merge_to(tokens, target)
    assert torch.equal(plan.dest, expected.dest)
    assert torch.equal(plan.count, expected.count)


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("n", [1, 2, 5, 12])
@pytest.mark.parametrize("r", [0, 1, 3, 100])
def test_alone_and_in_a_padded_batch(prefix, n, r):
    """A video without padding, whose counts are known, gets the same plan as in a batch with a longer video."""
    torch.manual_seed(n)
    start = torch.randn(2, prefix, 3) if prefix else None
    longer = Tokens.from_cells(torch.randn(2, 14, 3), Grid(1, 1, 14), start)
    both = longer.apply(Plan.keep(torch.arange(14) < torch.tensor([[n], [14]])))
    metric = torch.randn(2, 14, 4)
    plan = bipartite_plan(metric, r, both)
    alone = bipartite_plan(metric[:1, :n], r, both[0])
    assert torch.equal(plan.count[:1], alone.count)
    assert torch.equal(plan.dest[:1, :n], alone.dest)
    assert alone.num_slots == int(alone.count)
