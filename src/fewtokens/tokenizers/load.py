"""Loading of trained tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

import torch

from fewtokens.core import files
from fewtokens.core.checkpoint import SUFFIXES
from fewtokens.core.hub import from_hub
from fewtokens.core.plain import conform
from fewtokens.encoders.devices import pick_device
from fewtokens.encoders.weights import read_json
from fewtokens.tokenizers.preset import create_tokenizer, get_preset
from fewtokens.tokenizers.released import find_checkpoint, is_released, load_checkpoint, load_released
from fewtokens.tokenizers.tokenizer import Tokenizer


class _Config(TypedDict):
    spec: str
    window: int | None
    preset: str


def load_tokenizer(folder: str | Path, *, device: str | torch.device = "auto") -> Tokenizer:
    """Loads a tokenizer, in eval mode.

    Args:
        folder: a folder written by `Tokenizer.save_pretrained` or `fewtokens train tokenizer`, a folder of diffusers
            (VidTok, or the continuous autoencoders of Wan, CogVideoX, HunyuanVideo, Cosmos, EasyAnimate, Mochi and LTX
            and those of images), a folder of Emu3's tokenizer in the format of transformers or of its authors, or a hub
            id; or a checkpoint of Open-MAGVIT2 or BSQ-ViT (.ckpt, .pt or .safetensors), a folder with one, or its hub
            id. Checkpoints are read without running code.
        device: "auto", "cpu", "cuda" or a `torch.device`.

    Raises:
        ValueError: no such folder, or it does not contain a tokenizer.
    """
    path = _locate(folder)
    checkpoint = find_checkpoint(path)
    content = {} if checkpoint else read_json(path / "config.json")
    if checkpoint:
        tokenizer = load_checkpoint(checkpoint)
    elif is_released(content):
        tokenizer = load_released(path, content)
    elif content.get("fewtokens_model") == "tokenizer":
        tokenizer = _load_own(path, content, str(folder))
    else:
        raise ValueError(f"{folder}: not a folder of a tokenizer (config.json of kind tokenizer)")
    tokenizer.origin = {"folder": str(path.resolve() if Path(folder).exists() else folder)}
    return tokenizer.to(pick_device(device)).eval()


def _load_own(path: Path, content: dict[str, Any], where: str) -> Tokenizer:
    """Loads a folder of `Tokenizer.save_pretrained`."""
    config: _Config = conform(content.get("config"), _Config, f"{path / 'config.json'}: config")
    kind = get_preset(config["preset"]).kind if config["preset"] else Tokenizer
    tokenizer = kind.from_spec(config["spec"], window=config["window"])
    tokenizer.title = config["preset"]
    tensors, _ = files.load(path / "model.safetensors", "tokenizer")
    files.check_fit(tokenizer.state_dict(), tensors, f"{where}: does not fit {config['spec']!r}")
    tokenizer.load_state_dict(tensors)
    return tokenizer


def _locate(folder: str | Path) -> Path:
    """The folder or file of a tokenizer, downloaded if it is a hub id; checkpoints only if there is no config.json."""
    if Path(folder).exists():
        return Path(folder)
    path = from_hub(str(folder))
    return path if (path / "config.json").is_file() else from_hub(str(folder), [f"*{suffix}" for suffix in SUFFIXES])


def open_tokenizer(
    name: str | Path, *, tiny: bool = False, seed: int = 0, device: str | torch.device = "auto"
) -> Tokenizer:
    """Loads or builds a tokenizer, in eval mode.

    Args:
        name: a folder or hub id, see `load_tokenizer`; or a preset or spec, see `create_tokenizer`, whose parameters
            are random then.
        tiny, seed: for a preset or spec.
        device: "auto", "cpu", "cuda" or a `torch.device`.

    Raises:
        ValueError: there is no such tokenizer.
    """
    text = str(name)
    if ">" not in text and (Path(text).exists() or "/" in text):
        return load_tokenizer(name, device=device)
    return create_tokenizer(text, tiny=tiny, seed=seed).to(pick_device(device)).eval()
