"""Reads released weights of BSQ-ViT (arXiv 2406.07548) into our own network."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor

from fewtokens.tokenizers.released.convert import Rule, convert, shape_of, weight_and_bias
from fewtokens.tokenizers.tokenizer import Tokenizer

# Channels of a head, at all released sizes.
_HEAD = 64
# Constants of their quantizer.
_CONSTANTS = ("quantize.basis", "quantize.group_basis")
_FRAMES = "temporal_positional_embedding"
# Names inside a block, ours and theirs.
_BLOCK = {"norm1": "ln_1", "attention.out": "attn.out_proj", "norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
          "mlp.fc2": "mlp.c_proj"}  # fmt: skip


def load_bsq_vit(config: dict[str, Any], tensors: dict[str, Tensor], where: str) -> Tokenizer:
    """Builds a tokenizer from the tensors of a checkpoint of BSQ-ViT.

    Weights for images, which have no positions of frames, encode each frame separately; those for videos, which are not
    published, encode windows with block-causal attention, as in the paper: the authors' code adds 1 to the logits of
    later frames instead of masking them. Codes are those of the authors, of which those of 36 bits are rounded in
    float32. They accept one size; here, positions are resized.

    Args:
        config: not read: sizes follow from the tensors.
        tensors: of the checkpoint, by name.
        where: of the messages.

    Raises:
        ValueError: the tensors do not fit; the message starts with `where`.
    """
    theirs = {name: value for name, value in tensors.items() if name not in _CONSTANTS}
    width, values = shape_of(theirs, "encoder.conv1.weight", 2, where)
    patch = round((values / 3) ** 0.5)
    bits, _ = shape_of(theirs, "quant_embed.weight", 2, where)
    side = round(shape_of(theirs, "encoder.positional_embedding", 2, where)[0] ** 0.5)
    is_video = f"encoder.{_FRAMES}" in theirs
    frames = shape_of(theirs, f"encoder.{_FRAMES}", 2, where)[0] if is_video else 1
    depth = len({name.split(".")[3] for name in theirs if name.startswith("encoder.transformer.resblocks.")})
    kind = "block_causal" if is_video else "space"
    shared = (
        f"stride=(1, {patch}, {patch}), layers=(({kind!r}, {depth}),), heads={max(1, width // _HEAD)}, "
        f"positions=({frames}, {side}, {side}), style='bsq'"
    )
    tokenizer = Tokenizer.from_spec(
        f"tubelet_transformer({width}, channels={bits}, {shared}) | bsq({bits}) > "
        f"tubelet_transformer(width={width}, {shared})",
        window=frames if is_video else None,
    )
    convert(tokenizer, dict(_rules(depth, side, patch, is_video)), theirs, where)
    return tokenizer


def _rules(depth: int, side: int, patch: int, is_video: bool) -> Iterator[tuple[str, Rule]]:
    """The rules by our names, see `convert`."""
    encoder, decoder = "pipeline.encoder", "decoder"
    for ours, theirs in ((encoder, "encoder"), (decoder, "decoder")):
        places = f"{theirs}.positional_embedding"
        yield f"{ours}.transformer.positions.places", ((places,), partial(_grid, side))
        # The positions of images have no part for frames.
        yield (
            f"{ours}.transformer.positions.frames",
            (f"{theirs}.{_FRAMES}" if is_video else ((places,), lambda positions: 0 * positions[:1])),
        )
        yield from weight_and_bias(f"{ours}.transformer.norm", f"{theirs}.ln_pre").items()
        yield from weight_and_bias(f"{ours}.norm", f"{theirs}.ln_post").items()
        for i in range(depth):
            own, other = f"{ours}.transformer.blocks.{i}", f"{theirs}.transformer.resblocks.{i}"
            for part in ("weight", "bias"):
                yield f"{own}.attention.qkv.{part}", f"{other}.attn.in_proj_{part}"
            for name, inner in _BLOCK.items():
                yield from weight_and_bias(f"{own}.{name}", f"{other}.{inner}").items()
    # They order the values of a patch by channel, row and column; we by row, column and channel.
    yield f"{encoder}.embed.rest.weight", (("encoder.conv1.weight",), lambda weight: _pixels(patch, weight.T).T)
    for part in ("weight", "bias"):
        yield f"{decoder}.pixels_of_cells.rest.{part}", ((f"decoder.conv_out.{part}",), partial(_pixels, patch))
        # Their first bit counts most, ours least.
        yield f"{encoder}.project.{part}", ((f"quant_embed.{part}",), lambda value: value.flip(0))
    yield f"{decoder}.embed.weight", (("post_quant_embed.weight",), lambda weight: weight.flip(1))
    yield f"{decoder}.embed.bias", "post_quant_embed.bias"
    yield from weight_and_bias(f"{decoder}.hidden.0", "decoder.ffn.0").items()


def _grid(side: int, positions: Tensor) -> Tensor:
    """Positions [N,C] as a square [H,W,C]."""
    return positions.unflatten(0, (side, side))


def _pixels(patch: int, value: Tensor) -> Tensor:
    """Puts axis 0, the values of a patch, into our order."""
    return value.unflatten(0, (3, patch, patch)).movedim(0, 2).flatten(0, 2)
