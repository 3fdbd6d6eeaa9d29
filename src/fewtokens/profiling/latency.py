"""Time that a network takes, in milliseconds, over repeats."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward pass.

    Attributes:
        median, low, high: over the repeats; low and high are the quartiles.
        repeats: how many after the warm-up.
    """

    median: float
    low: float
    high: float
    repeats: int


def latency(run: Callable[..., Any], *inputs: Tensor, repeats: int = 7, warm_up: int = 2) -> Latency:
    """Times `run(*inputs)` without gradient, after a warm-up; waits for a GPU to finish."""
    with torch.inference_mode():
        for _ in range(warm_up):
            run(*inputs)
        times = timings(lambda: run(*inputs), repeats, inputs[0].device)
    quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return Latency(statistics.median(times), quartiles[0], quartiles[2], repeats)


def timings(run: Callable[[], Any], repeats: int, device: torch.device) -> tuple[float, ...]:
    """Milliseconds of each of `repeats` runs; waits for a GPU to finish."""
    times = []
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        times.append(1e3 * (time.perf_counter() - start))
    return tuple(times)


def half_range(times: Sequence[float]) -> float | None:
    """The spread of a few repeats; one repeat has none."""
    return (max(times) - min(times)) / 2 if len(times) > 1 else None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
