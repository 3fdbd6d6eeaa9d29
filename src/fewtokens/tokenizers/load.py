"""Loading of trained tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import torch

from fewtokens.core import files
from fewtokens.core.hub import from_hub
from fewtokens.core.plain import conform
from fewtokens.encoders.devices import pick_device
from fewtokens.encoders.weights import read_json
from fewtokens.tokenizers.preset import create_tokenizer, get_preset
from fewtokens.tokenizers.released import is_released, load_released
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
            and those of images), a folder of TiTok or One-D-Piece, or a hub id of one of these, such as
            "yucornetto/tokenizer_titok_b64_imagenet" and "turing-motors/One-D-Piece-B-256".
        device: "auto", "cpu", "cuda" or a `torch.device`.

    Raises:
        ValueError: no such folder, or it does not contain a tokenizer.
    """
    path = Path(folder) if Path(folder).is_dir() else from_hub(str(folder))
    content = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if is_released(content):
        return load_released(path, content).to(pick_device(device)).eval()
    if content.get("fewtokens_model") != "tokenizer":
        raise ValueError(f"{folder}: not a folder of a tokenizer (config.json of kind tokenizer)")
    config: _Config = conform(content.get("config"), _Config, f"{path / 'config.json'}: config")
    kind = get_preset(config["preset"]).kind if config["preset"] else Tokenizer
    tokenizer = kind.from_spec(config["spec"], window=config["window"])
    tokenizer.title = config["preset"]
    tokenizer.origin = {"folder": str(path.resolve() if Path(folder).is_dir() else folder)}
    tensors, _ = files.load(path / "model.safetensors", "tokenizer")
    files.check_fit(tokenizer.state_dict(), tensors, f"{folder}: does not fit {config['spec']!r}")
    tokenizer.load_state_dict(tensors)
    return tokenizer.to(pick_device(device)).eval()


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
    if Path(text).is_dir() or ("/" in text and ">" not in text):
        return load_tokenizer(name, device=device)
    return create_tokenizer(text, tiny=tiny, seed=seed).to(pick_device(device)).eval()
