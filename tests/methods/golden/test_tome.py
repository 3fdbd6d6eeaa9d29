"""ToMe against worked examples and a slow, obviously right version."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fewtokens.core.tokens import Tokens
from fewtokens.methods.merging.tome import Tome
from fewtokens.methods.merging.tome_in_encoder import TomeInEncoder
from fewtokens.methods.ops.bipartite import best_match, bipartite_plan
from fewtokens.methods.ops.schedule import schedule
from tests.helpers.clips import clip


def six_vectors(prefix: int = 0) -> Tokens:
    """Unit vectors at 0, 10, 90, 95, 180 and 40 degrees."""
    angle = torch.tensor([0.0, 10, 90, 95, 180, 40]).deg2rad()
    x = torch.stack([angle.cos(), angle.sin()], 1)
    extra = torch.zeros(1, prefix, 2) if prefix else None
    return Tokens.from_cells(x.reshape(1, 1, 1, 6, 2), prefix=extra)


def degrees(tokens: Tokens) -> list[float]:
    return [abs(math.degrees(math.atan2(y, x))) for x, y in tokens.features[0].tolist()]


def test_six_vectors_one_merge():
    tokens = six_vectors()
    out = tokens.apply(bipartite_plan(tokens.features, 1, tokens))
    assert out.sizes.tolist() == [[1, 1, 1, 2, 1]]
    assert degrees(out) == pytest.approx([0, 180, 10, 92.5, 40], abs=1e-3)
    # The mean of two unit vectors is not itself of unit length.
    assert out.features[0, 3].norm() == pytest.approx(math.cos(math.radians(2.5)), abs=1e-5)
    assert out.assignment.tolist() == [[0, 2, 3, 3, 1, 4]]


def test_six_vectors_two_merges():
    tokens = six_vectors()
    out = tokens.apply(bipartite_plan(tokens.features, 2, tokens))
    assert out.sizes.tolist() == [[1, 2, 2, 1]]


def test_at_most_half_and_none():
    tokens = six_vectors()
    assert bipartite_plan(tokens.features, 100, tokens).count.tolist() == [3]
    out = tokens.apply(bipartite_plan(tokens.features, 0, tokens))
    assert sorted(degrees(out)) == pytest.approx(sorted(degrees(tokens)))


def test_class_token_shifts_the_halves_and_keeps_the_order():
    """With a class token in front, patches 0, 2, 4 stand at odd places and are set B."""
    tokens = six_vectors(prefix=1)
    out = tokens.apply(bipartite_plan(tokens.features, 1, tokens))
    # A = 10, 95, 40 degrees; 95 goes to 90; the rest of A stays in its order, then B.
    assert degrees(out) == pytest.approx([10, 40, 0, 92.5, 180], abs=1e-3)
    assert out.prefix is tokens.prefix


def slow_tome(x: torch.Tensor, sizes: torch.Tensor, metric: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
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
def test_against_the_slow_version(n, r):
    torch.manual_seed(n * 101 + r)
    x, metric, sizes = torch.randn(n, 7), torch.randn(n, 5), torch.randint(1, 5, (n,)).float()
    tokens = Tokens.from_cells(x.reshape(1, 1, 1, n, 7)).replace(sizes=sizes[None])
    out = tokens.apply(bipartite_plan(metric[None], r, tokens))
    features, mass = slow_tome(x, sizes, metric, r)
    torch.testing.assert_close(out.features[0], features)
    torch.testing.assert_close(out.sizes[0], mass)


def test_best_match_in_blocks(monkeypatch):
    a, b = F.normalize(torch.randn(2, 37, 6), dim=2), F.normalize(torch.randn(2, 29, 6), dim=2)
    whole = (a @ b.transpose(1, 2)).max(2)
    monkeypatch.setattr("fewtokens.methods.ops.bipartite._ENTRIES_AT_ONCE", 100)
    value, index = best_match(a, b)
    torch.testing.assert_close(value, whole.values)
    assert torch.equal(index, whole.indices)


def test_schedules():
    assert schedule(8, 12) == [8] * 12
    assert schedule((8, -1), 12) == [16, 14, 13, 11, 10, 8, 7, 5, 4, 2, 1, 0]
    assert sum(schedule((8, -1), 12)) == 91
    assert schedule((8, 0), 4) == [8] * 4
    assert schedule([3, 2], 4) == [3, 2, 0, 0]
    assert schedule((8, 1), 1) == [0]
    for wrong in (-1, (8, 2), [1, -1], "many", (1, 2, 3.5)):
        with pytest.raises(ValueError, match="r must be"):
            schedule(wrong, 4)


# Tokens after the last block, the class token counted: spec table of published models.
@pytest.mark.parametrize(
    ("patches", "depth", "r", "final"),
    [(196, 12, 13, 41), (196, 12, 16, 11), (196, 24, 7, 29), (196, 24, 8, 7), (256, 32, 7, 33), (1024, 24, 40, 65)],
)
def test_token_counts_of_published_models(patches, depth, r, final):
    tokens = Tokens.from_cells(torch.randn(1, 1, 1, patches, 4), prefix=torch.zeros(1, 1, 4))
    method = TomeInEncoder(r=r)
    for layer in range(depth):
        tokens = method(tokens, keys=tokens.features, layer=layer, depth=depth)
    assert final == tokens.N + 1


@pytest.mark.parametrize("keep", [0.5, 0.1, 0.013])
def test_a_share_inside_an_encoder_is_met(keep):
    tokens = Tokens.from_cells(torch.randn(2, 1, 14, 14, 4))
    method = TomeInEncoder(keep=keep)
    for layer in range(12):
        tokens = method(tokens, keys=tokens.features, layer=layer, depth=12)
    assert tokens.count.tolist() == [int(keep * 196)] * 2


def test_a_share_out_of_reach_is_an_error():
    tokens = Tokens.from_cells(torch.randn(1, 1, 14, 14, 4))
    with pytest.raises(ValueError, match=r"tome_in_encoder.*cannot be reached"):
        for layer in range(2):
            tokens = TomeInEncoder(keep=0.01)(tokens, keys=tokens.features, layer=layer, depth=2)


def test_bad_arguments():
    for wrong in ({"keep": 32}, {"keep": 0.5, "r": 8}, {"r": -1}):
        with pytest.raises(ValueError, match=r"tome_in_encoder|r must be"):
            TomeInEncoder(**wrong)
    with pytest.raises(ValueError, match="tome: keep"):
        Tome(0)


def test_merges_equal_frames_first():
    """Two copies of a frame go down to one without error: at an odd frame size the copies alternate."""
    frame = torch.randn(1, 1, 5, 3, 32)
    out = Tome(keep=15)(Tokens.from_cells(frame.expand(1, 2, 5, 3, 32)))
    torch.testing.assert_close(out.unmerge()[0], frame[0].expand(2, 5, 3, 32), rtol=1e-5, atol=1e-5)


def test_merged_rows_lie_within_their_members():
    tokens = clip(B=1)
    out = Tome(keep=0.2)(tokens)
    for m in range(out.N):
        members = tokens.features[0, out.assignment[0] == m]
        assert bool((out.features[0, m] <= members.amax(0) + 1e-5).all())
        assert bool((out.features[0, m] >= members.amin(0) - 1e-5).all())
