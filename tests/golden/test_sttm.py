"""STTM: the quadtree and the joined nodes against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewtokens.reduce.sttm import Sttm, quadtree
from fewtokens.tokens import Tokens
from tests.clips import clip

csgraph = pytest.importorskip("scipy.sparse.csgraph")


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def pyramid(x: np.ndarray, y: int, u: int, level: int) -> np.ndarray | None:
    """Mean of a node's children, None outside of the frame."""
    if (y << level) >= x.shape[0] or (u << level) >= x.shape[1]:
        return None
    if level == 0:
        return x[y, u]
    below = [pyramid(x, 2 * y + i, 2 * u + j, level - 1) for i in (0, 1) for j in (0, 1)]
    return np.mean([part for part in below if part is not None], 0)


def top_level(shape: tuple[int, int], levels: int) -> int:
    level = 0
    while level < levels and max(-(-shape[0] // 2**level), -(-shape[1] // 2**level)) > 1:
        level += 1
    return level


def nodes_of(x: np.ndarray, tau: float, levels: int) -> list[tuple[int, int, int, np.ndarray]]:
    """(level, y, u, mean) of the leaves, from the top down."""
    out = []

    def visit(y: int, u: int, level: int) -> None:
        mean = pyramid(x, y, u, level)
        if mean is None:
            return
        below = [(2 * y + i, 2 * u + j) for i in (0, 1) for j in (0, 1)]
        children = [] if level == 0 else [pyramid(x, *place, level - 1) for place in below]
        if level == 0 or all(cosine(mean, child) >= tau for child in children if child is not None):
            out.append((level, y, u, mean))
            return
        for place in below:
            visit(*place, level - 1)

    top = top_level(x.shape[:2], levels)
    for y in range(-(-x.shape[0] // 2**top)):
        for u in range(-(-x.shape[1] // 2**top)):
            visit(y, u, top)
    return out


def cells_of(node, H: int, W: int) -> list[int]:
    level, y, u, _ = node
    side = 2**level
    return [
        r * W + c for r in range(y * side, min(H, y * side + side)) for c in range(u * side, min(W, u * side + side))
    ]


def plain(x: np.ndarray, tau: float, tau_time: float, levels: int) -> list[tuple[np.ndarray, set[int]]]:
    """(feature, cells) of every token, by a table of all pairs of nodes."""
    T, H, W, _ = x.shape
    nodes = [(t, node) for t in range(T) for node in nodes_of(x[t], tau, levels)]
    cells = [set(cells_of(node, H, W)) for _, node in nodes]
    edges = np.zeros((len(nodes), len(nodes)), bool)
    for i, (t, a) in enumerate(nodes):
        for j, (s, b) in enumerate(nodes):
            if s == t + 1 and (cells[i] <= cells[j] or cells[j] <= cells[i]):
                edges[i, j] = cosine(a[3], b[3]) >= tau_time
    _, label = csgraph.connected_components(edges, directed=False)
    out = []
    for part in np.unique(label):
        mine = np.flatnonzero(label == part)
        where = {nodes[i][0] * H * W + c for i in mine for c in cells[i]}
        out.append((np.mean([nodes[i][1][3] for i in mine], 0), where))
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


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 6, 5), (2, 4, 7), (4, 1, 1), (1, 4, 4)])
@pytest.mark.parametrize("taus", [(0.9, 0.9), (0.7, 0.95), (0.5, 0.5), (0.99, 0.2)])
@pytest.mark.parametrize("levels", [1, 3])
def test_against_loops(shape, taus, levels):
    tokens = smooth(*shape, seed=sum(shape))
    # Where a frame's sides are even at each level the means are those of the cells.
    expected = plain(tokens.features[0].double().numpy().reshape(*shape, 6), *taus, levels)
    out = Sttm(taus[0], tau_time=taus[1], levels=levels)(tokens)
    assert int(out.count[0]) == len(expected)
    source = out.source[0].numpy()
    found = {frozenset(np.flatnonzero(source == m).tolist()): out.features[0, m].double().numpy() for m in range(out.N)}
    even = shape[1] % 2**levels == 0 and shape[2] % 2**levels == 0
    for feature, cells in expected:
        assert frozenset(cells) in found
        if even:
            np.testing.assert_allclose(found[frozenset(cells)], feature, rtol=1e-4, atol=1e-5)


def test_a_static_plain_clip_ends_with_one_token():
    out = Sttm(0.9)(Tokens.from_cells(torch.ones(1, 5, 8, 8, 6)))
    assert out.count.tolist() == [1]
    assert out.sizes.tolist() == [[320.0]]


def test_mirrored_frames_on_a_dyadic_grid():
    tokens = smooth(3, 8, 8, 0)
    mirrored = Tokens.from_cells(tokens.features.reshape(1, 3, 8, 8, 6).flip(3))
    a, b = quadtree(tokens, torch.tensor([0.8]), 3)[1], quadtree(mirrored, torch.tensor([0.8]), 3)[1]
    torch.testing.assert_close(a.reshape(3, 8, 8, 6).flip(2), b.reshape(3, 8, 8, 6))


def test_equal_weights_and_weights_by_size():
    tokens = smooth(4, 8, 8, 1)
    equal, weighted = Sttm(0.7)(tokens), Sttm(0.7, weighted=True)(tokens)
    assert torch.equal(equal.source, weighted.source)
    torch.testing.assert_close((weighted.sizes[..., None] * weighted.features).sum(1), tokens.features.sum(1))
    assert not torch.allclose(equal.features, weighted.features)


def test_budgets():
    out = Sttm(keep=20)(clip(4, 6, 6, 12, 2))
    assert out.count.tolist() == [20, 20]
