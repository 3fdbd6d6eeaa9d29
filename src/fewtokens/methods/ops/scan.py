"""The selective scan of Mamba in plain PyTorch, and a mixer that runs it over the tokens both ways."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.methods.ops.resample import wide

_TAPS = 4


def selective_scan(u: Tensor, step: Tensor, rate: Tensor, into: Tensor, out: Tensor, *, block: int = 64) -> Tensor:
    """The recurrence h_l = exp(step_l * rate) * h_{l-1} + step_l * u_l * into_l, giving y_l = <h_l, out_l>.

    Blocks one after the other; within a block all steps at once, by doubling: log2(block) operations on
    [B,block,E,D] instead of a Python step for each token. Mamba, arXiv 2312.00752, as its code
    makes it discrete (exact for the decay, Euler for the input). In float32; float64 stays. Differentiable.

    Args:
        u: [B,L,E] input.
        step: [B,L,E], at least 0; where it is 0 the state stays and nothing is taken in.
        rate: [E,D], negative.
        into, out: [B,L,D].
        block: tokens of a block; it bounds the memory and does not change the result.

    Returns:
        y [B,L,E].
    """
    u, step, rate, into, out = (wide(value) for value in (u, step, rate, into, out))
    state = u.new_zeros(len(u), 1, *rate.shape)
    given = []
    for start in range(0, u.shape[1], block):
        here = slice(start, start + block)
        decay = (step[:, here, :, None] * rate).exp()
        added = (step[:, here] * u[:, here])[..., None] * into[:, here, None]
        decay, added = _prefixes(decay, added)
        states = added + decay * state
        given.append((states * out[:, here, None]).sum(-1))
        state = states[:, -1:]
    return torch.cat(given, 1)


def _prefixes(decay: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
    """Of the maps h -> decay*h + added along dimension 1: the first, the first two, ... composed."""
    reach = 1
    while reach < decay.shape[1]:
        late = added[:, reach:] + decay[:, reach:] * added[:, :-reach]
        added = torch.cat([added[:, :reach], late], 1)
        decay = torch.cat([decay[:, :reach], decay[:, reach:] * decay[:, :-reach]], 1)
        reach *= 2
    return decay, added


class Direction(nn.Module):
    """One direction of a mixer: a short causal convolution, then the selective scan with its skip."""

    def __init__(self, inner: int, state: int) -> None:
        super().__init__()
        self.rank, self.state = math.ceil(inner / 32), state
        self.convolution = nn.Conv1d(inner, inner, _TAPS, groups=inner)
        self.select = nn.Linear(inner, self.rank + 2 * state, bias=False)
        self.step = nn.Linear(self.rank, inner)
        self.log_rate = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.skip = nn.Parameter(torch.ones(inner))
        # Steps begin between 0.001 and 0.1, evenly in their logarithm: the inverse of softplus.
        first = torch.exp(torch.rand(inner) * math.log(100) + math.log(0.001))
        with torch.no_grad():
            self.step.bias.copy_(first + torch.log(-torch.expm1(-first)))

    def forward(self, u: Tensor, mask: Tensor) -> Tensor:
        """[B,L,E] to [B,L,E]; what is not real (mask [B,L]) is passed over as if it were not there, at either end."""
        u = (u * mask[..., None]).transpose(1, 2)
        u = F.silu(self.convolution(F.pad(u, (_TAPS - 1, 0)))).transpose(1, 2)
        low, into, out = self.select(u).split([self.rank, self.state, self.state], 2)
        step = F.softplus(wide(self.step(low))) * mask[..., None]
        y = selective_scan(u, step, -wide(self.log_rate).exp(), into, out)
        return y.to(u.dtype) + self.skip * u


class Mixer(nn.Module):
    """x + out((forward scan + backward scan) * SiLU(gate)), all from LayerNorm(x): the block of Vision Mamba."""

    def __init__(self, dim: int, state: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.inside = nn.Linear(dim, 4 * dim, bias=False)
        self.onward, self.back = Direction(2 * dim, state), Direction(2 * dim, state)
        self.out = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B,L,C] to [B,L,C] in the order of L and back; real tokens (mask [B,L]) come first."""
        u, gate = self.inside(self.norm(x)).chunk(2, 2)
        mixed = self.onward(u, mask) + self.back(u.flip(1), mask.flip(1)).flip(1)
        return x + self.out(mixed * F.silu(gate))
