"""A small ViT with non-initial attention and norms, and its patch embeddings of random frames."""

from __future__ import annotations

import torch

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.vit import ViT, ViTConfig


def small_vit() -> ViT:
    torch.manual_seed(0)
    vit = ViT(ViTConfig(dim=32, depth=4, num_heads=4, patch_size=4, image_size=(24, 24), num_registers=1)).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return vit.requires_grad_(False)


def embed_frames(vit: ViT) -> Tokens:
    frames = torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    return Tokens.from_cells(vit.embed(frames).flatten(1, 2), Grid(1, 6, 6))
