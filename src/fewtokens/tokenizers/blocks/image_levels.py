"""Layers that convolutional encoders and decoders of single frames share (VQGAN, arXiv 2012.09841)."""

from __future__ import annotations

from torch import nn

from fewtokens.tokenizers.blocks.causal_conv import Three
from fewtokens.tokenizers.blocks.cell_attention import CellAttention
from fewtokens.tokenizers.blocks.residual import ResBlock

FRAME: Three = (1, 3, 3)


def frame_blocks(dim: int, out: int, count: int, *, attention: bool = False) -> list[nn.Module]:
    """Residual blocks of two 3x3 convolutions, each followed by attention within the frame if `attention`."""
    blocks: list[nn.Module] = []
    for i in range(count):
        blocks.append(ResBlock(dim if i == 0 else out, out, (FRAME, FRAME), norm="frame"))
        if attention:
            blocks.append(CellAttention(out, norm="frame"))
    return blocks


def frame_middle(dim: int) -> list[nn.Module]:
    """Two residual blocks with attention within the frame between them."""
    return [*frame_blocks(dim, dim, 1, attention=True), *frame_blocks(dim, dim, 1)]
