"""PVC against loops, causality, static videos, and the facts of the paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from fewtokens.core.batch import collate
from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.learned.pvc import Pvc
from tests.helpers.clips import clip
from tests.helpers.resamplers import C, attention, build, linear, mlp, run_method, sigmoid, softmax, to_numpy, video


def adaptive(x, norm, time):
    """LayerNorm of x [...,D] with the scale and the shift of a time step, and the gate."""
    D = x.shape[-1]
    values = linear(time, norm.modulation)
    centered = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return centered * (1 + values[:D]) + values[D : 2 * D], values[2 * D :]


def embedded_time(t, layers):
    angles = [t / 10_000 ** (k / 128) for k in range(128)]
    x = linear(np.array([*map(math.cos, angles), *map(math.sin, angles)]), layers[0])
    x = linear(x * sigmoid(x), layers[2])
    return x * sigmoid(x)


def past(x, layer, heads):
    """Causal attention of the frames x [T,C] at one position, one frame at a time."""
    q, k, v = linear(x, layer.query), linear(x, layer.key), linear(x, layer.value)
    d, mixed = x.shape[1] // heads, np.zeros_like(x)
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        for t in range(len(x)):
            weights = softmax(np.array([q[t, part] @ k[s, part] / math.sqrt(d) for s in range(t + 1)]))
            mixed[t, part] = weights @ v[: t + 1, part]
    return linear(mixed, layer.out)


def by_loops(method, x, H, W):
    """The tokens [T,m,C] of frames x [T,H*W,C]."""
    times = [embedded_time(t, method.time) for t in range(len(x))]
    for layer in method.layers:
        pairs = [adaptive(frame, layer.norms[0], time) for frame, time in zip(x, times, strict=True)]
        normed, gates = np.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs])
        mixed = np.stack([past(normed[:, n], layer.temporal, 2) for n in range(H * W)], 1)
        x = x + gates[:, None] * mixed
        for t, time in enumerate(times):
            normed, gate = adaptive(x[t], layer.norms[1], time)
            x[t] = x[t] + gate * attention(normed, normed, layer.spatial, 2)[0]
            normed, gate = adaptive(x[t], layer.norms[2], time)
            x[t] = x[t] + gate * mlp(normed, layer.mlp)
    p, tokens = method.pool, []
    for frame, time in zip(x, times, strict=True):
        for row in range(0, H, p):
            for column in range(0, W, p):
                block, inside = np.zeros((p * p, frame.shape[1])), []
                for i in range(p):
                    for j in range(p):
                        if row + i < H and column + j < W:
                            block[i * p + j] = frame[(row + i) * W + column + j]
                            inside.append(block[i * p + j])
                normed, _ = adaptive(block.reshape(-1), method.norm, time)
                tokens.append(np.mean(inside, 0) + mlp(normed, method.mlp))
    return np.array(tokens)


@pytest.mark.parametrize("lengths", [None, [4, 2]])
def test_against_loops(lengths):
    method, tokens = build("pvc"), video(lengths=lengths)
    out = run_method(method, tokens).check()
    for b, T in enumerate(lengths or [4, 4]):
        x = to_numpy(tokens.features[b, : T * 12]).reshape(T, 12, C).copy()
        expected = by_loops(method, x, 3, 4)  # an odd number of rows: the last blocks are half empty
        assert int(out.count[b]) == len(expected) == T * 4
        np.testing.assert_allclose(to_numpy(out.features[b, : T * 4]), expected, rtol=1e-6, atol=1e-8)
    weights = out[0].cell_weights()[0].unflatten(1, (-1, 12))
    assert weights[4, 1].reshape(3, 4)[:2, :2].tolist() == [[0.25, 0.25], [0.25, 0.25]]
    assert weights[6, 1].reshape(3, 4)[2].tolist() == [0.5, 0.5, 0, 0]


def test_the_start_is_average_pooling():
    """Gates are zero, so that the blocks change nothing, and so is the last layer."""
    torch.manual_seed(0)
    method, tokens = Pvc(2, dim=C).eval(), clip(5, 4, 6, C)
    frames = tokens.features.reshape(2, 5, 24, C)
    assert torch.equal(method.encode(frames), frames)
    pooled = nn.functional.avg_pool2d(tokens.features.reshape(10, 4, 6, C).permute(0, 3, 1, 2), 2)
    torch.testing.assert_close(method(tokens).features, pooled.flatten(2).transpose(1, 2).reshape(2, 30, C))


def test_later_frames_change_nothing():
    method, tokens = build("pvc"), video(T=6, B=1)
    out = run_method(method, tokens).features.reshape(6, 4, C)
    for t in range(6):
        x = tokens.features.reshape(6, 12, C).clone()
        x[t] = -x[t]
        changed = run_method(method, tokens.replace(features=x.reshape(1, -1, C))).features.reshape(6, 4, C)
        differs = (out - changed).abs().amax((1, 2)) > 1e-9
        assert torch.equal(differs, torch.arange(6) >= t)
    short = Tokens.from_cells(tokens.features[:, :36], Grid(3, 3, 4))
    torch.testing.assert_close(run_method(method, short).features.reshape(3, 4, C), out[:3])


def test_counts_of_the_paper():
    """64 tokens a frame of 32 x 32 patches; an image is repeated 4 times, so it has the 256 tokens of InternVL2."""
    method = Pvc(dim=C)
    assert method.planned_count(Grid(16, 32, 32)) == 16 * 64
    assert method.planned_count(Grid(96, 32, 32)) == 96 * 64
    assert method.planned_count(Grid(1, 32, 32)) == 256
    assert method(clip(1, 32, 32, C, 1)).N == 256


def test_an_image_is_a_static_video():
    method, image = build("pvc"), video(T=1, B=1)
    static = Tokens.from_cells(image.features.repeat(1, 3, 1), Grid(3, 3, 4))
    out = run_method(method, image).check()
    torch.testing.assert_close(out.features, run_method(method, static).features)
    assert out.frame.tolist() == [[0] * 12]
    # In a batch with videos, longer and shorter than the repetition.
    videos = [image, video(T=2, B=1), video(T=5, B=1)]
    for part in (videos, videos[:2]):
        batch = run_method(method, collate(part)).check()
        for b, alone in enumerate(part):
            torch.testing.assert_close(batch[b].features, run_method(method, alone).features)


def test_repetitions_of_an_image_add_details():
    """After training, four different tokens of an image reconstruct more of it than one token, repeated four times.

    An image has four independent parts of C values each, and a token has C channels: one token can carry one part.
    """
    errors = {}
    for repeat in (4, 1):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(1)
        method, decoder = Pvc(2, repeat=repeat, num_layers=1, heads=2, dim=C), nn.Linear(4 * C, 4 * C)
        optimizer = torch.optim.AdamW([*method.parameters(), *decoder.parameters()], 4e-3, weight_decay=0)
        grid = Grid(1, 2, 2)
        for step in range(500):
            images = torch.randn(64, 4 * C, generator=generator)
            tokens = method(Tokens.from_cells(images.reshape(64, 4, C), grid)).features
            assert tokens.shape == (64, repeat, C)
            read = decoder(tokens.repeat(1, 4 // repeat, 1).flatten(1))
            loss = (read - images).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step == 400:
                for group in optimizer.param_groups:
                    group["lr"] = 1e-3
        errors[repeat] = loss.item()
    assert errors[1] > 0.6  # the best linear code leaves .75
    assert errors[4] < 0.5 * errors[1]
    # Without training all repetitions are equal.
    tokens = Pvc(2, num_layers=1, dim=C)(clip(1, 2, 2, C, 1)).features
    assert torch.equal(tokens, tokens[:, :1].expand(-1, 4, -1))
