"""Loading and describing saved networks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from fewtokens.core import files
from fewtokens.core.plain import conform
from fewtokens.networks.base import Model, make_config, read_config, restore
from fewtokens.networks.presets import preset
from fewtokens.networks.vit import VisionTransformer
from fewtokens.networks.x2plus1d import X2plus1d

KINDS: dict[str, type[Model]] = {"vit": VisionTransformer, "x2plus1d": X2plus1d}
"""The class of each type of network, by its name in config files."""


def describe(model: Model) -> dict[str, Any]:
    """Returns kind, number of parameters and config as a dict."""
    return {
        "kind": model.kind,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "config": vars(model.config),
    }


def is_saved(folder: str | Path) -> bool:
    """Whether a folder contains a network for `load`; pre-trained encoders are loaded with `fewtokens.load_encoder`."""
    try:
        return read_config(folder)["fewtokens_model"] in KINDS
    except ValueError:
        return False


def load(folder: str | Path, **changes: Any) -> Model:
    """Loads a network from a folder written by `save_pretrained`, in eval mode.

    Args:
        folder: path of the folder.
        changes: settings to override that change no tensor shape, such as head or fuser_mix.

    Raises:
        ValueError: a file is missing, truncated or does not fit; one line.
    """
    content = read_config(folder)
    kind = KINDS.get(content["fewtokens_model"])
    if kind is None:
        raise ValueError(
            f"{folder}: must be one of {', '.join(KINDS)}, got {files.one_line(content['fewtokens_model'])!r}"
        )
    config = make_config(kind, content["config"] | changes, str(folder))
    tensors, _ = files.load(Path(folder) / "model.safetensors", "model")
    return restore(kind, config, tensors, str(folder))


class Trained(TypedDict, total=False):
    """Training settings that matter for inference."""

    size: int
    resize: int
    frames: int
    stride: int
    fps: float | None
    seed: int
    held_back: float | None


class Meta(TypedDict, total=False):
    """Metadata stored next to a config."""

    labels: list[str]
    multi_label: bool
    trained: Trained


def read_meta(folder: str | Path) -> Mapping[str, Any]:
    """Reads the metadata stored next to a config: class names, training settings.

    Raises:
        ValueError: not a saved model, or metadata of a wrong type.
    """
    stored = {name: value for name, value in read_config(folder).items() if name not in ("fewtokens_model", "config")}
    return conform(stored, Meta, str(Path(folder) / "config.json"))


def preset_kind(name: str) -> str:
    """Returns the network type of a preset name or the folder of a saved model."""
    if Path(name).is_dir():
        return str(read_config(name)["fewtokens_model"])
    return preset(name)[0].kind
