"""Networks in folders: loaded, and told about."""

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


def describe(model: Model) -> dict[str, Any]:
    """Plain values: kind, parameters, config."""
    return {
        "kind": model.kind,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "config": vars(model.config),
    }


def is_saved(folder: str | Path) -> bool:
    """Whether a folder holds a network that `load` gives; pre-trained encoders are for `fewtokens.load_encoder`."""
    try:
        return read_config(folder)["fewtokens_model"] in KINDS
    except ValueError:
        return False


def load(folder: str | Path, **changes: Any) -> Model:
    """A network from a folder written by `save_pretrained`, in eval mode.

    Args:
        folder: where.
        changes: settings that differ and change no shape, such as head or fuser_mix.

    Raises:
        ValueError: what is missing, cut short, or does not fit, in one line.
    """
    said = read_config(folder)
    kind = KINDS.get(said["fewtokens_model"])
    if kind is None:
        raise ValueError(f"{folder}: holds a {files.in_a_line(said['fewtokens_model'])!r}; known: {', '.join(KINDS)}")
    config = make_config(kind, said["config"] | changes, str(folder))
    tensors, _ = files.load(Path(folder) / "model.safetensors", "model")
    return restore(kind, config, tensors, str(folder))


class Trained(TypedDict, total=False):
    """How a network was trained, as far as it matters to who uses it."""

    size: int
    resize: int
    frames: int
    stride: int
    fps: float | None
    seed: int
    held_back: float | None


class Meta(TypedDict, total=False):
    """What is read of what was saved beside a config."""

    labels: list[str]
    multi_label: bool
    trained: Trained


def meta(folder: str | Path) -> Mapping[str, Any]:
    """What was saved beside the config: class names, how it was trained.

    Raises:
        ValueError: no saved model, or something else by these names.
    """
    said = {name: value for name, value in read_config(folder).items() if name not in ("fewtokens_model", "config")}
    return conform(said, Meta, str(Path(folder) / "config.json"))


def preset_kind(name: str) -> str:
    """The kind of network behind a name or the folder of a saved model."""
    if Path(name).is_dir():
        return str(read_config(name)["fewtokens_model"])
    return preset(name)[0].kind
