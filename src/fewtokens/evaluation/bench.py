"""Benchmarks methods at several budgets on clips with one encoder: how well features are preserved, and the cost."""

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
from fewtokens.core.identity import rename_encoder_keys
from fewtokens.core.method import Method
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.plain import conform
from fewtokens.core.shapes import shape_repr
from fewtokens.core.syntax import split_specs
from fewtokens.core.tokens import TIME_WEIGHT, Tokens
from fewtokens.data.masks import resize_masks
from fewtokens.evaluation.davis import mean_numbers, score
from fewtokens.evaluation.fidelity import mean_cosine, psnr, rare_cells, relative_error
from fewtokens.evaluation.label_propagation import Protocol, first_labels, propagate, to_masks
from fewtokens.profiling.latency import half_range, timings
from fewtokens.profiling.memory import peak_memory
from fewtokens.profiling.operations import count_operations
from fewtokens.profiling.prefill import prefill_gflops

FULL = "full"
# Variants of methods that `--with all` also compares.
_VARIANTS = (
    "dtd(mode='pixel')",
    "tome_video(within='frame')",
    "centerclip(algorithm='spectral')",
)
# Frames of a clip whose assignment is saved for the report page.
SHOWN_FRAMES = 8
# The size at which labels are propagated, as in CropMAE and ToBo, and one of the two at which they are scored.
_RESIZED = (480, 880)


@dataclass(frozen=True, eq=False)
class Item:
    """A clip of the benchmark.

    Attributes:
        name: unique name.
        frames: uint8 [T,3,H,W]. times: seconds [T], or None.
        masks: uint8 [T,H',W'], object masks at their native size, or None if the clip is not labeled.
    """

    name: str
    frames: Tensor
    times: Tensor | None
    masks: Tensor | None = None

    __repr__ = shape_repr


@dataclass(frozen=True, eq=False)
class EncodedItem:
    """A fully encoded clip: all tokens, all cues, and the cost of encoding.

    Attributes:
        item: the clip.
        tokens: the tokens of all cells, B=1.
        cues: the cues of the encoder by name.
        milliseconds: encoding time of each repeat, without cues; empty if there are no times.
        gflops: operations, 2 for each multiply-accumulate.
        full: the features, [T,H,W,C].
        rare: the cells least similar to the mean of their frame, bool [T,H,W]; see `rare_cells`.
    """

    item: Item
    tokens: Tokens
    cues: dict[str, Tensor]
    milliseconds: tuple[float, ...]
    gflops: float
    full: Tensor = field(init=False)
    rare: Tensor = field(init=False)

    __repr__ = shape_repr

    def __post_init__(self) -> None:
        object.__setattr__(self, "full", self.tokens.unmerge()[0])
        object.__setattr__(self, "rare", rare_cells(self.full))


def select_specs(methods: str, encoder: Encoder) -> list[str]:
    """Returns the specs to compare, baselines first.

    Args:
        methods: "all" (every method without trainable parameters that this encoder supports, and variants of some), or
            comma-separated specs. The baselines are always included.

    Raises:
        ValueError: an unknown method, or one that this encoder does not support.
    """
    if methods.strip() != "all":
        requested = split_specs(methods)
        for spec in requested:
            Pipeline(registry.build(spec, dim=encoder.dim), encoder)
        return list(dict.fromkeys([*registry.BASELINES, *requested]))
    specs = []
    for spec in [*registry.names(), *_VARIANTS]:
        kind = registry.get(registry.parse(spec)[0][0])
        if kind.learned or "keep" not in inspect.signature(kind).parameters:
            continue
        (method,) = registry.build(spec, keep=0.5)
        if (method.stage != "encoder" or encoder.exposes_blocks) and (
            method.stage == "encoder" or set(method.needs) <= set(encoder.cues)
        ):
            specs.append(spec)
    # Variants come right after their method.
    specs.sort(key=lambda spec: registry.names().index(registry.parse(spec)[0][0]))
    return specs


def chain(spec: str, keep: float | int | str, grid: Grid, *, seed: int = 0, dim: int = 384) -> list[Method]:
    """Builds the methods of a spec at a budget; `tome` is appended if they cannot reach a budget this low."""
    budget = Budget.parse(keep).count(grid)
    methods = registry.build(spec, keep=keep, seed=seed, dim=dim)
    counts = [count for method in methods if (count := method.planned_count(grid)) is not None]
    if counts and min(counts) > budget:
        methods += registry.build("tome", keep=keep)
    return [method.eval() for method in methods]


def encode(item: Item, encoder: Encoder, *, repeats: int, cache: Path | None = None) -> EncodedItem:
    """Encodes a clip, or reads it from the cache of an earlier run.

    Args:
        repeats: number of timed runs, after one whose operations are counted; 0: no times.
        cache: a file for tokens, cues and their cost; None for no cache.
    """
    request = {
        "encoder": encoder.describe(),
        "frames": list(item.frames.shape),
        "sha256": hashlib.sha256(item.frames.contiguous().numpy().tobytes()).hexdigest(),
        "repeats": repeats,
    }
    if cache is not None and cache.exists() and (encoded := _read_cache(cache, item, request)) is not None:
        return encoded
    frames = item.frames[None]
    with torch.inference_mode():
        outputs: list[Tokens] = []
        operations = count_operations(lambda: outputs.append(encoder(frames, item.times)[0]))
        device = outputs[0].device
        milliseconds = timings(lambda: encoder(frames, item.times), repeats, device)
        tokens, cues = encoder(frames, item.times, needs=encoder.cues)
    gflops = 2 * operations.giga("macs")
    tokens = tokens.to("cpu")
    cues = {name: cue.cpu() for name, cue in cues.items()}
    if cache is not None:
        tensors = {"features": tokens.features, **cues}
        if tokens.prefix is not None:
            tensors["prefix"] = tokens.prefix
        header = {"request": request, "grid": tokens.grid.shape, "milliseconds": milliseconds, "gflops": gflops}
        files.save(cache, "bench features", tensors, header)
    return EncodedItem(item, tokens, cues, milliseconds, gflops)


class _Cache(TypedDict):
    """The header of cached features."""

    request: dict[str, Any]
    grid: tuple[int, int, int]
    milliseconds: list[float]
    gflops: float


def _read_cache(cache: Path, item: Item, request: dict[str, Any]) -> EncodedItem | None:
    """Reads the cache of an earlier run; None if the request differs or the file is damaged."""
    try:
        tensors, values = files.load(cache, "bench features")
        header: _Cache = conform(values, _Cache, str(cache))
        if rename_encoder_keys(header["request"]) != request:
            return None
        grid = Grid(*header["grid"], item.times)
        tokens = Tokens.from_cells(tensors.pop("features"), grid, tensors.pop("prefix", None))
    except (ValueError, KeyError):
        return None
    return EncodedItem(item, tokens, tensors, tuple(header["milliseconds"]), header["gflops"])


@torch.inference_mode()
def measure(
    encoded: EncodedItem,
    encoder: Encoder,
    spec: str,
    keep: float | int | str,
    *,
    repeats: int = 3,
    seed: int = 0,
    shown: bool = False,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Measures one method at one budget on one clip; returns one row of the results as plain values.

    Args:
        spec: the method; `FULL` keeps all tokens.
        keep: the budget.
        repeats: number of timed runs, after one whose operations and memory are measured; 0: the row has no times.
        seed: random seed of stochastic methods.
        shown: add the assignment of the cells of a few frames to the row.
        device: device for methods of the stage "tokens". Default: the CPU.
    """
    tokens = encoded.tokens.to(device or "cpu")
    cues = {name: cue.to(tokens.device) for name, cue in encoded.cues.items()}
    methods = [] if spec == FULL else chain(spec, keep, tokens.grid, seed=seed, dim=tokens.C)
    for method in methods:
        method.to(tokens.device)
    gflops = encoded.gflops
    milliseconds: dict[str, float | None] = {}
    memory: list[int] = []
    if all(method.stage == "tokens" for method in methods):
        pipeline = Pipeline(methods)

        def run() -> Tokens:
            return pipeline(tokens, **cues)

        out = run()
        if repeats:
            milliseconds = _times(encoded.milliseconds, timings(run, repeats, tokens.device) if methods else ())
        memory = [peak_memory(run, tokens.device)] if methods else []
    else:
        # The method acts before or inside the encoder, so the encoder runs again.
        pipeline = Pipeline(methods, encoder)
        frames, times = encoded.item.frames[None], encoded.item.times

        def run() -> Tokens:
            return pipeline(frames, times)

        outputs: list[Tokens] = []
        operations = count_operations(lambda: memory.append(peak_memory(lambda: outputs.append(run()), tokens.device)))
        gflops, out = 2 * operations.giga("macs"), outputs[0]
        if repeats:
            milliseconds = _times(timings(run, repeats, tokens.device)) | {"encoder_ms": None}
    row: dict[str, Any] = {
        "clip": encoded.item.name,
        "method": spec,
        "keep": keep,
        "spec": pipeline.spec,
        "tokens": int(out.count[0]),
        "frames": len(encoded.item.frames),
        "cells": tokens.grid.cells,
        "retention": int(out.count[0]) / tokens.grid.cells,
    }
    row |= fidelity(out.to("cpu"), encoded, encoder)
    row |= milliseconds
    row |= {
        "encoder_gflops": gflops,
        "prefill_gflops": prefill_gflops(int(out.count[0])),
        "peak_mib": memory[0] / 2**20 if memory else None,
        **({"repeats": repeats} if repeats else {}),
        "vector": [round(float(v), 5) for v in out.features[0, out.mask[0]].float().mean(0).cpu()],
    }
    if shown:
        row["assignment"] = _pack_assignment(out)
        row["grid"] = [len(shown_frame_indices(tokens.grid.T)), tokens.grid.H, tokens.grid.W]
    return row


def _times(encoder: Sequence[float], method: Sequence[float] = ()) -> dict[str, float | None]:
    """The times of a row, in ms, from those of each run of the encoder and of the method after it, if there is one."""
    parts = [part for part in (encoder, method) if part]
    # They are timed separately, so their spreads add up.
    spreads = [spread for part in parts if (spread := half_range(part)) is not None]
    return {
        "method_ms": statistics.median(method) if method else None,
        "method_ms_spread": half_range(method),
        "method_ms_min": min(method, default=None),
        "method_ms_max": max(method, default=None),
        "encoder_ms": statistics.median(encoder),
        "total_ms": sum(map(statistics.median, parts)),
        "total_ms_spread": sum(spreads) if len(spreads) == len(parts) else None,
        "total_ms_min": sum(map(min, parts)),
        "total_ms_max": sum(map(max, parts)),
    }


def fidelity(tokens: Tokens, encoded: EncodedItem, encoder: Encoder) -> dict[str, float | None]:
    """Compares the features reconstructed from tokens with the full features; returns columns of a row."""
    reconstruction = tokens.unmerge(time_weight=TIME_WEIGHT)[0]
    full, rare = encoded.full, encoded.rare
    columns: dict[str, float | None] = {
        "cosine": mean_cosine(reconstruction, full),
        "relative_error": relative_error(reconstruction, full),
        "rare_cosine": mean_cosine(reconstruction[rare], full[rare]),
    }
    if encoder.decode is not None:
        columns["psnr_db"] = psnr(encoder.decode(reconstruction[None]).clamp(0, 1), encoder.decode(full[None]))
    if encoded.item.masks is not None:
        columns |= label_propagation_scores(reconstruction, encoded.item.masks)
    return columns


def label_propagation_scores(features: Tensor, masks: Tensor) -> dict[str, float]:
    """J and F of label propagation (protocol A) at the native size and at 480x880.

    The radius is proportional to the rows of the grid. Soft labels are resized to 480x880 and become masks there;
    masks at the native size are resized from these (nearest).

    Args:
        features: [T,h,w,C].
        masks: uint8 [T,H,W] at the native size.
    """
    objects = int(masks[0].max())
    if not objects:
        raise ValueError("the first mask contains no object")
    first = first_labels(masks[0], objects, _RESIZED, (features.shape[1], features.shape[2]))
    predicted = to_masks(propagate(features, first, Protocol(rows=30)), _RESIZED)
    height, width = masks.shape[1:]
    native = mean_numbers(score(resize_masks(predicted, (height, width)), masks))
    resized = mean_numbers(score(predicted, resize_masks(masks, _RESIZED)))
    names = ("j_and_f", "j", "f")
    return {name: native[name] for name in names} | {f"{name}_880": resized[name] for name in names}


def shown_frame_indices(frames: int) -> list[int]:
    """Indices of the frames whose assignment is saved."""
    return torch.linspace(0, frames - 1, min(frames, SHOWN_FRAMES)).round().long().tolist()


def _pack_assignment(tokens: Tokens) -> str:
    """Encodes the assignment of the cells of the shown frames as text."""
    assignment = tokens.assignment[0].reshape(tokens.grid.T, -1)[shown_frame_indices(tokens.grid.T)]
    return base64.b64encode(zlib.compress(assignment.cpu().numpy().astype("<i4").tobytes())).decode()


def unpack_assignment(text: str) -> np.ndarray:
    """Decodes the "assignment" of a row: int32 [frames*H*W]."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype="<i4")


def jobs(
    items: Sequence[str], specs: Sequence[str], keeps: Sequence[float | int | str], select: str | None = None
) -> Iterator[tuple[str, str, float | int | str]]:
    """Yields clip, spec and budget of every row, clip by clip; each clip starts with the row of all tokens.

    Args:
        select: the spec of a frame selector; then each method also has a row on the frames that it selects, whose spec
            is a chain that starts with it.
    """
    for item in items:
        yield item, FULL, 1.0
        for keep in keeps:
            for spec in specs:
                yield item, spec, keep
            for spec in specs if select is not None else ():
                yield item, f"{select} | {spec}", keep
