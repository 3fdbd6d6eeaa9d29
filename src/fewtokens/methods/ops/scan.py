"""The selective scan of Mamba in pure PyTorch, and a mixer that runs it over the tokens in both directions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.methods.ops.resample import to_float32

_TAPS = 4


def selective_scan(u: Tensor, step: Tensor, rate: Tensor, b: Tensor, c: Tensor, *, block: int = 64) -> Tensor:
    """The recurrence h_l = exp(step_l * rate) * h_{l-1} + step_l * u_l * b_l, with output y_l = <h_l, c_l>.

    Blocks are processed sequentially; within a block all steps are computed in parallel, by doubling: log2(block)
    operations on [B,block,E,D] instead of a Python step per token. Discretized as in the code of Mamba, arXiv
    2312.00752 (exact for the decay, Euler for the input). Computed in float32, or float64 for float64 inputs.
    Differentiable.

    Args:
        u: [B,L,E] input.
        step: [B,L,E], at least 0; if it is 0, the state is unchanged.
        rate: [E,D], negative.
        b, c: [B,L,D], the input and output vectors (B and C of Mamba).
        block: tokens per block; bounds the memory and does not change the result.

    Returns:
        y [B,L,E].
    """
    u, step, rate, b, c = (to_float32(value) for value in (u, step, rate, b, c))
    state = u.new_zeros(len(u), 1, *rate.shape)
    outputs = []
    for start in range(0, u.shape[1], block):
        rows = slice(start, start + block)
        decay = (step[:, rows, :, None] * rate).exp()
        added = (step[:, rows] * u[:, rows])[..., None] * b[:, rows, None]
        decay, added = _prefixes(decay, added)
        states = added + decay * state
        outputs.append((states * c[:, rows, None]).sum(-1))
        state = states[:, -1:]
    return torch.cat(outputs, 1)


def _prefixes(decay: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
    """Prefix compositions of the maps h -> decay*h + added along dimension 1: the first, the first two, and so on."""
    reach = 1
    while reach < decay.shape[1]:
        composed = added[:, reach:] + decay[:, reach:] * added[:, :-reach]
        added = torch.cat([added[:, :reach], composed], 1)
        decay = torch.cat([decay[:, :reach], decay[:, reach:] * decay[:, :-reach]], 1)
        reach *= 2
    return decay, added


class Direction(nn.Module):
    """One direction of a mixer: a short causal convolution, then the selective scan with its skip connection."""

    def __init__(self, inner: int, state: int) -> None:
        super().__init__()
        self.rank, self.state = math.ceil(inner / 32), state
        self.convolution = nn.Conv1d(inner, inner, _TAPS, groups=inner)
        self.select = nn.Linear(inner, self.rank + 2 * state, bias=False)
        self.step = nn.Linear(self.rank, inner)
        self.log_rate = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.skip = nn.Parameter(torch.ones(inner))
        # Initial steps are log-uniform in 0.001..0.1; the bias is their inverse softplus.
        first = torch.exp(torch.rand(inner) * math.log(100) + math.log(0.001))
        with torch.no_grad():
            self.step.bias.copy_(first + torch.log(-torch.expm1(-first)))

    def forward(self, u: Tensor, mask: Tensor) -> Tensor:
        """Maps [B,L,E] to [B,L,E]; tokens that are not real (mask [B,L]) are skipped, at either end."""
        u = (u * mask[..., None]).transpose(1, 2)
        u = F.silu(self.convolution(F.pad(u, (_TAPS - 1, 0)))).transpose(1, 2)
        low, b, c = self.select(u).split([self.rank, self.state, self.state], 2)
        step = F.softplus(to_float32(self.step(low))) * mask[..., None]
        y = selective_scan(u, step, -to_float32(self.log_rate).exp(), b, c)
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
        """Maps [B,L,C] to [B,L,C], in both directions along L; real tokens (mask [B,L]) come first."""
        u, gate = self.inside(self.norm(x)).chunk(2, 2)
        mixed = self.onward(u, mask) + self.back(u.flip(1), mask.flip(1)).flip(1)
        return x + self.out(mixed * F.silu(gate))
