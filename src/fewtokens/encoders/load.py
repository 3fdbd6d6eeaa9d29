"""Encoders by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fewtokens.core.encoder import Encoder, set_loader
from fewtokens.core.hub import from_hub
from fewtokens.core.plain import conform, in_a_line
from fewtokens.encoders import weights
from fewtokens.encoders.devices import pick_device, pick_dtype
from fewtokens.encoders.patches import Patches
from fewtokens.encoders.released import SUFFIXES, load_released
from fewtokens.encoders.vit_encoder import VitEncoder

# Options of `load_encoder` beside device, dtype and batch.
_PATCHES, _VIT = ("patch_size", "tubelet_size"), ("proportional",)


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
            safetensors), that `Encoder.save_pretrained` wrote, or that `fewtokens train` saved (its last tokens); a
            released checkpoint of MAE, RSP, CropMAE, ToBo or DINO (.pth, see `fewtokens.encoders.released`); or a hub
            id such as "facebook/dinov2-small". ViT, DINOv2, CLIP and SigLIP become our own ViT, in which methods can
            act; any other vision encoder of transformers runs as it is.
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
        return Patches(device=where, dtype=wanted, **_only(options, "patches", *_PATCHES))

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
    kind = weights.read_json(folder / "config.json").get("fewtokens_model")
    if kind == Patches.kind:
        path = folder / "config.json"
        saved = conform(weights.read_json(path).get("config"), dict[str, int], f"{path}: config")
        return Patches(device=where, dtype=wanted, **_only(saved | options, str(name), *_PATCHES))
    if kind == VitEncoder.kind:
        encoder = VitEncoder.from_folder(folder, name=str(name), batch=batch, **_only(options, str(name), *_VIT))
        return encoder.to(where, wanted)
    if kind is not None:
        # The one arrow upwards: a trained network is an encoder too, by the same name. pyproject.toml declares it.
        from fewtokens.networks.encoder import load_model_encoder

        _only(options, str(name))
        return load_model_encoder(folder, name=str(name), batch=batch, device=where, dtype=wanted)
    part = weights.vision_part(weights.read_config(folder))
    if part["model_type"] not in weights.FAMILIES:
        from fewtokens.encoders.hf import HfEncoder

        return HfEncoder(folder, name=str(name), batch=batch, device=where, dtype=wanted, **_only(options, str(name)))
    vit, (mean, std) = weights.load_vit(folder, **_only(options, str(name), *_VIT))
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


set_loader(load_encoder)
