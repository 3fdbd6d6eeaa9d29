"""Protocols of behaviour cloning by name: what a policy sees, how it learns, how it is scored.

R3M (arXiv 2203.12601), which Token Bottleneck uses in the Franka kitchen, and CortexBench (arXiv 2303.18240), each as
its code has it. The episodes of an evaluation are the same each time, as in CortexBench; R3M draws new ones.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

FEATURES = ("class", "prefix", "mean", "cells", "none")


@dataclass(frozen=True)
class Cloning:
    """A protocol of behaviour cloning. The defaults are R3M's in the Franka kitchen.

    Attributes:
        feature: of a frame: "class" (the first prefix token: the bottleneck of ToBo), "prefix" (all of them), "mean"
            (over the cells), "cells" (all, one after the other), "none" (the robot's own states alone).
        history: frames that a policy knows, its own the last; before there are so many, the first one stands in.
        fusion: of their features, see `rollouts.fuse`.
        proprio: so many of the first states stand beside the features.
        hidden: widths of the policy; activation: "tanh" or "relu".
        lr: of Adam. batch: samples of a step.
        steps: of training, samples drawn with replacement; or
        epochs: over shuffled samples. One of the two is 0.
        every: steps (or epochs) from one evaluation to the next; there is one at the end.
        demos: demonstrations. rollouts: episodes of an evaluation.
        criterion: an episode counts if the task is done in "any" step, or in its "last"; or its "return" counts.
        render: side to which frames are rendered, or resized. crop: side of the middle that the encoder is given.
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
        for name, known in (
            ("feature", FEATURES), ("activation", ("tanh", "relu")), ("criterion", ("any", "last", "return")),
            ("fusion", ("flare", "flare_full", "concat")),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("history", "every", "demos", "crop"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch < 2:
            raise ValueError(f"batch normalisation needs batches of at least 2 samples, got {self.batch}")
        if self.proprio < 0 or self.rollouts < 0 or not self.lr > 0 or not self.hidden:
            raise ValueError("proprio and rollouts must not be negative, lr must be above 0, hidden not empty")
        if min(self.steps, self.epochs) != 0 or max(self.steps, self.epochs) < 1:
            raise ValueError(f"say steps or epochs, the other 0; got {self.steps} and {self.epochs}")
        if self.render < self.crop:
            raise ValueError(f"a crop of {self.crop} does not fit in frames of {self.render}")
        if self.feature == "none" and not self.proprio:
            raise ValueError("feature none leaves the policy nothing to see: proprio must be above 0")


_CORTEX = Cloning(
    history=3, proprio=4, hidden=(256, 256, 256), activation="relu", batch=256, steps=0, epochs=100, every=5,
    rollouts=25, criterion="last",
)  # fmt: skip

# "small" is ours, for two cores: a few minutes a seed with a small encoder.
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
    """A preset with changes; "steps" or "epochs" among them sets the other to 0.

    Raises:
        ValueError: an unknown preset, or a value out of range.
    """
    if preset not in PRESETS:
        raise ValueError(f"no protocol called {preset!r}; there are {', '.join(PRESETS)}")
    for one, other in (("steps", "epochs"), ("epochs", "steps")):
        if one in changes and other not in changes:
            changes[other] = 0
    return replace(PRESETS[preset], **changes)


def parse_change(text: str) -> tuple[str, Any]:
    """One "name=value" of the command line, in the type of the setting; widths as "hidden=256,256".

    Raises:
        ValueError: not of this form, or a value of another type.
    """
    name, sign, value = text.partition("=")
    types = {each.name: type(getattr(Cloning(), each.name)) for each in fields(Cloning)}
    name = name.strip()
    if not sign or name not in types:
        raise ValueError(f"a setting is written name=value, such as lr=0.01, got {text!r}; known: {', '.join(types)}")
    try:
        if types[name] is tuple:
            return name, tuple(int(width) for width in value.split(",") if width)
        return name, types[name](value)
    except ValueError:
        raise ValueError(f"{name} takes a {types[name].__name__}, got {value!r}") from None
