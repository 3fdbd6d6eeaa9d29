"""Components of masked pre-training: masks, targets and losses.

Masked autoencoders (arXiv 2111.06377): random patches are masked before the encoder, and the loss is on the pixels of
the masked patches, each normalized by its mean and standard deviation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewtokens.core.plan import take_rows
from fewtokens.core.shapes import shape_repr
from fewtokens.encoders.frames import patchify
from fewtokens.encoders.vit import ViT

DISTANCES = ("mse", "cosine")


@dataclass(frozen=True, eq=False)
class Mask:
    """Visible and masked patches of each sample.

    Attributes:
        visible: indices of the visible patches, int64 [B,K], the same number in each sample.
        hidden: bool [B,N], True for masked patches.
    """

    visible: Tensor
    hidden: Tensor

    __repr__ = shape_repr


def visible_count(patches: int, ratio: float) -> int:
    """Number of visible patches, rounded down as in the published code (19 of 196 at ratio 0.9), at least 1."""
    return max(1, int(patches * (1 - ratio)))


def random_mask(noise: Tensor, ratio: float) -> Mask:
    """Masks a fraction of the patches; those with the lowest noise stay visible.

    Args:
        noise: [B,N], one value per patch.
        ratio: fraction of patches to mask, in [0, 1).
    """
    visible = noise.argsort(1)[:, : visible_count(noise.shape[1], ratio)]
    return Mask(visible, torch.ones_like(noise, dtype=torch.bool).scatter(1, visible, False))


def patch_pixels(frames: Tensor, patch: int) -> Tensor:
    """Splits frames [B,3,H,W] into the pixels of each patch, float32 [B,N,patch*patch*3] (row, column, channel)."""
    return patchify(frames[:, None].float(), 1, patch)[:, :, 0]


def pixel_targets(frames: Tensor, patch: int) -> Tensor:
    """Returns `patch_pixels` with each patch normalized to mean 0 and (unbiased) variance 1."""
    pixels = patch_pixels(frames, patch)
    return (pixels - pixels.mean(-1, keepdim=True)) / (pixels.var(-1, keepdim=True) + 1e-6).sqrt()


def pixel_loss(predicted: Tensor, target: Tensor, hidden: Tensor | None = None, distance: str = "mse") -> Tensor:
    """Mean distance between predicted and target patches, in float32.

    Args:
        predicted, target: [B,N,pixels].
        hidden: bool [B,N], the patches in the loss; None for all.
        distance: "mse" (mean over the pixels of a patch) or "cosine" (1 - cosine similarity of patches).
    """
    predicted, target = predicted.float(), target.float()
    if distance == "cosine":
        loss = 1 - F.cosine_similarity(predicted, target, dim=-1)
    else:
        loss = (predicted - target).square().mean(-1)
    return loss.mean() if hidden is None else torch.where(hidden, loss, 0.0).sum() / hidden.sum()


def sincos_positions(rows: int, columns: int, dim: int) -> Tensor:
    """Fixed sine-cosine positions, float32 [rows,columns,dim]: of the column, then of the row.

    Raises:
        ValueError: dim is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"dim must be a multiple of 4 for sine-cosine positions, got {dim}")
    rates = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))

    def waves(count: int) -> Tensor:
        angles = torch.arange(count, dtype=torch.float64)[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], 1)

    across = waves(columns)[None].expand(rows, -1, -1)
    down = waves(rows)[:, None].expand(-1, columns, -1)
    return torch.cat([across, down], -1).float()


def encode(vit: ViT, frames: Tensor, visible: Tensor | None = None, *, recompute: bool = False) -> Tensor:
    """Encodes the visible patches; returns prefix and patch tokens after the last norm, [B,P+K,C].

    Args:
        vit: the encoder. No block processes masked patches.
        frames: normalized frames [B,3,H,W], multiples of the patch size.
        visible: indices of the visible patches [B,K], in the order of the output; None for all.
        recompute: recompute activations in the backward pass (activation checkpointing).
    """
    x = vit.embed(frames).flatten(1, 2)
    if visible is not None:
        x = take_rows(x, visible)
    prefix = vit.prefix(len(x))
    x = vit.norm_first(x if prefix is None else torch.cat([prefix.to(x.dtype), x], 1))
    for block in vit.blocks:
        x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
    return vit.norm_last(x)


def set_sincos_positions(vit: ViT) -> None:
    """Sets fixed sine-cosine positions in a ViT and zero for its class token; neither is trained."""
    vit.positions.requires_grad_(False).copy_(sincos_positions(*vit.config.grid[1:], vit.config.dim))
    if vit.class_position is not None:
        vit.class_position.requires_grad_(False).zero_()


def initialize(module: nn.Module) -> None:
    """Initializes as in the published code: Xavier for linear layers and the patch embedding, tokens N(0, 0.02).

    Biases are 0, except for that of the patch embedding, which keeps the default of PyTorch: uniform within
    1 / sqrt(fan-in).
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(part.weight.view(len(part.weight), -1))
            if part.bias is not None:
                bound = part.weight[0].numel() ** -0.5 if isinstance(part, nn.Conv2d) else 0.0
                nn.init.uniform_(part.bias, -bound, bound)
    for name, parameter in module.named_parameters():
        if name.endswith(("class_token", "registers", "mask_token", "bottleneck_positions")):
            nn.init.normal_(parameter, std=0.02)
