"""Numbers that the published codes print on small inputs which the tests make themselves.

Each reference was run at the commit that its test names, on `waves`, without the noise that some of them add. Sums over
all tokens do not depend on their order; at inputs moved by 1e-5 every reference gave the same tokens.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fewtokens.core import registry
from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.merging.prunevid import contiguous


def waves(T: int, H: int, W: int, C: int = 8) -> Tensor:
    """[1,T,H,W,C]: patches of 2x3 cells that are nearly alike, scenes that change, a small ripple."""
    t, y, u, c = np.meshgrid(*(np.arange(side, dtype=np.float64) for side in (T, H, W, C)), indexing="ij")
    scene = np.floor(t * 5 / (2 * T))
    place = (c + 1) * 0.61 * np.floor(y / 2) + (c * c % 7 + 1) * 0.43 * np.floor(u / 3)
    ripple = 0.15 * np.cos(1.9 * t * (c + 1) + 2.3 * y + 3.1 * u)
    return torch.from_numpy(np.sin(place + 1.7 * scene * (c % 3) + c) + ripple).float()[None]


def reduced(spec: str, x: Tensor, **cues: Tensor) -> Tokens:
    (method,) = registry.build(spec)
    return method(Tokens.from_cells(x), **cues)


def kept(out: Tokens) -> list[int]:
    return (out.assignment[0] >= 0).nonzero().flatten().tolist()


def sums(out: Tokens) -> list[float]:
    """Of all values and of their squares."""
    x = out.features[0].double()
    return [float(x.sum()), float(x.square().sum())]


def test_waves():
    expected = [0.1500000060, 0.9914709926, 1.0592974424, -0.1498702764, 0.6916007400]
    assert waves(2, 2, 2, 3).flatten()[:5].tolist() == pytest.approx(expected, abs=1e-6)


class TestVllm:
    """vllm-project/vllm, vllm/multimodal/video_prune: vidcom2.py at 0f17ee0, evs.py at d750efb."""

    def test_evs(self):
        expected = [*range(25), 126, 130, 131, 132]
        assert kept(reduced("evs(q=0.8)", waves(6, 5, 5))) == expected

    def test_vidcom2(self):
        expected = [1, 3, 20, 21, 22, 24, 25, 29, 45, 46, 47, 48, 56, 58, 70]
        expected += [71, 72, 78, 95, 96, 97, 103, 120, 121, 122, 125, 127, 131, 146]
        assert kept(reduced("vidcom2(q=0.8)", waves(6, 5, 5))) == expected

    @pytest.mark.parametrize("name", ["evs", "vidcom2"])
    def test_counts(self, name):
        """1 - 0.8 is a little less than 0.2, so vLLM's count is one less than a fifth; 1 - 0.75 is exact."""
        counts = {(6, 100, 0.8): 119, (6, 50, 0.8): 59, (5, 49, 0.2): 196, (32, 196, 0.75): 1568, (64, 256, 0.9): 1638}
        for (T, n, q), count in counts.items():
            assert registry.build(f"{name}(q={q})")[0].planned_count(Grid(T, 1, n)) == count
        assert registry.build(f"{name}(keep=0.2)")[0].planned_count(Grid(6, 1, 100)) == 120

    @pytest.mark.parametrize("name", ["evs", "vidcom2"])
    def test_at_least_a_frame_or_one_a_frame(self, name):
        assert registry.build(f"{name}(q=0.99)")[0].planned_count(Grid(6, 1, 50)) == {"evs": 50, "vidcom2": 6}[name]

    @pytest.mark.parametrize("wrong", ["evs(q=1.0)", "evs(q=-0.1)", "vidcom2(q='half')", "vidcom2(q=True)"])
    def test_impossible_rates(self, wrong):
        with pytest.raises(ValueError, match=r"q is a pruning rate|q must be a finite number"):
            registry.build(wrong)

    @pytest.mark.parametrize("both", ["evs(0.5, q=0.5)", "evs(q=0.5, tau=0.1)", "vidcom2(0.5, q=0.5)"])
    def test_one_budget(self, both):
        with pytest.raises(ValueError, match="q="):
            registry.build(both)


def test_fastvid():
    """LunarShen/FastVID, fastvid_llavaonevision, at a40a109: segments of 4, 3 and 1 frames."""
    x = waves(8, 5, 5)
    attention = (torch.sin(torch.arange(200.0) * 2.7) + 1)[None]
    spec = "fastvid(0.2, segments=3, tau=0.5, context=0.4, stride=2, beta=0.2)"
    out = reduced(spec, x, attention=attention, frame_global=x.mean((2, 3)))
    assert int(out.count[0]) == 40
    assert sums(out) == pytest.approx([16.9853, 146.9844], abs=2e-3)
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
    # Anchors gathered, and so are no longer what they were, at 16 of 40 places.
    moved = torch.cdist(out.features[0], x.reshape(-1, 8), p=float("inf")).amin(1) > 1e-3
    assert int(moved.sum()) == 16


def test_scissor():
    """HumanMLLM/LLaVA-Scissor at b63354c."""
    out = reduced("scissor(0.5)", waves(6, 5, 5))
    assert int(out.count[0]) == 8
    assert sums(out) == pytest.approx([5.9504, 28.7818], abs=1e-3)


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


def test_prunevid():
    """Visual-AI/PruneVid at b12600c: windows of 4 and 4 frames with 12 static tokens and 48 others."""
    out = reduced("prunevid", waves(8, 5, 5))
    assert int(out.count[0]) == 60
    assert sums(out) == pytest.approx([35.1122, 245.2003], abs=2e-3)


@pytest.mark.parametrize(
    ("labels", "windows"),
    [
        ([0, 0, 1, 2, 1, 2, 1, 2, 1, 3, 3, 3, 4, 3, 3, 3, 4, 4, 4, 5, 5, 0, 5, 5, 5], [2, 14, 6, 3]),
        ([0, 1, 0, 1, 2], [5]),
        ([7, 7, 0, 1, 1, 2, 0, 0, 3, 1, 1, 5], [3, 3, 3, 3]),
        ([0, 0, 0, 1, 0, 0, 0, 2, 2, 3, 2, 2], [7, 5]),
    ],
)
def test_prunevid_windows(labels, windows):
    """Visual-AI/PruneVid at b12600c, refine_clusters: clusters of single frames go, all longest runs stay."""
    first = contiguous(torch.tensor([labels]), torch.ones(1, len(labels), dtype=torch.bool))
    assert first[0].unique(return_counts=True)[1].tolist() == windows
