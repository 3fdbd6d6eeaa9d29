"""Reads the weights of public vision transformers into our ViT: safetensors only.

ViT, DINOv2 (also with registers), CLIP and SigLIP in the layout of transformers, alone or as the vision part
of a larger checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fewtokens import files
from fewtokens.encode.frames import IMAGENET_MEAN, IMAGENET_STD
from fewtokens.encode.vit import ViT, ViTConfig

_HALF = (0.5, 0.5, 0.5)
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

# model_type of config.json (of the vision part, where there are more parts) -> what differs.
FAMILIES: dict[str, dict[str, Any]] = {
    "vit": {"mean": _HALF, "std": _HALF},
    "dinov2": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    "dinov2_with_registers": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    "clip_vision_model": {"mean": _CLIP[0], "std": _CLIP[1]},
    "siglip_vision_model": {"mean": _HALF, "std": _HALF},
}

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
    return config


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is no such file.

    Raises:
        ValueError: there, and not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        said = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    if not isinstance(said, dict):
        raise ValueError(f"{path}: not a JSON object")
    return said


def vision_part(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the vision encoder: the whole, or the part of a model of several."""
    part = config.get("vision_config")
    if not isinstance(part, dict):
        return config
    model_type = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}.get(config["model_type"], "")
    return {"model_type": model_type, **part}


def load_vit(folder: Path, proportional: str = "channels") -> tuple[ViT, tuple[Any, Any]]:
    """Our ViT with the weights of a folder, in float32, and the mean and std of its normalisation.

    Raises:
        ValueError: tensors that are missing, left over or of another shape, named.
    """
    part = vision_part(read_config(folder))
    tensors = _rename(_read(folder))
    config = _shape(part, tensors)
    if not config.norm_last:
        # CLIP's last norm is for its pooled output alone.
        tensors = {name: value for name, value in tensors.items() if not name.startswith("norm_last.")}
    rows, columns = config.positions
    if rows * columns == len(tensors["positions"]):
        tensors["positions"] = tensors["positions"].unflatten(0, (rows, columns))
    with torch.device("meta"):
        vit = ViT(config, proportional=proportional)
    files.check_fit(vit.state_dict(), tensors, f"{folder}: does not fit its config.json")
    vit.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    return vit.eval(), _scale(folder, part)


def _shape(part: dict[str, Any], tensors: dict[str, Tensor]) -> ViTConfig:
    """The shape of the network: what the config says, and the tensors where they say it better."""
    kind = part["model_type"]
    clip, dino = kind == "clip_vision_model", kind.startswith("dinov2")
    width = part.get("hidden_size", 768)
    fc2 = tensors.get("blocks.0.mlp.fc2.weight")
    positions = tensors.get("positions")
    if fc2 is None or positions is None or isinstance(part.get("patch_size"), list):
        raise ValueError(
            f"a {kind} without blocks or positions under the known names, or with patches that are not square"
        )
    size, patch = part.get("image_size", 224), part.get("patch_size", 16)
    height, wide = size if isinstance(size, list) else (size, size)
    return ViTConfig(
        width=width,
        depth=part.get("num_hidden_layers", 12),
        heads=part.get("num_attention_heads", 12),
        patch=patch,
        positions=(height // patch, wide // patch),
        hidden=fc2.shape[1],
        class_token="class_token" in tensors,
        registers=len(tensors["registers"]) if "registers" in tensors else 0,
        qkv_bias="blocks.0.attention.qkv.bias" in tensors,
        patch_bias="patches.bias" in tensors,
        layer_scale=dino,
        norm_first=clip,
        norm_last=not clip,
        gated=bool(part.get("use_swiglu_ffn", False)),
        activation=part.get("hidden_act", {"clip_vision_model": "quick_gelu"}.get(kind, "gelu")),
        antialias=kind == "dinov2_with_registers",
        eps=part.get("layer_norm_eps", 1e-6 if dino else 1e-12),
    )


def _rename(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The vision tensors under our names and shapes."""
    starts = [name[: match.start()] for name in theirs if (match := _PATCHES.search(name))]
    if len(starts) != 1:
        raise ValueError(f"the checkpoint has {len(starts)} patch embeddings of a known name, one is needed")
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
    for name in [name for name in ours if ".attention.q." in name]:
        parts = [name.replace(".attention.q.", f".attention.{letter}.") for letter in "qkv"]
        if all(part in ours for part in parts):
            ours[name.replace(".q.", ".qkv.")] = torch.cat([ours.pop(part) for part in parts])
    positions = ours["positions"].flatten(0, -2) if "positions" in ours else None
    if "class_token" in ours:
        ours["class_token"] = ours["class_token"].flatten()
        if positions is not None:
            ours["class_position"], positions = positions[0], positions[1:]
    if "registers" in ours:
        ours["registers"] = ours["registers"].flatten(0, -2)
    if positions is not None:
        ours["positions"] = positions
    return ours


def _scale(folder: Path, part: dict[str, Any]) -> tuple[Any, Any]:
    family = FAMILIES[part["model_type"]]
    said = read_json(folder / "preprocessor_config.json")
    return said.get("image_mean", family["mean"]), said.get("image_std", family["std"])


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in order.

    Raises:
        ValueError: none; says so too where there are only pickled weights, which are never read.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
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


def _read(folder: Path) -> dict[str, Tensor]:
    tensors = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    if not name.startswith("text_model."):
                        tensors[name] = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: not a readable safetensors file ({error}); was it cut short?") from None
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
