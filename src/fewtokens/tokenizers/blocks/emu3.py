"""The network of Emu3's tokenizer, of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fewtokens.tokenizers.blocks.causal_conv import check_counts
from fewtokens.tokenizers.parts import Stride

# Its normalizations have this number of groups of channels.
_GROUPS = 32


def build_emu3(
    channels: int, *, width: int, mult: Sequence[int], depth: int, attention: Sequence[int], frames: int
) -> tuple[Any, Stride]:
    """Builds `transformers.Emu3VQVAE` with random parameters; returns it and frames, rows and columns of a cell.

    Args: see the encoder `emu3`.

    Raises:
        ValueError: transformers is not installed, or an argument is invalid.
    """
    check_counts(channels=channels, width=width, depth=depth, frames=frames, levels=len(mult))
    if width % _GROUPS or min(mult) < 1:
        raise ValueError(f"width must be a multiple of {_GROUPS} channels and mult at least 1, got {width} and {mult}")
    if frames & (frames - 1):
        raise ValueError(f"frames must be a power of 2, got {frames}")
    if any(not 0 <= level < len(mult) or mult[level] != mult[-1] for level in attention):
        raise ValueError(f"attention must be levels with the channels of the last of {len(mult)}, got {attention}")
    try:
        from transformers import Emu3VQVAE, Emu3VQVAEConfig
    except ImportError:
        raise ValueError("emu3 requires transformers; install it with pip install 'fewtokens[hf]'") from None
    config = Emu3VQVAEConfig(
        codebook_size=1, embed_dim=channels, latent_channels=channels, base_channels=width,
        hidden_size=width * mult[-1], channel_multiplier=list(mult), num_res_blocks=depth,
        attn_resolutions=list(attention), temporal_downsample_factor=frames,
    )  # fmt: skip
    side = 2 ** (len(mult) - 1)
    return Emu3VQVAE(config), (frames, side, side)
