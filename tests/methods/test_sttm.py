"""STTM: the quadtree and the joined nodes against loops and the published code."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.merging.sttm import Sttm
from fewtokens.methods.ops.quadtree import published_levels, quadtree
from tests.helpers.clips import clip
from tests.helpers.published import reduced, sums, waves

csgraph = pytest.importorskip("scipy.sparse.csgraph")


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def split(side: int, strips: str) -> list[list[int]]:
    """Which rows or columns go into each one of the level above."""
    odd = side % 2
    if strips == "first":
        return [[0]] * odd + [[i, i + 1] for i in range(odd, side, 2)]
    return [[i, i + 1] for i in range(0, side - odd, 2)] + [[side - 1]] * odd


Node = tuple[np.ndarray, set[int], list[tuple[int, int]]]  # mean, cells, children


def pyramid(x: np.ndarray, levels: int, strips: str, weighted: bool) -> list[dict[tuple[int, int], Node]]:
    """The nodes of each level, from the cells up."""
    H, W, C = x.shape
    out = [{(y, u): (x[y, u], {y * W + u}, []) for y in range(H) for u in range(W)}]
    while len(out) <= levels and max(H, W) > 1:
        below, above = out[-1], {}
        rows, columns = split(H, strips), split(W, strips)
        for (i, r), (j, c) in itertools.product(enumerate(rows), enumerate(columns)):
            children = [(y, u) for y in r for u in c]
            cells = set().union(*(below[child][1] for child in children))
            mean = np.mean([below[child][0] for child in children], 0)
            above[i, j] = (x.reshape(-1, C)[sorted(cells)].mean(0) if weighted else mean, cells, children)
        out.append(above)
        H, W = len(rows), len(columns)
    return out


def nodes_of(x: np.ndarray, tau: float, levels: int, strips: str, weighted: bool) -> list[tuple[np.ndarray, set[int]]]:
    """(mean, cells) of the leaves, from the top down."""
    tree, out = pyramid(x, levels, strips, weighted), []

    def visit(level: int, place: tuple[int, int]) -> None:
        mean, cells, children = tree[level][place]
        # A published node that lacks children is held against the first node of the level in their place.
        asked = [*children, (0, 0)] if strips == "first" and 0 < len(children) < 4 else children
        if all(cosine(mean, tree[level - 1][child][0]) >= tau - 1e-9 for child in asked):
            out.append((mean, cells))
            return
        for child in children:
            visit(level - 1, child)

    for place in tree[-1]:
        visit(len(tree) - 1, place)
    return out


def plain(
    x: np.ndarray, tau: float, tau_time: float, levels: int, strips: str, weighted: bool
) -> list[tuple[np.ndarray, set[int]]]:
    """(feature, cells) of every token, by a table of all pairs of nodes."""
    T, H, W, C = x.shape
    nodes = [(t, *node) for t in range(T) for node in nodes_of(x[t], tau, levels, strips, weighted)]
    edges = np.zeros((len(nodes), len(nodes)), bool)
    for (i, (t, mean, cells)), (j, (s, other, theirs)) in itertools.product(enumerate(nodes), repeat=2):
        if s == t + 1 and (cells <= theirs or theirs <= cells):
            edges[i, j] = cosine(mean, other) >= tau_time
    _, label = csgraph.connected_components(edges, directed=False)
    out = []
    for part in np.unique(label):
        mine = [nodes[i] for i in np.flatnonzero(label == part)]
        where = {t * H * W + c for t, _, cells in mine for c in cells}
        mean = np.mean([mean for _, mean, _ in mine], 0)
        out.append((x.reshape(-1, C)[sorted(where)].mean(0) if weighted else mean, where))
    return out


def smooth(T: int, H: int, W: int, seed: int) -> Tokens:
    """Regions that are alike in space, some of which stay."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(T, 6, -(-H // 3), -(-W // 3), generator=generator)
    for t in range(1, T):
        keep = torch.rand(coarse.shape[2:], generator=generator) < 0.6
        coarse[t] = torch.where(keep, coarse[t - 1], coarse[t])
    x = coarse.repeat_interleave(3, 2).repeat_interleave(3, 3)[..., :H, :W].permute(0, 2, 3, 1)
    return Tokens.from_cells((x + 0.1 * torch.randn(x.shape, generator=generator))[None])


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 6, 5), (2, 4, 7), (4, 1, 1), (1, 4, 4), (2, 7, 7)])
@pytest.mark.parametrize("taus", [(0.9, 0.9), (0.7, 0.95), (0.5, 0.5), (0.99, 0.2)])
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize(("strips", "weighted"), [("first", False), ("first", True), ("last", False), ("last", True)])
def test_against_loops(shape, taus, levels, strips, weighted):
    tokens = smooth(*shape, seed=sum(shape))
    expected = plain(tokens.features[0].double().numpy().reshape(*shape, 6), *taus, levels, strips, weighted)
    out = Sttm(taus[0], tau_time=taus[1], levels=levels, strips=strips, weighted=weighted)(tokens)
    assert int(out.count[0]) == len(expected)
    source = out.assignment[0].numpy()
    found = {frozenset(np.flatnonzero(source == m).tolist()): out.features[0, m].double().numpy() for m in range(out.N)}
    for feature, cells in expected:
        np.testing.assert_allclose(found[frozenset(cells)], feature, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("side", "levels"), [(2, 0), (4, 0), (8, 1), (13, 2), (14, 2), (24, 3), (27, 3)])
def test_levels_of_the_published_runs(side, levels):
    """Root level 1 of sizes halved, rounded up, down to two: 14, 7, 4, (2); 24, 12, 6, 3, (2)."""
    assert published_levels(Grid(2, side, side)) == levels


def test_a_static_plain_clip_ends_with_one_token():
    out = Sttm(0.9, levels=3)(Tokens.from_cells(torch.ones(1, 5, 8, 8, 6)))
    assert out.count.tolist() == [1]
    assert out.sizes.tolist() == [[320.0]]


def test_mirrored_frames_on_a_dyadic_grid():
    tokens = smooth(3, 8, 8, 0)
    mirrored = Tokens.from_cells(tokens.features.reshape(1, 3, 8, 8, 6).flip(3))
    a, b = quadtree(tokens, torch.tensor([0.8]), 3)[1], quadtree(mirrored, torch.tensor([0.8]), 3)[1]
    torch.testing.assert_close(a.reshape(3, 8, 8, 6).flip(2), b.reshape(3, 8, 8, 6))


def test_equal_weights_and_weights_by_size():
    tokens = smooth(4, 8, 8, 1)
    equal, weighted = Sttm(0.7, levels=3)(tokens), Sttm(0.7, levels=3, weighted=True)(tokens)
    assert torch.equal(equal.assignment, weighted.assignment)
    torch.testing.assert_close((weighted.sizes[..., None] * weighted.features).sum(1), tokens.features.sum(1))
    assert not torch.allclose(equal.features, weighted.features)


def test_budgets():
    out = Sttm(keep=20)(clip(4, 6, 6, 12, 2))
    assert out.count.tolist() == [20, 20]


@pytest.mark.parametrize(
    ("shape", "taus", "sizes", "total"),
    [
        ((3, 7, 7), (0.5, 0.95), {1: 41, 2: 29, 4: 6, 8: 3}, [39.4222, 309.3322]),
        ((3, 7, 6), (0.6, 0.9), {1: 40, 2: 35, 4: 4}, [33.8528, 321.7425]),
        ((2, 14, 14), (0.6, 0.9), {1: 12, 4: 81, 8: 1, 16: 3}, [26.7116, 361.3962]),
    ],
)
def test_sttm(shape, taus, sizes, total):
    """HYUNJS/STTM at 00736c7, root level 1; sides that are odd on the first and on the second level."""
    out = reduced(f"sttm({taus[0]}, tau_time={taus[1]})", waves(*shape))
    found, number = out.sizes[0].unique(return_counts=True)
    assert dict(zip(found.long().tolist(), number.tolist(), strict=True)) == sizes
    assert sums(out) == pytest.approx(total, abs=2e-3)
