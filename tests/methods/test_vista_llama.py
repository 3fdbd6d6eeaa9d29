"""Vista-LLaMA's sequential projector against loops, and its order in time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.learned.vista_llama import VistaLlama
from tests.helpers.clips import clip
from tests.helpers.resamplers import (
    C,
    attention,
    build,
    layer_norm,
    mlp,
    position_embedding,
    run_method,
    split_frames,
    to_numpy,
    video,
)


@pytest.mark.parametrize("lengths", [None, [4, 2]])
def test_against_loops(lengths):
    method, tokens = build("vista_llama"), video(lengths=lengths)
    out = run_method(method, tokens).check()
    for b, T in enumerate(lengths or [4, 4]):
        queries, features, weights = (
            layer_norm(to_numpy(method.queries), method.norm_queries),
            [],
            np.zeros((3 * T, 48)),
        )
        for t in range(T):
            cells = slice(12 * t, 12 * t + 12)
            places = to_numpy(tokens.positions[b, cells]) * [0, 1, 1]
            seen = to_numpy(tokens.features[b, cells]) + position_embedding(places, 3, 4, method.places)
            seen = layer_norm(seen, method.norm_seen)
            for layer in method.layers:
                queries = layer_norm(queries + attention(queries, queries, layer.attention, 2)[0], layer.norm1)
                mixed, probs = attention(queries, seen, layer.cross, 2)
                queries = layer_norm(queries + mixed, layer.norm2)
                queries = layer_norm(queries + mlp(queries, layer.mlp), layer.norm3)
                weights[3 * t : 3 * t + 3, cells] += probs / 2
            features.append(queries)
        n = 3 * T
        assert int(out.count[b]) == n
        np.testing.assert_allclose(to_numpy(out.features[b, :n]), np.concatenate(features), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(to_numpy(out.cell_weights()[b, :n]), weights, rtol=1e-5, atol=1e-7)


def test_the_tokens_of_a_frame_are_the_queries_of_the_next():
    method, tokens = build("vista_llama"), video(T=4, B=1)
    out = run_method(method, tokens).features.reshape(4, 3, C)
    frames = split_frames(tokens)
    first, state = method.step(frames[0])
    torch.testing.assert_close(first.features[0], out[0])
    torch.testing.assert_close(state.queries[0], out[0])
    # A frame after other tokens has other tokens; after the same tokens it has the same ones.
    again, _ = method.step(frames[1], state)
    alone, _ = method.step(frames[1])
    torch.testing.assert_close(again.features[0], out[1])
    assert not torch.allclose(alone.features[0], out[1], atol=1e-3)


def test_later_frames_change_nothing():
    method, tokens = build("vista_llama"), video(T=5, B=1)
    out = run_method(method, tokens).features.reshape(5, 3, C)
    for t in range(5):
        x = tokens.features.reshape(5, 12, C).clone()
        x[t] = -x[t]
        changed = run_method(method, Tokens.from_cells(x.reshape(1, -1, C), Grid(5, 3, 4))).features.reshape(5, 3, C)
        differs = (out - changed).abs().amax((1, 2)) > 1e-9
        assert torch.equal(differs, torch.arange(5) >= t)


def test_tokens_stay_bounded_over_a_long_video():
    method = VistaLlama("4/frame", dim=C, num_layers=1)
    with torch.no_grad():
        out = method(clip(300, 2, 2, C, 1)).check()
    norms = out.features[0].norm(dim=1)
    assert float(norms[-40:].max()) < 1.5 * float(norms[:40].max())
