"""Reads released weights of LARP into our own network."""

from __future__ import annotations

from typing import Any, TypedDict

import torch
from torch import Tensor

from fewtokens.core.plain import conform
from fewtokens.tokenizers.blocks.sines import sines, sines_of_cells
from fewtokens.tokenizers.presets.larp import Larp
from fewtokens.tokenizers.released.convert import (
    Rule,
    convert,
    count,
    range_in,
    range_in_bias,
    range_out,
    shape_of,
    weight_and_bias,
)
from fewtokens.tokenizers.tokenizer import Tokenizer

# Buffers of fixed positions, which we compute.
_FIXED = ("encoder_patch_pe", "decoder_patch_query_embed", "decoder_latent_pe")


class _Regularizer(TypedDict):
    name: str
    args: dict[str, Any]


class _BottleneckArgs(TypedDict, total=False):
    norm: str | None
    regularizer: _Regularizer


class _Bottleneck(TypedDict):
    args: _BottleneckArgs


class _Config(TypedDict, total=False):
    bottleneck: _Bottleneck
    frame_num: int
    input_size: int
    encoder_num_heads: int
    decoder_num_heads: int


def load_larp(config: dict[str, Any], tensors: dict[str, Tensor], where: str) -> Tokenizer:
    """Builds a tokenizer, with the prior, from config.json and the tensors of LARP (arXiv 2410.21264).

    Sizes follow from the tensors. Codes are the nearest entries, where the authors sample them by default. Videos of
    any size are encoded, in windows of 16 frames at the released size; the authors' are 128 x 128.

    Raises:
        ValueError: the config describes another network, such as one with learned positions, or the tensors do not fit;
            the message starts with `where`.
    """
    settings = conform(config, _Config, where)
    bottleneck = settings["bottleneck"]["args"]
    quantizer = bottleneck.get("regularizer", {"name": "", "args": {}})
    if quantizer["name"] != "vq" or not quantizer["args"].get("l2_normalized"):
        raise ValueError(f"{where}: its codes must be entries of a normalized codebook (vq, l2_normalized)")
    if bottleneck.get("norm") not in (None, "none", "no"):
        raise ValueError(f"{where}: a norm of the bottleneck cannot be loaded, got {bottleneck.get('norm')!r}")
    width, _, *stride = shape_of(tensors, "x_embedder.proj.weight", 5, where)
    queries, _ = shape_of(tensors, "encoder_latent_query_embed", 2, where)
    size, dim = shape_of(tensors, "bottleneck.regularizer.embedding.weight", 2, where)
    wide, _ = shape_of(tensors, "bottleneck.out_linear.weight", 2, where)
    layers, deep, prior = (count(tensors, f"{part}.blocks.") for part in ("encoder", "decoder", "prior_model"))
    spec = (
        f"tubelet({width}, stride={tuple(stride)}, positions='sine') | learned_queries({queries}, num_layers={layers}, "
        f"heads={settings.get('encoder_num_heads', 12)}, channels={dim}, style='larp') | stochastic_vq({size}, "
        f"code_dim={dim}) > larp({dim}, width={wide}, stride={tuple(stride)}, num_layers={deep}, "
        f"heads={settings.get('decoder_num_heads', 12)})"
    )
    kind = Larp if prior else Tokenizer
    tokenizer = kind.from_spec(spec, window=settings.get("frame_num", 16))
    tokenizer.title = "larp" if prior else ""
    _check_positions(tensors, stride, settings, where)
    rest = {name: value for name, value in tensors.items() if name not in _FIXED}
    convert(tokenizer, _rules(layers, deep, prior, rest), rest, where)
    return tokenizer


def _check_positions(tensors: dict[str, Tensor], stride: list[int], settings: _Config, where: str) -> None:
    """Raises ValueError if the fixed positions are not ours, or are missing."""
    T, side = settings.get("frame_num", 16) // stride[0], settings.get("input_size", 128) // stride[1]
    for name in _FIXED:
        _, N, width = shape_of(tensors, name, 3, where)
        cpu = torch.device("cpu")
        if name == "decoder_latent_pe":
            expected = sines(N, width, device=cpu)
        else:
            expected = sines_of_cells(T, side, side, width, device=cpu).flatten(0, 2)
        found = tensors[name][0].float()
        if found.shape != expected.shape or not torch.allclose(found, expected, atol=1e-2):
            raise ValueError(f"{where}: {name} must be sines and cosines of the position")


def _rules(layers: int, deep: int, prior: int, tensors: dict[str, Tensor]) -> dict[str, Rule]:
    queries, decoder = "pipeline.methods.0", "decoder"

    def and_type(name: str) -> list[str]:
        """The embedding of a type of tokens, if there is one, which is added to another tensor."""
        return [name] if name in tensors else []

    rules: dict[str, Rule] = {
        "pipeline.encoder.project.weight": (["x_embedder.proj.weight"], range_in),
        "pipeline.encoder.project.bias": (
            ["x_embedder.proj.bias", "x_embedder.proj.weight", *and_type("encoder_patch_token_type_embed")],
            lambda bias, weight, *kind: _plus(range_in_bias(bias, weight), *kind),
        ),
        f"{queries}.queries": (
            ["encoder_latent_query_embed", *and_type("encoder_latent_query_token_type_embed")],
            _plus,
        ),
        **_blocks(f"{queries}.blocks", "encoder.blocks", layers),
        **weight_and_bias(f"{queries}.project", "bottleneck.in_linear"),
        "pipeline.methods.1.table": "bottleneck.regularizer.embedding.weight",
        f"{decoder}.embed.weight": "bottleneck.out_linear.weight",
        f"{decoder}.embed.bias": (
            ["bottleneck.out_linear.bias", *and_type("decoder_latent_token_type_embed")],
            _plus,
        ),
        f"{decoder}.query": (
            ["bottleneck.out_linear.bias", *and_type("decoder_patch_query_token_type_embed")],
            lambda bias, *kind: _plus(0 * bias, *kind),
        ),
        **_blocks(f"{decoder}.blocks", "decoder.blocks", deep),
        **weight_and_bias(f"{decoder}.norm", "final_layer.norm_final"),
        **range_out(f"{decoder}.pixels_of_cells.rest", "final_layer.linear"),
    }
    if prior:
        rules |= {
            # Trained: the share of scheduled sampling has its final value.
            "steps": ([], lambda: torch.tensor(10_000)),
            **weight_and_bias("prior.embed", "prior_model.input_proj"),
            "prior.positions": (["prior_model.pos_emb"], lambda value: value[0]),
            **weight_and_bias("prior.norm", "prior_model.ln_f"),
            **weight_and_bias("prior.predict", "prior_model.head"),
        }
    for i in range(prior):
        own, theirs = f"prior.blocks.{i}", f"prior_model.blocks.{i}"
        rules |= {
            **weight_and_bias(f"{own}.norm1", f"{theirs}.ln1"),
            **{
                f"{own}.qkv.{part}": (
                    [f"{theirs}.attn.{layer}.{part}" for layer in ("query", "key", "value")],
                    lambda *parts: torch.cat(parts),
                )
                for part in ("weight", "bias")
            },
            **weight_and_bias(f"{own}.out", f"{theirs}.attn.proj"),
            **weight_and_bias(f"{own}.norm2", f"{theirs}.ln2"),
            **weight_and_bias(f"{own}.mlp.0", f"{theirs}.mlp.0"),
            **weight_and_bias(f"{own}.mlp.2", f"{theirs}.mlp.2"),
        }
    return rules


def _blocks(own: str, theirs: str, layers: int) -> dict[str, Rule]:
    rules: dict[str, Rule] = {}
    for i in range(layers):
        rules |= {
            **weight_and_bias(f"{own}.{i}.norm1", f"{theirs}.{i}.norm1"),
            f"{own}.{i}.qkv.weight": f"{theirs}.{i}.attn.qkv.weight",
            **weight_and_bias(f"{own}.{i}.out", f"{theirs}.{i}.attn.proj"),
            **weight_and_bias(f"{own}.{i}.norm2", f"{theirs}.{i}.norm2"),
            **weight_and_bias(f"{own}.{i}.mlp.0", f"{theirs}.{i}.mlp.fc1"),
            **weight_and_bias(f"{own}.{i}.mlp.2", f"{theirs}.{i}.mlp.fc2"),
        }
    return rules


def _plus(value: Tensor, *kind: Tensor) -> Tensor:
    """The value plus the embedding [1,1,C] of a type of tokens, if there is one."""
    return value + kind[0].flatten() if kind else value
