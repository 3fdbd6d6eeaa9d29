"""Hourglass against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewtokens.methods.pruning.hourglass import Hourglass
from tests.helpers.clips import clip


class TestHourglass:
    @pytest.mark.parametrize("seed", range(4))
    def test_against_loops(self, seed):
        """k=2 includes the frame itself, so only the nearest other frame defines the density."""
        tokens = clip(8, 2, 3, 6, 1, seed=seed)
        frames = tokens.features[0].double().numpy().reshape(8, 6, 6).mean(1)
        distance = np.linalg.norm(frames[:, None] - frames[None], axis=-1) / np.sqrt(6)
        density = np.exp(-np.sort(distance**2, 1)[:, :2].mean(1))
        score = []
        for i in range(8):
            denser = [
                distance[i, j] for j in range(8) if density[j] > density[i] or (density[j] == density[i] and j < i)
            ]
            score.append(density[i] * (min(denser) if denser else distance.max()))
        expected = sorted(np.argsort(-np.array(score), kind="stable")[:3].tolist())
        out = Hourglass(18)(tokens)
        assert sorted(set(out.frame[0].tolist())) == expected
        assert out.N == 18

    def test_recovery(self):
        tokens = clip(6, 2, 2, 8, 1)
        out = Hourglass(0.5)(tokens)
        back = out.unmerge()
        survivors = sorted(set(out.frame[0].tolist()))
        full = tokens.features.reshape(1, 6, 2, 2, 8)
        for t in range(6):
            nearest = min(survivors, key=lambda k: (abs(k - t), k))
            torch.testing.assert_close(back[0, t], full[0, nearest])
