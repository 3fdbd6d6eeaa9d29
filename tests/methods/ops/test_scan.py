"""The selective scan against one step after another."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewtokens.methods.ops.scan import selective_scan


@pytest.mark.parametrize(("length", "block"), [(1, 4), (7, 4), (8, 4), (13, 64), (37, 5)])
def test_selective_scan_against_one_step_after_another(length, block):
    torch.manual_seed(0)
    u, step = torch.randn(2, length, 3).double(), torch.rand(2, length, 3).double()
    step[0, 2:4] = 0
    rate, into, out = -torch.rand(3, 2).double(), torch.randn(2, length, 2).double(), torch.randn(2, length, 2).double()
    given = selective_scan(u, step, rate, into, out, block=block)
    for b in range(2):
        h = np.zeros((3, 2))
        for place in range(length):
            for e in range(3):
                for d in range(2):
                    forget = math.exp(float(step[b, place, e] * rate[e, d]))
                    h[e, d] = forget * h[e, d] + float(step[b, place, e] * u[b, place, e] * into[b, place, d])
            np.testing.assert_allclose(given[b, place].numpy(), h @ out[b, place].numpy(), rtol=1e-9, atol=1e-12)
