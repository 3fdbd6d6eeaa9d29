"""The selective scan against a sequential loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewtokens.methods.ops.scan import selective_scan


@pytest.mark.parametrize(("length", "block"), [(1, 4), (7, 4), (8, 4), (13, 64), (37, 5)])
def test_selective_scan_against_a_sequential_loop(length, block):
    torch.manual_seed(0)
    u, step = torch.randn(2, length, 3).double(), torch.rand(2, length, 3).double()
    step[0, 2:4] = 0
    rate, into, out = -torch.rand(3, 2).double(), torch.randn(2, length, 2).double(), torch.randn(2, length, 2).double()
    outputs = selective_scan(u, step, rate, into, out, block=block)
    for b in range(2):
        h = np.zeros((3, 2))
        for index in range(length):
            for e in range(3):
                for d in range(2):
                    forget = math.exp(float(step[b, index, e] * rate[e, d]))
                    h[e, d] = forget * h[e, d] + float(step[b, index, e] * u[b, index, e] * into[b, index, d])
            np.testing.assert_allclose(outputs[b, index].numpy(), h @ out[b, index].numpy(), rtol=1e-9, atol=1e-12)
