"""Reads released weights of OmniTokenizer into our own network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from fewtokens.tokenizers.released.convert import Rule, convert, count, shape_of, weight_and_bias
from fewtokens.tokenizers.tokenizer import Tokenizer

# Discriminators and perceptual network; constants; what is in the checkpoint but not in the computation: norms of a
# context, and relative positions of attention over time.
_UNUSED = re.compile(
    r"(image_discriminator|video_discriminator|perceptual_model)\.|.*\.(beta|relative_position_index)$|.*\.context_norm\."
    r"|.*_temporal_transformer\..*\.spatial_rel_pos_bias\.|codebook\.codebook_usage$"
)
# In the order of the computation.
_STACKS = (
    "encoder.enc_spatial_transformer", "encoder.enc_temporal_transformer", "decoder.dec_temporal_transformer",
    "decoder.dec_spatial_transformer",
)  # fmt: skip
# Frames of the clips that it was trained on.
_CLIP = 17


def load_omnitokenizer(config: dict[str, Any], tensors: dict[str, Tensor], where: str) -> Tokenizer:
    """Builds a tokenizer from the tensors of a checkpoint of OmniTokenizer (arXiv 2406.09399), with codebook or KL.

    Sizes follow from the tensors. It encodes windows of 17 frames; like the released code, it mixes frames in blocks
    over time, and adds no relative positions in time. Continuous tokens are the mean of their distribution, where the
    authors sample.

    Args:
        config: not read.
        tensors: of the checkpoint, by name.
        where: of the messages.

    Raises:
        ValueError: the tensors do not fit; the message starts with `where`.
    """
    theirs = {name: value for name, value in tensors.items() if not _UNUSED.match(name)}
    first, width = (shape_of(theirs, f"encoder.to_patch_emb{name}.2.weight", 2, where) for name in ("_first_frame", ""))
    dim = shape_of(theirs, "post_vq_conv.1.weight", 2, where)[1]
    channels = shape_of(theirs, "pre_vq_conv.1.weight", 2, where)[0]
    scale = "encoder.enc_temporal_transformer.layers.0.1.q_scale"
    heads = max(1, width[0] // shape_of(theirs, scale, 1, where)[0])
    patch = round((first[1] / 3) ** 0.5)
    stride = (width[1] // first[1], patch, patch)
    size, _ = shape_of(theirs, "codebook.embeddings", 2, where)
    if channels not in (dim, 2 * dim):
        raise ValueError(f"{where}: pre_vq_conv must have {dim} or {2 * dim} channels, got {channels}")
    continuous = channels == 2 * dim
    if continuous:
        theirs = {name: value for name, value in theirs.items() if not name.startswith("codebook.")}
    kinds = {name: _kinds(theirs, name, where) for name in _STACKS}
    encoder, decoder = (
        tuple((kind, len(list(group))) for kind, group in groupby(kind for name in names for kind, _ in kinds[name]))
        for names in (_STACKS[:2], _STACKS[2:])
    )
    shared = f"stride={stride}, heads={heads}, scrambled=True"
    # Their entries are means of tokens of length 1, and so not of length 1 themselves.
    quantizer = f"gaussian({dim})" if continuous else f"vq({size}, code_dim={dim}, cosine=False, restart=0.0)"
    tokenizer = Tokenizer.from_spec(
        f"omnitokenizer({width[0]}, channels={channels}, unit={not continuous}, layers={encoder}, {shared}) | "
        f"{quantizer} > omnitokenizer({dim}, width={width[0]}, layers={decoder}, {shared})",
        window=1 + (_CLIP - 1) // stride[0] * stride[0],
    )
    convert(tokenizer, dict(_rules(kinds, stride, heads, not continuous)), theirs, where)
    return tokenizer


def _kinds(theirs: dict[str, Tensor], stack: str, where: str) -> list[tuple[str, str]]:
    """The kind of each block of a stack, and its name."""
    kinds = []
    for i in range(count(theirs, f"{stack}.layers.")):
        block, kind = f"{stack}.layers.{i}", "time" if "temporal" in stack else "space"
        if (table := f"{block}.1.relative_position_bias_table") in theirs:
            kind = f"window{round((shape_of(theirs, table, 2, where)[0] ** 0.5 + 1) / 2)}"
        kinds.append((kind, block))
    return kinds


def _rules(
    kinds: dict[str, list[tuple[str, str]]], stride: tuple[int, int, int], heads: int, codebook: bool
) -> Iterator[tuple[str, Rule]]:
    encoder, decoder = "pipeline.encoder", "decoder"
    for own, other, t in (("first", "_first_frame", 1), ("rest", "", stride[0])):
        order = partial(_order, (t, *stride[1:]))
        for part in ("weight", "bias"):
            yield f"{encoder}.embed.{own}.0.{part}", ((f"encoder.to_patch_emb{other}.1.{part}",), order)
            name = f"decoder.to_pixels{other}.0.{part}"
            yield f"{decoder}.pixels_of_cells.{own}.{part}", ((name,), lambda value, order=order: 2 * order(value))
        yield (
            f"{encoder}.embed.{own}.1.weight",
            ((f"encoder.to_patch_emb{other}.2.weight",), lambda value, order=order: order(value.T).T),
        )
        yield f"{encoder}.embed.{own}.1.bias", f"encoder.to_patch_emb{other}.2.bias"
        yield from weight_and_bias(f"{encoder}.embed.{own}.2", f"encoder.to_patch_emb{other}.3").items()
    yield from weight_and_bias(f"{encoder}.project", "pre_vq_conv.1").items()
    yield from weight_and_bias(f"{decoder}.embed", "post_vq_conv.1").items()
    if codebook:
        book = "pipeline.methods.0.codebook._codebook"
        yield f"{book}.embed", (("codebook.embeddings",), lambda value: value[None])
        yield f"{book}.embed_avg", (("codebook.z_avg",), lambda value: value[None])
        yield f"{book}.cluster_size", (("codebook.N",), lambda value: value[None])
        yield f"{book}.initted", ((), lambda: torch.tensor(True))
    for part, stacks in ((encoder, _STACKS[:2]), (decoder, _STACKS[2:])):
        i = 0
        for stack in stacks:
            for kind, theirs in kinds[stack]:
                yield from _block(f"{part}.transformer.blocks.{i}", theirs, kind, heads)
                i += 1
            yield f"{part}.transformer.norms.{i - 1}.weight", f"{stack}.norm_out.gamma"


def _block(own: str, theirs: str, kind: str, heads: int) -> Iterator[tuple[str, Rule]]:
    yield f"{own}.norm.weight", f"{theirs}.1.norm.gamma"
    yield from weight_and_bias(f"{own}.mlp.norm", f"{theirs}.3.0").items()
    yield f"{own}.mlp.fc1.weight", f"{theirs}.3.1.weight"
    yield f"{own}.mlp.fc2.weight", f"{theirs}.3.4.weight"
    if kind.startswith("window"):
        yield f"{own}.qkv.weight", f"{theirs}.1.qkv.weight"
        yield from weight_and_bias(f"{own}.out", f"{theirs}.1.proj").items()
        yield f"{own}.offsets", ((f"{theirs}.1.relative_position_bias_table",), _square)
        return
    yield from weight_and_bias(f"{own}.conv", f"{theirs}.0.dsconv").items()
    pairs = partial(_pairs, heads) if kind == "space" else _same
    yield f"{own}.q.weight", ((f"{theirs}.1.to_q.weight",), pairs)
    # The keys, the first half, are rotated.
    yield (
        f"{own}.kv.weight",
        ((f"{theirs}.1.to_kv.weight",), lambda value: torch.cat([pairs(value.chunk(2)[0]), value.chunk(2)[1]])),
    )
    scale = partial(_pairs, 1) if kind == "space" else _same
    yield f"{own}.q_scale", ((f"{theirs}.1.q_scale",), scale)
    yield f"{own}.k_scale", ((f"{theirs}.1.k_scale",), scale)
    yield f"{own}.out.weight", f"{theirs}.1.to_out.weight"


def _same(value: Tensor) -> Tensor:
    return value


def _order(tubelet: tuple[int, int, int], value: Tensor) -> Tensor:
    """Puts the channels of pixels last along axis 0, the values of a tubelet."""
    return value.unflatten(0, (3, *tubelet)).movedim(0, 3).flatten(0, 3)


def _square(table: Tensor) -> Tensor:
    """The biases of all offsets, [n^2,heads] to [n,n,heads]."""
    side = round(len(table) ** 0.5)
    return table.unflatten(0, (side, side))


def _pairs(heads: int, value: Tensor) -> Tensor:
    """Puts the channels of each head, axis 0, into our order of rotary embeddings.

    They rotate channels 2j and 2j + 1, by the column if j is even and by the row if it is odd; we rotate channels p and
    p + d/2, by the row in the first half of the p.
    """
    # [heads, d/4, axis, part of the pair, ...] to [heads, part, axis, d/4, ...], with the row first.
    parts = value.unflatten(0, (heads, -1, 2, 2)).transpose(1, 3).flip(2)
    return parts.flatten(0, 3)
