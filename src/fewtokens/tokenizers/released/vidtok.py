"""Reads released weights of VidTok, in the format of diffusers, into our own network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypedDict

from torch import Tensor, nn

from fewtokens.core.plain import conform
from fewtokens.tokenizers.blocks.blend import BlendedDown, BlendedUp
from fewtokens.tokenizers.blocks.cell_attention import CellAttention
from fewtokens.tokenizers.blocks.residual import ResBlock
from fewtokens.tokenizers.blocks.vidtok_levels import temporal_steps
from fewtokens.tokenizers.decoders.vidtok import VidTok as VidTokDecoder
from fewtokens.tokenizers.encoders.vidtok import VidTok
from fewtokens.tokenizers.tokenizer import Tokenizer

# Names inside a layer, ours and those of diffusers.
_NAMES: dict[type[nn.Module], dict[str, str]] = {
    ResBlock: {
        "layers.0": "norm1", "layers.1": "conv1", "layers.2": "norm2", "layers.3": "conv2", "shortcut": "nin_shortcut",
    },
    CellAttention: {"norm": "norm", "q": "q", "k": "k", "v": "v", "out": "proj_out"},
    BlendedDown: {"conv": "conv", "mix": "mix_factor"},
    BlendedUp: {"conv": "conv", "mix": "mix_factor"},
}  # fmt: skip
# A causal convolution of diffusers contains a plain one.
_INNER = re.compile(r"\.(conv\d?|conv_in|conv_out|q|k|v|proj_out|nin_shortcut)\.conv\.")


class _Config(TypedDict, total=False):
    ch: int
    ch_mult: list[int]
    z_channels: int
    num_res_blocks: int
    spatial_ds: list[int] | None
    spatial_us: list[int] | None
    tempo_ds: list[int] | None
    tempo_us: list[int] | None
    regularizer: str
    is_causal: bool


def load_vidtok(config: dict[str, Any], tensors: dict[str, Tensor], where: str) -> Tokenizer:
    """Builds a tokenizer from the config and the tensors of `AutoencoderVidTok`.

    Unlike there, `encode` itself repeats the first frame in front, and so accepts 1 + k * stride[0] frames.

    Raises:
        ValueError: the config is not one of VidTok, or the tensors do not fit; the message starts with `where`.
    """
    tokenizer = Tokenizer.from_spec(vidtok_spec(config, where))
    tokenizer.load_state_dict(vidtok_tensors(tokenizer, tensors, where))
    return tokenizer


def vidtok_spec(content: dict[str, Any], where: str) -> str:
    """Returns the spec of the tokenizer that a config.json of diffusers describes.

    The number of levels of FSQ is 8 in all channels, as in diffusers, where it cannot be set.

    Raises:
        ValueError: it is not a config of VidTok, or of a network that has other levels than the released ones.
    """
    config = conform(content, _Config, where)
    mult = tuple(config.get("ch_mult", (1, 2, 4, 4)))
    channels, causal, last = config.get("z_channels", 4), config.get("is_causal", True), len(mult) - 1
    down = _levels(config.get("tempo_ds"), [last - 1, last - 2])
    stride = (2 ** len(down), 2**last, 2**last)
    steps = temporal_steps(stride, last)
    expected = {
        "spatial_ds": list(range(last)),
        "spatial_us": list(range(1, last + 1)),
        "tempo_ds": list(steps),
        "tempo_us": sorted(last - step for step in steps),
    }
    defaults = {**expected, "tempo_ds": [last - 1, last - 2], "tempo_us": [1, 2]}
    for name, levels in expected.items():
        if (found := _levels(content.get(name), defaults[name])) != levels:
            raise ValueError(f"{where}: {name} must be {levels} with {len(mult)} levels, got {found}")
    shared = f"width={config.get('ch', 128)}, mult={mult}, stride={stride}, depth={config.get('num_res_blocks', 2)}"
    if config.get("regularizer", "kl") == "fsq":
        dim, quantizer = channels, f"fsq({(8,) * channels})"
    else:
        dim, quantizer = 2 * channels, f"gaussian({channels})"
    return (
        f"vidtok({dim}, {shared}, causal={causal}) | {quantizer} > vidtok({channels}, {shared}, first_frame={causal})"
    )


def vidtok_tensors(tokenizer: Tokenizer, tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Returns the tensors of `AutoencoderVidTok` under our names and in our shapes.

    Args:
        tokenizer: built from `vidtok_spec`.
        tensors: of diffusers, by name.
        where: of the messages.

    Raises:
        ValueError: tensors are missing, too many, or of another size.
    """
    theirs = {_INNER.sub(r".\1.", name): value for name, value in tensors.items()}
    ours = tokenizer.state_dict()
    names = dict(_names(tokenizer))
    if wrong := set(names.values()) ^ set(theirs):
        raise ValueError(
            f"{where}: does not fit {tokenizer.spec!r}; missing or unexpected: {', '.join(sorted(wrong)[:5])}"
        )
    if wrong := {other for own, other in names.items() if ours[own].numel() != theirs[other].numel()}:
        raise ValueError(
            f"{where}: does not fit {tokenizer.spec!r}; of a different size: {', '.join(sorted(wrong)[:5])}"
        )
    # Convolutions over space or time alone have fewer axes there.
    return {own: theirs[other].reshape(ours[own].shape) for own, other in names.items()}


def _names(tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """Pairs of our names and theirs."""
    encoder, decoder = tokenizer.encoder, tokenizer.decoder
    assert isinstance(encoder, VidTok) and isinstance(decoder, VidTokDecoder)
    levels, steps = len(encoder.mult), temporal_steps(encoder.stride, len(encoder.mult) - 1)
    down, up = [], []
    for i in range(levels):
        down += [f"{part}.{i}.block.{j}" for j in range(encoder.depth) for part in ("down", "down_temporal")]
        down += [f"down.{i}.downsample.conv"] * (i < levels - 1) + [f"down_temporal.{i}.downsample"] * (i in steps)
        level = levels - 1 - i
        up += [f"{part}.{level}.block.{j}" for j in range(encoder.depth + 1) for part in ("up", "up_temporal")]
        up += [f"up.{level}.upsample.conv"] * (i < levels - 1) + [f"up_temporal.{level}.upsample"] * (i in steps)
    middle = ["mid.block_1", "mid.attn_1", "mid.block_2"]
    for root, prefix, layers, others in (
        ("pipeline.encoder", "encoder", encoder.layers, ["conv_in", *down, *middle, "norm_out", "conv_out"]),
        ("decoder", "decoder", decoder.layers, ["conv_in", *middle, *up, "norm_out", "conv_out"]),
    ):
        with_weights = [(name, layer) for name, layer in layers.named_children() if layer.state_dict()]
        for (name, layer), other in zip(with_weights, others, strict=True):
            for key in layer.state_dict():
                inner = _NAMES.get(type(layer), {})
                own = next((start for start in inner if key.startswith(start)), "")
                yield f"{root}.layers.{name}.{key}", f"{prefix}.{other}.{inner.get(own, '')}{key.removeprefix(own)}"


def _levels(value: list[int] | None, default: list[int]) -> list[int]:
    """Levels in ascending order."""
    return sorted(default if value is None else value)
