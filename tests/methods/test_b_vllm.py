"""B-VLLM against loops, its counts, its noise, and that it learns which frame the text is about."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.learned.b_vllm import BVllm, limit
from tests.helpers.resamplers import (
    C,
    attention,
    build,
    layer_norm,
    linear,
    mlp,
    run_method,
    softmax,
    text_features,
    to_numpy,
    video,
)  # fmt: skip


def query_layer(queries, x, text, layer):
    mixed, _ = attention(queries, np.concatenate([queries, text]), layer.attention, 2)
    queries = layer_norm(queries + mixed, layer.norm1)
    mixed, weights = attention(queries, x, layer.cross, 2)
    queries = layer_norm(queries + mixed, layer.norm2)
    return layer_norm(queries + mlp(queries, layer.mlp), layer.norm3), weights


def by_loops(method, x, text):
    """The tokens and their weights [k*m,T*n] of frames x [T,n,C]."""
    T, n, _ = x.shape
    text = linear(text, method.to_text)
    frames = layer_norm(x.mean(1), method.seen)
    queries = to_numpy(method.time_queries)
    for layer in method.time:
        queries, _ = query_layer(queries, frames, text, layer)
    weights = softmax(linear(queries, method.score) @ frames.T / np.sqrt(C) / 0.5)
    groups: list[list[int]] = []
    for i, own in enumerate(weights):
        for group in groups:
            first = weights[group[0]]
            if (own @ first / np.linalg.norm(own) / np.linalg.norm(first) + 1) / 2 >= 0.75:
                group.append(i)
                break
        else:
            groups.append([i])
    mixtures = sorted((weights[group].mean(0) for group in groups), key=lambda row: row @ np.arange(T))
    features, attributions = [], []
    for mixture in mixtures:
        frame = np.einsum("t,tnc->nc", mixture, x)
        queries, reads = to_numpy(method.space_queries), []
        for layer in method.space:
            queries, read = query_layer(queries, layer_norm(frame, method.seen), text, layer)
            reads.append(read)
        features.append(linear(queries, method.out))
        attributions.append(mixture[None, :, None] * np.mean(reads, 0)[:, None])
    return len(groups), np.concatenate(features), np.concatenate(attributions).reshape(-1, T * n)


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("lengths", [None, [4, 2]])
def test_against_loops(scale, lengths):
    """At the start, all selectors are similar, and there is one mixture; with larger scores there are several."""
    method, tokens, text = build("b_vllm"), video(lengths=lengths), text_features()
    with torch.no_grad():
        method.score.weight *= scale
        method.time_queries *= scale
    out = run_method(method, tokens, text).check()
    found = []
    for b, T in enumerate(lengths or [4, 4]):
        x = to_numpy(tokens.features[b, : T * 12]).reshape(T, 12, C)
        k, features, weights = by_loops(method, x, to_numpy(text[b]))
        found.append(k)
        assert int(out.count[b]) == k * 4
        np.testing.assert_allclose(to_numpy(out.features[b, : k * 4]), features, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(to_numpy(out[b].cell_weights()[0, : k * 4, : T * 12]), weights, rtol=1e-4, atol=1e-6)
    assert (max(found) > 1) == (scale > 1)


def test_published_limits():
    """The number of tokens of a mixture is at most this; with 16 selectors, it is never below the 32 queries."""
    assert [limit(k, 32) for k in (1, 3, 5, 16)] == [576, 192, 115, 36]
    assert [limit(k, 32) for k in (18, 20, 600)] == [32, 28, 1]


def test_a_budget_for_many_selectors():
    """40 frames that have nothing in common, and as many selectors, which each see one."""
    torch.manual_seed(0)
    method = BVllm(40, tokens=5, dim=40, num_layers=1).eval()
    tokens = Tokens.from_cells(torch.eye(40)[None, :, None].expand(1, 40, 6, 40).flatten(1, 2), Grid(40, 2, 3))
    rows = torch.eye(40)[None]
    method.select = lambda tokens, text: (rows, torch.tensor([40]))
    out = method(tokens, text=torch.randn(1, 2, 40)).check()
    assert out.count.tolist() == [40 * limit(40, 5)] == [40 * 2]
    assert out.frame[0].tolist() == [t for t in range(40) for _ in range(2)]


def test_noise_only_in_training():
    method, tokens, text = build("b_vllm"), video(), text_features()
    fixed = [method.select(tokens, text)[0] for _ in range(2)]
    assert torch.equal(*fixed)
    method.train()
    torch.manual_seed(0)
    noisy = [method.select(tokens, text)[0] for _ in range(2)]
    assert noisy[0].shape != noisy[1].shape or not torch.allclose(*noisy, atol=1e-2)
    for weights in noisy:
        torch.testing.assert_close(weights.sum(2).max(1).values, torch.ones(2).double())


def test_it_learns_which_frame_the_text_is_about():
    """A frame has a code and a value; the text is a code, and the answer the value of that frame."""
    torch.manual_seed(0)
    method, read = BVllm(2, tokens=2, dim=16, num_layers=1, heads=2).train(), torch.nn.Linear(16, 1)
    optimizer = torch.optim.AdamW([*method.parameters(), *read.parameters()], 3e-3, weight_decay=0)
    generator = torch.Generator().manual_seed(1)

    def sample(count):
        codes = torch.nn.functional.one_hot(torch.stack([torch.randperm(4, generator=generator)] * count), 4).float()
        values = torch.randn(count, 4, generator=generator)
        x = torch.zeros(count, 4, 2, 16)
        x[..., :4], x[..., 4] = 3 * codes[:, :, None], values[..., None]
        asked = torch.randint(4, (count,), generator=generator)
        text = torch.zeros(count, 1, 16)
        text[:, 0, :4] = 3 * codes[torch.arange(count), asked]
        return Tokens.from_cells(x.flatten(1, 2), Grid(4, 1, 2)), text, values[torch.arange(count), asked]

    def loss(tokens, text, value):
        out = method(tokens, text=text)
        mean = out.features.sum(1) / out.count[:, None]
        return (read(mean)[:, 0] - value).square().mean()

    for _ in range(300):
        optimizer.zero_grad()
        loss(*sample(64)).backward()
        optimizer.step()
    method.eval()
    with torch.no_grad():
        assert float(loss(*sample(256))) < 0.5  # the mean of all frames leaves 0.75
