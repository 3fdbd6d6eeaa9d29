"""HoliTom: the windows against brute force, the full method against loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fewtokens.core.tokens import Tokens
from fewtokens.methods.merging.holitom import HoliTom, best_windows
from tests.helpers import naive
from tests.helpers.clips import clip, cues


def static_positions(same: np.ndarray, s: int, e: int) -> list[int]:
    """Positions that stay the same from frame s to e; same[t,n]: whether frame t is similar to t-1."""
    return [n for n in range(same.shape[1]) if all(same[t, n] for t in range(s + 1, e + 1))]


def gain(same: np.ndarray, windows: list[tuple[int, int]]) -> int:
    return sum((e - s) * len(static_positions(same, s, e)) for s, e in windows)


def partitions(T: int):
    for flags in itertools.product([0, 1], repeat=T - 1):
        edges = [0, *[t + 1 for t, flag in enumerate(flags) if flag], T]
        yield [(a, b - 1) for a, b in itertools.pairwise(edges)]


def run_lengths(same: np.ndarray) -> torch.Tensor:
    runs = np.zeros(same.shape, np.int64)
    for t in range(1, len(same)):
        runs[t] = np.where(same[t], runs[t - 1] + 1, 0)
    return torch.from_numpy(runs)


@pytest.mark.parametrize("seed", range(40))
def test_windows_against_brute_force(seed):
    rng = np.random.default_rng(seed)
    T = int(rng.integers(1, 9))
    same = rng.random((T, 6)) < rng.uniform(0.3, 0.95)
    first, last = best_windows(run_lengths(same)[None], torch.ones(1, T, dtype=torch.bool))
    windows = sorted(set(zip(first[0].tolist(), last[0].tolist(), strict=True)))
    assert windows[0][0] == 0
    assert windows[-1][1] == T - 1
    assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(windows))
    assert gain(same, windows) == max(gain(same, windows) for windows in partitions(T))


def by_loops(x: np.ndarray, attention: np.ndarray, keep: int, tau: float, mix: float) -> list[np.ndarray]:
    """The features in any order, for one video x [T,n,C] with a budget below the number of merged tokens."""
    T, n, _ = x.shape
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    same = np.zeros((T, n), bool)
    same[1:] = (unit[1:] * unit[:-1]).sum(-1) > tau
    windows = max(partitions(T), key=lambda w: gain(same, w))
    groups: list[tuple[str, list, list[float]]] = []
    for s, e in windows:
        static = static_positions(same, s, e) if e > s else []
        if static:
            score = naive.density_peak_scores(x[s : e + 1, static].mean(0), 7).tolist()
            groups.append(("static", [(s, e, position) for position in static], score))
        for t in range(s, e + 1):
            dynamic = [position for position in range(n) if position not in static]
            groups.append(
                ("dynamic", [(t, t, position) for position in dynamic], [float(attention[t, p]) for p in dynamic])
            )
    # Sainte-Lague's method in single precision; ties go to the earlier cell, static ones in their first frame.
    claims = []
    for g, (_, cells, score) in enumerate(groups):
        order = sorted(range(len(cells)), key=lambda i, score=score: -score[i])
        for r, i in enumerate(order):
            claims.append((np.float32(r + 0.5) / np.float32(len(cells)), cells[i][0] * n + cells[i][2], g))
    counts = [0] * len(groups)
    for _, _, g in sorted(claims)[:keep]:
        counts[g] += 1
    out = []
    for (kind, cells, score), count in zip(groups, counts, strict=True):
        best = sorted(range(len(cells)), key=lambda i: -score[i])[:count]
        value = [x[s : e + 1, position].mean(0) for s, e, position in cells]
        if kind == "dynamic":
            out += [value[i] for i in best]
            continue
        members: dict[int, list[int]] = {i: [] for i in best}
        for i in range(len(cells)):
            if best and i not in best:
                members[min(best, key=lambda j: (np.linalg.norm(value[i] - value[j]), cells[j][2]))].append(i)
        for i in best:
            others = [value[j] for j in members[i]]
            out.append(mix * value[i] + (1 - mix) * np.mean(others, 0) if others else value[i])
    return out


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("mix", [0.6, 1.0])
def test_against_loops(seed, mix):
    tokens = clip(5, 4, 5, 12, 1, seed=seed)
    attention = cues(tokens)["attention"]
    x = tokens.features[0].double().numpy().reshape(5, 20, 12)
    for keep in (7, 16, 31):
        expected = by_loops(x, attention[0].numpy().reshape(5, 20), keep, 0.8, mix)
        out = HoliTom(keep, tau=0.8, centre=mix)(tokens, attention=attention)
        assert len(expected) == keep == int(out.count[0])
        features = out.features[0].double().numpy()
        assert all(np.abs(features - row).max(1).min() < 1e-4 for row in expected)


def test_a_static_clip_is_one_window():
    x = torch.randn(1, 1, 3, 4, 16).repeat(1, 6, 1, 1, 1)
    tokens = Tokens.from_cells(x)
    attention = torch.rand(1, 72)
    out = HoliTom(12, centre=1.0)(tokens, attention=attention)
    torch.testing.assert_close(out.features[0], x[0, 0].flatten(0, 1))
    assert out.sizes[0].tolist() == [6] * 12
    # With a larger budget, cells are kept individually.
    assert int(HoliTom(40)(tokens, attention=attention).count[0]) == 40


def test_a_clip_of_new_frames_has_no_static_position():
    x = torch.randn(1, 6, 3, 4, 256, generator=torch.Generator().manual_seed(0))
    tokens = Tokens.from_cells(x)
    attention = torch.rand(1, 72)
    out = HoliTom(24)(tokens, attention=attention)
    assert out.sizes[0].tolist() == [1] * 24
    for t in range(6):
        best = attention[0, 12 * t : 12 * t + 12].topk(4).indices + 12 * t
        assert set(best.tolist()) <= set((out.assignment[0] >= 0).nonzero().flatten().tolist())


def test_ties_go_to_the_shorter_window():
    """cokeshao/HoliTom e9b2972, select_static_windows: [(0, 1), (2, 3)], which saves 3 as [(0, 3)] does."""
    # One position stays the same over all four frames, another over the last two.
    runs = torch.tensor([[[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 1, 0]]])
    first, last = best_windows(runs, torch.ones(1, 4, dtype=torch.bool))
    assert first[0].tolist() == [0, 0, 2, 2]
    assert last[0].tolist() == [1, 1, 3, 3]
