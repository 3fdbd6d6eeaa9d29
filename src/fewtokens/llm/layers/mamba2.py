"""The Mamba-2 mixer in pure PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def chunked_scan(x: Tensor, decay: Tensor, b: Tensor, c: Tensor, chunk: int = 64) -> Tensor:
    """Returns y[t] = h[t] c[t] of the recurrence h[t] = exp(decay[t]) h[t-1] + x[t] b[t], with h[-1] = 0.

    The outputs of a chunk are a masked product with its inputs plus the state that enters it: the recurrence has
    one step per chunk. State space duality, arXiv 2405.21060, section 6.

    Args:
        x: float32 [B,L,H,P], inputs of H heads.
        decay: [B,L,H], at most 0.
        b, c: [B,L,N], input and output vectors, the same for all heads.
        chunk: the number of tokens of a chunk.

    Returns:
        [B,L,H,P].
    """
    B, L, H, P = x.shape
    missing = -L % chunk
    x = F.pad(x, (0, 0, 0, 0, 0, missing)).unflatten(1, (-1, chunk))
    decay, b, c = (F.pad(value, (0, 0, 0, missing)).unflatten(1, (-1, chunk)) for value in (decay, b, c))
    total = decay.cumsum(2)  # [B,K,Q,H]
    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).tril()
    gap = (total[:, :, :, None] - total[:, :, None]).masked_fill(~causal[..., None], -math.inf)
    weight = torch.einsum("bkin,bkjn->bkij", c, b)[..., None] * gap.exp()
    inside = torch.einsum("bkijh,bkjhp->bkihp", weight, x)
    added = torch.einsum("bkjhp,bkjn->bkhpn", x * (total[:, :, -1:] - total).exp()[..., None], b)
    state, states = x.new_zeros(B, H, P, b.shape[-1]), []
    for step, new in zip(total[:, :, -1].exp().unbind(1), added.unbind(1), strict=True):
        states.append(state)
        state = state * step[..., None, None] + new
    carried = torch.einsum("bkin,bkhpn->bkihp", c, torch.stack(states, 1)) * total.exp()[..., None]
    return (inside + carried).flatten(1, 2)[:, :L]


class Mamba2(nn.Module):
    """Mixes tokens [B,L,dim] causally: projection, short convolution, scan, gated norm, projection.

    Mamba-2 (arXiv 2405.21060) with one group; parameters have the names and shapes of transformers' `Mamba2Mixer`.

    Args:
        dim: the size of a token.
        state: the size of the state of each channel.
        head: the largest number of channels of a head; theirs divides 2 * dim.
        kernel: the width of the convolution.
    """

    def __init__(self, dim: int, *, state: int = 128, head: int = 64, kernel: int = 4) -> None:
        super().__init__()
        self.inner, self.state, self.head = 2 * dim, state, math.gcd(2 * dim, head)
        count, mixed = self.inner // self.head, self.inner + 2 * state
        self.in_proj = nn.Linear(dim, self.inner + mixed + count, bias=False)
        self.conv1d = nn.Conv1d(mixed, mixed, kernel, groups=mixed, padding=kernel - 1)
        step = torch.empty(count).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # its softplus is the step
        self.A_log = nn.Parameter(torch.empty(count).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(count))
        self.norm = nn.RMSNorm(self.inner, eps=1e-5)
        self.out_proj = nn.Linear(self.inner, dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns tokens [B,L,dim], each from those up to it."""
        sizes = [self.inner, self.inner + 2 * self.state, len(self.D)]
        gate, mixed, step = self.in_proj(tokens).split(sizes, dim=-1)
        mixed = F.silu(self.conv1d(mixed.transpose(1, 2))[..., : tokens.shape[1]].transpose(1, 2)).float()
        x, b, c = mixed.split([self.inner, self.state, self.state], dim=-1)
        x = x.unflatten(2, (-1, self.head))
        step = F.softplus(step.float() + self.dt_bias.float())
        y = chunked_scan(x * step[..., None], -step * self.A_log.float().exp(), b, c)
        y = (y + x * self.D.float()[:, None]).flatten(2) * F.silu(gate.float())
        normed = F.rms_norm(y, (self.inner,), self.norm.weight.float(), self.norm.eps)
        return self.out_proj(normed.to(tokens.dtype))
