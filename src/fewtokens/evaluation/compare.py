"""Several methods on one encoded video at one budget, the plain baselines always among them."""

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
from fewtokens.core.shapes import by_shape
from fewtokens.core.tokens import Tokens
from fewtokens.evaluation.fidelity import mean_cosine, psnr, relative_error
from fewtokens.profiling.latency import half_range, timings

Decoder = Callable[[Tensor], Tensor]

# A step in time counts as a tenth of a step in space when a dropped cell looks for its nearest token: on most
# clips that gives random, uniform and fewer_frames back more than equal steps do, and they are to be strong.
TIME_WEIGHT = 0.1


@dataclass(frozen=True)
class Row:
    """One method on one video.

    Attributes:
        method: as it ran; its `name` and `spec` label the row.
        tokens: what came out, B=1.
        cells: source cells of the video.
        milliseconds: of the method alone, one for each repeat.
        error, cosine: relative error and mean cosine of `unmerge` against all features.
        frames: the reconstruction in 0..1, [T,3,height,width], where features are pixels; else None.
        psnr: of the reconstruction in dB, or None.
    """

    method: Method
    tokens: Tokens
    cells: int
    milliseconds: tuple[float, ...]
    error: float
    cosine: float
    frames: Tensor | None
    psnr: float | None

    __repr__ = by_shape

    @property
    def count(self) -> int:
        return int(self.tokens.count[0])

    @property
    def share(self) -> float:
        return self.count / self.cells

    @property
    def median_ms(self) -> float:
        return statistics.median(self.milliseconds)

    @property
    def spread_ms(self) -> float | None:
        """Half the range over the repeats; None for one."""
        return half_range(self.milliseconds)

    def numbers(self) -> dict[str, float | int | str | None]:
        """The columns of a table."""
        numbers: dict[str, float | int | str | None] = {"tokens": self.count, "retention": self.share}
        if self.psnr is not None:
            numbers["psnr_db"] = self.psnr
        return numbers | {
            "cosine": self.cosine,
            "relative_error": self.error,
            "method_ms": self.median_ms,
            "method_ms_spread": self.spread_ms,
        }


def at_one_budget(
    keep: float | int | str, grid: Grid, seed: int = 0, *, gives: Sequence[str] = tuple(CUES)
) -> list[Method]:
    """Every registered method of the pixels and tokens stages that has no parameters and meets a budget.

    The baselines are first. Methods that cannot go so low are skipped: some keep a full frame.

    Args:
        keep: the budget.
        grid: of the video.
        seed: for those that draw.
        gives: cues that are there; methods that need others are left out.
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
    """Runs each method on the tokens of one video and measures what it keeps.

    Args:
        tokens: all tokens of one video, B=1.
        methods: of the stages pixels and tokens.
        cues: for those who need some.
        decode: turns features [1,T,H,W,C] into frames [1,T',3,height,width] in 0..1, for PSNR.
        repeats: timed runs of each method, after one that is not timed.
    """
    cells = int(tokens.count[0])
    full = tokens.unmerge()
    original = None if decode is None else decode(full)[0]
    for method in methods:
        given = {name: (cues or {})[name] for name in method.needs}
        reduced, milliseconds = _timed(method, tokens, given, repeats)
        back = reduced.unmerge(time_weight=TIME_WEIGHT)
        frames = None if decode is None else decode(back)[0].clamp(0, 1)
        yield Row(
            method=method,
            tokens=reduced.replace(meta={**reduced.meta, "spec": method.spec}),
            cells=cells,
            milliseconds=milliseconds,
            error=relative_error(back, full),
            cosine=mean_cosine(back, full),
            frames=frames,
            psnr=None if frames is None or original is None else psnr(frames, original),
        )


@torch.inference_mode()
def _timed(
    method: Method, tokens: Tokens, cues: Mapping[str, Tensor], repeats: int
) -> tuple[Tokens, tuple[float, ...]]:
    reduced = method(tokens, **cues)
    return reduced, timings(lambda: method(tokens, **cues), repeats, tokens.device)
