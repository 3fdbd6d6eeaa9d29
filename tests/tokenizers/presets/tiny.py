"""Tiny tokenizers of presets with random parameters, and their published sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.method import Method
from fewtokens.tokenizers import Layout, Tokenizer, create_tokenizer, get_preset


def build(name: str, seed: int = 0) -> Tokenizer:
    torch.manual_seed(seed)
    return create_tokenizer(name, tiny=True).eval()


def clips(name: str, batch: int = 2, seed: int = 0) -> Tensor:
    """Random frames of the size of the tiny preset, [B,T,3,H,W] in 0..1."""
    T, height, width = get_preset(name).tiny_clip
    return torch.rand(batch, T, 3, height, width, generator=torch.Generator().manual_seed(seed))


def published(name: str) -> tuple[float, Layout]:
    """Millions of parameters of encoder, methods and decoder at the published size, and the layout of its clip."""
    with torch.device("meta"):
        tokenizer = create_tokenizer(name)
    parts = [tokenizer.encoder, *tokenizer.methods, tokenizer.decoder]
    return sum(p.numel() for part in parts for p in part.parameters()) / 1e6, tokenizer.layout(*get_preset(name).clip)


def largest_gradient(module: Method | torch.nn.Module) -> float:
    return max((float(p.grad.abs().max()) for p in module.parameters() if p.grad is not None), default=0.0)
