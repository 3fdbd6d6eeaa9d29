"""STORM against a step-by-step scan."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.resamplers import C, build, layer_norm, linear, run_method, sigmoid, to_numpy, video


def scan(u: np.ndarray, direction) -> np.ndarray:
    """One direction of the mixer over [L,E], token by token."""
    taps = to_numpy(direction.convolution.weight)[:, 0]
    h, outputs = np.zeros(direction.log_rate.shape), []
    for index in range(len(u)):
        v = to_numpy(direction.convolution.bias).copy()
        for tap in range(4):
            if index - 3 + tap >= 0:
                v += taps[:, tap] * u[index - 3 + tap]
        v = v * sigmoid(v)
        selected, r, s = linear(v, direction.select), direction.rank, direction.state
        step = np.log1p(np.exp(linear(selected[:r], direction.step)))
        write, read = selected[r : r + s], selected[r + s :]
        h = np.exp(-step[:, None] * np.exp(to_numpy(direction.log_rate))) * h + np.outer(step * v, write)
        outputs.append(h @ read + to_numpy(direction.skip) * v)
    return np.array(outputs)


@pytest.mark.parametrize("lengths", [None, [4, 3]])
def test_storm_against_a_step_by_step_scan(lengths):
    method, tokens = build("storm"), video(lengths=lengths)
    out = run_method(method, tokens)
    for b, T in enumerate(lengths or [4, 4]):
        x = to_numpy(tokens.features[b, : T * 12])
        for layer in method.layers:
            u, gate = np.split(linear(layer_norm(x, layer.norm), layer.inside), 2, 1)
            mixed = scan(u, layer.onward) + scan(u[::-1], layer.back)[::-1]
            x = x + linear(mixed * gate * sigmoid(gate), layer.out)
        cells = x.reshape(T, 3, 4, C)
        # Four windows per pair of frames; the last row and an odd last frame form separate windows.
        pooled = [
            cells[t : t + 2, row : row + 2, column : column + 2].mean((0, 1, 2))
            for t in range(0, T, 2)
            for row in (0, 2)
            for column in (0, 2)
        ]
        np.testing.assert_allclose(to_numpy(out[b].features[0]), np.array(pooled), rtol=1e-7, atol=1e-9)


def test_storm_with_a_zero_mixer_is_average_pooling():
    method, tokens = build("storm"), video(T=6)
    for layer in method.layers:
        nn.init.zeros_(layer.out.weight)
    pooled = tokens.features.reshape(2, 3, 2, 3, 4, C).mean(2)
    expected = nn.functional.avg_pool2d(pooled.flatten(0, 1).permute(0, 3, 1, 2), 2, ceil_mode=True)
    torch.testing.assert_close(
        run_method(method, tokens).features, expected.flatten(2).transpose(1, 2).reshape(2, 12, C)
    )
