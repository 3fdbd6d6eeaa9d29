"""Reads released weights of Open-MAGVIT2 (arXiv 2409.04410), of videos and of images, into our own network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from fewtokens.tokenizers.blocks.causal_conv import DepthToSpace
from fewtokens.tokenizers.blocks.residual import ConvNorm, ResBlock
from fewtokens.tokenizers.decoders.magvit2 import ConditionedNorm
from fewtokens.tokenizers.decoders.magvit2 import Magvit2 as Magvit2Decoder
from fewtokens.tokenizers.encoders.magvit2 import Magvit2
from fewtokens.tokenizers.released.convert import Rule, convert
from fewtokens.tokenizers.tokenizer import Tokenizer

# Starts of names inside a layer, ours and theirs.
_NAMES: dict[type[nn.Module], dict[str, str]] = {
    ResBlock: {
        "layers.0.norm": "norm1", "layers.1": "conv1", "layers.2.norm": "norm2", "layers.3": "conv2",
        "shortcut": "nin_shortcut",
    },
    ConvNorm: {"norm.": ""},
    DepthToSpace: {"conv": "conv1"},
    ConditionedNorm: {"scale": "gamma", "shift": "beta"},
}  # fmt: skip
_FIRST, _AVERAGES = "encoder.conv_in.weight", "model_ema."
# Frames of the clips of the published training and evaluation on videos.
_CLIP = 17


def load_open_magvit2(config: dict[str, Any], tensors: dict[str, Tensor], where: str) -> Tokenizer:
    """Builds a tokenizer from the tensors of a checkpoint of Open-MAGVIT2.

    If the checkpoint has moving averages of the weights, they are used, as in the published evaluation. A tokenizer of
    videos encodes windows of 17 frames, over which it normalizes. Below 128 channels of the first level, the released
    number, groups of a normalization are those of our `ConvNorm`, not 32.

    Args:
        config: not read: sizes follow from the tensors.
        tensors: of the checkpoint, by name; those of losses are ignored.
        where: of the messages.

    Raises:
        ValueError: the tensors do not fit; the message starts with `where`.
    """
    # Their causal convolutions contain a plain one.
    theirs = {name.replace(".conv_1.", "."): value for name, value in _averages(tensors, where).items()}
    is_video = _FIRST in theirs and theirs[_FIRST].ndim == 5
    tokenizer = Tokenizer.from_spec(_spec(theirs, is_video, where), window=_CLIP if is_video else None)
    convert(tokenizer, dict(_rules(tokenizer)), theirs, where)
    return tokenizer


def _averages(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of encoder and decoder: their moving averages if there are any."""
    kept = {name: value for name, value in tensors.items() if name.startswith(("encoder.", "decoder."))}
    if unknown := [name for name in tensors.keys() - kept.keys() if not name.startswith((_AVERAGES, "loss."))]:
        raise ValueError(f"{where}: unexpected tensors of Open-MAGVIT2: {', '.join(sorted(unknown)[:5])}")
    if not any(name.startswith(_AVERAGES) for name in tensors):
        return kept
    averages = {name: _AVERAGES + name.replace(".", "") for name in kept}
    if missing := sorted(set(averages.values()) - tensors.keys()):
        raise ValueError(f"{where}: missing moving averages: {', '.join(missing[:5])}")
    return {name: tensors[average] for name, average in averages.items()}


def _spec(theirs: dict[str, Tensor], is_video: bool, where: str) -> str:
    """The spec of the tokenizer that has these tensors."""

    def channels(name: str) -> int:
        """The number of channels that a convolution computes."""
        if name not in theirs or not theirs[name].numel() or not theirs[name].ndim:
            raise ValueError(f"{where}: not a tokenizer of Open-MAGVIT2; it has no weights {name}")
        return len(theirs[name])

    width, bits = channels(_FIRST), channels("encoder.conv_out.weight")
    parts = [name.split(".") for name in theirs if name.startswith("encoder.down.")]
    levels = len({part[2] for part in parts})
    depth = len({tuple(part[4:5]) for part in parts if part[2:4] == ["0", "block"]})
    mult = tuple(channels(f"encoder.down.{i}.block.0.conv2.weight") // width for i in range(levels))
    # Their rule: frames are merged after levels that are wider than the first.
    strides = tuple((2 if is_video and factor != 1 else 1, 2, 2) for factor in mult[:-1])
    norm = "clip" if is_video else "frame"
    shared = f"width={width}, mult={mult}, strides={strides}, depth={max(1, depth)}, norm={norm!r}"
    return f"magvit2({bits}, {shared}) | lfq({bits}) > magvit2({shared})"


def _rules(tokenizer: Tokenizer) -> Iterator[tuple[str, Rule]]:
    """The rules by our names, see `convert`."""
    encoder, decoder = tokenizer.encoder, tokenizer.decoder
    assert isinstance(encoder, Magvit2) and isinstance(decoder, Magvit2Decoder)
    levels, last = range(len(encoder.mult)), len(encoder.mult) - 1

    def blocks(prefix: str) -> list[str]:
        return [f"{prefix}.{i}" for i in range(encoder.depth)]

    down = [name for i in levels for name in (*blocks(f"down.{i}.block"), f"down.{i}.downsample")][:-1]
    chains = {
        "pipeline.encoder.layers": ["conv_in", *down, *blocks("mid_block"), "norm_out", "conv_out"],
        "decoder.enter": ["conv_in", *blocks("mid_block")],
        "decoder.norms": [f"adaptive.{last - i}" for i in levels],
        "decoder.leave": ["norm_out", "conv_out"],
    }
    for i in levels:
        upsample = [f"up.{last - i}.upsample"] if i < last else []
        chains[f"decoder.levels.{i}"] = [*blocks(f"up.{last - i}.block"), *upsample]
    for root, others in chains.items():
        prefix = "decoder" if root.startswith("decoder") else "encoder"
        for (name, layer), other in zip(tokenizer.get_submodule(root).named_children(), others, strict=True):
            stride = math.prod(layer.factor) if isinstance(layer, DepthToSpace) else 1
            for key in layer.state_dict():
                inner = _NAMES.get(type(layer), {})
                own = next((start for start in inner if key.startswith(start)), "")
                theirs = f"{prefix}.{other}.{inner.get(own, '')}{key.removeprefix(own)}"
                yield f"{root}.{name}.{key}", ((theirs,), partial(_ours, stride))


def _ours(stride: int, value: Tensor) -> Tensor:
    """Our parameter: of frames as of videos, and channels of `DepthToSpace` before frames, rows and columns."""
    value = value.unflatten(0, (stride, -1)).transpose(0, 1).flatten(0, 1)
    return value[:, :, None] if value.ndim == 4 else value
