"""Training settings, and the published ones as presets."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fewtokens.core.files import write_json
from fewtokens.core.plain import conform
from fewtokens.encoders.config import rename_hint

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("no", "bf16", "fp16")


# The maximum of numbers that `RANGES` does not list; their minimum is 0. No useful value is larger.
HUGE = 1e9
RANGES: dict[str, tuple[float, float]] = {
    "epochs": (0, 1e6), "batch": (1, 1e6), "accumulate": (1, 1e6), "lr": (0, 1e30), "lr_end": (0, 1e30),
    "momentum": (0, 1), "beta1": (0, 1 - 1e-9), "beta2": (0, 1 - 1e-9), "ema": (0, 1 - 1e-9),
    "seed": (-(2.0**63), 2.0**63),
    "workers": (0, 1024), "log_every": (1, HUGE), "size": (1, 16384), "resize": (0, 16384), "short": (0, 16384),
    "frames": (1, 16384), "stride": (1, 1e6), "fps": (0, 1e4), "flip": (0, 1), "gray": (0, 1), "area": (0, 1),
    "label_smoothing": (0, 1 - 1e-9), "head_bias": (-HUGE, HUGE), "clips": (1, 1024), "crops": (1, 1024),
    "repeats": (1, 1024), "visits": (1, 1e6), "shown": (2, 1024),
}  # fmt: skip


def total_steps(epochs: float, steps: int, items: int, batch: int) -> int:
    """Returns the number of optimizer steps: `steps` if above 0, otherwise that of `epochs`."""
    return steps or max(1, round(epochs * items / batch))


@dataclass(frozen=True)
class Settings:
    """Settings of the training loop, the same for every objective.

    Attributes:
        epochs: passes over the data; may be fractional.
        steps: optimizer steps; replaces epochs if above 0.
        batch: samples per optimizer step, over all processes and accumulated parts.
        accumulate: number of parts in which a batch is computed.
        optimizer: sgd, adam or adamw.
        lr: maximum learning rate.
        momentum: momentum of sgd.
        beta1, beta2: betas of adam and adamw.
        weight_decay: weight decay; parameters with one dimension (norms, biases) are not decayed.
        schedule: cosine, linear or constant.
        warmup: linear warmup in steps, or as a fraction of all steps if below 1.
        lr_end: learning rate at the end of the schedule.
        rates: factors of `lr` for parts of the network, by the first component of their parameters' names; 0 freezes a
            part.
        clip: maximum norm of the gradient; 0 is off.
        ema: decay of the averaged weights, which are evaluated and saved; 0 is off.
        precision: no (float32), bf16 or fp16 (with loss scaling).
        compile: use torch.compile.
        checkpointing: recompute activations in the backward pass.
        shard: shard parameters, gradients and optimizer over the processes (FSDP2) instead of copying them (DDP).
        seed: random seed.
        workers: processes that load data; 0 loads in the main process.
        save_every: steps between checkpoints; 0 means once per epoch.
        save_minutes: minutes between checkpoints, in addition to save_every; 0 is off.
        eval_every: epochs between evaluations; 0 means only at the end.
        log_every: steps between lines of metrics.jsonl.
        tensorboard: also write TensorBoard event files.
    """

    epochs: float = 10
    steps: int = 0
    batch: int = 64
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-3
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.05
    schedule: str = "cosine"
    warmup: float = 0.05
    lr_end: float = 0.0
    rates: dict[str, float] = field(default_factory=dict)
    clip: float = 1.0
    ema: float = 0.0
    precision: str = "no"
    compile: bool = False
    checkpointing: bool = False
    shard: bool = False
    seed: int = 0
    workers: int = 2
    save_every: int = 0
    save_minutes: float = 5
    eval_every: float = 1
    log_every: int = 10
    tensorboard: bool = False

    def __post_init__(self) -> None:
        self.check_values()
        for name, allowed in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} must be a multiple of accumulate {self.accumulate}")
        if not self.steps and self.epochs <= 0:
            raise ValueError(f"epochs must be above 0, got {self.epochs}")
        if self.lr <= 0:
            raise ValueError(f"lr must be above 0, got {self.lr}")
        if any(not 0 <= rate <= HUGE for rate in self.rates.values()):
            raise ValueError(f"rates must be at least 0, got {self.rates}")
        if self.shard and self.precision == "fp16":
            raise ValueError(
                "shard requires precision bf16 or no, got fp16, whose loss scaling is not supported with sharding"
            )

    def check_values(self) -> None:
        """Raises a ValueError if a value has the wrong type, is not finite, or is outside `RANGES`."""
        conform(dataclasses.asdict(self), type(self), "settings")
        for each in fields(self):
            value = getattr(self, each.name)
            # A bool is not a number here.
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, bool) or not isinstance(number, int | float):
                    continue
                low, high = RANGES.get(each.name, (0, HUGE))
                if not low <= number <= high:
                    raise ValueError(f"{each.name} must be in [{low:g}, {high:g}], got {number:g}")

    def total(self, items: int) -> int:
        """Returns the number of optimizer steps for a number of items."""
        return total_steps(self.epochs, self.steps, items, self.batch)

    def warmup_steps(self, total: int) -> int:
        """Returns the number of warmup steps."""
        return round(self.warmup * total) if self.warmup < 1 else int(self.warmup)

    def lr_at(self, step: int, total: int) -> float:
        """Returns the learning rate of a step, counted from 0."""
        warmup = self.warmup_steps(total)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        progress = (step - warmup) / max(1, total - warmup)
        if self.schedule == "cosine":
            return self.lr_end + (self.lr - self.lr_end) * 0.5 * (1 + math.cos(math.pi * progress))
        return self.lr if self.schedule == "constant" else self.lr + (self.lr_end - self.lr) * progress


@dataclass(frozen=True)
class Recipe(Settings):
    """Settings of classification of images or videos: of the loop, the data and the loss.

    Attributes:
        size: side of the crop in pixels.
        resize: short side in pixels before the crop; 0 means size.
        scale: range of the random scale of the short side (videos).
        area: range of the area of a random crop, as a fraction of the image (images).
        flip: probability of a horizontal flip.
        color: probability of color jitter.
        gray: probability of conversion to grayscale.
        frames: frames per clip.
        stride: frames from one frame of a clip to the next.
        fps: frames per second of a clip; replaces stride if above 0.
        loss: softmax (cross-entropy) or sigmoid (binary cross-entropy per class); items with several classes always use
            sigmoid.
        label_smoothing: fraction of a target that is spread over all classes.
        mixup, cutmix: alphas of their Beta distributions; 0 is off.
        head_bias: initial bias of a new head; use -10 with sigmoid over many classes.
        freeze: train only the last layer.
        clips, crops: views per item in the final test: clips in time, crops in space.
        keep: keep decoded images in memory.
        note: origin and cost of the published settings.
    """

    size: int = 224
    resize: int = 0
    scale: tuple[float, float] = (1.0, 1.0)
    area: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.5
    color: float = 0.0
    gray: float = 0.0
    frames: int = 1
    stride: int = 1
    fps: float = 0.0
    loss: str = "softmax"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    head_bias: float = 0.0
    freeze: bool = False
    clips: int = 1
    crops: int = 1
    keep: bool = False
    note: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("scale", "area"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.loss not in ("softmax", "sigmoid"):
            raise ValueError(f"loss must be softmax or sigmoid, got {self.loss!r}")
        for name in ("scale", "area"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be a range above 0, got {low} and {high}")


# The published settings. Batches are global; lower `batch` and `lr` together on a smaller machine.
PRESETS: dict[str, dict[str, Any]] = {
    "small": {
        "note": "ours: a small network on a small data set, from scratch; minutes on a CPU",
    },
    "imagenet_finetune": {
        "epochs": 8, "batch": 512, "optimizer": "sgd", "lr": 0.03, "weight_decay": 0.0, "warmup": 500,
        "size": 384, "area": (0.05, 1.0), "precision": "bf16",
        "note": "TokenLearner and ViT: 20,000 steps at 384 px (512 for L) on 32 TPU cores; lr swept over "
                "0.003, 0.01, 0.03, 0.06; EMA of 0.9999 for L at 512. Starts from a pre-trained network (in the papers "
                "on JFT).",
    },
    "imagenet_scratch": {
        "epochs": 90, "batch": 4096, "optimizer": "adamw", "lr": 5e-3, "weight_decay": 0.3, "schedule": "linear",
        "lr_end": 1e-5, "warmup": 10000, "size": 224, "area": (0.05, 1.0), "loss": "sigmoid", "head_bias": -10.0,
        "precision": "bf16",
        "note": "the only released configuration (B/16, version 1.1, 16 tokens at 9); no accuracy was published; "
                "the Adam of flax decays weights as AdamW",
    },
    "kinetics": {
        "epochs": 30, "batch": 64, "optimizer": "sgd", "lr": 0.05, "weight_decay": 0.0, "warmup": 1 / 12,
        "size": 224, "resize": 256, "scale": (0.9, 1.33), "color": 0.8, "gray": 0.1, "frames": 32, "stride": 2,
        "clips": 4, "crops": 3, "precision": "bf16", "workers": 8,
        "note": "TokenLearner in ViViT (lr 0.05; ViViT itself 0.1), from a pre-trained image network; 32 TPU cores, "
                "no weight decay, smoothing or dropout; tested on 4 clips x 3 crops",
    },
    "charades": {
        "steps": 100000, "batch": 256, "optimizer": "sgd", "lr": 0.8, "weight_decay": 0.0, "loss": "sigmoid",
        "size": 224, "resize": 256, "scale": (1.0, 1.25), "frames": 64, "fps": 12.0, "clips": 10, "precision": "bf16",
        "workers": 8,
        "note": "X(2+1)D-M from scratch: about 16 hours on 32 TPUv3 cores; the paper gives lr 0.8 per core of 4 "
                "clips, used here for the full batch",
    },
    "avid": {
        "steps": 100000, "batch": 512, "optimizer": "sgd", "lr": 0.025, "weight_decay": 0.0, "label_smoothing": 0.2,
        "size": 224, "resize": 256, "scale": (1.0, 1.25), "frames": 64, "stride": 2, "precision": "bf16", "workers": 8,
        "note": "X(2+1)D-M from scratch, about 125 epochs; the paper gives lr 0.025 per core of 8 clips",
    },
}  # fmt: skip


def make_recipe(preset: str = "small", **changes: Any) -> Recipe:
    """Returns a preset with changes.

    Raises:
        ValueError: an unknown preset or setting, or a value out of range.
    """
    if preset not in PRESETS:
        raise ValueError(f"no recipe called {preset!r}; available: {', '.join(PRESETS)}")
    allowed = {each.name for each in fields(Recipe)}
    if unknown := set(changes) - allowed:
        raise ValueError(f"unknown settings {', '.join(sorted(unknown))}; available: {', '.join(sorted(allowed))}")
    if "epochs" in changes and "steps" not in changes:
        changes["steps"] = 0
    return Recipe(**(PRESETS[preset] | changes))


def parse_setting(text: str, allowed: Mapping[str, Any] | None = None) -> tuple[str, Any]:
    """Parses one "name=value" of the command line into the type of the setting.

    Args:
        text: such as "lr=0.01".
        allowed: the settings, with a value of each. Default: those of classification.

    Raises:
        ValueError: not of this form, an unknown setting, or a value of another type.
    """
    name, sign, value = text.partition("=")
    values = setting_values(Recipe()) if allowed is None else allowed
    types = {each: type(value) for each, value in values.items()}
    name = name.strip().replace("-", "_")
    if sign and (hint := rename_hint([name], set(types))):
        raise ValueError(hint)
    if not sign or name not in types:
        raise ValueError(
            f"a setting is written name=value, such as lr=0.01, got {text!r}; available: {', '.join(types)}"
        )
    kind = types[name]
    try:
        if kind is bool:
            return name, {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[value.lower()]
        if kind is dict:
            parts = (part.partition("=") for part in value.split(",") if part)
            return name, {part.strip(): float(rate) for part, _, rate in parts}
        if kind is tuple:
            low, high = (float(part) for part in value.strip("()[] ").split(","))
            return name, (low, high)
        return name, kind(value)
    except (ValueError, KeyError):
        raise ValueError(f"{name} must be of type {kind.__name__}, got {value!r}") from None


def setting_values(settings: Any, exclude: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the fields of a dataclass except some; whole numbers of float fields as floats."""
    return {
        each.name: float(getattr(settings, each.name)) if each.type == "float" else getattr(settings, each.name)
        for each in fields(settings)
        if each.name not in exclude
    }


def plain(settings: Settings) -> dict[str, Any]:
    """Returns the settings as they are read back from JSON."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def write_settings(settings: Settings, path: Path) -> None:
    write_json(path, dataclasses.asdict(settings))
