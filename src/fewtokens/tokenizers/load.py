"""Loading of trained tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

import torch

from fewtokens.core import files
from fewtokens.core.hub import from_hub
from fewtokens.core.plain import conform
from fewtokens.encoders.devices import pick_device
from fewtokens.encoders.weights import read_json
from fewtokens.tokenizers.blocks.saved_networks import build_from
from fewtokens.tokenizers.preset import create_tokenizer, get_preset
from fewtokens.tokenizers.released import load_released
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
            and those of images), or a hub id.
        device: "auto", "cpu", "cuda" or a `torch.device`.

    Raises:
        ValueError: no such folder, or it does not contain a tokenizer.
    """
    path, content = _read_folder(folder)
    if "_class_name" in content:
        return load_released(path, content).to(pick_device(device)).eval()
    config: _Config = content["config"]
    kind = get_preset(config["preset"]).kind if config["preset"] else Tokenizer
    networks = conform(content.get("networks", {}), dict[str, dict[str, Any]], f"{path / 'config.json'}: networks")
    with build_from(networks):
        tokenizer = kind.from_spec(config["spec"], window=config["window"])
    tokenizer.title = config["preset"]
    tokenizer.origin = {"folder": str(path.resolve() if Path(folder).is_dir() else folder)}
    tensors, _ = files.load(path / "model.safetensors", "tokenizer")
    files.check_fit(tokenizer.state_dict(), tensors, f"{folder}: does not fit {config['spec']!r}")
    tokenizer.load_state_dict(tensors)
    return tokenizer.to(pick_device(device)).eval()


def _read_folder(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """Returns the local folder of a tokenizer and the checked content of its config.json."""
    path = Path(folder) if Path(folder).is_dir() else from_hub(str(folder))
    content = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if "_class_name" not in content:
        if content.get("fewtokens_model") != "tokenizer":
            raise ValueError(f"{folder}: not a folder of a tokenizer (config.json of kind tokenizer)")
        conform(content.get("config"), _Config, f"{path / 'config.json'}: config")
    return path, content


def source_of(name: str | Path) -> str:
    """Returns what a tokenizer encodes, see `Tokenizer.source`, without building it.

    Args:
        name: see `open_tokenizer`.

    Raises:
        ValueError: there is no such tokenizer.
    """
    preset = "" if ">" in str(name) else str(name)
    if _is_saved(name):
        content = _read_folder(name)[1]
        preset = "" if "_class_name" in content else content["config"]["preset"]
    return get_preset(preset).source if preset else Tokenizer.source


def _is_saved(name: str | Path) -> bool:
    """Whether this names a folder or a hub id, not a preset or spec."""
    return Path(name).is_dir() or ("/" in str(name) and ">" not in str(name))


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
    if _is_saved(name):
        return load_tokenizer(name, device=device)
    return create_tokenizer(str(name), tiny=tiny, seed=seed).to(pick_device(device)).eval()
