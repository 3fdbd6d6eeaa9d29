"""State-space blocks: the scan in chunks is the recurrence, and time is causal."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fewtokens.methods.ops.scan import selective_scan
from fewtokens.tokenizers.blocks.state_space import StateSpaceBlock


def recurrence(u, step, rate, b, c):
    """One step per token."""
    state, outputs = torch.zeros(len(u), *rate.shape, dtype=u.dtype), []
    for n in range(u.shape[1]):
        decay = (step[:, n, :, None] * rate).exp()
        state = decay * state + (step[:, n] * u[:, n])[..., None] * b[:, n, None]
        outputs.append((state * c[:, n, None]).sum(-1))
    return torch.stack(outputs, 1)


@torch.no_grad()
@pytest.mark.parametrize("block", [1, 5, 64])
def test_the_scan_in_chunks_equals_the_recurrence(block):
    generator = torch.Generator().manual_seed(0)
    u, step, b, c = (torch.randn(2, 13, n, generator=generator) for n in (3, 3, 4, 4))
    rate = -torch.rand(3, 4, generator=generator)
    expected = recurrence(u, F.softplus(step), rate, b, c)
    torch.testing.assert_close(
        selective_scan(u, F.softplus(step), rate, b, c, block=block), expected, rtol=1e-5, atol=1e-5
    )


@torch.no_grad()
def test_a_block_against_its_equations():
    torch.manual_seed(0)
    block, x = StateSpaceBlock(4), torch.randn(1, 3, 2, 2, 4)

    def direction(layer, u):
        """[L,E]: a causal convolution of four taps, then the recurrence with its skip."""
        padded = F.pad(u.T, (3, 0))
        taps = torch.stack([padded[:, n : n + 4] for n in range(len(u))])
        u = F.silu((taps * layer.convolution.weight[:, 0]).sum(2) + layer.convolution.bias)
        low, b, c = layer.select(u).split([layer.rank, 16, 16], 1)
        step = F.softplus(layer.step(low))
        return recurrence(u[None], step[None], -layer.log_rate.exp(), b[None], c[None])[0] + layer.skip * u

    frames = []
    for frame in x[0].flatten(1, 2):
        u, gate = block.space.inside(block.space.norm(frame)).chunk(2, 1)
        mixed = direction(block.space.onward, u) + direction(block.space.back, u.flip(0)).flip(0)
        frames.append(frame + block.space.out(mixed * F.silu(gate)))
    places = []
    for place in torch.stack(frames, 1):
        u, gate = block.inside(block.norm(place)).chunk(2, 1)
        places.append(place + block.out(direction(block.onward, u) * F.silu(gate)))
    expected = torch.stack(places, 1).unflatten(1, (2, 2))
    torch.testing.assert_close(block(x)[0], expected, rtol=1e-5, atol=1e-5)
