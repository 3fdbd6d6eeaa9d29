"""Presets for pre-training an encoder: the published settings, and small ones that run on a laptop.

`tobo_vit_s16_k400`, `mae_vit_b16_k400`, ... are the published ones; `tobo_tiny`, `rsp_tiny`, ... are ours. A name is an
objective (tobo, mae, siam_mae, rsp, crop_mae), then a size (vit_s16, vit_b16, vit_l16) and k400, or tiny.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from fewtokens.data.pairs import Pairing
from fewtokens.encoders.config import rename_hint
from fewtokens.networks import SIZES
from fewtokens.networks.base import make_config
from fewtokens.networks.pretrained import PRETRAINING
from fewtokens.train.settings import Settings, setting_values

OBJECTIVES = tuple(PRETRAINING)
_MODES = {"mae": "frame", "crop_mae": "crops"}


@dataclass(frozen=True)
class PretrainingRecipe(Settings):
    """Settings of pre-training on videos: of the loop, the data and the network.

    Attributes:
        objective: one of `OBJECTIVES`.
        lr: learning rate; 0 means base_lr * batch / 256. A batch counts videos, not their repeats.
        base_lr: learning rate for a batch of 256.
        size: side of the crop in pixels.
        short: short side in pixels before the crop; 0 keeps the size of the frames.
        min_gap, max_gap: distance between source and target in frames.
        area: range of the area of a random crop, as a fraction of the frame.
        local: range of the area of the target, as a fraction of the source (crop_mae).
        flip: probability of a horizontal flip.
        repeats: samples per decoded video.
        visits: visits of each video per epoch.
        network: settings of the network's config.
        shown: samples of the fixed batch that is evaluated during training.
        note: origin and cost of the published settings.
    """

    objective: str = "tobo"
    lr: float = 0.0
    base_lr: float = 1.5e-4
    beta2: float = 0.95
    warmup: float = 0.1
    clip: float = 0.0
    size: int = 224
    short: int = 0
    min_gap: int = 1
    max_gap: int = 96
    area: tuple[float, float] = (0.5, 1.0)
    local: tuple[float, float] = (0.3, 0.6)
    flip: float = 0.5
    repeats: int = 1
    visits: int = 1
    shown: int = 6
    network: dict[str, Any] = field(default_factory=dict)
    note: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"the objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}")
        if self.lr == 0 and self.base_lr > 0:
            object.__setattr__(self, "lr", self.base_lr * self.batch / 256)
        super().__post_init__()
        for name in ("area", "local"):
            object.__setattr__(self, name, getattr(self.pairing, name))
        self.config()

    @property
    def pairing(self) -> Pairing:
        """The settings for sampling frames from videos."""
        return Pairing(
            mode=_MODES.get(self.objective, "pair"),
            **{each.name: getattr(self, each.name) for each in fields(Pairing) if each.name not in ("mode", "length")},
        )

    def config(self) -> Any:
        """The network's config."""
        return make_config(
            PRETRAINING[self.objective], {**self.network, "image_size": (self.size, self.size)}, self.objective
        )

    def lr_at(self, step: int, total: int) -> float:
        """The learning rate of a step, counted from 0; the warmup starts at 0, as in the published code."""
        warmup = self.warmup_steps(total)
        return self.lr * step / warmup if step < warmup else super().lr_at(step, total)


_K400: dict[str, Any] = {
    "batch": 1536, "accumulate": 8, "epochs": 200, "warmup": 0.1, "weight_decay": 0.05, "precision": "fp16",
    "repeats": 2, "workers": 12, "eval_every": 5, "log_every": 50,
}  # fmt: skip
# CropMAE's scripts, also of its re-implementation of SiamMAE: one sample per video.
_CROP: dict[str, Any] = {"batch": 2048, "epochs": 400, "repeats": 1, "base_lr": 1e-4, "warmup": 0.05}
_PUBLISHED: dict[str, dict[str, Any]] = {
    "tobo": {
        **_K400, "max_gap": 96,
        "note": "Token Bottleneck's code: 240,000 videos of Kinetics-400, 8 GPUs; the paper's 400 epochs are 200 "
                "passes with 2 pairs per decoded video. About 17.6 GMACs per pair and pass for ViT-S/16. The paper "
                "samples gaps of 4 to 96 frames (--set min_gap=4).",
    },
    "mae": {**_K400, "repeats": 2, "note": "MAE on single frames of Kinetics-400, with the settings of the others."},
    "siam_mae": {
        **_K400, **_CROP, "min_gap": 4, "max_gap": 47,
        "note": "SiamMAE has no official code; these are the settings of CropMAE's re-implementation, 16 GPUs. Its "
                "gaps are below 48 frames.",
    },
    "rsp": {**_K400, "min_gap": 4, "max_gap": 48, "note": "RSP's code: 8 GPUs; about twice the time of ToBo per step."},
    "crop_mae": {
        **_K400, **_CROP,
        "note": "CropMAE's settings for Kinetics-400, 16 GPUs; two crops of one frame per video.",
    },
}  # fmt: skip
# CropMAE's re-implementation scales its decoder with the encoder.
_CROP_DECODERS = {"s": (256, 4, 8), "b": (512, 8, 16), "l": (1024, 12, 16)}
_TINY: dict[str, Any] = {
    "steps": 3000, "batch": 64, "lr": 1e-3, "size": 64, "visits": 256, "log_every": 20, "eval_every": 5.0,
    "save_every": 200, "workers": 1, "max_gap": 8, "area": (0.3, 1.0),
    "note": "ours: dim 192, 6 blocks, 64 px, patches of 8 px. About 0.8 s per step on 2 cores, 0.5 s with --set "
            "precision=bf16 if the CPU supports it; frames decoded in advance (fewtokens train frames) avoid waiting.",
}  # fmt: skip
_TINY_NETWORK: dict[str, Any] = {
    "dim": 192, "depth": 6, "num_heads": 3, "patch_size": 8, "decoder_dim": 128, "decoder_depth": 3,
    "decoder_num_heads": 4,
}  # fmt: skip
# Of 64 patches the same number is visible as of 196 in the papers (19, 9, 2): a tenth of 64 would be 6. See
# docs/studies/tobo.md.
_TINY_MASKS = {"tobo": 0.7, "siam_mae": 0.85, "crop_mae": 0.96}
_NAME = re.compile(rf"({'|'.join(sorted(OBJECTIVES, key=len, reverse=True))})_(?:vit_([sbl])(\d+)_k400|tiny)")


def preset_names() -> list[str]:
    """Returns the names of the listed presets."""
    sizes = ("tiny", *(f"vit_{size}16_k400" for size in _CROP_DECODERS))
    return [f"{objective}_{size}" for objective in OBJECTIVES for size in sizes]


def make_pretraining(preset: str, **changes: Any) -> PretrainingRecipe:
    """Returns a preset with changes to the recipe or to the network's config.

    Raises:
        ValueError: an unknown preset or setting, or a value out of range.
    """
    match = _NAME.fullmatch(preset)
    if match is None:
        raise ValueError(f"no preset called {preset!r}; available: {', '.join(preset_names())}")
    objective, size, patch = match.groups()
    if size is None:
        recipe, network = dict(_TINY), dict(_TINY_NETWORK)
        if objective in _TINY_MASKS:
            network["mask_ratio"] = _TINY_MASKS[objective]
    else:
        recipe = dict(_PUBLISHED[objective])
        dim, depth, num_heads = SIZES[size]
        network = {"dim": dim, "depth": depth, "num_heads": num_heads, "patch_size": int(patch)}
        if objective in ("siam_mae", "crop_mae"):
            network |= dict(
                zip(("decoder_dim", "decoder_depth", "decoder_num_heads"), _CROP_DECODERS[size], strict=True)
            )
    accepted = {each.name for each in fields(PretrainingRecipe)} - {"network", "objective", "note"}
    network_values = network_settings(objective)
    if unknown := sorted(set(changes) - accepted - network_values.keys()):
        available = ", ".join(sorted(accepted | network_values.keys()))
        hint = (
            rename_hint(unknown, set(network_values))
            or f"{objective} has no setting {', '.join(unknown)}; available: {available}"
        )
        raise ValueError(hint)
    if "epochs" in changes and "steps" not in changes:
        recipe["steps"] = 0
    if "base_lr" in changes and "lr" not in changes:
        recipe["lr"] = 0.0
    for name, value in changes.items():
        if name not in network_values or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        low, high = (min(1, network_values[name]), 65536) if isinstance(network_values[name], int) else (0, 1e6)
        if not low <= value <= high:
            raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {value}")
    recipe |= {name: value for name, value in changes.items() if name in accepted}
    network |= {name: value for name, value in changes.items() if name in network_values}
    return PretrainingRecipe(**recipe, objective=objective, network=network)


def network_settings(objective: str) -> Mapping[str, Any]:
    """Returns the settings of an objective's network with their defaults; its size is the recipe's."""
    return setting_values(PRETRAINING[objective].config_type(), exclude=("image_size",))


def accepted_settings(objective: str) -> Mapping[str, Any]:
    """Returns every setting that --set accepts, with a value of its type."""
    recipe = setting_values(PretrainingRecipe(objective=objective), exclude=("network", "objective", "note"))
    return {**recipe, **network_settings(objective)}
