"""Encoders by name."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fewtokens.core.encoder import Encoder
from fewtokens.core.plain import in_a_line
from fewtokens.encoders import weights
from fewtokens.encoders.devices import pick_device, pick_dtype
from fewtokens.encoders.patches import Patches
from fewtokens.encoders.released import SUFFIXES, load_released
from fewtokens.encoders.vit_encoder import VitEncoder


def load_encoder(
    name: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    batch: int = 32,
    **options: Any,
) -> Encoder:
    """The encoder of this name.

    Args:
        name: "patches" (pixel patches, no weights); a folder as transformers saves it (config.json and
            safetensors), or one that `fewtokens train` saved, whose last tokens it gives; a released checkpoint of
            MAE, RSP, CropMAE, ToBo or DINO (.pth, see `fewtokens.encoders.released`); or a hub id such as
            "facebook/dinov2-small". ViT, DINOv2, CLIP and SigLIP become our own ViT, in which methods can act;
            any other vision encoder of transformers runs as it is.
        device: "auto" (cuda, mps or cpu, the first available), "cpu", "cuda", "cuda:1", "mps", or a `torch.device`.
        dtype: "float32" (default), "float16" or "bfloat16", or the same as a `torch.dtype`.
        batch: frames in one forward pass.
        options: of patches: patch_size=16, tubelet_size=1. Of a ViT: proportional="channels", "bias" or "none".

    Raises:
        ValueError: no such encoder, weights that are not safetensors or do not fit, no such device.
    """
    where = pick_device(device)
    wanted = pick_dtype(dtype or "float32")
    if batch < 1:
        raise ValueError(f"batch must be at least 1 frame, got {batch}")
    if str(name) == "patches":
        return Patches(device=where, dtype=wanted, **_only(options, "patches", "patch_size", "tubelet_size"))

    if Path(name).suffix in SUFFIXES and Path(name).is_file():
        vit = load_released(name).to(where, wanted)
        return VitEncoder(
            vit,
            name=str(name),
            batch=batch,
            fingerprint=weights.hash_of([Path(name)]),
            options=_only(options, str(name)),
        )
    folder = Path(name) if Path(name).is_dir() else from_hub(str(name))
    if "fewtokens_model" in weights.read_json(folder / "config.json"):
        # A network of ours; its room lies above this one.
        load = import_module("fewtokens.networks.encoder").load_model_encoder
        return load(folder, batch=batch, device=where, dtype=wanted, **_only(options, str(name)))
    part = weights.vision_part(weights.read_config(folder))
    if part["model_type"] not in weights.FAMILIES:
        from fewtokens.encoders.hf import HfEncoder

        return HfEncoder(folder, name=str(name), batch=batch, device=where, dtype=wanted, **_only(options, str(name)))
    vit, (mean, std) = weights.load_vit(folder, **_only(options, str(name), "proportional"))
    return VitEncoder(
        vit.to(where, wanted),
        name=str(name),
        batch=batch,
        mean=mean,
        std=std,
        fingerprint=weights.fingerprint(folder),
        options=options,
    )


def _only(options: dict[str, Any], who: str, *known: str) -> dict[str, Any]:
    if unknown := set(options) - set(known):
        takes = f"takes {', '.join(known)}" if known else "takes no options"
        raise ValueError(f"{who} {takes}; not {in_a_line(', '.join(sorted(unknown)))}")
    return options


def from_hub(name: str, patterns: Sequence[str] = ("*.json", "*.safetensors")) -> Path:
    """The folder of a hub id, downloaded unless it is there already: only files of these patterns.

    Raises:
        ValueError: no such folder, and the hub does not give it.
    """
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or not name:
        raise ValueError(f"{name}: no such folder")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise ValueError(f"{name}: no such folder; for a hub id first pip install 'fewtokens[hf]'") from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{name}: no such folder here, and the hub does not give it ({reason})") from None
