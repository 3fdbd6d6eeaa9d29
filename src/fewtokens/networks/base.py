"""What all networks share: a config, saving, loading."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewtokens.core import files
from fewtokens.core.hub import Pushable
from fewtokens.core.plain import conform
from fewtokens.encoders.config import OLD_NAMES, current_names, refuse_unknown
from fewtokens.encoders.weights import read_json


class Model(Pushable, nn.Module):
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

    def outdated(self, tensors: Mapping[str, Tensor]) -> str:
        """What is wrong with tensors that an earlier version saved and this network cannot hold; "" where nothing."""
        return ""

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
    if not isinstance(said.get("fewtokens_model"), str) or not isinstance(said.get("config"), dict):
        raise ValueError(f"{path}: not the config of a model of fewtokens")
    # X(2+1)D has a setting called hidden of its own.
    current = current_names({name: value for name, value in said["config"].items() if name != "hidden"})
    if "hidden" in said["config"]:
        own = said["fewtokens_model"] == "x2plus1d"
        current["hidden" if own else OLD_NAMES["hidden"]] = said["config"]["hidden"]
    return said | {"config": current}


def make_config(kind: type[Model], values: dict[str, Any], where: str) -> Any:
    """The config dataclass from plain values; a ValueError in the name of `where` for unknown or bad ones."""
    refuse_unknown(values, kind.config_type, where)
    conform(values, kind.config_type, where)
    try:
        return kind.config_type(**values)
    except (
        ValueError,
        TypeError,
        ArithmeticError,
    ) as error:  # 0 where something is divided by it, say
        raise ValueError(f"{where}: {str(error)[:300]}") from None


def restore(kind: type[Model], config: Any, tensors: dict[str, Tensor], where: str) -> Model:
    """A network of this config with these parameters, in eval mode.

    It is built without memory first, so that a config that asks for more than the tensors hold asks for nothing.

    Raises:
        ValueError: what is missing, left over, of another shape, or of an old version.
    """
    if not 0 < config.blocks <= len(tensors):
        raise ValueError(
            f"{where}: its config says {config.blocks} blocks, which its {len(tensors)} tensors do not hold"
        )
    try:
        with torch.device("meta"):
            bare = kind(config)
    except (RuntimeError, OverflowError) as error:  # sizes that no tensor can have
        raise ValueError(f"{where}: its config makes no network ({' '.join(str(error).split())[:200]})") from None
    check(bare, tensors, where)
    model = kind(config)
    model.load_state_dict(tensors)
    return model.eval()


def check(model: Model, tensors: dict[str, Tensor], where: str) -> None:
    """Raises a ValueError that names tensors missing, left over, of another shape, or of an old version."""
    if told := model.outdated(tensors):
        raise ValueError(f"{where}: {told}")
    files.check_fit(model.state_dict(), tensors, f"{where}: does not fit this {model.kind}")
