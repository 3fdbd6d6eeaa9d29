"""Q-Former against loops."""

from __future__ import annotations

import numpy as np

from tests.helpers.resamplers import (
    attention,
    build,
    compare,
    layer_norm,
    mlp,
    position_embedding,
    run_method,
    to_numpy,
    video,
)


def test_qformer_against_loops():
    method, tokens = build("qformer"), video()
    out = run_method(method, tokens)
    assert [layer.cross is not None for layer in method.layers] == [True, False, True]
    for b in range(2):
        positions = to_numpy(tokens.positions[b])
        x = layer_norm(
            to_numpy(tokens.features[b]) + position_embedding(positions, 3, 4, method.places), method.norm_seen
        )
        queries, weights = layer_norm(to_numpy(method.queries), method.norm_queries), np.zeros((5, len(x)))
        for layer in method.layers:
            queries = layer_norm(queries + attention(queries, queries, layer.attention, 2)[0], layer.norm1)
            if layer.cross is not None:
                mixed, probs = attention(queries, x, layer.cross, 2)
                queries, weights = layer_norm(queries + mixed, layer.norm2), weights + probs / 2
            queries = layer_norm(queries + mlp(queries, layer.mlp), layer.norm3)
        compare(out, b, queries, weights, positions)
