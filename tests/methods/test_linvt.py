"""LinVT against loops."""

from __future__ import annotations

import numpy as np

from tests.helpers.resamplers import (
    C,
    attention,
    build,
    compare,
    layer_norm,
    linear,
    mlp,
    position_embedding,
    run_method,
    sigmoid,
    softmax,
    text_features,
    to_numpy,
    video,
)


def test_linvt_against_loops():
    method, tokens, text = build("linvt"), video(), text_features()
    out = run_method(method, tokens, text)
    for b in range(2):
        positions = to_numpy(tokens.positions[b])
        x = to_numpy(tokens.features[b]) + position_embedding(positions, 3, 4, method.places)
        x = x.reshape(4, 12, C)
        x = x + np.stack([attention(*[layer_norm(frame, method.norm_space)] * 2, method.space, 2)[0] for frame in x])
        across = [
            attention(*[layer_norm(x[:, position], method.norm_time)] * 2, method.time, 2)[0] for position in range(12)
        ]
        x = (x + np.stack(across, 1)).reshape(48, C)
        score = linear(x, method.score)[:, 0]
        selected = sorted(sorted(range(48), key=lambda n: -score[n])[:14])
        gated = x * sigmoid(score)[:, None]
        runs = [selected[start : start + scale] for scale in (1, 3) for start in range(0, 14, scale)]
        assert len(runs) == 14 + 5
        pooled = np.stack([gated[run].mean(0) for run in runs])
        queries = to_numpy(method.queries)
        for layer in method.layers:
            own = layer_norm(queries, layer.norms[0])
            queries = queries + attention(own, own, layer.own, 2)[0]
            queries = queries + attention(layer_norm(queries, layer.norms[1]), pooled, layer.video, 2)[0]
            queries = queries + attention(layer_norm(queries, layer.norms[2]), to_numpy(text[b]), layer.text, 2)[0]
            queries = queries + mlp(layer_norm(queries, layer.norms[3]), layer.mlp)
        q, k = linear(layer_norm(queries, method.norm_queries), method.query), linear(pooled, method.key)
        features, weights = np.zeros((5, C)), np.zeros((5, 48))
        for h in (slice(0, 4), slice(4, 8)):
            probs = softmax(q[:, h] @ k[:, h].T / 2)
            features[:, h] = probs @ pooled[:, h]
            # Convex: within the bounds of the selected tokens.
            assert bool((features[:, h] <= pooled[:, h].max(0)).all() and (features[:, h] >= pooled[:, h].min(0)).all())
            for column, run_of in zip(probs.T, runs, strict=True):
                weights[:, run_of] += column[:, None] / len(run_of) / 2
        compare(out, b, features, weights, positions)
        assert sorted((out.assignment[b] >= 0).nonzero().squeeze(1).tolist()) == selected
