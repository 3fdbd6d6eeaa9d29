"""LinVT against loops."""

from __future__ import annotations

import numpy as np

from tests.helpers.resamplers import (
    C,
    array,
    attention,
    build,
    compare,
    linear,
    mlp,
    norm,
    places,
    query,
    run,
    sigmoid,
    softmax,
    video,
)


def test_linvt_against_loops():
    method, tokens, text = build("linvt"), video(), query()
    out = run(method, tokens, text)
    for b in range(2):
        where = array(tokens.positions[b])
        x = array(tokens.features[b]) + places(where, 3, 4, method.places)
        x = x.reshape(4, 12, C)
        x = x + np.stack([attention(*[norm(frame, method.norm_space)] * 2, method.space, 2)[0] for frame in x])
        across = [attention(*[norm(x[:, place], method.norm_time)] * 2, method.time, 2)[0] for place in range(12)]
        x = (x + np.stack(across, 1)).reshape(48, C)
        score = linear(x, method.score)[:, 0]
        chosen = sorted(sorted(range(48), key=lambda n: -score[n])[:14])
        gated = x * sigmoid(score)[:, None]
        runs = [chosen[start : start + scale] for scale in (1, 3) for start in range(0, 14, scale)]
        assert len(runs) == 14 + 5
        pooled = np.stack([gated[run].mean(0) for run in runs])
        queries = array(method.queries)
        for layer in method.layers:
            own = norm(queries, layer.norms[0])
            queries = queries + attention(own, own, layer.own, 2)[0]
            queries = queries + attention(norm(queries, layer.norms[1]), pooled, layer.video, 2)[0]
            queries = queries + attention(norm(queries, layer.norms[2]), array(text[b]), layer.text, 2)[0]
            queries = queries + mlp(norm(queries, layer.norms[3]), layer.mlp)
        q, k = linear(norm(queries, method.norm_queries), method.query), linear(pooled, method.key)
        made, weights = np.zeros((5, C)), np.zeros((5, 48))
        for h in (slice(0, 4), slice(4, 8)):
            look = softmax(q[:, h] @ k[:, h].T / 2)
            made[:, h] = look @ pooled[:, h]
            # Convex: within the bounds of what was selected.
            assert bool((made[:, h] <= pooled[:, h].max(0)).all() and (made[:, h] >= pooled[:, h].min(0)).all())
            for share, run_of in zip(look.T, runs, strict=True):
                weights[:, run_of] += share[:, None] / len(run_of) / 2
        compare(out, b, made, weights, where)
        assert sorted((out.assignment[b] >= 0).nonzero().squeeze(1).tolist()) == chosen
