"""Every method at every budget on every clip, with one encoder: what is kept of the features, and what it costs."""

from __future__ import annotations

import base64
import hashlib
import inspect
import statistics
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from fewtokens.core import files, registry
from fewtokens.core.budget import Budget
from fewtokens.core.encoder import Encoder
from fewtokens.core.grid import Grid
from fewtokens.core.identity import with_current_names
from fewtokens.core.method import Method
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.plain import conform
from fewtokens.core.shapes import by_shape
from fewtokens.core.tokens import Tokens
from fewtokens.data.masks import resize_masks
from fewtokens.evaluation.compare import TIME_WEIGHT
from fewtokens.evaluation.davis import mean_numbers, score
from fewtokens.evaluation.fidelity import mean_cosine, psnr, rare_cells, relative_error
from fewtokens.evaluation.label_propagation import Protocol, first_labels, propagate, to_masks
from fewtokens.profiling.latency import half_range, timings
from fewtokens.profiling.memory import peak_memory
from fewtokens.profiling.operations import count
from fewtokens.profiling.prefill import prefill_gflops

FULL = "full"
# Other ways to run a method that `--with all` compares too.
_ALSO = (
    "dtd(mode='pixel')",
    "tome_video(within='frame')",
    "centerclip(algorithm='spectral')",
)
# Frames of a clip whose regions are kept for the page.
SHOWN_FRAMES = 8
# Where labels are propagated and one of the two sizes at which they are scored, as CropMAE and ToBo have it.
_RESIZED = (480, 880)


@dataclass(frozen=True, eq=False)
class Item:
    """A clip to bench on.

    Attributes:
        name: unlike all others.
        frames: uint8 [T,3,H,W]. times: seconds [T], or None.
        masks: uint8 [T,H',W'] objects at their native size, where the clip is labelled.
    """

    name: str
    frames: Tensor
    times: Tensor | None
    masks: Tensor | None = None

    __repr__ = by_shape


@dataclass(frozen=True, eq=False)
class Encoded:
    """A clip as the encoder gives it whole: tokens of one video, all cues, and what that cost.

    `milliseconds` of each repeat, without cues; `gflops` counts 2 for each multiply-accumulate.
    """

    item: Item
    tokens: Tokens
    cues: dict[str, Tensor]
    milliseconds: tuple[float, ...]
    gflops: float
    full: Tensor = field(init=False)  # [T,H,W,C]
    rare: Tensor = field(init=False)  # bool [T,H,W]

    __repr__ = by_shape

    def __post_init__(self) -> None:
        object.__setattr__(self, "full", self.tokens.unmerge()[0])
        object.__setattr__(self, "rare", rare_cells(self.full))


def specs_of(methods: str, encoder: Encoder) -> list[str]:
    """The specs to compare, the baselines first.

    Args:
        methods: "all" (every method without parameters that this encoder can serve, and other ways to run some), or
            specs with commas between them. The baselines always take part.

    Raises:
        ValueError: an unknown method, or one that this encoder cannot serve.
    """
    if methods.strip() != "all":
        wanted = split_specs(methods)
        for spec in wanted:
            Pipeline(registry.build(spec, dim=encoder.dim), encoder)
        return list(dict.fromkeys([*registry.BASELINES, *wanted]))
    fitting = []
    for spec in [*registry.names(), *_ALSO]:
        kind = registry.get(registry.parse(spec)[0][0])
        known = inspect.signature(kind).parameters
        if kind.learned or "keep" not in known:
            continue
        (method,) = registry.build(spec, keep=0.5)
        if (method.stage != "encoder" or encoder.exposes_blocks) and (
            method.stage == "encoder" or set(method.needs) <= set(encoder.cues)
        ):
            fitting.append(spec)
    # A method stands beside its other ways to run.
    fitting.sort(key=lambda spec: registry.names().index(registry.parse(spec)[0][0]))
    return fitting


def split_specs(methods: str) -> list[str]:
    """Specs at commas that stand outside of brackets."""
    parts, depth = [""], 0
    for letter in methods:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def chain(spec: str, keep: float | int | str, grid: Grid, *, seed: int = 0, dim: int = 384) -> list[Method]:
    """The methods of a spec at a budget; where they cannot go so low, `tome` merges what is too much."""
    wanted = Budget.parse(keep).count(grid)
    methods = registry.build(spec, keep=keep, seed=seed, dim=dim)
    counts = [count for method in methods if (count := method.planned_count(grid)) is not None]
    if counts and min(counts) > wanted:
        methods += registry.build("tome", keep=keep)
    return [method.eval() for method in methods]


def encode(item: Item, encoder: Encoder, *, repeats: int, cache: Path | None = None) -> Encoded:
    """Encodes a clip, or reads what was kept of an earlier run.

    Args:
        repeats: timed runs, after one that is counted.
        cache: a file for tokens, cues and what they cost.
    """
    request = {
        "encoder": encoder.describe(),
        "frames": list(item.frames.shape),
        "sha256": hashlib.sha256(item.frames.contiguous().numpy().tobytes()).hexdigest(),
        "repeats": repeats,
    }
    if cache is not None and cache.exists() and (found := _cached(cache, item, request)) is not None:
        return found
    frames = item.frames[None]
    with torch.inference_mode():
        whole: list[Tokens] = []
        counted = count(lambda: whole.append(encoder(frames, item.times)[0]))
        device = whole[0].device
        milliseconds = timings(lambda: encoder(frames, item.times), repeats, device)
        tokens, cues = encoder(frames, item.times, needs=encoder.cues)
    gflops = 2 * counted.by("macs")
    tokens = tokens.to("cpu")
    cues = {name: cue.cpu() for name, cue in cues.items()}
    if cache is not None:
        tensors = {"features": tokens.features, **cues}
        if tokens.prefix is not None:
            tensors["prefix"] = tokens.prefix
        header = {"request": request, "grid": tokens.grid.shape, "milliseconds": milliseconds, "gflops": gflops}
        files.save(cache, "bench features", tensors, header)
    return Encoded(item, tokens, cues, milliseconds, gflops)


class _Cache(TypedDict):
    """The header of kept features."""

    request: dict[str, Any]
    grid: tuple[int, int, int]
    milliseconds: list[float]
    gflops: float


def _cached(cache: Path, item: Item, request: dict[str, Any]) -> Encoded | None:
    """What was kept of an earlier run; None where it is of something else, or damaged."""
    try:
        tensors, found = files.load(cache, "bench features")
        header: _Cache = conform(found, _Cache, str(cache))
        if with_current_names(header["request"]) != request:
            return None
        grid = Grid(*header["grid"], item.times)
        tokens = Tokens.from_cells(tensors.pop("features"), grid, tensors.pop("prefix", None))
    except (ValueError, KeyError):
        return None
    return Encoded(item, tokens, tensors, tuple(header["milliseconds"]), header["gflops"])


@torch.inference_mode()
def measure(
    encoded: Encoded,
    encoder: Encoder,
    spec: str,
    keep: float | int | str,
    *,
    repeats: int = 3,
    seed: int = 0,
    shown: bool = False,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """One method at one budget on one clip; plain values, one row of the results.

    Args:
        spec: `FULL` keeps everything.
        repeats: timed runs, after one whose operations and memory are counted.
        shown: also keep which token each cell of a few frames went to.
        device: where tokens methods run; the CPU where not said.
    """
    tokens = encoded.tokens.to(device or "cpu")
    cues = {name: cue.to(tokens.device) for name, cue in encoded.cues.items()}
    methods = [] if spec == FULL else chain(spec, keep, tokens.grid, seed=seed, dim=tokens.C)
    encoder_ms = statistics.median(encoded.milliseconds)
    gflops = encoded.gflops
    method_ms: tuple[float, ...] = ()
    memory: list[int] = []
    if all(method.stage == "tokens" for method in methods):
        pipeline = Pipeline(methods)

        def run() -> Tokens:
            return pipeline(tokens, **cues)

        out = run()
        method_ms = timings(run, repeats, tokens.device)
        memory = [peak_memory(run, tokens.device)] if methods else []
        total_ms = tuple(encoder_ms + ms for ms in method_ms) if methods else encoded.milliseconds
        # Encoder and method are timed apart, so the spreads of both are in the sum.
        parts = [half_range(encoded.milliseconds), *([half_range(method_ms)] if methods else [])]
        spread = None if None in parts else sum(part for part in parts if part is not None)
    else:
        # It acts before or inside the encoder, so the encoder runs again.
        pipeline = Pipeline(methods, encoder)
        frames, times = encoded.item.frames[None], encoded.item.times

        def run() -> Tokens:
            return pipeline(frames, times)

        kept: list[Tokens] = []
        counted = count(lambda: memory.append(peak_memory(lambda: kept.append(run()), tokens.device)))
        gflops, out = 2 * counted.by("macs"), kept[0]
        total_ms = timings(run, repeats, tokens.device)
        spread = half_range(total_ms)
    row: dict[str, Any] = {
        "clip": encoded.item.name,
        "method": spec,
        "keep": keep,
        "spec": pipeline.spec,
        "tokens": int(out.count[0]),
        "cells": tokens.grid.cells,
        "retention": int(out.count[0]) / tokens.grid.cells,
    }
    row |= kept_of(out.to("cpu"), encoded, encoder)
    row |= {
        "method_ms": statistics.median(method_ms) if method_ms and methods else None,
        "method_ms_spread": half_range(method_ms) if method_ms and methods else None,
        "encoder_ms": encoder_ms if method_ms else None,
        "total_ms": statistics.median(total_ms),
        "total_ms_spread": spread,
        "encoder_gflops": gflops,
        "prefill_gflops": prefill_gflops(int(out.count[0])),
        "peak_mib": memory[0] / 2**20 if memory else None,
        "repeats": repeats,
        "vector": [round(float(v), 5) for v in out.features[0, out.mask[0]].float().mean(0).cpu()],
    }
    if shown:
        row["assignment"] = _packed(out)
        row["grid"] = [len(shown_frames(tokens.grid.T)), tokens.grid.H, tokens.grid.W]
    return row


def kept_of(out: Tokens, encoded: Encoded, encoder: Encoder) -> dict[str, float | None]:
    """What the tokens keep of the full features: columns of a row."""
    back = out.unmerge(time_weight=TIME_WEIGHT)[0]
    full, rare = encoded.full, encoded.rare
    found: dict[str, float | None] = {
        "cosine": mean_cosine(back, full),
        "relative_error": relative_error(back, full),
        "rare_cosine": mean_cosine(back[rare], full[rare]),
    }
    if encoder.decode is not None:
        found["psnr_db"] = psnr(encoder.decode(back[None]).clamp(0, 1), encoder.decode(full[None]))
    if encoded.item.masks is not None:
        found |= labelled(back, encoded.item.masks)
    return found


def labelled(features: Tensor, masks: Tensor) -> dict[str, float]:
    """J and F of label propagation (protocol A) at the native size and at 480x880.

    The radius is in proportion to the rows of the grid. Soft labels go up to 480x880 and are decided there; native
    masks are that, resized (nearest).

    Args:
        features: [T,h,w,C].
        masks: uint8 [T,H,W] at the native size.
    """
    objects = int(masks[0].max())
    first = first_labels(masks[0], objects, _RESIZED, (features.shape[1], features.shape[2]))
    predicted = to_masks(propagate(features, first, Protocol(rows=30)), _RESIZED)
    height, width = masks.shape[1:]
    native = mean_numbers(score(resize_masks(predicted, (height, width)), masks))
    resized = mean_numbers(score(predicted, resize_masks(masks, _RESIZED)))
    names = ("j_and_f", "j", "f")
    return {name: native[name] for name in names} | {f"{name}_880": resized[name] for name in names}


def shown_frames(frames: int) -> list[int]:
    """The frames whose regions are kept."""
    return torch.linspace(0, frames - 1, min(frames, SHOWN_FRAMES)).round().long().tolist()


def _packed(tokens: Tokens) -> str:
    """Which token each cell of the shown frames went to, as text."""
    source = tokens.assignment[0].reshape(tokens.grid.T, -1)[shown_frames(tokens.grid.T)]
    return base64.b64encode(zlib.compress(source.cpu().numpy().astype("<i4").tobytes())).decode()


def unpacked(text: str) -> np.ndarray:
    """The opposite: int32 [frames*H*W]."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype="<i4")


def jobs(
    items: Sequence[str], specs: Sequence[str], keeps: Sequence[float | int | str]
) -> Iterator[tuple[str, str, float | int | str]]:
    """Clip, spec and budget of every row, clip by clip; all features of a clip come first."""
    for item in items:
        yield item, FULL, 1.0
        for keep in keeps:
            for spec in specs:
                yield item, spec, keep
