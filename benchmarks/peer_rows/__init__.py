"""The rows of the table of speed next to published code: what is run on which features, and how the rows are collected.

Each module of this package has `ROWS`, a sequence of `Row`. Published code is imported from the folder of clones and
run; none of it is copied here. The functions that import it are those of `fidelity_rows`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.tokens import Tokens
from fidelity_rows import Features

CHANNELS = 896  # of the features, the width of a Qwen2-0.5B


@dataclass(frozen=True)
class Pair:
    """Our code and the published code, ready to run on the same inputs; everything else is done before.

    Args:
        ours: runs our code.
        theirs: runs the published code.
        agree: fraction of equal tokens of the two results, in 0..1; None if results cannot be compared token by token.
        limit: what the machine must do at least, such as one copy of the features, for `limit_share`.
    """

    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    agree: Callable[[Any, Any], float] | None = None
    limit: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Row:
    """One comparison, measured for each size, device and number of threads.

    Args:
        method: name of the method in the registry, or what is measured: "vit", "reading".
        task: settings of both sides, as text.
        reference: "owner/name@commit" of a clone in FOLDER/name, or "name==version" of an installed package.
        build: prepares both sides for a folder of clones and a workload.
        frames: lengths of the clip to measure; (0,) if the task has its own inputs.
        repeats: number of measurements; fewer (at least 3) if one takes long.
        devices: devices that both sides support.
        threads: numbers of CPU threads to measure.
        memory: whether both sides compute with PyTorch, whose memory can be measured.
        unequal: reason for a fraction of equal tokens below 1.
        reason: reason for a ratio below 1.
    """

    method: str
    task: str
    reference: str
    build: Callable[[Path, Workload], Pair]
    frames: tuple[int, ...] = (32, 128)
    repeats: int = 9
    devices: tuple[str, ...] = ("cpu", "cuda")
    threads: tuple[int, ...] = (1, 2)
    memory: bool = True
    unequal: str = ""
    reason: str = ""

    @property
    def folder(self) -> str:
        """The name of the clone in FOLDER; empty for an installed package."""
        return "" if "==" in self.reference else self.reference.partition("@")[0].rpartition("/")[2]


class Workload:
    """A real clip on one device: its frames, features and cues.

    Args:
        features: the clip, whose encodings are kept.
        frames: number of frames.
        device: device of all tensors.
    """

    def __init__(self, features: Features, frames: int, device: str) -> None:
        self.features, self.T, self.device = features, frames, torch.device(device)

    def tokens(self, side: int = 14) -> Tokens:
        """Features [1,T*side*side,896] of blocks 5, 9 and 12 of the ViT-S/14, each channel standardized."""
        return _wide(self.features, self.T, side).to(self.device)

    def cue(self, name: str) -> Tensor:
        """A cue of the same tokens; see `fidelity_rows.Features.cue`."""
        return self.features.cue(name, frames=self.T).to(self.device)

    def frames(self) -> Tensor:
        """The frames, [1,T,3,196,196] uint8."""
        return self.features.frames(self.T).to(self.device)


_CACHE: dict[tuple[str, int, int], Tokens] = {}


def _wide(features: Features, frames: int, side: int) -> Tokens:
    key = (str(features.clip), frames, side)
    if key not in _CACHE:
        layers: dict[int, list[Tensor]] = {4: [], 8: []}
        hooks = [
            features.encoder.vit.blocks[layer].norm1.register_forward_pre_hook(
                lambda _, inputs, hidden=hidden: hidden.append(inputs[0])
            )
            for layer, hidden in layers.items()
        ]
        try:
            tokens, _ = features.encoder(features.frames(frames, side))
        finally:
            for hook in hooks:
                hook.remove()
        early = [torch.cat(hidden)[:, -side * side :].reshape(1, tokens.N, -1) for hidden in layers.values()]
        x = torch.cat([tokens.features, *early], 2)[..., :CHANNELS]
        _CACHE[key] = tokens.replace(features=(x - x.mean(1)) / x.std(1), prefix=None)
    return _CACHE[key]


def collect() -> list[Row]:
    """All rows of the modules of this package, in the order of the modules' names."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return [row for module in modules for row in module.ROWS]
