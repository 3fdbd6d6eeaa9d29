"""Loading and saving of pre-training networks and of their encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewtokens.core import files
from fewtokens.encoders.vit import ViT
from fewtokens.encoders.weights import build_vit
from fewtokens.networks.base import make_config, read_config, restore, save_model
from fewtokens.networks.pretraining import CropMae, Mae, Pretraining, SiamMae, ToBo
from fewtokens.networks.rsp import Rsp

PRETRAINING: dict[str, type[Pretraining]] = {network.kind: network for network in (ToBo, Mae, SiamMae, Rsp, CropMae)}
_ENCODER = "encoder."


def is_pretrained(folder: str | Path) -> bool:
    """Whether a folder contains a pre-training network or its encoder."""
    try:
        return read_config(folder)["fewtokens_model"] in PRETRAINING
    except ValueError:
        return False


def load_pretraining(folder: str | Path) -> Pretraining:
    """Loads a complete pre-training network, to continue training or inspect its predictions; in eval mode.

    Raises:
        ValueError: not such a folder, or it contains only the encoder.
    """
    kind, config = _read(folder)
    tensors, _ = files.load(Path(folder) / "model.safetensors", "model")
    if all(name.startswith(_ENCODER) for name in tensors):
        raise ValueError(f"{folder}: contains only the encoder, no decoder; load it with fewtokens.load_encoder")
    model = restore(kind, config, tensors, str(folder))
    assert isinstance(model, Pretraining)
    return model


def load_pretrained_vit(folder: str | Path) -> ViT:
    """Loads the encoder of a pre-training network, float32, in eval mode; the decoder may be missing."""
    _, config = _read(folder)
    tensors, _ = files.load(Path(folder) / "model.safetensors", "model")
    state = {name.removeprefix(_ENCODER): value for name, value in tensors.items() if name.startswith(_ENCODER)}
    if config.depth > len(state):
        raise ValueError(f"{folder}: the config has {config.depth} blocks, which do not fit in {len(state)} tensors")
    # Trained without merged tokens, so attention does not weight them by size (ToMe, section 4).
    return build_vit(config.encoder(), state, "none", f"{folder}: does not fit its config.json")


def save_encoder(model: Pretraining, folder: str | Path, **meta: Any) -> Path:
    """Saves the encoder of a pre-training network; as `save_pretrained`, without the decoder.

    Args:
        model: trained network.
        folder: output folder, created if needed.
        meta: JSON values to store next to the config.
    """
    state = {name: value for name, value in model.state_dict().items() if name.startswith(_ENCODER)}
    return save_model(model, state, folder, meta)


def _read(folder: str | Path) -> tuple[type[Pretraining], Any]:
    content = read_config(folder)
    kind = PRETRAINING.get(content["fewtokens_model"])
    if kind is None:
        raise ValueError(
            f"{folder}: must be one of {', '.join(PRETRAINING)}, got {files.one_line(content['fewtokens_model'])!r}"
        )
    return kind, make_config(kind, content["config"], str(folder))
