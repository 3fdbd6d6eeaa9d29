"""GRT against a double loop."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fewtokens.methods.pruning.grt import Grt
from tests.helpers.pixels import pixel_clip


class TestGrt:
    @pytest.mark.parametrize("measure", ["l2", "rms", "ssim"])
    @pytest.mark.parametrize("tau", [0.0, 0.3, 0.9])
    def test_against_a_double_loop(self, measure, tau):
        tokens, pixels = pixel_clip(P=1)
        p = pixels[0, :, 0].double().numpy().reshape(5, 12, 4, 3)
        survivors, holder = [], {}
        for t in range(5):
            for position in range(12):
                a, b = p[t - 1, position], p[t, position]
                if measure == "ssim":
                    by_channel = []
                    for c in range(3):
                        x, y = a[:, c], b[:, c]
                        light = (2 * x.mean() * y.mean() + 0.01**2) / (x.mean() ** 2 + y.mean() ** 2 + 0.01**2)
                        both = ((x - x.mean()) * (y - y.mean())).mean()
                        by_channel.append(light * (2 * both + 0.03**2) / (x.var() + y.var() + 0.03**2))
                    change = 1 - np.mean(by_channel)
                else:
                    change = np.sqrt(((2 * (a - b)) ** 2).sum()) / (1 if measure == "l2" else math.sqrt(12))
                if t == 0 or change > tau + 1e-9:
                    holder[position] = len(survivors)
                    survivors.append(t * 12 + position)
        out = Grt(max(tau, 1e-6) if tau == 0 else tau, measure=measure)(tokens, pixels=pixels)
        assert out.cell[0].tolist() == survivors
        assert out.sizes.sum() == 60

    def test_the_encoder_sees_fewer(self):
        """In the released code the sequence keeps its length: an unchanged patch reuses the previous embedding."""
        tokens, pixels = pixel_clip(P=1)
        assert Grt(keep=0.3)(tokens, pixels=pixels).N == 18
