"""Token Turing Machine against loops, and run per frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewtokens.core import registry
from fewtokens.methods.learned.token_turing import TokenTuring
from tests.helpers.clips import clip
from tests.helpers.resamplers import (
    C,
    attention,
    build,
    compare,
    layer_norm,
    mlp,
    position_embedding,
    run_method,
    split_frames,
    summary,
    to_numpy,
    video,
)


def test_token_turing_against_loops():
    method, tokens = build("token_turing"), video()
    out, m, n = run_method(method, tokens), 6, 12
    for b in range(2):
        positions = to_numpy(tokens.positions[b])
        memory, weights = np.zeros((m, C)), np.zeros((m, 4 * n))
        for t in range(4):
            cells = slice(t * n, (t + 1) * n)
            embeddings = np.concatenate(
                [to_numpy(method.slots), position_embedding(positions[cells] * [0, 1, 1], 3, 4, method.places)]
            )
            both = np.concatenate([memory, to_numpy(tokens.features[b, cells])])
            of_cells = np.concatenate([weights, np.eye(4 * n)[cells]])
            reading = summary(both + embeddings, method.reader)
            o, of_outputs = reading @ both + to_numpy(method.order), reading @ of_cells
            for block in method.blocks:
                y = layer_norm(o, block.norm1)
                o = o + attention(y, y, block.attention, 2)[0]
                o = o + mlp(layer_norm(o, block.norm2), block.mlp)
            o = layer_norm(o, method.norm)
            embeddings, both = np.concatenate([embeddings, to_numpy(method.outputs)]), np.concatenate([both, o])
            writing = summary(both + embeddings, method.writer)
            memory, weights = writing @ both, writing @ np.concatenate([of_cells, of_outputs])
        maps = summary(memory + to_numpy(method.slots), method.last)
        compare(out, b, maps @ memory, maps @ weights, positions)


def test_frame_by_frame_equals_the_full_video():
    method, tokens = build("token_turing"), video()
    memory, memories = None, []
    for frame in split_frames(tokens):
        memory, out = method.advance(frame, memory)
        assert out.shape == (2, 3, C)
        memories.append(memory)
    maps = method.last(memory + method.slots)
    rows = run_method(method, tokens).features.detach()
    expected = (maps @ memory).detach()
    # The same rows, sorted by time.
    distance = (rows[:, :, None] - expected[:, None]).abs().amax(3)
    assert float(distance.amin(2).max()) < 1e-12
    assert sorted(distance.argmin(2)[0].tolist()) == list(range(5))
    # Later frames do not change earlier memories.
    changed = tokens.replace(features=torch.cat([tokens.features[:, :24], -tokens.features[:, 24:]], 1))
    memory = None
    for index, frame in enumerate(split_frames(changed)):
        memory, _ = method.advance(frame, memory)
        assert torch.equal(memory, memories[index]) is (index < 2)


def test_a_frame_without_tokens_leaves_the_memory_unchanged():
    method, tokens = build("token_turing"), video(T=3)
    (drop,) = registry.build("fewer_frames(24)")
    reduced = drop(tokens)  # without the middle or the last frame
    out = run_method(method, reduced)
    survivors = sorted(set(reduced.frame[0].tolist()))
    assert len(survivors) == 2
    memory = None
    for t in survivors:
        memory, _ = method.advance(split_frames(tokens)[t], memory)
    expected = (method.last(memory + method.slots) @ memory).detach()
    distance = (out.features.detach()[:, :, None] - expected[:, None]).abs().amax(3)
    assert float(distance.amin(2).max()) < 1e-12


def test_weights_stay_valid_over_a_long_video():
    method = TokenTuring(4, dim=C, memory=4, read=2, num_layers=1)
    out = method(clip(120, 3, 3, C, 1)).check()
    assert float(out.sizes.sum()) == pytest.approx(120 * 9, rel=1e-4)
    assert bool((out.assignment >= 0).all())
