"""What all networks share: a config, saving, loading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from fewtokens import files
from fewtokens.encode.weights import read_json


class Model(nn.Module):
    """A network with a config that builds it again.

    Class attributes:
        kind: its name in files.
        config_type: the dataclass of its config.
    """

    kind: ClassVar[str] = ""
    config_type: ClassVar[Any] = None
    features: Callable[[Tensor], Tensor]  # what the classifier sees, [B,C]; frames as `forward` takes them
    checkpointing: bool  # recompute activations in the backward pass instead of keeping them

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @property
    def classifier(self) -> nn.Linear:
        """The last layer."""
        return self.head  # type: ignore[return-value]

    def save_pretrained(self, folder: str | Path, **meta: Any) -> Path:
        """Writes config.json and model.safetensors, both or none.

        Args:
            folder: made if needed.
            meta: plain values kept beside the config: class names, the run that trained it.

        Raises:
            OSError: the disk is full, or the folder cannot be written to; what it held before is still there.
        """
        return save_model(self, self.state_dict(), folder, meta)


def save_model(model: Model, state: dict[str, Tensor], folder: str | Path, meta: dict[str, Any]) -> Path:
    """Writes a model with these of its parameters; see `Model.save_pretrained`."""
    with files.whole_folder(folder, last="config.json") as place:
        files.save(place / "model.safetensors", "model", state, {"model": model.kind})
        config = {"fewtokens_model": model.kind, "config": asdict(model.config), **meta}
        files.write_json(place / "config.json", config)
    return Path(folder)


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of a saved model.

    Raises:
        ValueError: none there, or not one of a model of ours.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no config.json, so not a saved model")
    said = read_json(path)
    if "fewtokens_model" not in said or not isinstance(said.get("config"), dict):
        raise ValueError(f"{path}: not the config of a model of fewtokens")
    return said


def make_config(kind: type[Model], values: dict[str, Any], where: str) -> Any:
    """The config dataclass from plain values; a ValueError in the name of `where` for unknown or bad ones."""
    known = {field.name for field in fields(kind.config_type)}
    if unknown := set(values) - known:
        raise ValueError(f"{where}: unknown settings {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
    try:
        return kind.config_type(**values)
    except (TypeError, ArithmeticError) as error:  # a number that is none, or 0 where something is divided by it
        raise ValueError(f"{where}: {error}") from None


def fill(model: Model, tensors: dict[str, Tensor], where: str) -> Model:
    """Loads parameters; a ValueError that names what is missing, left over or of another shape."""
    files.check_fit(model.state_dict(), tensors, f"{where}: does not fit this {model.kind}")
    model.load_state_dict(tensors)
    return model
