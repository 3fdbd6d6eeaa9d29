"""Reads released weights of TiTok and One-D-Piece into our own network."""

from __future__ import annotations

from functools import partial
from typing import Any, TypedDict

import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.plain import conform
from fewtokens.tokenizers.released.convert import (
    Rule,
    codebook,
    convert,
    count,
    range_in,
    range_in_bias,
    range_out,
    shape_of,
    weight_and_bias,
)
from fewtokens.tokenizers.tokenizer import Tokenizer

# Channels of a head, at all released sizes.
_HEAD = 64


class _Vq(TypedDict, total=False):
    use_l2_norm: bool
    quantize_mode: str
    is_legacy: bool


class _Model(TypedDict, total=False):
    type: str
    vq_model: _Vq


def load_titok(config: dict[str, Any], tensors: dict[str, Tensor], where: str) -> Tokenizer:
    """Builds a tokenizer from config.json and the tensors of TiTok (arXiv 2406.07550) or One-D-Piece (2501.10064).

    Sizes follow from the tensors. One-D-Piece gets `tail_drop`, whose budget is the number of tokens to keep. Each
    frame is an image; images of another size than 256 x 256 have resized positions. Continuous tokens are the mean of
    their distribution, where the authors sample.

    Raises:
        ValueError: the tensors do not fit; the message starts with `where`.
    """
    model = conform(config.get("model"), _Model, f"{where}: model")
    vq = model.get("vq_model", {})
    width, _, patch, _ = shape_of(tensors, "encoder.patch_embed.weight", 4, where)
    wide, dim = shape_of(tensors, "decoder.decoder_embed.weight", 2, where)
    tokens, _ = shape_of(tensors, "latent_tokens", 2, where)
    side = round((shape_of(tensors, "decoder.positional_embedding", 2, where)[0] - 1) ** 0.5)
    layers, deep = (count(tensors, f"{part}.transformer.") for part in ("encoder", "decoder"))
    mixed = vq.get("is_legacy", True)
    vqgan, channels = None, dim
    if mixed:
        codebook = shape_of(tensors, "pixel_quantize.embedding.weight", 2, where)
        levels = range(count(tensors, "pixel_decoder.up.") - 1, -1, -1)
        names = [f"pixel_decoder.up.{level}.block.0.conv1.weight" for level in levels]
        vqgan = (tuple(codebook), tuple(shape_of(tensors, name, 4, where)[0] for name in names))
    if vq.get("quantize_mode", "vq") == "vae":
        quantizer, channels = f"gaussian({dim})", 2 * dim
    else:
        size, _ = shape_of(tensors, "quantize.embedding.weight", 2, where)
        # Their entries do not move while the decoder is trained.
        quantizer = f"vq({size}, code_dim={dim}, cosine={vq.get('use_l2_norm', False)}, restart=0.0)"
    if model.get("type") == "one_d_piece":
        quantizer += f" | tail_drop({tokens})"
    tokenizer = Tokenizer.from_spec(
        f"tubelet({width}, stride=(1, {patch}, {patch}), positions=(1, {side}, {side})) | learned_queries({tokens}, "
        f"num_layers={layers}, heads={max(1, width // _HEAD)}, channels={channels}, "
        f"style={'titok_mixed' if mixed else 'titok'!r}) | {quantizer} > titok({dim}, width={wide}, patch={patch}, "
        f"grid=({side}, {side}), num_tokens={tokens}, num_layers={deep}, heads={max(1, wide // _HEAD)}, vqgan={vqgan})",
        window=1,
    )
    convert(tokenizer, _rules(layers, deep, vq, vqgan), tensors, where)
    return tokenizer


def _rules(layers: int, deep: int, vq: _Vq, vqgan: tuple[Any, Any] | None) -> dict[str, Rule]:
    queries, decoder = "pipeline.methods.0", "decoder"
    first = ("encoder.ln_pre.weight", "encoder.ln_pre.bias")
    rules: dict[str, Rule] = {
        "pipeline.encoder.project.weight": (["encoder.patch_embed.weight"], range_in),
        "pipeline.encoder.project.bias": (["encoder.patch_embed.bias", "encoder.patch_embed.weight"], range_in_bias),
        "pipeline.encoder.places.places": (["encoder.positional_embedding"], _grid),
        "pipeline.encoder.places.frames": (["encoder.positional_embedding"], lambda value: 0 * value[:1]),
        **weight_and_bias("pipeline.encoder.norm", "encoder.ln_pre"),
        # The same for all images, so they are normalized here.
        f"{queries}.queries": (["latent_tokens", "encoder.latent_token_positional_embedding", *first], _sum_and_norm),
        f"{queries}.class_token": (
            ["encoder.class_embedding", "encoder.positional_embedding", *first],
            lambda token, positions, weight, bias: _sum_and_norm(token[0], positions[0], weight, bias),
        ),
        **_blocks(f"{queries}.blocks", "encoder.transformer", layers),
        **weight_and_bias(f"{queries}.norm", "encoder.ln_post"),
        f"{queries}.project.weight": (["encoder.conv_out.weight"], lambda weight: weight.flatten(1)),
        f"{queries}.project.bias": "encoder.conv_out.bias",
        **weight_and_bias(f"{decoder}.embed", "decoder.decoder_embed"),
        f"{decoder}.order": "decoder.latent_token_positional_embedding",
        f"{decoder}.class_token": (
            ["decoder.class_embedding", "decoder.positional_embedding"],
            lambda token, positions: token[0] + positions[0],
        ),
        f"{decoder}.masks.places": (["decoder.positional_embedding"], _grid),
        f"{decoder}.masks.frames": (["decoder.mask_token"], lambda value: value[0]),
        **weight_and_bias(f"{decoder}.norm_first", "decoder.ln_pre"),
        **_blocks(f"{decoder}.blocks", "decoder.transformer", deep),
        **weight_and_bias(f"{decoder}.norm", "decoder.ln_post"),
    }
    if vq.get("quantize_mode", "vq") == "vq":
        # Normalized if they are compared by cosine.
        entries = partial(F.normalize, dim=-1) if vq.get("use_l2_norm", False) else None
        rules |= codebook("pipeline.methods.1", "quantize.embedding.weight", entries)
    if vqgan is None:
        rules |= {
            f"{decoder}.to_pixels.predict.rest.weight": (["decoder.ffn.0.weight"], lambda weight: weight.flatten(1)),
            f"{decoder}.to_pixels.predict.rest.bias": "decoder.ffn.0.bias",
            **range_out(f"{decoder}.to_pixels.filter", "decoder.conv_out"),
        }
    else:
        rules |= {
            **weight_and_bias(f"{decoder}.to_pixels.predict.0", "decoder.ffn.0"),
            **weight_and_bias(f"{decoder}.to_pixels.predict.2", "decoder.ffn.2"),
            f"{decoder}.to_pixels.entries": "pixel_quantize.embedding.weight",
            **_convolutions(f"{decoder}.to_pixels.decoder", vqgan[1]),
        }
    return rules


def _blocks(own: str, theirs: str, layers: int) -> dict[str, Rule]:
    rules: dict[str, Rule] = {}
    for i in range(layers):
        rules |= {
            f"{own}.{i}.qkv.weight": f"{theirs}.{i}.attn.in_proj_weight",
            f"{own}.{i}.qkv.bias": f"{theirs}.{i}.attn.in_proj_bias",
            **weight_and_bias(f"{own}.{i}.norm1", f"{theirs}.{i}.ln_1"),
            **weight_and_bias(f"{own}.{i}.out", f"{theirs}.{i}.attn.out_proj"),
            **weight_and_bias(f"{own}.{i}.norm2", f"{theirs}.{i}.ln_2"),
            **weight_and_bias(f"{own}.{i}.mlp.0", f"{theirs}.{i}.mlp.c_fc"),
            **weight_and_bias(f"{own}.{i}.mlp.2", f"{theirs}.{i}.mlp.c_proj"),
        }
    return rules


def _convolutions(own: str, widths: tuple[int, ...]) -> dict[str, Rule]:
    """The rules of `MaskGitDecoder`."""
    rules = weight_and_bias(f"{own}.first", "pixel_decoder.conv_in")
    for i in range(2):
        rules |= _residual(f"{own}.middle.{i}", f"pixel_decoder.mid.{i}", False)
    before = widths[0]
    for i, width in enumerate(widths):
        level = f"pixel_decoder.up.{len(widths) - 1 - i}"
        rules |= _residual(f"{own}.levels.{i}.0", f"{level}.block.0", width != before)
        rules |= _residual(f"{own}.levels.{i}.1", f"{level}.block.1", False)
        if i < len(widths) - 1:
            rules |= weight_and_bias(f"{own}.upsamples.{i}", f"{level}.upsample_conv")
        before = width
    return rules | weight_and_bias(f"{own}.last.0", "pixel_decoder.norm_out") | range_out(
        f"{own}.last.2", "pixel_decoder.conv_out"
    )  # fmt: skip


def _residual(own: str, theirs: str, shortcut: bool) -> dict[str, Rule]:
    return {
        **weight_and_bias(f"{own}.layers.0", f"{theirs}.norm1"),
        f"{own}.layers.2.weight": f"{theirs}.conv1.weight",
        **weight_and_bias(f"{own}.layers.3", f"{theirs}.norm2"),
        f"{own}.layers.5.weight": f"{theirs}.conv2.weight",
        **({f"{own}.shortcut.weight": f"{theirs}.nin_shortcut.weight"} if shortcut else {}),
    }


def _grid(positions: Tensor) -> Tensor:
    """The embeddings of places, [H,W,C]; the first is that of the class token."""
    side = round((len(positions) - 1) ** 0.5)
    return positions[1:].unflatten(0, (side, side))


def _sum_and_norm(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x + y, weight.shape, weight, bias)
