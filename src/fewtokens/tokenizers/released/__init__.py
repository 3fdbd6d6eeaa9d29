"""Released weights of tokenizers, in the formats of diffusers and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewtokens.core.plain import one_line
from fewtokens.encoders.weights import read_tensors
from fewtokens.tokenizers.blocks.autoencoder import AUTOENCODERS
from fewtokens.tokenizers.released.vidtok import load_vidtok
from fewtokens.tokenizers.tokenizer import Tokenizer


def load_released(folder: Path, config: dict[str, Any]) -> Tokenizer:
    """Loads a folder in the format of diffusers.

    Args:
        folder: with config.json and diffusion_pytorch_model.safetensors.
        config: the content of config.json.

    Raises:
        ValueError: it is of another model, or the weights do not fit.
    """
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
