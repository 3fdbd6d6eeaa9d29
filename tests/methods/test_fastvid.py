"""FastVID against loops and the published code."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fewtokens.core.tokens import Tokens
from fewtokens.methods.merging.fastvid import FastVid
from tests.helpers import naive
from tests.helpers.clips import clip, cues
from tests.helpers.published import run_spec, sum_and_square_sum, waves


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def segments_by_loops(frames: np.ndarray, segments: int, tau: float) -> list[tuple[int, int]]:
    similarity = [cosine(a, b) for a, b in itertools.pairwise(frames)]
    lowest = sorted(range(len(similarity)), key=lambda t: similarity[t])[: segments - 1]
    out, start = [], 0
    for t in range(len(frames)):
        if t == len(frames) - 1 or t in lowest or similarity[t] < tau:
            out.append((start, t))
            start = t + 1
    return out


def by_loops(x, attention, frames, keep, *, segments, tau, context, stride, beta, neighbors) -> dict[int, np.ndarray]:
    """Maps the cell of every output token to its feature; x [T,n,C], budgets below 0.45."""
    T, n, _ = x.shape
    per_frame = keep // T
    num_context = int(per_frame * context)
    by_attention = [sorted(range(n), key=lambda p, t=t: -attention[t, p]) for t in range(T)]
    salient = {(t, p) for t in range(T) for p in by_attention[t][: per_frame - num_context]}
    out = {t * n + p: x[t, p] for t, p in salient}
    for s, e in segments_by_loops(frames, segments, tau):
        anchor_frames = range(e, s - 1, -stride)
        num_anchors = num_context * (e - s + 1) // len(anchor_frames)
        for f in anchor_frames:
            positions = [p for p in range(n) if (f, p) not in salient]
            score = dict(zip(positions, naive.density_peak_scores(x[f, positions], neighbors), strict=True))
            anchors = sorted(positions, key=lambda p, score=score: -score[p])[:num_anchors]
            members: dict[int, list[np.ndarray]] = {p: [x[f, p]] for p in anchors}
            for t in range(s, e + 1) if num_anchors != num_context else [f]:
                for p in range(n):
                    if anchors and (t, p) not in salient and not (t == f and p in anchors):
                        members[max(anchors, key=lambda q, t=t, p=p, f=f: cosine(x[t, p], x[f, q]))].append(x[t, p])
            for p, rows in members.items():
                w = max(1 / (len(rows) + 1), beta)
                out[f * n + p] = w * x[f, p] + (1 - w) * np.mean(rows, 0)
    # The budget lost to rounding goes to the next tokens by attention, the best of every frame first.
    for rank, t in itertools.product(range(n), range(T)):
        cell = t * n + by_attention[t][rank]
        if len(out) < keep and cell not in out:
            out[cell] = x[t, by_attention[t][rank]]
    return out


@pytest.mark.parametrize("keep", [6, 13, 40])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("beta", "stride", "tau"), [(0.6, 2, 0.2), (0.1, 2, -1.0), (0.1, 1, -1.0), (0.3, 4, -1.0)])
def test_against_loops(keep, seed, beta, stride, tau):
    options = {"segments": 3, "tau": tau, "context": 0.4, "stride": stride, "beta": beta, "neighbors": 4}
    tokens = clip(6, 4, 4, 12, 1, seed=seed)
    inputs = {name: cues(tokens)[name] for name in ("attention", "frame_global")}
    x = tokens.features[0].double().numpy().reshape(6, 16, 12)
    attention = inputs["attention"][0].numpy().reshape(6, 16)
    expected = by_loops(x, attention, inputs["frame_global"][0].double().numpy(), keep, **options)
    out = FastVid(keep, **options)(tokens, **inputs)
    assert len(expected) == keep == int(out.count[0])
    features = out.features[0].double().numpy()
    assert all(np.abs(features - row).max(1).min() < 1e-4 for row in expected.values())
    assert all(min(np.abs(row - other).max() for other in expected.values()) < 1e-4 for row in features)
    # If every segment has an anchor, every cell is credited to some token.
    if keep == 40:
        assert float(out.sizes.sum()) == 96


def test_segments_are_cut_where_frames_change():
    a, b = torch.randn(1, 16), torch.randn(1, 16)
    frames = torch.stack([a, a, a, b, b, a], 1)
    x = frames[:, :, None, None].repeat(1, 1, 3, 3, 1) + 0.01 * torch.randn(1, 6, 3, 3, 16)
    selection = FastVid(0.5, segments=1)._select(Tokens.from_cells(x), torch.rand(1, 54), frames)
    assert selection.first[0].tolist() == [0, 0, 0, 3, 3, 5]
    assert selection.last[0].tolist() == [2, 2, 2, 4, 4, 5]


def test_long_videos_have_a_segment_per_sixteen_frames():
    """By default; the first 128 frames have 8, as published."""
    tokens = Tokens.from_cells(torch.randn(1, 160, 1, 1, 4))
    for frames, segments in ((100, 8), (128, 8), (160, 10)):
        part = Tokens.from_cells(tokens.features[:, :frames].reshape(1, frames, 1, 1, 4))
        vectors = 1 + 0.01 * torch.randn(1, frames, 16)
        selection = FastVid(0.5)._select(part, torch.rand(1, frames), vectors)
        assert selection.first[0].unique().numel() == segments


@pytest.mark.parametrize("keep", [0.46, 0.6, 0.9])
def test_budgets_at_which_the_published_code_fails(keep):
    tokens = clip(4, 14, 14, 16, 1)
    inputs = {name: cues(tokens)[name] for name in ("attention", "frame_global")}
    method = FastVid(keep)
    assert int(method(tokens, **inputs).count[0]) == method.planned_count(tokens.grid)


def test_fastvid():
    """LunarShen/FastVID, fastvid_llavaonevision, at a40a109: segments of 4, 3 and 1 frames."""
    x = waves(8, 5, 5)
    attention = (torch.sin(torch.arange(200.0) * 2.7) + 1)[None]
    spec = "fastvid(0.2, segments=3, tau=0.5, context=0.4, stride=2, beta=0.2)"
    out = run_spec(spec, x, attention=attention, frame_global=x.mean((2, 3)))
    assert int(out.count[0]) == 40
    assert sum_and_square_sum(out) == pytest.approx([16.9853, 146.9844], abs=2e-3)
    rows = {
        3: [0.2680, 0.8096, -0.9948],
        35: [0.6178, 0.7258, -0.6092],
        68: [0.9236, 0.0969, -0.4157],
        96: [1.0381, -0.2734, -0.6482],
        117: [0.5315, -0.8521, 0.7776],
        157: [0.2164, 0.1599, -0.5931],
        182: [-0.1473, -1.0801, 0.5414],
    }
    for row in rows.values():
        assert float((out.features[0, :, :3] - torch.tensor(row)).abs().amax(1).min()) < 1e-4
    # 16 of the 40 tokens are anchors that gathered others, so their features changed.
    changed = torch.cdist(out.features[0], x.reshape(-1, 8), p=float("inf")).amin(1) > 1e-3
    assert int(changed.sum()) == 16
