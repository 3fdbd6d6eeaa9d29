"""Pre-training networks by name, saved ones again, and what remains of them: the encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewtokens.core import files
from fewtokens.encoders.vit import ViT
from fewtokens.encoders.weights import filled
from fewtokens.networks.base import make_config, read_config, restore, save_model
from fewtokens.networks.pretraining import CropMae, Mae, Pretraining, SiamMae, ToBo
from fewtokens.networks.rsp import Rsp

PRETRAINING: dict[str, type[Pretraining]] = {each.kind: each for each in (ToBo, Mae, SiamMae, Rsp, CropMae)}
_ENCODER = "encoder."


def is_pretrained(folder: str | Path) -> bool:
    """Whether a folder holds a pre-trained network, or what remains of it."""
    try:
        return read_config(folder)["fewtokens_model"] in PRETRAINING
    except ValueError:
        return False


def load_pretraining(folder: str | Path) -> Pretraining:
    """A whole network, to train it further or to look at what it predicts; in eval mode.

    Raises:
        ValueError: another kind of folder, or one that holds the encoder alone.
    """
    kind, config = _described(folder)
    tensors, _ = files.load(Path(folder) / "model.safetensors", "model")
    if all(name.startswith(_ENCODER) for name in tensors):
        raise ValueError(f"{folder}: holds the encoder alone, without its decoder; fewtokens.load_encoder loads it")
    model = restore(kind, config, tensors, str(folder))
    assert isinstance(model, Pretraining)
    return model


def load_pretrained_vit(folder: str | Path) -> ViT:
    """The encoder of a saved network, float32, in eval mode; the decoder's tensors may be missing."""
    _, config = _described(folder)
    tensors, _ = files.load(Path(folder) / "model.safetensors", "model")
    state = {name.removeprefix(_ENCODER): value for name, value in tensors.items() if name.startswith(_ENCODER)}
    if config.depth > len(state):
        raise ValueError(f"{folder}: its config says {config.depth} blocks, which its {len(state)} tensors do not hold")
    # Features of merged tokens were never seen in training, so sizes do not weigh (ToMe, section 4).
    return filled(config.encoder(), state, "none", f"{folder}: does not fit its config.json")


def save_encoder(model: Pretraining, folder: str | Path, **meta: Any) -> Path:
    """Saves what remains after pre-training: as `save_pretrained`, without the decoder.

    Args:
        model: trained.
        folder: made if needed.
        meta: plain values kept beside the config.
    """
    state = {name: value for name, value in model.state_dict().items() if name.startswith(_ENCODER)}
    return save_model(model, state, folder, meta)


def _described(folder: str | Path) -> tuple[type[Pretraining], Any]:
    said = read_config(folder)
    kind = PRETRAINING.get(said["fewtokens_model"])
    if kind is None:
        raise ValueError(
            f"{folder}: holds a {files.in_a_line(said['fewtokens_model'])!r}, not one of {', '.join(PRETRAINING)}"
        )
    return kind, make_config(kind, said["config"], str(folder))
