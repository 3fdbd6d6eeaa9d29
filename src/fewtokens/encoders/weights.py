"""Reads the weights of public vision transformers into our ViT: safetensors only.

ViT, MAE's ViT, DINOv2 (also with registers), CLIP and SigLIP in the layout of transformers, alone or as the vision part
of a larger checkpoint. What a config or a checkpoint says is checked before a network is built from it.
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

# model_type of config.json (of the vision part, where there are more parts) -> what differs. Sizes of merged tokens do
# not weigh in a ViT that was trained on masked images (ToMe, section 4).
FAMILIES: dict[str, dict[str, Any]] = {
    "vit": {"mean": _HALF, "std": _HALF},
    "vit_mae": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "proportional": "none"},
    "dinov2": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    "dinov2_with_registers": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    "clip_vision_model": {"mean": _CLIP[0], "std": _CLIP[1]},
    "siglip_vision_model": {"mean": _HALF, "std": _HALF},
}

# No vision transformer has more blocks or channels, no frame more pixels on a side.
_MOST_BLOCKS, _MOST_CHANNELS, _MOST_PIXELS = 1000, 1 << 16, 1 << 12
_BLOCK = re.compile(r"blocks\.(\d{1,9})\.")

# Their names -> ours, in order; q, k and v are joined afterwards.
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
# Parts of a checkpoint that a frame encoder has no use for.
_UNUSED = re.compile(r"(^|\.)(pooler|head|mask_token|position_ids|classifier)(\.|$)")
_PATCHES = re.compile(r"embeddings\.patch_embedding(s\.projection)?\.weight$")


class _Vision(TypedDict, total=False):
    """What is read of the config of a family."""

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
    """config.json of a model folder.

    Raises:
        ValueError: none there, or not JSON of a model.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json; an encoder is a folder as transformers saves it")
    config = read_json(folder / "config.json")
    if "model_type" not in config:
        raise ValueError(f"{folder / 'config.json'}: says no model_type, so not the config of a model")
    conform(config["model_type"], str, f"{folder / 'config.json'}: model_type")
    return config


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is no such file.

    Raises:
        ValueError: there, and not a JSON object.
    """
    return files.read_json(path, dict[str, Any]) if path.is_file() else {}


def vision_part(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the vision encoder: the whole, or the part of a model of several."""
    part = config.get("vision_config")
    if not isinstance(part, dict):
        return config
    model_type = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}.get(config["model_type"], "")
    part = {"model_type": model_type, **part}
    conform(part["model_type"], str, "vision_config: model_type")
    return part


def sides(part: dict[str, Any], name: str, default: int, what: str) -> tuple[int, int]:
    """Height and width that a config gives as one number or two, in pixels.

    Raises:
        ValueError: something else, or nothing of a frame's size.
    """
    said = part.get(name)
    said = default if said is None else said
    conform(said, int | tuple[int, int], f"{what}: {name}")
    height, width = said if isinstance(said, list | tuple) else (said, said)
    if not 0 <= min(height, width) <= max(height, width) <= _MOST_PIXELS:
        raise ValueError(f"{what}: {name} must be at most {_MOST_PIXELS} pixels, not {said}")
    return height, width


def read_scale(folder: Path, mean: Sequence[float], std: Sequence[float]) -> tuple[Any, Any]:
    """Mean and deviation of the pixels that a folder's preprocessor_config.json says, or these.

    Raises:
        ValueError: not three numbers each, or a deviation that is not above 0.
    """
    path = folder / "preprocessor_config.json"
    said = conform(read_json(path), _Scale, str(path))
    mean, std = said.get("image_mean") or mean, said.get("image_std") or std
    if min(std) <= 0:
        raise ValueError(f"{path}: image_std must be above 0, not {std}")
    return mean, std


def load_vit(folder: Path, proportional: str | None = None) -> tuple[ViT, tuple[Any, Any]]:
    """Our ViT with the weights of a folder, in float32, and the mean and std of its normalization.

    Args:
        folder: as transformers saves it.
        proportional: see `ViT`; None takes "channels", or "none" for a ViT that was trained on masked images.

    Raises:
        ValueError: tensors that are missing, left over or of another shape, named.
    """
    part = conform(vision_part(read_config(folder)), _Vision, str(folder / "config.json"))
    family = FAMILIES.get(part["model_type"])
    if family is None:
        raise ValueError(f"{folder}: a {files.in_a_line(part['model_type'])!r}, not one of {', '.join(FAMILIES)}")
    tensors = _rename(read_tensors(weight_files(folder)), str(folder))
    config = _shape(part, tensors, str(folder))
    if not config.norm_last:
        # CLIP's last norm is for its pooled output alone.
        tensors = {name: value for name, value in tensors.items() if not name.startswith("norm_last.")}
    _, rows, columns = config.grid
    if rows * columns == len(tensors["positions"]):
        tensors["positions"] = tensors["positions"].unflatten(0, (rows, columns))
    vit = filled(
        config,
        tensors,
        proportional or family.get("proportional", "channels"),
        f"{folder}: does not fit its config.json",
    )
    return vit, read_scale(folder, family["mean"], family["std"])


def filled(config: ViTConfig, tensors: dict[str, Tensor], proportional: str, says: str) -> ViT:
    """A ViT with these tensors, float32, in eval mode; `says` begins the message where they do not fit.

    Raises:
        ValueError: tensors that are missing, left over or of another shape, named.
    """
    try:
        with torch.device("meta"):
            vit = ViT(config, proportional=proportional)
    except (RuntimeError, OverflowError) as error:  # sizes that no tensor can have
        raise ValueError(f"{says}; it makes no network ({files.in_a_line(error)})") from None
    files.check_fit(vit.state_dict(), tensors, says)
    vit.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    return vit.eval()


def count_blocks(names: Iterable[str], where: str) -> int:
    """Blocks of tensors named blocks.0.*, blocks.1.*, ... as they are in the file.

    Raises:
        ValueError: none, some missing in between, or more than any network has.
    """
    numbers = {int(match[1]) for name in names if (match := _BLOCK.match(name))}
    if not numbers or len(numbers) > _MOST_BLOCKS or max(numbers) != len(numbers) - 1:
        last = f", the last of which is number {max(numbers)}" if numbers else ""
        raise ValueError(f"{where}: has {len(numbers)} blocks{last}; it is no vision transformer")
    return len(numbers)


def check_tensors(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises a ValueError for tensors that are no plain weights: quantized, sparse, or larger than what is stored."""
    for name, value in tensors.items():
        if value.is_nested or value.layout != torch.strided or value.is_quantized or not value.is_floating_point():
            raise ValueError(
                f"{where}: {files.in_a_line(name)} is {value.dtype}, not weights in floating point; is it quantized?"
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{where}: {files.in_a_line(name)} says more values, {list(value.shape)}, than are stored")


def _shape(part: dict[str, Any], tensors: dict[str, Tensor], where: str) -> ViTConfig:
    """The shape of the network: what the config says, and the tensors where they say it better."""
    kind = part["model_type"]
    clip, dino = kind == "clip_vision_model", kind.startswith("dinov2")
    fc2 = tensors.get("blocks.0.mlp.fc2.weight")
    patches = tensors["patches.weight"]
    patch, wide_patch = sides(part, "patch_size", 16, where)
    if fc2 is None or fc2.ndim != 2 or "positions" not in tensors or patches.ndim != 4 or patch != wide_patch:
        raise ValueError(
            f"{where}: a {kind} without blocks or positions under the known names, or with patches that are not square"
        )
    height, wide = sides(part, "image_size", 224, where)
    count_blocks(tensors, where)
    dim, depth, heads = (
        part.get(name, default)
        for name, default in (("hidden_size", 768), ("num_hidden_layers", 12), ("num_attention_heads", 12))
    )
    if not (0 < dim <= _MOST_CHANNELS and 0 < depth <= _MOST_BLOCKS and 0 < heads <= dim and 0 < patch <= height):
        raise ValueError(
            f"{where}: its config says {depth} blocks of {dim} channels and {heads} heads, patches of {patch} in "
            f"{height} pixels, which is no vision transformer"
        )
    return ViTConfig(
        dim=dim,
        depth=depth,
        num_heads=heads,
        patch_size=patch,
        image_size=(height, wide),
        mlp_dim=fc2.shape[1],
        class_token="class_token" in tensors,
        num_registers=len(tensors["registers"]) if "registers" in tensors else 0,
        qkv_bias="blocks.0.attention.qkv.bias" in tensors,
        patch_bias="patches.bias" in tensors,
        layer_scale=dino,
        norm_first=clip,
        norm_last=not clip,
        gated=part.get("use_swiglu_ffn", False),
        activation=part.get("hidden_act", {"clip_vision_model": "quick_gelu"}.get(kind, "gelu")),
        antialias=kind == "dinov2_with_registers",
        eps=part.get("layer_norm_eps", 1e-6 if dino else 1e-12),
    )


def _rename(theirs: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The vision tensors under our names and shapes."""
    starts = [name[: match.start()] for name in theirs if (match := _PATCHES.search(name))]
    if len(starts) != 1:
        raise ValueError(f"{where}: has {len(starts)} patch embeddings of a known name, one is needed")
    (start,) = starts
    ours: dict[str, Tensor] = {}
    for name, value in theirs.items():
        if not name.startswith(start) or not name[len(start) :].startswith(
            ("embeddings.", "encoder.", "layernorm.", "pre_lay", "post_lay")
        ):
            continue
        new = name[len(start) :]
        if _UNUSED.search(new):
            continue
        for pattern, replacement in _NAMES:
            new = re.sub(pattern, replacement, new)
        ours[new] = value
    check_tensors(ours, where)
    for name in [name for name in ours if ".attention.q." in name]:
        parts = [name.replace(".attention.q.", f".attention.{letter}.") for letter in "qkv"]
        if all(part in ours and ours[part].shape == ours[name].shape and ours[part].ndim for part in parts):
            ours[name.replace(".q.", ".qkv.")] = torch.cat([ours.pop(part) for part in parts])
    for name in ("positions", "registers"):
        if name in ours and ours[name].ndim < 2:
            raise ValueError(f"{where}: {name} of the shape {list(ours[name].shape)} are no rows of channels")
    positions = ours["positions"].flatten(0, -2) if "positions" in ours else None
    if "class_token" in ours:
        ours["class_token"] = ours["class_token"].flatten()
        if positions is not None and len(positions):
            ours["class_position"], positions = positions[0], positions[1:]
    if "registers" in ours:
        ours["registers"] = ours["registers"].flatten(0, -2)
    if positions is not None:
        ours["positions"] = positions
    return ours


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in order.

    Raises:
        ValueError: none; says so too where there are only pickled weights, which are never read.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = conform(read_json(index).get("weight_map", {}), dict[str, str], f"{index}: weight_map")
        names = sorted(set(listed.values()))
        if any(Path(name).name != name for name in names):
            raise ValueError(f"{index}: names files outside of its folder")
    else:
        names = ["model.safetensors"] if (folder / "model.safetensors").is_file() else []
    if not names:
        pickled = "only pickled weights, which can run any code and are not read; save them as safetensors"
        has_pickle = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        raise ValueError(f"{folder}: {pickled if has_pickle else 'no model.safetensors'}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder}: lacks {', '.join(missing)}")
    return [folder / name for name in names]


def read_tensors(paths: Sequence[Path]) -> dict[str, Tensor]:
    """All tensors of safetensors files, but for those of a text model.

    Raises:
        ValueError: a file that cannot be read.
    """
    tensors = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    if not name.startswith("text_model."):
                        tensors[name] = file.get_tensor(name)
        except Exception as error:  # SafetensorError, and whatever torch says of a dtype or a size
            raise ValueError(
                f"{path}: not a readable safetensors file ({files.in_a_line(error)}); was it cut short?"
            ) from None
    return tensors


def fingerprint(folder: Path) -> str:
    """SHA-256 over the weight files of a folder."""
    return hash_of(weight_files(folder))


def hash_of(files: Sequence[Path]) -> str:
    """SHA-256 over files."""
    return _hash(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@lru_cache(maxsize=8)
def _hash(files: tuple[tuple[Path, int, int], ...]) -> str:
    # Size and time are part of the key only, so that a changed file is hashed again.
    digest = hashlib.sha256()
    for path, _, _ in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
