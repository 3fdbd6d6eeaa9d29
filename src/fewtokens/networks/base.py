"""The base class of all networks: config, saving, loading."""

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
from fewtokens.encoders.config import OLD_NAMES, check_names, current_names
from fewtokens.encoders.weights import read_json


class Model(Pushable, nn.Module):
    """A network that can be rebuilt from its config.

    Class attributes:
        kind: name of the network type in saved files.
        config_type: dataclass of the config.
    """

    kind: ClassVar[str] = ""
    config_type: ClassVar[Any] = None
    features: Callable[[Tensor], Tensor]  # input of the classifier, [B,C], from the same frames as `forward`
    checkpointing: bool  # recompute activations in the backward pass instead of keeping them

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @property
    def classifier(self) -> nn.Linear:
        """The last layer."""
        return self.head  # type: ignore[return-value]

    def version_error(self, tensors: Mapping[str, Tensor]) -> str:
        """Returns an error message if tensors are of an incompatible earlier version, otherwise ""."""
        return ""

    def save_pretrained(self, folder: str | Path, **meta: Any) -> Path:
        """Writes config.json and model.safetensors, both or neither.

        Args:
            folder: output folder, created if needed.
            meta: JSON values to store next to the config, such as class names or training settings.

        Returns:
            The folder.

        Raises:
            OSError: the disk is full or the folder is not writable; its previous content is unchanged.
        """
        return save_model(self, self.state_dict(), folder, meta)


def save_model(model: Model, state: dict[str, Tensor], folder: str | Path, meta: dict[str, Any]) -> Path:
    """Writes the config of a model with the tensors `state`; see `Model.save_pretrained`."""
    with files.atomic_folder(folder, last="config.json") as temporary:
        files.save(temporary / "model.safetensors", "model", state, {"model": model.kind})
        config = {"fewtokens_model": model.kind, "config": asdict(model.config), **meta}
        files.write_json(temporary / "config.json", config)
    return Path(folder)


def read_config(folder: str | Path) -> dict[str, Any]:
    """Reads config.json of a saved model.

    Raises:
        ValueError: no such file, or not the config of a fewtokens model.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no config.json, so not a saved model")
    content = read_json(path)
    config = content.get("config")
    if not isinstance(content.get("fewtokens_model"), str) or not isinstance(config, dict):
        raise ValueError(f"{path}: not the config of a fewtokens model")
    # X(2+1)D has a setting named hidden; elsewhere it is the old name of mlp_dim.
    current = current_names({name: value for name, value in config.items() if name != "hidden"})
    if "hidden" in config:
        is_current = content["fewtokens_model"] == "x2plus1d"
        current["hidden" if is_current else OLD_NAMES["hidden"]] = config["hidden"]
    return content | {"config": current}


def make_config(kind: type[Model], values: dict[str, Any], where: str) -> Any:
    """Builds a config dataclass from JSON values.

    Raises:
        ValueError: unknown names or invalid values; the message starts with `where`.
    """
    check_names(values, kind.config_type, where)
    conform(values, kind.config_type, where)
    try:
        return kind.config_type(**values)
    except (
        ValueError,
        TypeError,
        ArithmeticError,
    ) as error:  # for example, division by a setting of 0
        raise ValueError(f"{where}: {str(error)[:300]}") from None


def restore(kind: type[Model], config: Any, tensors: dict[str, Tensor], where: str) -> Model:
    """Builds a network from a config and its tensors, in eval mode.

    It is first built on the meta device, so a config that does not match the tensors allocates no memory.

    Raises:
        ValueError: names the tensors that are missing, unexpected, of another shape, or of an old version.
    """
    if not 0 < config.blocks <= len(tensors):
        raise ValueError(f"{where}: the config has {config.blocks} blocks, which do not fit in {len(tensors)} tensors")
    try:
        with torch.device("meta"):
            empty = kind(config)
    except (RuntimeError, OverflowError) as error:  # impossible tensor sizes
        raise ValueError(
            f"{where}: the network cannot be built from its config ({' '.join(str(error).split())[:200]})"
        ) from None
    check(empty, tensors, where)
    model = kind(config)
    model.load_state_dict(tensors)
    return model.eval()


def check(model: Model, tensors: dict[str, Tensor], where: str) -> None:
    """Raises ValueError if tensors are missing, unexpected, of another shape, or of an old version."""
    if message := model.version_error(tensors):
        raise ValueError(f"{where}: {message}")
    files.check_fit(model.state_dict(), tensors, f"{where}: does not fit this {model.kind}")
