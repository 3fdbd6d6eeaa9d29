"""Latency of a network, in milliseconds, over repeated runs."""

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
    """The duration of a forward pass, in milliseconds.

    Attributes:
        median: median over the repeats.
        low: lower quartile.
        high: upper quartile.
        repeats: number of timed runs, after the warm-up.
    """

    median: float
    low: float
    high: float
    repeats: int


def latency(run: Callable[..., Any], *inputs: Tensor, repeats: int = 7, warm_up: int = 2) -> Latency:
    """Times `run(*inputs)` without gradients, after a warm-up; on a GPU, synchronizes before and after each run."""
    with torch.inference_mode():
        for _ in range(warm_up):
            run(*inputs)
        times = timings(lambda: run(*inputs), repeats, inputs[0].device)
    quartiles = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else [times[0]] * 3
    return Latency(statistics.median(times), quartiles[0], quartiles[2], repeats)


def timings(run: Callable[[], Any], repeats: int, device: torch.device) -> tuple[float, ...]:
    """Returns the milliseconds of each of `repeats` runs; on a GPU, synchronizes before and after each run."""
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(1e3 * (time.perf_counter() - start))
    return tuple(times)


def half_range(times: Sequence[float]) -> float | None:
    """Returns half the range of repeated times, or None for a single time."""
    return (max(times) - min(times)) / 2 if len(times) > 1 else None


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
