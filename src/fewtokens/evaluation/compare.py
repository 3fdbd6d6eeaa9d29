"""Compares several methods on one encoded video at one budget, together with simple baselines."""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewtokens.core import registry
from fewtokens.core.budget import Budget
from fewtokens.core.grid import Grid
from fewtokens.core.method import CUES, Method
from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import TIME_WEIGHT, Tokens
from fewtokens.evaluation.fidelity import mean_cosine, psnr, relative_error
from fewtokens.profiling.latency import half_range, timings

Decoder = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """The result of one method on one video.

    Attributes:
        method: the method; its `name` and `spec` label the row.
        tokens: the output, B=1.
        cells: number of cells of the video.
        milliseconds: time of the method alone, one value per repeat.
        error, cosine: relative error and mean cosine of `unmerge` against the full features.
        frames: the reconstruction in 0..1, [T,3,height,width], if features can be decoded to pixels; else None.
        psnr: PSNR of the reconstruction in dB, or None.
    """

    method: Method
    tokens: Tokens
    cells: int
    milliseconds: tuple[float, ...]
    error: float
    cosine: float
    frames: Tensor | None
    psnr: float | None

    __repr__ = shape_repr

    @property
    def count(self) -> int:
        return int(self.tokens.count[0])

    @property
    def retention(self) -> float:
        return self.count / self.cells

    @property
    def median_ms(self) -> float:
        return statistics.median(self.milliseconds)

    @property
    def spread_ms(self) -> float | None:
        """Half the range over the repeats; None for a single repeat."""
        return half_range(self.milliseconds)

    def numbers(self) -> dict[str, float | int | str | None]:
        """The columns of a table."""
        numbers: dict[str, float | int | str | None] = {"tokens": self.count, "retention": self.retention}
        if self.psnr is not None:
            numbers["psnr_db"] = self.psnr
        return numbers | {
            "cosine": self.cosine,
            "relative_error": self.error,
            "method_ms": self.median_ms,
            "method_ms_spread": self.spread_ms,
        }


def methods_at_budget(
    keep: float | int | str, grid: Grid, seed: int = 0, *, gives: Sequence[str] = tuple(CUES)
) -> list[Method]:
    """Builds all registered methods of the stages "pixels" and "tokens" without trainable parameters, baselines first.

    Methods that cannot reach a budget this low (some keep a full frame) are excluded.

    Args:
        keep: the budget.
        grid: grid of the video.
        seed: random seed of stochastic methods.
        gives: available cues; methods that need other cues are excluded.
    """
    methods = []
    budget = Budget.parse(keep)
    for name in registry.names():
        kind = registry.get(name)
        if kind.stage in ("pixels", "tokens") and not kind.learned and "keep" in inspect.signature(kind).parameters:
            (method,) = registry.build(name, keep=keep, seed=seed)
            count = method.planned_count(grid)
            if set(method.needs) <= set(gives) and (count is None or count <= budget.count(grid)):
                methods.append(method)
    return sorted(methods, key=lambda method: method.name not in registry.BASELINES)


def compare(
    tokens: Tokens,
    methods: Sequence[Method],
    *,
    cues: Mapping[str, Tensor] | None = None,
    decode: Decoder | None = None,
    repeats: int = 3,
) -> Iterator[Row]:
    """Runs each method on the tokens of one video; yields how well it preserves the features, and its time.

    Args:
        tokens: all tokens of one video, B=1.
        methods: methods of the stages "pixels" and "tokens".
        cues: cues by name, for methods that need them.
        decode: maps features [1,T,H,W,C] to frames [1,T',3,height,width] in 0..1, for PSNR; None for no PSNR.
        repeats: number of timed runs of each method, after one that is not timed.
    """
    cells = int(tokens.count[0])
    full = tokens.unmerge()
    original = None if decode is None else decode(full)[0]
    for method in methods:
        method_cues = {name: (cues or {})[name] for name in method.needs}
        reduced, milliseconds = _run_timed(method, tokens, method_cues, repeats)
        reconstruction = reduced.unmerge(time_weight=TIME_WEIGHT)
        frames = None if decode is None else decode(reconstruction)[0].clamp(0, 1)
        yield Row(
            method=method,
            tokens=reduced.replace(meta={**reduced.meta, "spec": method.spec}),
            cells=cells,
            milliseconds=milliseconds,
            error=relative_error(reconstruction, full),
            cosine=mean_cosine(reconstruction, full),
            frames=frames,
            psnr=None if frames is None or original is None else psnr(frames, original),
        )


@torch.inference_mode()
def _run_timed(
    method: Method, tokens: Tokens, cues: Mapping[str, Tensor], repeats: int
) -> tuple[Tokens, tuple[float, ...]]:
    reduced = method(tokens, **cues)
    return reduced, timings(lambda: method(tokens, **cues), repeats, tokens.device)
