"""Protocols of behavior cloning by name: what a policy sees, how it learns, how it is scored.

R3M (arXiv 2203.12601), which Token Bottleneck uses in the Franka kitchen, and CortexBench (arXiv 2303.18240), each as
implemented in its code. Every evaluation uses the same episodes, as in CortexBench; R3M samples new ones.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

FEATURES = ("class", "prefix", "mean", "cells", "none")


@dataclass(frozen=True)
class Cloning:
    """A protocol of behavior cloning. The defaults are R3M's in the Franka kitchen.

    Attributes:
        feature: feature of a frame: "class" (the first prefix token: the bottleneck of ToBo), "prefix" (all prefix
            tokens), "mean" (mean over the cells), "cells" (all cells, concatenated), "none" (only the robot's states).
        history: number of frames that a policy sees, the current one last; early in an episode the first frame is
            repeated.
        fusion: how the features of these frames are combined, see `rollouts.fuse`.
        proprio: number of leading states that are appended to the features.
        hidden: widths of the policy's hidden layers; activation: "tanh" or "relu".
        lr: learning rate of Adam. batch: samples per step.
        steps: training steps, on samples drawn with replacement.
        epochs: passes over the shuffled samples. Exactly one of `steps` and `epochs` is 0.
        every: steps (or epochs) between evaluations; the last evaluation is at the end.
        demos: number of demonstrations. rollouts: episodes per evaluation.
        criterion: an episode succeeds if the task is done in "any" step, or in its "last" step; "return" scores the
            sum of rewards.
        render: side of rendered frames; frames of another size are resized. crop: side of the center crop that the
            encoder receives.
    """

    feature: str = "class"
    history: int = 1
    fusion: str = "flare"
    proprio: int = 9
    hidden: tuple[int, ...] = (256, 256)
    activation: str = "tanh"
    lr: float = 1e-3
    batch: int = 32
    steps: int = 20_000
    epochs: int = 0
    every: int = 1_000
    demos: int = 25
    rollouts: int = 50
    criterion: str = "any"
    render: int = 256
    crop: int = 224

    def __post_init__(self) -> None:
        for name, choices in (
            ("feature", FEATURES), ("activation", ("tanh", "relu")), ("criterion", ("any", "last", "return")),
            ("fusion", ("flare", "flare_full", "concat")),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("history", "every", "demos", "crop"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch < 2:
            raise ValueError(f"batch normalization needs batches of at least 2 samples, got {self.batch}")
        if self.proprio < 0 or self.rollouts < 0 or not self.lr > 0 or not self.hidden:
            raise ValueError(
                "proprio and rollouts must be at least 0, lr must be above 0, and hidden must not be empty"
            )
        if min(self.steps, self.epochs) != 0 or max(self.steps, self.epochs) < 1:
            raise ValueError(
                f"one of steps and epochs must be 0 and the other positive, got {self.steps} and {self.epochs}"
            )
        if self.render < self.crop:
            raise ValueError(f"a crop of {self.crop} does not fit in frames of {self.render}")
        if self.feature == "none" and not self.proprio:
            raise ValueError("with feature none the policy has no input unless proprio is above 0")


_CORTEX = Cloning(
    history=3, proprio=4, hidden=(256, 256, 256), activation="relu", batch=256, steps=0, epochs=100, every=5,
    rollouts=25, criterion="last",
)  # fmt: skip

# "small" is not a published protocol: with a small encoder it takes a few minutes per seed on two cores.
PRESETS = {
    "r3m": Cloning(),
    "cortexbench": _CORTEX,
    "cortexbench_dmc": Cloning(
        **{**asdict(_CORTEX), "demos": 100, "rollouts": 10, "proprio": 0, "criterion": "return"}
    ),
    "small": Cloning(
        **{**asdict(_CORTEX), "demos": 10, "rollouts": 10, "epochs": 60, "every": 20, "criterion": "any"}
        | {"batch": 128, "render": 112, "crop": 112}
    ),
}


def make_protocol(preset: str = "small", **changes: Any) -> Cloning:
    """Returns a preset with changes; changing only "steps" or only "epochs" sets the other to 0.

    Raises:
        ValueError: an unknown preset, or a value out of range.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    for name, other in (("steps", "epochs"), ("epochs", "steps")):
        if name in changes and other not in changes:
            changes[other] = 0
    return replace(PRESETS[preset], **changes)


def parse_change(text: str) -> tuple[str, Any]:
    """Parses a "name=value" of the command line into the name and a value of the setting's type.

    Widths are written "hidden=256,256".

    Raises:
        ValueError: the text has another form, or the value another type.
    """
    name, sign, value = text.partition("=")
    types = {setting.name: type(getattr(Cloning(), setting.name)) for setting in fields(Cloning)}
    name = name.strip()
    if not sign or name not in types:
        raise ValueError(f"a setting must be name=value, such as lr=0.01, got {text!r}; settings: {', '.join(types)}")
    try:
        if types[name] is tuple:
            return name, tuple(int(width) for width in value.split(",") if width)
        return name, types[name](value)
    except ValueError:
        raise ValueError(f"{name} must be of type {types[name].__name__}, got {value!r}") from None
