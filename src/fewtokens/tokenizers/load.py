"""Loading of trained tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

import torch

from fewtokens.core import files
from fewtokens.core.checkpoint import SUFFIXES
from fewtokens.core.hub import from_hub
from fewtokens.core.method import weights_follow
from fewtokens.core.plain import conform
from fewtokens.encoders.devices import pick_device
from fewtokens.encoders.weights import read_json
from fewtokens.tokenizers.blocks.saved_networks import build_from
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
            and those of images), a folder of Emu3's tokenizer in the format of transformers or of its authors, a folder
            of TiTok, One-D-Piece or LARP, such as the hub id "turing-motors/One-D-Piece-B-256", or a hub id; or a
            checkpoint of Open-MAGVIT2, BSQ-ViT or OmniTokenizer (.ckpt, .pt or .safetensors), a folder with one, or its
            hub id. Checkpoints are read without running code.
        device: "auto", "cpu", "cuda" or a `torch.device`.

    Raises:
        ValueError: no such folder, or it does not contain a tokenizer.
    """
    path, content = _read_config(folder)
    if not content:
        checkpoint = find_checkpoint(path)
        assert checkpoint is not None
        tokenizer = load_checkpoint(checkpoint)
    elif content.get("fewtokens_model") == "tokenizer":
        tokenizer = _load_own(path, content, str(folder))
    else:
        tokenizer = load_released(path, content)
    tokenizer.origin = {"folder": str(path.resolve() if Path(folder).exists() else folder)}
    return tokenizer.to(pick_device(device)).eval()


def _load_own(path: Path, content: dict[str, Any], where: str) -> Tokenizer:
    """Loads a folder of `Tokenizer.save_pretrained`."""
    config: _Config = content["config"]
    kind = get_preset(config["preset"]).kind if config["preset"] else Tokenizer
    networks = conform(content.get("networks", {}), dict[str, dict[str, Any]], f"{path / 'config.json'}: networks")
    with build_from(networks), weights_follow():
        tokenizer = kind.from_spec(config["spec"], window=config["window"])
    tokenizer.title = config["preset"]
    tensors, _ = files.load(path / "model.safetensors", "tokenizer")
    files.check_fit(tokenizer.state_dict(), tensors, f"{where}: does not fit {config['spec']!r}")
    tokenizer.load_state_dict(tensors)
    # Saved in half precision, it has the codes and the fingerprint of that.
    dtypes = {tensors[name].dtype for name, _ in tokenizer.named_parameters()}
    return tokenizer.to(dtypes.pop()) if len(dtypes) == 1 else tokenizer


def _locate(folder: str | Path) -> Path:
    """The folder or file of a tokenizer, downloaded if it is a hub id; checkpoints only if there is no config.json."""
    if Path(folder).exists():
        return Path(folder)
    path = from_hub(str(folder))
    return path if (path / "config.json").is_file() else from_hub(str(folder), [f"*{suffix}" for suffix in SUFFIXES])


def _read_config(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """Returns the local path of a tokenizer and the checked content of its config.json, empty for a checkpoint."""
    path = _locate(folder)
    if find_checkpoint(path):
        return path, {}
    content = read_json(path / "config.json")
    if content.get("fewtokens_model") == "tokenizer":
        conform(content.get("config"), _Config, f"{path / 'config.json'}: config")
    elif not is_released(content):
        raise ValueError(f"{folder}: not a folder of a tokenizer (config.json of kind tokenizer)")
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
        content = _read_config(name)[1]
        preset = content["config"]["preset"] if content.get("fewtokens_model") == "tokenizer" else ""
    return get_preset(preset).source if preset else Tokenizer.source


def _is_saved(name: str | Path) -> bool:
    """Whether this names a path or a hub id, not a preset or spec."""
    text = str(name)
    return ">" not in text and (Path(text).exists() or "/" in text)


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
