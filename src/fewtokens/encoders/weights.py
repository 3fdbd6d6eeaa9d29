"""Loads the weights of public vision transformers into `ViT`; safetensors only.

Supports ViT, ViT-MAE, DINOv2 (also with registers), CLIP and SigLIP in the format of transformers, as separate models
or as the vision part of a larger checkpoint. Configs and checkpoints are validated before a network is built.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import safe_open
from torch import Tensor

from fewtokens.core import files
from fewtokens.core.plain import conform
from fewtokens.encoders.config import ViTConfig
from fewtokens.encoders.frames import IMAGENET_MEAN, IMAGENET_STD
from fewtokens.encoders.vit import ViT

_HALF = (0.5, 0.5, 0.5)
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

# model_type in config.json (of the vision part, if there are several) -> settings. A ViT trained on masked images does
# not weight merged tokens by size (ToMe, section 4).
FAMILIES: dict[str, dict[str, Any]] = {
    "vit": {"mean": _HALF, "std": _HALF},
    "vit_mae": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "proportional": "none"},
    "dinov2": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    "dinov2_with_registers": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    "clip_vision_model": {"mean": _CLIP[0], "std": _CLIP[1]},
    "siglip_vision_model": {"mean": _HALF, "std": _HALF},
}
# What a config of transformers leaves out if it is the default of its family, where that is another one than of "vit".
_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip_vision_model": {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "siglip_vision_model": {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    "dinov2": {"patch_size": 14, "layer_norm_eps": 1e-6},
    "dinov2_with_registers": {"layer_norm_eps": 1e-6},
}

# Upper limits: blocks, channels, and pixels per side of a frame.
_MAX_BLOCKS, _MAX_CHANNELS, _MAX_PIXELS = 1000, 1 << 16, 1 << 12
_BLOCK = re.compile(r"blocks\.(\d{1,9})\.")

# Names in transformers -> names here, applied in order; q, k and v are concatenated afterwards.
_NAMES = (
    (r"embeddings\.(cls_token|class_embedding)$", "class_token"),
    (r"embeddings\.register_tokens$", "registers"),
    (r"embeddings\.position_embedding(s|\.weight)$", "positions"),
    (r"embeddings\.patch_embedding(s\.projection)?\.", "patches."),
    (r"(pre_layrnorm|pre_layernorm)\.", "norm_first."),
    (r"(post_layernorm|layernorm)\.(weight|bias)$", r"norm_last.\2"),
    (r"encoder\.layers?\.(\d+)\.", r"blocks.\1."),
    (r"\.(layernorm_before|layer_norm1)\.", ".norm1."),
    (r"\.(layernorm_after|layer_norm2)\.", ".norm2."),
    (r"\.(attention\.attention\.|self_attn\.)(q)(uery|_proj)\.", ".attention.q."),
    (r"\.(attention\.attention\.|self_attn\.)(k)(ey|_proj)\.", ".attention.k."),
    (r"\.(attention\.attention\.|self_attn\.)(v)(alue|_proj)\.", ".attention.v."),
    (r"\.(attention\.output\.dense|self_attn\.out_proj)\.", ".attention.out."),
    (r"\.(intermediate\.dense|mlp\.weights_in)\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.(output\.dense|mlp\.weights_out)\.", r"\1.mlp.fc2."),
    (r"\.layer_scale(\d)\.lambda1$", r".scale\1"),
)
# Parts of a checkpoint that a frame encoder does not use.
_UNUSED = re.compile(r"(^|\.)(pooler|head|mask_token|position_ids|classifier)(\.|$)")
_PATCHES = re.compile(r"embeddings\.patch_embedding(s\.projection)?\.weight$")


class _Vision(TypedDict, total=False):
    """The settings that are read from a config.json."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    use_swiglu_ffn: bool
    hidden_act: str
    layer_norm_eps: float


class _Scale(TypedDict, total=False):
    image_mean: tuple[float, float, float] | None
    image_std: tuple[float, float, float] | None


def read_config(folder: Path) -> dict[str, Any]:
    """Reads config.json of a model folder.

    Raises:
        ValueError: no such file, or not the config of a model.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json; an encoder must be a folder in the format of transformers")
    config = read_json(folder / "config.json")
    if "model_type" not in config:
        raise ValueError(f"{folder / 'config.json'}: no model_type, so not the config of a model")
    conform(config["model_type"], str, f"{folder / 'config.json'}: model_type")
    return config


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; returns {} if the file does not exist.

    Raises:
        ValueError: the file is not a JSON object.
    """
    return files.read_json(path, dict[str, Any]) if path.is_file() else {}


def vision_config(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the config of the vision encoder: the full config, or the vision part of a multimodal model."""
    part = config.get("vision_config")
    if not isinstance(part, dict):
        return config
    model_type = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}.get(config["model_type"], "")
    part = {"model_type": model_type, **part}
    conform(part["model_type"], str, "vision_config: model_type")
    return part


def height_and_width(config: dict[str, Any], name: str, default: int, where: str) -> tuple[int, int]:
    """Reads height and width in pixels from a config, where they are one number or two.

    Raises:
        ValueError: another type, or out of range; the message starts with `where`.
    """
    size = config.get(name)
    size = default if size is None else size
    conform(size, int | tuple[int, int], f"{where}: {name}")
    height, width = size if isinstance(size, list | tuple) else (size, size)
    if not 0 <= min(height, width) <= max(height, width) <= _MAX_PIXELS:
        raise ValueError(f"{where}: {name} must be 0 to {_MAX_PIXELS} pixels, got {size}")
    return height, width


def read_normalization(folder: Path, mean: Sequence[float], std: Sequence[float]) -> tuple[Any, Any]:
    """Reads mean and std of the pixels from preprocessor_config.json; returns the arguments if it has none.

    Raises:
        ValueError: not three numbers each, or a std that is not above 0.
    """
    path = folder / "preprocessor_config.json"
    config = conform(read_json(path), _Scale, str(path))
    mean, std = config.get("image_mean") or mean, config.get("image_std") or std
    if min(std) <= 0:
        raise ValueError(f"{path}: image_std must be above 0, got {std}")
    return mean, std


def load_vit(folder: Path, proportional: str | None = None) -> tuple[ViT, tuple[Any, Any]]:
    """Loads a model folder as a `ViT` in float32; also returns the mean and std of its normalization.

    Args:
        folder: a model folder in the format of transformers.
        proportional: see `ViT`. None for "channels", or "none" for a ViT trained on masked images.

    Raises:
        ValueError: names the tensors that are missing, unexpected or of another shape.
    """
    part = conform(vision_config(read_config(folder)), _Vision, str(folder / "config.json"))
    family = FAMILIES.get(part["model_type"])
    if family is None:
        raise ValueError(
            f"{folder}: model_type must be one of {', '.join(FAMILIES)}, got {files.one_line(part['model_type'])!r}"
        )
    tensors = _rename(read_tensors(weight_files(folder)), str(folder))
    config = _shape(part, tensors, str(folder))
    if not config.norm_last:
        # The last norm of CLIP is only for its pooled output.
        tensors = {name: value for name, value in tensors.items() if not name.startswith("norm_last.")}
    _, rows, columns = config.grid
    if rows * columns == len(tensors["positions"]):
        tensors["positions"] = tensors["positions"].unflatten(0, (rows, columns))
    vit = build_vit(
        config,
        tensors,
        proportional or family.get("proportional", "channels"),
        f"{folder}: does not fit its config.json",
    )
    return vit, read_normalization(folder, family["mean"], family["std"])


def build_vit(config: ViTConfig, tensors: dict[str, Tensor], proportional: str, message: str) -> ViT:
    """Builds a `ViT` from these tensors, float32, in eval mode.

    Raises:
        ValueError: starts with `message` and names the tensors that are missing, unexpected or of another shape.
    """
    try:
        with torch.device("meta"):
            vit = ViT(config, proportional=proportional)
    except (RuntimeError, OverflowError) as error:  # impossible tensor sizes
        raise ValueError(f"{message}; it cannot be built ({files.one_line(error)})") from None
    files.check_fit(vit.state_dict(), tensors, message)
    vit.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    return vit.eval()


def count_blocks(names: Iterable[str], where: str) -> int:
    """Counts the blocks of tensors named blocks.0.*, blocks.1.*, ...

    Raises:
        ValueError: there are none, too many, or some in between are missing.
    """
    indices = {int(match[1]) for name in names if (match := _BLOCK.match(name))}
    if not indices or len(indices) > _MAX_BLOCKS or max(indices) != len(indices) - 1:
        last = f", the last with index {max(indices)}" if indices else ""
        raise ValueError(f"{where}: not a vision transformer ({len(indices)} blocks{last})")
    return len(indices)


def check_tensors(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises ValueError for tensors that are not dense floating-point weights, or larger than their storage."""
    for name, value in tensors.items():
        if value.is_nested or value.layout != torch.strided or value.is_quantized or not value.is_floating_point():
            raise ValueError(
                f"{where}: {files.one_line(name)} must be dense floating point, got {value.dtype}; is it quantized?"
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(
                f"{where}: {files.one_line(name)} of shape {list(value.shape)} has more values than are stored"
            )


def _shape(part: dict[str, Any], tensors: dict[str, Tensor], where: str) -> ViTConfig:
    """Determines the `ViTConfig` from the config and, if they are more reliable, the tensors."""
    kind = part["model_type"]
    part = _DEFAULTS.get(kind, {}) | part
    clip, dino = kind == "clip_vision_model", kind.startswith("dinov2")
    fc2 = tensors.get("blocks.0.mlp.fc2.weight")
    patches = tensors["patches.weight"]
    patch, patch_width = height_and_width(part, "patch_size", 16, where)
    if fc2 is None or fc2.ndim != 2 or "positions" not in tensors or patches.ndim != 4 or patch != patch_width:
        raise ValueError(
            f"{where}: a {kind} without blocks or positions under the expected names, or with non-square patches"
        )
    height, width = height_and_width(part, "image_size", 224, where)
    count_blocks(tensors, where)
    dim, depth, heads = (
        part.get(name, default)
        for name, default in (("hidden_size", 768), ("num_hidden_layers", 12), ("num_attention_heads", 12))
    )
    if not (0 < dim <= _MAX_CHANNELS and 0 < depth <= _MAX_BLOCKS and 0 < heads <= dim and 0 < patch <= height):
        raise ValueError(
            f"{where}: not a vision transformer ({depth} blocks of {dim} channels and {heads} heads, patches of "
            f"{patch} in {height} pixels)"
        )
    return ViTConfig(
        dim=dim,
        depth=depth,
        num_heads=heads,
        patch_size=patch,
        image_size=(height, width),
        mlp_dim=fc2.shape[1],
        class_token="class_token" in tensors,
        num_registers=len(tensors["registers"]) if "registers" in tensors else 0,
        qkv_bias="blocks.0.attention.qkv.bias" in tensors,
        patch_bias="patches.bias" in tensors,
        layer_scale=dino,
        norm_first=clip,
        norm_last=not clip,
        gated=part.get("use_swiglu_ffn", False),
        activation=part.get("hidden_act", "gelu"),
        antialias=kind == "dinov2_with_registers",
        eps=part.get("layer_norm_eps", 1e-12),
    )


def _rename(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Returns the vision tensors with the names and shapes of `ViT`."""
    starts = [name[: match.start()] for name in tensors if (match := _PATCHES.search(name))]
    if len(starts) != 1:
        raise ValueError(f"{where}: expected one patch embedding with a known name, got {len(starts)}")
    (start,) = starts
    state: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if not name.startswith(start) or not name[len(start) :].startswith(
            ("embeddings.", "encoder.", "layernorm.", "pre_lay", "post_lay")
        ):
            continue
        new = name[len(start) :]
        if _UNUSED.search(new):
            continue
        for pattern, replacement in _NAMES:
            new = re.sub(pattern, replacement, new)
        state[new] = value
    check_tensors(state, where)
    for name in [name for name in state if ".attention.q." in name]:
        parts = [name.replace(".attention.q.", f".attention.{letter}.") for letter in "qkv"]
        if all(part in state and state[part].shape == state[name].shape and state[part].ndim for part in parts):
            state[name.replace(".q.", ".qkv.")] = torch.cat([state.pop(part) for part in parts])
    for name in ("positions", "registers"):
        if name in state and state[name].ndim < 2:
            raise ValueError(f"{where}: {name} must be rows of channels, got the shape {list(state[name].shape)}")
    positions = state["positions"].flatten(0, -2) if "positions" in state else None
    if "class_token" in state:
        state["class_token"] = state["class_token"].flatten()
        if positions is not None and len(positions):
            state["class_position"], positions = positions[0], positions[1:]
    if "registers" in state:
        state["registers"] = state["registers"].flatten(0, -2)
    if positions is not None:
        state["positions"] = positions
    return state


def weight_files(folder: Path) -> list[Path]:
    """Lists the safetensors files of a model folder, in order.

    Raises:
        ValueError: there are none, or only pickled weights, which are never read.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = conform(read_json(index).get("weight_map", {}), dict[str, str], f"{index}: weight_map")
        names = sorted(set(listed.values()))
        if any(Path(name).name != name for name in names):
            raise ValueError(f"{index}: lists files outside its folder")
    else:
        names = ["model.safetensors"] if (folder / "model.safetensors").is_file() else []
    if not names:
        pickled = "only pickled weights, which can run arbitrary code and are not read; save them as safetensors"
        has_pickle = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        raise ValueError(f"{folder}: {pickled if has_pickle else 'no model.safetensors'}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder}: missing {', '.join(missing)}")
    return [folder / name for name in names]


def read_tensors(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Reads the tensors of safetensors files, except those of a text model.

    Raises:
        ValueError: a file is not readable.
    """
    tensors = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    if not name.startswith("text_model."):
                        tensors[name] = file.get_tensor(name)
        except Exception as error:  # SafetensorError, or any error of torch about a dtype or a size
            raise ValueError(
                f"{path}: not a readable safetensors file ({files.one_line(error)}); is it truncated?"
            ) from None
    return tensors


def fingerprint(folder: Path) -> str:
    """Returns the SHA-256 of the weight files of a folder."""
    return hash_files(weight_files(folder))


def hash_files(files: Sequence[Path]) -> str:
    """Returns the SHA-256 of files."""
    return _hash(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@lru_cache(maxsize=8)
def _hash(files: tuple[tuple[Path, int, int], ...]) -> str:
    # Size and modification time are only part of the cache key, so that a changed file is hashed again.
    digest = hashlib.sha256()
    for path, _, _ in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
