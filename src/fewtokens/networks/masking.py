"""What every masked pre-training shares: which patches are seen, what is predicted, how far off it is.

Masked autoencoders (arXiv 2111.06377): random patches are hidden before the encoder, and the loss is on the pixels of
the hidden ones, each patch normalized by its own mean and spread.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewtokens.core.shapes import by_shape
from fewtokens.encoders.frames import patchify
from fewtokens.encoders.vit import ViT

DISTANCES = ("mse", "cosine")


@dataclass(frozen=True, eq=False)
class Mask:
    """Which patches of each sample are seen.

    Attributes:
        visible: their numbers, int64 [B,K], equally many in each sample.
        hidden: bool [B,N], True = hidden.
    """

    visible: Tensor
    hidden: Tensor

    __repr__ = by_shape


def visible_count(patches: int, ratio: float) -> int:
    """Patches that stay visible: their share rounded down, as in the published code (19 of 196 at 0.9), at least 1."""
    return max(1, int(patches * (1 - ratio)))


def random_mask(noise: Tensor, ratio: float) -> Mask:
    """Hides a share of the patches; those of the least noise stay.

    Args:
        noise: [B,N], a number for each patch.
        ratio: share to hide, in [0, 1).
    """
    visible = noise.argsort(1)[:, : visible_count(noise.shape[1], ratio)]
    return Mask(visible, torch.ones_like(noise, dtype=torch.bool).scatter(1, visible, False))


def patch_pixels(frames: Tensor, patch: int) -> Tensor:
    """Pixels of each patch, [B,3,H,W] to float32 [B,N,patch*patch*3]: rows, columns, channel last."""
    return patchify(frames[:, None].float(), 1, patch)[:, :, 0]


def pixel_targets(frames: Tensor, patch: int) -> Tensor:
    """`patch_pixels` with each patch shifted to mean 0 and scaled to (unbiased) variance 1."""
    pixels = patch_pixels(frames, patch)
    return (pixels - pixels.mean(-1, keepdim=True)) / (pixels.var(-1, keepdim=True) + 1e-6).sqrt()


def pixel_loss(predicted: Tensor, wanted: Tensor, hidden: Tensor | None = None, distance: str = "mse") -> Tensor:
    """Mean distance of patches, in float32.

    Args:
        predicted, wanted: [B,N,pixels].
        hidden: bool [B,N], the patches that count; all where None.
        distance: "mse", the mean over the pixels of a patch; or "cosine", 1 - cosine of the angle between patches.
    """
    predicted, wanted = predicted.float(), wanted.float()
    if distance == "cosine":
        each = 1 - F.cosine_similarity(predicted, wanted, dim=-1)
    else:
        each = (predicted - wanted).square().mean(-1)
    return each.mean() if hidden is None else torch.where(hidden, each, 0.0).sum() / hidden.sum()


def sincos_positions(rows: int, columns: int, dim: int) -> Tensor:
    """Fixed positions, float32 [rows,columns,dim]: sines and cosines of the column, then those of the row.

    Raises:
        ValueError: a dim that is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"sine and cosine positions need a dim that is a multiple of 4, got {dim}")
    rates = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))

    def waves(count: int) -> Tensor:
        angles = torch.arange(count, dtype=torch.float64)[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], 1)

    across = waves(columns)[None].expand(rows, -1, -1)
    down = waves(rows)[:, None].expand(-1, columns, -1)
    return torch.cat([across, down], -1).float()


def encode(vit: ViT, frames: Tensor, visible: Tensor | None = None, *, recompute: bool = False) -> Tensor:
    """Prefix and patch tokens after the last norm, [B,P+K,C]; hidden patches are never seen by any block.

    Args:
        vit: the encoder.
        frames: normalized, [B,3,H,W] of whole patches.
        visible: numbers of the patches that are seen [B,K], in the order in which they come out; all where None.
        recompute: activations in the backward pass instead of keeping them.
    """
    x = vit.embed(frames).flatten(1, 2)
    if visible is not None:
        x = x.gather(1, visible[..., None].expand(-1, -1, x.shape[-1]))
    prefix = vit.prefix(len(x))
    x = vit.norm_first(x if prefix is None else torch.cat([prefix.to(x.dtype), x], 1))
    for block in vit.blocks:
        x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
    return vit.norm_last(x)


def fix_positions(vit: ViT) -> None:
    """Gives a ViT fixed sine and cosine positions, none for its class token; neither learns."""
    vit.positions.requires_grad_(False).copy_(sincos_positions(*vit.config.grid[1:], vit.config.dim))
    if vit.class_position is not None:
        vit.class_position.requires_grad_(False).zero_()


def initialize(module: nn.Module) -> None:
    """As the published codes: Xavier for every linear layer and for patches seen as one, tokens N(0, 0.02), biases 0.

    But for the bias of the patches, which those codes leave as PyTorch draws it: uniform within 1 / sqrt(fan-in).
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
