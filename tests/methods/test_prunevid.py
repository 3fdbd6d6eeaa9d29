"""PruneVid against loops and the published code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewtokens.core.tokens import Tokens
from fewtokens.methods.merging.prunevid import PruneVid, contiguous
from tests.helpers import naive
from tests.helpers.naive import video
from tests.helpers.published import run_spec, sum_and_square_sum, waves


class TestPruneVid:
    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize(("segments", "tau"), [(0.25, 0.8), (0.5, 0.5), (0.1, 0.3), (1.0, 0.8)])
    def test_against_loops(self, seed, segments, tau):
        tokens, x = video(T=8, H=5, W=5, seed=seed)
        method = PruneVid(tau=tau, segments=segments, neighbors=4)
        naive.assert_same_tokens(method(tokens), naive.prunevid(x, tau, segments, 0.5, 4))

    def test_runs_become_contiguous(self):
        """In a padded batch of videos with few and with many runs."""
        generator = np.random.default_rng(0)
        rows = []
        for index in range(300):
            labels = generator.integers(0, 1 + index % 4, generator.integers(1, 16))
            rows.append(np.repeat(labels, generator.integers(1, 1 + index % 3 + 1, len(labels)))[:20].tolist())
        T = max(len(row) for row in rows)
        real_frames = torch.tensor([[True] * len(row) + [False] * (T - len(row)) for row in rows])
        starts = contiguous(torch.tensor([row + [T] * (T - len(row)) for row in rows]), real_frames)
        for row, first in zip(rows, starts.tolist(), strict=True):
            assert first == naive.contiguous_segments(row) + list(range(len(row), T))

    def test_a_segment_of_one_frame_has_nothing_static(self):
        """The reference code divides 0 by 0 in this case."""
        tokens, _ = video(T=1)
        assert PruneVid(ratio=1.0)(tokens).N == tokens.N

    def test_a_static_video_is_at_most_one_frame(self):
        frame = torch.randn(1, 1, 4, 4, 8)
        tokens = Tokens.from_cells(frame.expand(-1, 6, -1, -1, -1).contiguous())
        out = PruneVid(segments=0.1, ratio=1.0)(tokens)
        assert out.N == 16
        assert out.sizes[0].tolist() == [6.0] * 16

    def test_deterministic_without_noise(self):
        tokens = Tokens.from_cells(torch.ones(1, 6, 5, 5, 8))
        first = PruneVid(keep=0.3)(tokens)
        assert torch.equal(first.assignment, PruneVid(keep=0.3)(tokens).assignment)


def test_prunevid():
    """Visual-AI/PruneVid at b12600c: windows of 4 and 4 frames with 12 static tokens and 48 others."""
    out = run_spec("prunevid", waves(8, 5, 5))
    assert int(out.count[0]) == 60
    assert sum_and_square_sum(out) == pytest.approx([35.1122, 245.2003], abs=2e-3)


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
    """Visual-AI/PruneVid at b12600c, refine_clusters: removes clusters of single frames, keeps all longest runs."""
    first = contiguous(torch.tensor([labels]), torch.ones(1, len(labels), dtype=torch.bool))
    assert first[0].unique(return_counts=True)[1].tolist() == windows
