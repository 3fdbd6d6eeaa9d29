"""Loading of encoders by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fewtokens.core.encoder import Encoder, set_loader
from fewtokens.core.hub import from_hub
from fewtokens.core.plain import conform, one_line
from fewtokens.encoders import weights
from fewtokens.encoders.devices import pick_device, pick_dtype
from fewtokens.encoders.patches import Patches
from fewtokens.encoders.released import SUFFIXES, load_released
from fewtokens.encoders.vit_encoder import VitEncoder

# Options of `load_encoder` in addition to device, dtype and batch.
_PATCHES, _VIT = ("patch_size", "tubelet_size"), ("proportional",)


def load_encoder(
    name: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    batch: int = 32,
    **options: Any,
) -> Encoder:
    """Loads an encoder by name.

    Args:
        name: one of
            "patches" (pixel patches, no weights);
            a folder saved by transformers (config.json and safetensors), by `Encoder.save_pretrained`, or by
            `fewtokens train` (its last tokens; of a tokenizer those that its decoder reads);
            a released checkpoint of MAE, RSP, CropMAE, ToBo or DINO (.pth, see `fewtokens.encoders.released`);
            a Hugging Face Hub id such as "facebook/dinov2-small".
            ViT, DINOv2, CLIP and SigLIP are loaded into the ViT of this library, so methods can act between its blocks;
            other vision encoders of transformers run unchanged.
        device: "auto" (the first available of cuda, mps and cpu), "cpu", "cuda", "cuda:1", "mps", or a `torch.device`.
        dtype: "float32", "float16" or "bfloat16", or the `torch.dtype`. Default: "float32".
        batch: frames in one forward pass.
        options: for patches, patch_size=16 and tubelet_size=1; for a ViT, proportional="channels", "bias" or "none".

    Raises:
        ValueError: no such encoder or device, or weights that are not safetensors or do not fit.
    """
    device = pick_device(device)
    dtype = pick_dtype(dtype or "float32")
    if batch < 1:
        raise ValueError(f"batch must be at least 1 frame, got {batch}")
    if str(name) == "patches":
        return Patches(device=device, dtype=dtype, **_only(options, "patches", *_PATCHES))

    if Path(name).suffix in SUFFIXES and Path(name).is_file():
        vit = load_released(name).to(device, dtype)
        return VitEncoder(
            vit,
            name=str(name),
            batch=batch,
            fingerprint=weights.hash_files([Path(name)]),
            options=_only(options, str(name)),
        )
    folder = Path(name) if Path(name).is_dir() else from_hub(str(name))
    kind = weights.read_json(folder / "config.json").get("fewtokens_model")
    if kind == Patches.kind:
        path = folder / "config.json"
        saved = conform(weights.read_json(path).get("config"), dict[str, int], f"{path}: config")
        return Patches(device=device, dtype=dtype, **_only(saved | options, str(name), *_PATCHES))
    if kind == VitEncoder.kind:
        encoder = VitEncoder.from_folder(folder, name=str(name), batch=batch, **_only(options, str(name), *_VIT))
        return encoder.to(device, dtype)
    if kind == "tokenizer":
        # An upward import, as the next one (declared in pyproject.toml): what was trained can be loaded as an encoder.
        from fewtokens.tokenizers.encoder import load_tokenizer_encoder

        _only(options, str(name))
        return load_tokenizer_encoder(folder, name=str(name), batch=batch, device=device, dtype=dtype)
    if kind is not None:
        from fewtokens.networks.encoder import load_model_encoder

        _only(options, str(name))
        return load_model_encoder(folder, name=str(name), batch=batch, device=device, dtype=dtype)
    vision = weights.vision_config(weights.read_config(folder))
    if vision["model_type"] not in weights.FAMILIES:
        from fewtokens.encoders.hf import HfEncoder

        return HfEncoder(folder, name=str(name), batch=batch, device=device, dtype=dtype, **_only(options, str(name)))
    vit, (mean, std) = weights.load_vit(folder, **_only(options, str(name), *_VIT))
    return VitEncoder(
        vit.to(device, dtype),
        name=str(name),
        batch=batch,
        mean=mean,
        std=std,
        fingerprint=weights.fingerprint(folder),
        options=options,
    )


def _only(options: dict[str, Any], name: str, *accepted: str) -> dict[str, Any]:
    if unknown := set(options) - set(accepted):
        accepts = f"accepts {', '.join(accepted)}" if accepted else "accepts no options"
        raise ValueError(f"{name} {accepts}; got {one_line(', '.join(sorted(unknown)))}")
    return options


set_loader(load_encoder)
