"""FastVID against loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fewtokens.reduce.density import density_peaks
from fewtokens.reduce.fastvid import FastVid
from fewtokens.tokens import Tokens
from tests.clips import clip, cues


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def plain_segments(frames: np.ndarray, segments: int, tau: float) -> list[tuple[int, int]]:
    like = [cosine(a, b) for a, b in itertools.pairwise(frames)]
    lowest = sorted(range(len(like)), key=lambda t: like[t])[: segments - 1]
    out, start = [], 0
    for t in range(len(frames)):
        if t == len(frames) - 1 or t in lowest or like[t] < tau:
            out.append((start, t))
            start = t + 1
    return out


def deal(sizes: list[int], shares: list[float], count: int) -> list[int]:
    taken = [0] * len(sizes)
    while sum(taken) < min(count, sum(sizes)):
        open_ = [g for g in range(len(sizes)) if taken[g] < sizes[g]]
        taken[min(open_, key=lambda g: (taken[g] + 0.5) / shares[g])] += 1
    return taken


def plain(x, attention, frames, keep, *, segments, tau, context, step, beta, neighbours) -> dict[int, np.ndarray]:
    """x [T,n,C], budgets below 0.45: cell -> feature of every token that comes out."""
    T, n, _ = x.shape
    salient: set[int] = set()
    order = sorted(range(T * n), key=lambda c: (list(np.argsort(-attention[c // n], kind="stable")).index(c % n), c))
    # Equal shares: all frames' best first, then all frames' second ...
    salient = set(order[: keep - int(keep * context)])
    out = {c: x[c // n, c % n] for c in salient}
    anchor_frames, shares, of_segment = [], [], []
    for s, e in plain_segments(frames, segments, tau):
        mine = list(range(e, s - 1, -step))
        for f in mine:
            anchor_frames.append(f)
            shares.append((e - s + 1) / len(mine))
            of_segment.append((s, e))
    table = sorted(zip(anchor_frames, shares, of_segment, strict=True))
    scores = {}
    for f, _, _ in table:
        mask = torch.tensor([[f * n + p not in salient for p in range(n)]])
        scores[f] = density_peaks(torch.from_numpy(x[f][None]).float(), mask, neighbours)[0].tolist()
    candidates = {f: [p for p in range(n) if f * n + p not in salient] for f, _, _ in table}
    counts = deal([len(candidates[f]) for f, _, _ in table], [share for _, share, _ in table], keep - len(salient))
    chosen = {
        f: sorted(candidates[f], key=lambda p: -scores[f][p])[:count]
        for (f, _, _), count in zip(table, counts, strict=True)
    }
    stay = salient | {f * n + p for f, places in chosen.items() for p in places}
    for f, _, (s, e) in table:
        members: dict[int, list[np.ndarray]] = {p: [] for p in chosen[f]}
        for t in range(s, e + 1):
            for p in range(n):
                if members and t * n + p not in stay:
                    members[max(members, key=lambda q: cosine(x[t, p], x[f, q]))].append(x[t, p])
        for p, rows in members.items():
            w = max(1 / (len(rows) + 1), beta)
            out[f * n + p] = w * x[f, p] + (1 - w) * np.mean([x[f, p], *rows], 0)
    return out


@pytest.mark.parametrize("keep", [6, 13, 40])
@pytest.mark.parametrize("seed", range(4))
def test_against_loops(keep, seed):
    options = {"segments": 3, "tau": 0.2, "context": 0.4, "step": 2, "beta": 0.6, "neighbours": 4}
    tokens = clip(6, 4, 4, 12, 1, seed=seed)
    given = {name: cues(tokens)[name] for name in ("attention", "frame_global")}
    x = tokens.features[0].double().numpy().reshape(6, 16, 12)
    attention = given["attention"][0].numpy().reshape(6, 16)
    expected = plain(x, attention, given["frame_global"][0].numpy(), keep, **options)
    out = FastVid(keep, **options)(tokens, **given)
    assert len(expected) == keep
    found = out.features[0].double().numpy()
    assert all(np.abs(found - row).max(1).min() < 1e-4 for row in expected.values())
    # Everything is credited to some token: nothing is lost where every segment has an anchor.
    if keep == 40:
        assert float(out.sizes.sum()) == 96


def test_segments_are_cut_where_frames_change():
    a, b = torch.randn(1, 16), torch.randn(1, 16)
    frames = torch.stack([a, a, a, b, b, a], 1)
    x = frames[:, :, None, None].repeat(1, 1, 3, 3, 1) + 0.01 * torch.randn(1, 6, 3, 3, 16)
    choice = FastVid(0.5, segments=1)._choose(Tokens.from_cells(x), torch.rand(1, 54), frames)
    assert choice.first[0].tolist() == [0, 0, 0, 3, 3, 5]
    assert choice.last[0].tolist() == [2, 2, 2, 4, 4, 5]


@pytest.mark.parametrize("keep", [0.46, 0.6, 0.9])
def test_budgets_at_which_the_published_code_fails(keep):
    tokens = clip(4, 14, 14, 16, 1)
    given = {name: cues(tokens)[name] for name in ("attention", "frame_global")}
    method = FastVid(keep)
    assert int(method(tokens, **given).count[0]) == method.planned_count(tokens.grid)
