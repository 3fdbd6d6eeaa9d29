"""STTM's quadtree and temporal merging, written as loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

csgraph = pytest.importorskip("scipy.sparse.csgraph")


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def split(side: int, strips: str) -> list[list[int]]:
    """Returns the rows (or columns) that form each row of the level above."""
    odd = side % 2
    if strips == "first":
        return [[0]] * odd + [[i, i + 1] for i in range(odd, side, 2)]
    return [[i, i + 1] for i in range(0, side - odd, 2)] + [[side - 1]] * odd


Node = tuple[np.ndarray, set[int], list[tuple[int, int]]]  # mean, cells, children


def pyramid(x: np.ndarray, levels: int, strips: str, weighted: bool) -> list[dict[tuple[int, int], Node]]:
    """Returns the nodes of each level, starting with the cells."""
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


def leaf_nodes(
    x: np.ndarray, tau: float, levels: int, strips: str, weighted: bool
) -> list[tuple[np.ndarray, set[int]]]:
    """Returns (mean, cells) of each leaf, from the top down."""
    tree, out = pyramid(x, levels, strips, weighted), []

    def visit(level: int, position: tuple[int, int]) -> None:
        mean, cells, children = tree[level][position]
        # The authors' code compares a node that lacks children with the first node of the level instead.
        compared = [*children, (0, 0)] if strips == "first" and 0 < len(children) < 4 else children
        if all(cosine(mean, tree[level - 1][child][0]) >= tau - 1e-9 for child in compared):
            out.append((mean, cells))
            return
        for child in children:
            visit(level - 1, child)

    for position in tree[-1]:
        visit(len(tree) - 1, position)
    return out


def sttm_by_loops(
    x: np.ndarray, tau: float, tau_time: float, levels: int, strips: str, weighted: bool
) -> list[tuple[np.ndarray, set[int]]]:
    """Returns (feature, cells) of each token, by comparing all pairs of nodes."""
    T, H, W, C = x.shape
    nodes = [(t, *node) for t in range(T) for node in leaf_nodes(x[t], tau, levels, strips, weighted)]
    edges = np.zeros((len(nodes), len(nodes)), bool)
    for (i, (t, mean, cells)), (j, (s, other, other_cells)) in itertools.product(enumerate(nodes), repeat=2):
        if s == t + 1 and (cells <= other_cells or other_cells <= cells):
            edges[i, j] = cosine(mean, other) >= tau_time
    _, label = csgraph.connected_components(edges, directed=False)
    out = []
    for part in np.unique(label):
        members = [nodes[i] for i in np.flatnonzero(label == part)]
        cells = {t * H * W + c for t, _, node_cells in members for c in node_cells}
        mean = np.mean([mean for _, mean, _ in members], 0)
        out.append((x.reshape(-1, C)[sorted(cells)].mean(0) if weighted else mean, cells))
    return out
