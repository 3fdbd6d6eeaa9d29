"""Q-Former against loops."""

from __future__ import annotations

import numpy as np

from tests.helpers.resamplers import array, attention, build, compare, mlp, norm, places, run, video


def test_qformer_against_loops():
    method, tokens = build("qformer"), video()
    out = run(method, tokens)
    assert [layer.cross is not None for layer in method.layers] == [True, False, True]
    for b in range(2):
        positions = array(tokens.positions[b])
        x = norm(array(tokens.features[b]) + places(positions, 3, 4, method.places), method.norm_seen)
        queries, weights = norm(array(method.queries), method.norm_queries), np.zeros((5, len(x)))
        for layer in method.layers:
            queries = norm(queries + attention(queries, queries, layer.attention, 2)[0], layer.norm1)
            if layer.cross is not None:
                mixed, probs = attention(queries, x, layer.cross, 2)
                queries, weights = norm(queries + mixed, layer.norm2), weights + probs / 2
            queries = norm(queries + mlp(queries, layer.mlp), layer.norm3)
        compare(out, b, queries, weights, positions)
