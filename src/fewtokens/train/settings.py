"""How a run is trained: plain values, and the published settings as presets."""

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
from fewtokens.encoders.config import hint_for

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("no", "bf16", "fp16")


# What a number may be where it is not named here: at least 0, and not so large that nothing real is meant.
HUGE = 1e9
RANGES: dict[str, tuple[float, float]] = {
    "epochs": (0, 1e6), "batch": (1, 1e6), "accumulate": (1, 1e6), "lr": (0, 1e30), "lr_end": (0, 1e30),
    "momentum": (0, 1), "beta1": (0, 1 - 1e-9), "beta2": (0, 1 - 1e-9), "ema": (0, 1 - 1e-9),
    "seed": (-(2.0**63), 2.0**63),
    "workers": (0, 1024), "log_every": (1, HUGE), "size": (1, 16384), "resize": (0, 16384), "short": (0, 16384),
    "frames": (1, 16384), "stride": (1, 1e6), "fps": (0, 1e4), "flip": (0, 1), "grey": (0, 1), "area": (0, 1),
    "label_smoothing": (0, 1 - 1e-9), "head_bias": (-HUGE, HUGE), "clips": (1, 1024), "crops": (1, 1024),
    "repeats": (1, 1024), "visits": (1, 1e6), "shown": (2, 1024),
}  # fmt: skip


def total_steps(epochs: float, steps: int, items: int, batch: int) -> int:
    """Optimizer steps of so many epochs, or of so many `steps` where these are above 0."""
    return steps or max(1, round(epochs * items / batch))


@dataclass(frozen=True)
class Settings:
    """What the loop needs to know; the same for every objective.

    Attributes:
        epochs: passes over the data; may be a part of one.
        steps: optimizer steps, instead of epochs, where above 0.
        batch: samples of one optimizer step, over all processes and accumulated parts.
        accumulate: parts in which a batch is computed.
        optimizer, lr, momentum, beta1, beta2, weight_decay: of it; momentum is SGD's. Norms and biases and what has
            one dimension are not decayed.
        schedule, warmup, lr_end: after `warmup` (a share of the steps below 1, else steps) of linear rise.
        rates: by how much parts of the network, named by the first word of their parameters' names, learn faster or
            slower than `lr`; 0 freezes a part.
        clip: largest norm of the gradient; 0 is off.
        ema: decay of the averaged weights that are evaluated and saved; 0 is off.
        precision: no (float32), bf16 or fp16 (with scaled loss).
        compile: torch.compile.
        checkpointing: recompute activations in the backward pass.
        shard: shard parameters, gradients and optimizer over the processes (FSDP2) instead of copying them (DDP).
        seed: of everything drawn.
        workers: processes that read data; 0 reads in this one.
        save_every: steps between checkpoints; 0 means once an epoch.
        save_minutes: minutes between checkpoints, whatever the steps; 0 is off.
        eval_every: epochs between evaluations; 0 means at the end alone.
        log_every: steps between lines of metrics.jsonl.
        tensorboard: also write its event files.
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
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} must be a multiple of accumulate {self.accumulate}")
        if not self.steps and self.epochs <= 0:
            raise ValueError(f"epochs must be above 0, got {self.epochs}")
        if self.lr <= 0:
            raise ValueError(f"lr must be above 0, got {self.lr}")
        if any(not 0 <= rate <= HUGE for rate in self.rates.values()):
            raise ValueError(f"rates must be at least 0, got {self.rates}")
        if self.shard and self.precision == "fp16":
            raise ValueError("sharding goes with bf16 or float32; fp16 needs a scaled loss, which is not sharded here")

    def check_values(self) -> None:
        """Raises a ValueError where a value has another type than its setting, is not finite or out of `RANGES`."""
        conform(dataclasses.asdict(self), type(self), "settings")
        for each in fields(self):
            value = getattr(self, each.name)
            # True is no number here, and what is called a number elsewhere is unlimited.
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, bool) or not isinstance(number, int | float):
                    continue
                low, high = RANGES.get(each.name, (0, HUGE))
                if not low <= number <= high:
                    raise ValueError(f"{each.name} must be in [{low:g}, {high:g}], got {number:g}")

    def total(self, items: int) -> int:
        """Optimizer steps for so many items."""
        return total_steps(self.epochs, self.steps, items, self.batch)

    def warmup_steps(self, total: int) -> int:
        """Steps in which the learning rate rises."""
        return round(self.warmup * total) if self.warmup < 1 else int(self.warmup)

    def lr_at(self, step: int, total: int) -> float:
        """The learning rate of a step, counted from 0."""
        warmup = self.warmup_steps(total)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        share = (step - warmup) / max(1, total - warmup)
        if self.schedule == "cosine":
            return self.lr_end + (self.lr - self.lr_end) * 0.5 * (1 + math.cos(math.pi * share))
        return self.lr if self.schedule == "constant" else self.lr + (self.lr_end - self.lr) * share


@dataclass(frozen=True)
class Recipe(Settings):
    """Classification of images or videos: the loop's settings, the data's and the loss's.

    Attributes:
        size, resize: crop and short side before it, in pixels; resize 0 is the size.
        scale: jitter of the short side (videos). area: share of a random part (images).
        flip, colour, grey: probabilities.
        frames, stride, fps: of a clip; fps instead of stride where above 0.
        loss: softmax (cross-entropy) or sigmoid (one yes-or-no question for each class); several classes to an item
            always take sigmoid.
        label_smoothing, mixup, cutmix: mixup and cutmix are the alphas of their Beta distributions; 0 is off.
        head_bias: where a head drawn anew begins; -10 goes with sigmoid over many classes.
        freeze: train the last layer alone.
        clips, crops: views of the final test.
        keep: hold decoded images in memory.
        note: what it cost where it was published.
    """

    size: int = 224
    resize: int = 0
    scale: tuple[float, float] = (1.0, 1.0)
    area: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.5
    colour: float = 0.0
    grey: float = 0.0
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


# The published settings. Batches are global; lower `batch` and `lr` together where the machine is smaller.
PRESETS: dict[str, dict[str, Any]] = {
    "small": {
        "note": "ours: a small network on a small set, from scratch, on a CPU; minutes",
    },
    "imagenet_finetune": {
        "epochs": 8, "batch": 512, "optimizer": "sgd", "lr": 0.03, "weight_decay": 0.0, "warmup": 500,
        "size": 384, "area": (0.05, 1.0), "precision": "bf16",
        "note": "TokenLearner and ViT: 20,000 steps at 384 px (512 for L) on 32 TPU cores; lr swept over "
                "0.003, 0.01, 0.03, 0.06; EMA of 0.9999 for L at 512. Starts from a pre-trained network (JFT there).",
    },
    "imagenet_scratch": {
        "epochs": 90, "batch": 4096, "optimizer": "adam", "lr": 5e-3, "weight_decay": 0.3, "schedule": "linear",
        "lr_end": 1e-5, "warmup": 10000, "size": 224, "area": (0.05, 1.0), "loss": "sigmoid", "head_bias": -10.0,
        "precision": "bf16",
        "note": "the one released configuration (B/16, version 1.1, 16 tokens at 9); no accuracy was published",
    },
    "kinetics": {
        "epochs": 30, "batch": 64, "optimizer": "sgd", "lr": 0.05, "weight_decay": 0.0, "warmup": 1 / 12,
        "size": 224, "resize": 256, "scale": (0.9, 1.33), "colour": 0.8, "grey": 0.1, "frames": 32, "stride": 2,
        "clips": 4, "crops": 3, "precision": "bf16", "workers": 8,
        "note": "TokenLearner in ViViT (lr 0.05; ViViT itself 0.1), from a pre-trained image network; 32 TPU cores, "
                "no weight decay, smoothing or dropout; tested on 4 clips x 3 crops",
    },
    "charades": {
        "steps": 100000, "batch": 256, "optimizer": "sgd", "lr": 0.8, "weight_decay": 0.0, "loss": "sigmoid",
        "size": 224, "resize": 256, "scale": (1.0, 1.25), "frames": 64, "fps": 12.0, "clips": 10, "precision": "bf16",
        "workers": 8,
        "note": "X(2+1)D-M from scratch: about 16 hours on 32 TPUv3 cores; the paper gives lr 0.8 for a core of 4 "
                "clips, taken here as the rate of the whole batch",
    },
    "avid": {
        "steps": 100000, "batch": 512, "optimizer": "sgd", "lr": 0.025, "weight_decay": 0.0, "label_smoothing": 0.2,
        "size": 224, "resize": 256, "scale": (1.0, 1.25), "frames": 64, "stride": 2, "precision": "bf16", "workers": 8,
        "note": "X(2+1)D-M from scratch, about 125 epochs; the paper gives lr 0.025 for a core of 8 clips",
    },
}  # fmt: skip


def make_recipe(preset: str = "small", **changes: Any) -> Recipe:
    """A preset with changes.

    Raises:
        ValueError: an unknown preset or setting, or a value out of range.
    """
    if preset not in PRESETS:
        raise ValueError(f"no recipe called {preset!r}; there are {', '.join(PRESETS)}")
    known = {each.name for each in fields(Recipe)}
    if unknown := set(changes) - known:
        raise ValueError(f"unknown settings {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
    if "epochs" in changes and "steps" not in changes:
        changes["steps"] = 0
    return Recipe(**(PRESETS[preset] | changes))


def parse_setting(text: str, known: Mapping[str, Any] | None = None) -> tuple[str, Any]:
    """One "name=value" of the command line, in the type of the setting.

    Args:
        text: such as "lr=0.01".
        known: settings with a value each; those of classification where not said.

    Raises:
        ValueError: not of this form, or a value of another type.
    """
    name, sign, value = text.partition("=")
    values = setting_values(Recipe()) if known is None else known
    types = {each: type(value) for each, value in values.items()}
    name = name.strip().replace("-", "_")
    if sign and (hint := hint_for([name], set(types))):
        raise ValueError(hint)
    if not sign or name not in types:
        raise ValueError(f"a setting is written name=value, such as lr=0.01, got {text!r}; known: {', '.join(types)}")
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
        raise ValueError(f"{name} takes a {kind.__name__}, got {value!r}") from None


def setting_values(made: Any, leave: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a dataclass but for some; a whole number that may also be a fraction as a float."""
    return {
        each.name: float(getattr(made, each.name)) if each.type == "float" else getattr(made, each.name)
        for each in fields(made)
        if each.name not in leave
    }


def plain(settings: Settings) -> dict[str, Any]:
    """As JSON gives them back."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def write_settings(settings: Settings, path: Path) -> None:
    write_json(path, dataclasses.asdict(settings))
