"""Released weights of tokenizers: folders of diffusers and transformers, and training checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from fewtokens.core.checkpoint import SUFFIXES, read_checkpoint
from fewtokens.core.plain import one_line
from fewtokens.encoders.weights import read_tensors, weight_files
from fewtokens.tokenizers.blocks.autoencoder import AUTOENCODERS
from fewtokens.tokenizers.released.bsq_vit import load_bsq_vit
from fewtokens.tokenizers.released.emu3 import load_emu3
from fewtokens.tokenizers.released.open_magvit2 import load_open_magvit2
from fewtokens.tokenizers.released.vidtok import load_vidtok
from fewtokens.tokenizers.tokenizer import Tokenizer

# A loader takes the content of config.json, tensors by name, and what messages start with.
Loader = Callable[[dict[str, Any], dict[str, Tensor], str], Tokenizer]
# By the class or type of the model in config.json.
_MODELS: dict[str, Loader] = {"emu3_vqgan": load_emu3, "Emu3VisionVQ": load_emu3}
# Of training checkpoints, by a tensor that no other family has.
_CHECKPOINTS: dict[str, Loader] = {
    "decoder.adaptive.0.gamma.weight": load_open_magvit2,
    "post_quant_embed.weight": load_bsq_vit,
}
# Dictionaries of a checkpoint that may contain the tensors, moving averages first, and what training puts before names.
_PARTS, _WRAPPERS = ("ema_state_dict", "state_dict"), re.compile(r"^((module|_orig_mod)\.)+")


def is_released(config: dict[str, Any]) -> bool:
    """Whether this is the config.json of released weights."""
    return "_class_name" in config or config.get("model_type") in _MODELS


def load_released(folder: Path, config: dict[str, Any]) -> Tokenizer:
    """Loads a folder in the format of diffusers or transformers.

    Args:
        folder: with config.json, and diffusion_pytorch_model.safetensors or model.safetensors.
        config: the content of config.json.

    Raises:
        ValueError: it is of another model, or the weights do not fit.
    """
    if load := _MODELS.get(config.get("model_type", "")):
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


def find_checkpoint(path: Path) -> Path | None:
    """Returns a file of a training checkpoint: the path itself, or the only one in a folder without config.json.

    Raises:
        ValueError: there are several.
    """
    if path.is_file():
        return path
    if (path / "config.json").is_file():
        return None
    files = sorted(file for suffix in (*SUFFIXES, ".safetensors") for file in path.glob(f"*{suffix}"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:5])
        raise ValueError(f"{path}: several checkpoints ({names}); give the path of one")
    return files[0] if files else None


def load_checkpoint(path: Path) -> Tokenizer:
    """Loads a training checkpoint, which has no config: .safetensors, or a file of `torch.save` without code.

    Raises:
        ValueError: it is of another model, or contains code, or the weights do not fit.
    """
    content = read_tensors([path]) if path.suffix == ".safetensors" else read_checkpoint(path, _PARTS)
    tensors = {_WRAPPERS.sub("", str(name)): value for name, value in content.items() if isinstance(value, Tensor)}
    for name, load in _CHECKPOINTS.items():
        if name in tensors:
            return load({}, tensors, str(path))
    raise ValueError(f"{path}: not a checkpoint of a tokenizer that can be loaded (Open-MAGVIT2, BSQ-ViT)")
