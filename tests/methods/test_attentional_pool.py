"""Attentional pooling against loops."""

from __future__ import annotations

import numpy as np

from tests.helpers.resamplers import build, compare, run_method, summary, to_numpy, video


def test_attentional_pool_against_loops():
    method, tokens = build("attentional_pool"), video()
    out = run_method(method, tokens)
    for b in range(2):
        x = to_numpy(tokens.features[b])
        maps = summary(x, method.summary)
        features = np.array([sum(maps[m, n] * x[n] for n in range(len(x))) for m in range(5)])
        compare(out, b, features, maps, to_numpy(tokens.positions[b]))
