"""Frozen encoders judged by label propagation: one sequence of DAVIS, JHMDB or VIP to plain numbers and its labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.pipeline import Pipeline
from fewtokens.core.shapes import by_shape
from fewtokens.data.dense_sets import SequenceFiles, paired
from fewtokens.data.masks import read_masks, resize_masks
from fewtokens.data.transforms import resize
from fewtokens.evaluation.compare import TIME_WEIGHT
from fewtokens.evaluation.davis import TABLE, official_table, score, tolerance
from fewtokens.evaluation.label_propagation import Protocol, first_labels, propagate, to_masks
from fewtokens.evaluation.mean_iou import VIP_CLASSES, confusion, mean_iou
from fewtokens.evaluation.pck import count_found, joint_maps, joints_of, pck, read_joints
from fewtokens.video.images import read_image

# The second size at which DAVIS is scored: that of the data which RSP, CropMAE and ToBo resized as a whole.
RESIZED = (480, 880)
SIZES = ("native", "880")
# What is told of each sequence; the rest of the official table is about all of them.
_OF_SEQUENCE = ("j_and_f_mean", "j_mean", "f_mean", "j_decay")

# Frames uint8 [T,3,H,W] to features [T,h,w,C] and how many tokens they came from.
Encode = Callable[[Tensor], tuple[Tensor, int]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Judged:
    """What came of one sequence.

    Attributes:
        row: plain values: "sequence", "frames", "tokens", "cells", "grid", and what the measures of its set need.
        masks: uint8 [T,H,W] at the native size, the first one given (DAVIS and VIP).
        joints: float32 [T,15,2] as (x,y) in pixels, (-1,-1) where not seen (JHMDB).
    """

    row: dict[str, Any]
    masks: Tensor | None = None
    joints: Tensor | None = None

    __repr__ = by_shape


def encode_with(pipeline: Pipeline) -> Encode:
    """Whole features from an encoder, or those that come back from the few tokens of a chain.

    Raises (when called):
        ValueError: an encoder without features for each single frame, or with some that are not finite.
    """

    @torch.inference_mode()
    def run(frames: Tensor) -> tuple[Tensor, int]:
        tokens = pipeline(frames[None])
        if len(frames) != tokens.grid.T:
            raise ValueError(
                f"label propagation needs features for each frame; this encoder gives {tokens.grid.T} for "
                f"{len(frames)} frames"
            )
        back = tokens.unmerge(time_weight=TIME_WEIGHT)[0]
        if not bool(back.isfinite().all()):
            raise ValueError("the features are not all finite; take --dtype float32, or bfloat16 for float16")
        return back, int(tokens.count[0])

    return run


def read_frames(
    files: Sequence[Path], size: tuple[int, int] | None, how: str = "bilinear"
) -> tuple[Tensor, tuple[int, int]]:
    """Pictures as frames uint8 [T,3,H,W] of one size, and the rows and columns that they had.

    Args:
        size: rows and columns; None keeps them. how: "bilinear" (antialiased) or "nearest".

    Raises:
        ValueError: pictures of different sizes, or one that cannot be read.
    """
    frames = []
    native: tuple[int, int] | None = None
    for file in files:
        frame = read_image(file, None).frames
        found = (frame.shape[2], frame.shape[3])
        if native is not None and found != native:
            raise ValueError(f"{file}: is {found[1]}x{found[0]}, the first frame {native[1]}x{native[0]}")
        native = found
        if size is not None and size != found:
            if how == "nearest":
                frame = resize_masks(frame[0], size)[None]
            else:
                frame = resize(frame.float(), size).round().clamp(0, 255).byte()
        frames.append(frame)
    if native is None:
        raise ValueError("no pictures")
    return torch.cat(frames), native


def davis(
    files: SequenceFiles, encode: Encode, protocol: Protocol, sizes: Sequence[str] = ("native",),
    *, progress: Progress | None = None,
) -> Judged:  # fmt: skip
    """J and F of every object of a DAVIS sequence.

    The objects are those of the first mask; others that come later are ignored. Its mask is the first result.

    Args:
        sizes: at which it is scored: "native", "880" (everything at 480x880), or both.

    Raises:
        ValueError: frames without a mask, or of another size; no object in the first mask; fewer than three frames.
    """
    paired(files)
    truth = read_masks(files.labels)
    objects = int(truth[0].max())
    if not objects:
        raise ValueError(f"{files.name}: no object in its first mask")
    if len(truth) < 3:
        raise ValueError(f"{files.name}: {len(truth)} frames; the first and the last do not count, so it takes three")
    predicted, about = _propagated(files, truth, objects, encode, protocol, progress)
    row = about | {"objects": objects, "scores": {}}
    native = (truth.shape[1], truth.shape[2])
    masks = resize_masks(predicted, native)
    masks[0] = truth[0]
    for size in sizes:
        at = native if size == "native" else RESIZED
        theirs = truth if size == "native" else resize_masks(truth, RESIZED)
        ours = masks if size == "native" else resize_masks(predicted, RESIZED)
        row["scores"][size] = {
            "size": list(at),
            "tolerance": tolerance(*at),
            "objects": [one.numbers() for one in score(ours, theirs)],
        }
    return Judged(row, masks=masks)


def davis_summary(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
    """A line for each sequence (means over its objects), and the official table for each size (means over objects)."""
    sizes = list(rows[0]["scores"])
    lines = []
    for row in rows:
        line = {"sequence": row["sequence"], "frames": row["frames"], "objects": row["objects"]}
        for size in sizes:
            numbers = official_table(row["scores"][size]["objects"])
            names = _OF_SEQUENCE if size == sizes[0] else TABLE[:1]
            line |= {name if size == sizes[0] else f"{name}_{size}": 100 * numbers[name] for name in names}
        lines.append(line)
    tables = {
        size: {
            name: 100 * value
            for name, value in official_table(
                [numbers for row in rows for numbers in row["scores"][size]["objects"]]
            ).items()
        }
        for size in sizes
    }
    return lines, tables


def jhmdb(files: SequenceFiles, encode: Encode, protocol: Protocol, *, progress: Progress | None = None) -> Judged:
    """How often the joints of a JHMDB clip are found; pictures past the last labelled frame are left out.

    Raises:
        ValueError: a .mat that cannot be read, or with more frames than there are pictures.
    """
    truth = read_joints(files.labels[0])
    if len(truth) > len(files.pictures):
        raise ValueError(
            f"{files.name}: {files.labels[0].name} has {len(truth)} frames, {len(files.pictures)} pictures"
        )
    if len(truth) < 2:
        raise ValueError(f"{files.name}: {len(truth)} frames; the first is given, so it takes two")
    _, native = read_frames(files.pictures[:1], None)
    frames, native = read_frames(files.pictures[: len(truth)], protocol.input_size(*native), protocol.images)
    features, tokens = encode(frames)
    grid = (features.shape[1], features.shape[2])
    labels = joint_maps(truth[0], native, grid).to(features.device)
    soft = propagate(features, labels, protocol, progress=progress)
    joints = joints_of(soft.cpu(), native)
    joints[0] = truth[0]
    row = _about(files, features, tokens) | count_found(joints, truth, native)
    return Judged(row, joints=joints)


def jhmdb_summary(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A line for each clip, and PCK over all of them."""
    lines = [{"sequence": row["sequence"], "frames": row["frames"]} | pck([row]) for row in rows]
    return lines, pck(rows) | {
        "joints_counted": sum(sum(row["counted"]) for row in rows),
        "joints_unseen": sum(sum(row["unseen"]) for row in rows),
    }


def vip(files: SequenceFiles, encode: Encode, protocol: Protocol, *, progress: Progress | None = None) -> Judged:
    """The confusion of the classes in a VIP video, its first frame, which is given, among them.

    Raises:
        ValueError: frames without a mask, or of another size.
    """
    paired(files)
    truth = read_masks(files.labels, values=True)
    # Only classes of the first frame can be propagated; the others would be empty maps.
    known = [0, *(number for number in truth[0].unique().tolist() if 0 < number < len(VIP_CLASSES))]
    of_class = torch.zeros(256, dtype=torch.uint8)
    of_class[known] = torch.arange(len(known), dtype=torch.uint8)
    predicted, about = _propagated(files, of_class[truth.long()], len(known) - 1, encode, protocol, progress)
    masks = resize_masks(predicted, (truth.shape[1], truth.shape[2]))
    masks = torch.tensor(known, dtype=torch.uint8)[masks.long()]
    masks[0] = torch.where(truth[0] < len(VIP_CLASSES), truth[0], 0)
    return Judged(about | {"confusion": confusion(masks, truth).tolist()}, masks=masks)


def vip_summary(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A line for each video, and the mean IoU of the confusion of all of them."""
    lines = [
        {"sequence": row["sequence"], "frames": row["frames"], "mean_iou": mean_iou(torch.tensor(row["confusion"]))}
        for row in rows
    ]
    return lines, {"mean_iou": mean_iou(torch.tensor([row["confusion"] for row in rows]).sum(0))}


def _propagated(
    files: SequenceFiles, truth: Tensor, objects: int, encode: Encode, protocol: Protocol, progress: Progress | None
) -> tuple[Tensor, dict[str, Any]]:
    """Masks uint8 [T,h,w] at the size that was encoded, and what there is to say about it."""
    _, native = read_frames(files.pictures[:1], None)
    if native != (truth.shape[1], truth.shape[2]):
        raise ValueError(
            f"{files.name}: masks of {truth.shape[2]}x{truth.shape[1]} for frames of {native[1]}x{native[0]}"
        )
    size = protocol.input_size(*native)
    frames, _ = read_frames(files.pictures, size, protocol.images)
    features, tokens = encode(frames)
    grid = (features.shape[1], features.shape[2])
    labels = first_labels(truth[0], objects, size, grid, protocol.labels).to(features.device)
    soft = propagate(features, labels, protocol, progress=progress)
    return to_masks(soft, size, rescale=protocol.rescale).cpu(), _about(files, features, tokens)


def _about(files: SequenceFiles, features: Tensor, tokens: int) -> dict[str, Any]:
    T, h, w, _ = features.shape
    return {"sequence": files.name, "frames": T, "grid": [h, w], "tokens": tokens, "cells": T * h * w}
