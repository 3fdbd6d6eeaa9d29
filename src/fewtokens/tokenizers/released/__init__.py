"""Released weights of tokenizers, in the formats of diffusers and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewtokens.core.plain import one_line
from fewtokens.encoders.weights import read_tensors, weight_files
from fewtokens.tokenizers.blocks.autoencoder import AUTOENCODERS
from fewtokens.tokenizers.released.larp import load_larp
from fewtokens.tokenizers.released.titok import load_titok
from fewtokens.tokenizers.released.vidtok import load_vidtok
from fewtokens.tokenizers.tokenizer import Tokenizer

# Families in the format of the authors, by a name that only their config.json has.
_FAMILIES = {"model": load_titok, "bottleneck": load_larp}


def is_released(config: dict[str, Any]) -> bool:
    """Whether this is the config.json of released weights."""
    return "_class_name" in config or any(name in config for name in _FAMILIES)


def load_released(folder: Path, config: dict[str, Any]) -> Tokenizer:
    """Loads a folder in the format of diffusers or of the authors.

    Args:
        folder: with config.json, and diffusion_pytorch_model.safetensors or model.safetensors.
        config: the content of config.json.

    Raises:
        ValueError: it is of another model, or the weights do not fit.
    """
    for key, load in _FAMILIES.items():
        if key in config:
            return load(config, read_tensors(weight_files(folder)), str(folder))
    name = config["_class_name"]
    if name in AUTOENCODERS:
        # Their latents are normalized as in the config; frames are padded at the end and cropped after decoding.
        network = repr(str(folder))
        return Tokenizer.from_spec(f"latents({network}) > latents({network})")
    if name != "AutoencoderVidTok":
        known = ", ".join(("AutoencoderVidTok", *AUTOENCODERS))
        raise ValueError(f"{folder}: {one_line(name)} cannot be loaded as a tokenizer; these can: {known}")
    weights = folder / "diffusion_pytorch_model.safetensors"
    if not weights.is_file():
        raise ValueError(f"{folder}: no {weights.name}; pickled weights are not read, save them as safetensors")
    return load_vidtok(config, read_tensors([weights]), str(folder))
