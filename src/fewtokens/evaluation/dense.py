"""Evaluates frozen encoders by label propagation on sequences of DAVIS, JHMDB and VIP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.pipeline import Pipeline
from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import TIME_WEIGHT
from fewtokens.data.dense_sets import SequenceFiles, check_paired
from fewtokens.data.masks import read_masks, resize_masks
from fewtokens.data.transforms import resize
from fewtokens.evaluation.davis import TABLE, official_table, score, tolerance
from fewtokens.evaluation.label_propagation import Protocol, first_labels, propagate, to_masks
from fewtokens.evaluation.mean_iou import VIP_CLASSES, confusion, mean_iou
from fewtokens.evaluation.pck import count_correct, joint_maps, joints_from_maps, pck, read_joints
from fewtokens.video.images import read_image

# The second size at which DAVIS is scored: that of the data set as RSP, CropMAE and ToBo resized it.
RESIZED = (480, 880)
SIZES = ("native", "880")
# Columns reported per sequence; the other columns of the official table are reported for all sequences together.
_SEQUENCE_COLUMNS = ("j_and_f_mean", "j_mean", "f_mean", "j_decay")

# Maps frames uint8 [T,3,H,W] to features [T,h,w,C] and the number of tokens that they were reconstructed from.
Encode = Callable[[Tensor], tuple[Tensor, int]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class SequenceResult:
    """The result of one sequence.

    Attributes:
        row: plain values: "sequence", "frames", "tokens", "cells", "grid", and the values from which the scores of its
            data set are computed.
        masks: predicted masks uint8 [T,H,W] at the native size, the first one from the ground truth (DAVIS and VIP).
        joints: predicted joints float32 [T,15,2] as (x,y) in pixels, (-1,-1) if not predicted (JHMDB).
    """

    row: dict[str, Any]
    masks: Tensor | None = None
    joints: Tensor | None = None

    __repr__ = shape_repr


def encode_with(pipeline: Pipeline) -> Encode:
    """Returns a function that computes the features of frames, reconstructed from few tokens if there is a chain.

    Raises (when the function is called):
        ValueError: the encoder does not return features for each frame, or features are not finite.
    """

    @torch.inference_mode()
    def run(frames: Tensor) -> tuple[Tensor, int]:
        tokens = pipeline(frames[None])
        if len(frames) != tokens.grid.T:
            raise ValueError(
                f"label propagation needs features for each frame; this encoder returns {tokens.grid.T} feature maps "
                f"for {len(frames)} frames"
            )
        features = tokens.unmerge(time_weight=TIME_WEIGHT)[0]
        if not bool(features.isfinite().all()):
            raise ValueError("the features are not all finite; use --dtype float32 or bfloat16")
        return features, int(tokens.count[0])

    return run


def read_frames(
    files: Sequence[Path], size: tuple[int, int] | None, how: str = "bilinear"
) -> tuple[Tensor, tuple[int, int]]:
    """Reads images as frames uint8 [T,3,H,W]; returns them with their native size (rows, columns).

    Args:
        files: image files of one size.
        size: rows and columns to resize to; None for the native size.
        how: "bilinear" (antialiased) or "nearest".

    Raises:
        ValueError: images of different sizes, an image that cannot be read, or no images.
    """
    frames = []
    native: tuple[int, int] | None = None
    for file in files:
        frame = read_image(file, None).frames
        frame_size = (frame.shape[2], frame.shape[3])
        if native is not None and frame_size != native:
            raise ValueError(
                f"{file}: must be {native[1]}x{native[0]} like the first frame, got {frame_size[1]}x{frame_size[0]}"
            )
        native = frame_size
        if size is not None and size != frame_size:
            if how == "nearest":
                frame = resize_masks(frame[0], size)[None]
            else:
                frame = resize(frame.float(), size).round().clamp(0, 255).byte()
        frames.append(frame)
    if native is None:
        raise ValueError("no images")
    return torch.cat(frames), native


def davis(
    files: SequenceFiles, encode: Encode, protocol: Protocol, sizes: Sequence[str] = ("native",),
    *, progress: Progress | None = None,
) -> SequenceResult:  # fmt: skip
    """Computes J and F of every object of a DAVIS sequence.

    The objects are those of the first mask; objects that appear later are ignored. The first mask is the ground truth.

    Args:
        files: the sequence.
        encode: computes the features, see `encode_with`.
        protocol: settings of label propagation.
        sizes: sizes at which masks are scored: "native", "880" (480x880), or both.
        progress: called with (frames done, total).

    Raises:
        ValueError: frames without a mask or masks of another size, no object in the first mask, or fewer than three
            frames.
    """
    check_paired(files)
    truth = read_masks(files.labels)
    objects = int(truth[0].max())
    if not objects:
        raise ValueError(f"{files.name}: the first mask contains no object")
    if len(truth) < 3:
        raise ValueError(
            f"{files.name}: J and F require at least 3 frames (the first and the last are not scored), got {len(truth)}"
        )
    predicted, row = _propagate_masks(files, truth, objects, encode, protocol, progress)
    row |= {"objects": objects, "scores": {}}
    native = (truth.shape[1], truth.shape[2])
    masks = resize_masks(predicted, native)
    masks[0] = truth[0]
    for size in sizes:
        shape = native if size == "native" else RESIZED
        targets = truth if size == "native" else resize_masks(truth, RESIZED)
        predictions = masks if size == "native" else resize_masks(predicted, RESIZED)
        row["scores"][size] = {
            "size": list(shape),
            "tolerance": tolerance(*shape),
            "objects": [scores.numbers() for scores in score(predictions, targets)],
        }
    return SequenceResult(row, masks=masks)


def davis_summary(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
    """Returns one line per sequence (means over its objects), and the official table for each size."""
    sizes = list(rows[0]["scores"])
    lines = []
    for row in rows:
        line = {"sequence": row["sequence"], "frames": row["frames"], "objects": row["objects"]}
        for size in sizes:
            numbers = official_table(row["scores"][size]["objects"])
            names = _SEQUENCE_COLUMNS if size == sizes[0] else TABLE[:1]
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


def jhmdb(
    files: SequenceFiles, encode: Encode, protocol: Protocol, *, progress: Progress | None = None
) -> SequenceResult:
    """Counts the correctly predicted joints of a JHMDB clip; images after the last labeled frame are ignored.

    Args:
        files: the clip.
        encode: computes the features, see `encode_with`.
        protocol: settings of label propagation.
        progress: called with (frames done, total).

    Raises:
        ValueError: a .mat that cannot be read or has more frames than images, or fewer than two frames.
    """
    truth = read_joints(files.labels[0])
    if len(truth) > len(files.images):
        raise ValueError(
            f"{files.name}: {files.labels[0].name} has {len(truth)} frames, but there are {len(files.images)} images"
        )
    if len(truth) < 2:
        raise ValueError(f"{files.name}: PCK requires at least 2 frames (the first is not scored), got {len(truth)}")
    _, native = read_frames(files.images[:1], None)
    frames, native = read_frames(files.images[: len(truth)], protocol.input_size(*native), protocol.images)
    features, tokens = encode(frames)
    grid = (features.shape[1], features.shape[2])
    labels = joint_maps(truth[0], native, grid).to(features.device)
    soft = propagate(features, labels, protocol, progress=progress)
    joints = joints_from_maps(soft.cpu(), native)
    joints[0] = truth[0]
    row = _base_row(files, features, tokens) | count_correct(joints, truth, native)
    return SequenceResult(row, joints=joints)


def jhmdb_summary(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Returns one line per clip, and PCK over all clips."""
    lines = [{"sequence": row["sequence"], "frames": row["frames"]} | pck([row]) for row in rows]
    return lines, pck(rows) | {
        "joints_counted": sum(sum(row["counted"]) for row in rows),
        "joints_unseen": sum(sum(row["unseen"]) for row in rows),
    }


def vip(
    files: SequenceFiles, encode: Encode, protocol: Protocol, *, progress: Progress | None = None
) -> SequenceResult:
    """Computes the confusion matrix of the classes in a VIP video, including the first frame, which is given.

    Args:
        files: the video.
        encode: computes the features, see `encode_with`.
        protocol: settings of label propagation.
        progress: called with (frames done, total).

    Raises:
        ValueError: frames without a mask, or masks of another size.
    """
    check_paired(files)
    truth = read_masks(files.labels, values=True)
    # Only classes of the first frame can be propagated; the maps of the others would be empty.
    classes = [0, *(number for number in truth[0].unique().tolist() if 0 < number < len(VIP_CLASSES))]
    class_to_label = torch.zeros(256, dtype=torch.uint8)
    class_to_label[classes] = torch.arange(len(classes), dtype=torch.uint8)
    predicted, row = _propagate_masks(files, class_to_label[truth.long()], len(classes) - 1, encode, protocol, progress)
    masks = resize_masks(predicted, (truth.shape[1], truth.shape[2]))
    masks = torch.tensor(classes, dtype=torch.uint8)[masks.long()]
    masks[0] = torch.where(truth[0] < len(VIP_CLASSES), truth[0], 0)
    return SequenceResult(row | {"confusion": confusion(masks, truth).tolist()}, masks=masks)


def vip_summary(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Returns one line per video, and the mean IoU of the sum of their confusion matrices."""
    lines = [
        {"sequence": row["sequence"], "frames": row["frames"], "mean_iou": mean_iou(torch.tensor(row["confusion"]))}
        for row in rows
    ]
    return lines, {"mean_iou": mean_iou(torch.tensor([row["confusion"] for row in rows]).sum(0))}


def _propagate_masks(
    files: SequenceFiles, truth: Tensor, objects: int, encode: Encode, protocol: Protocol, progress: Progress | None
) -> tuple[Tensor, dict[str, Any]]:
    """Returns masks uint8 [T,h,w] at the size of the encoder's input, and the first columns of a row."""
    _, native = read_frames(files.images[:1], None)
    if native != (truth.shape[1], truth.shape[2]):
        raise ValueError(
            f"{files.name}: masks are {truth.shape[2]}x{truth.shape[1]}, but frames are {native[1]}x{native[0]}"
        )
    size = protocol.input_size(*native)
    frames, _ = read_frames(files.images, size, protocol.images)
    features, tokens = encode(frames)
    grid = (features.shape[1], features.shape[2])
    labels = first_labels(truth[0], objects, size, grid, protocol.labels).to(features.device)
    soft = propagate(features, labels, protocol, progress=progress)
    return to_masks(soft, size, rescale=protocol.rescale).cpu(), _base_row(files, features, tokens)


def _base_row(files: SequenceFiles, features: Tensor, tokens: int) -> dict[str, Any]:
    T, h, w, _ = features.shape
    return {"sequence": files.name, "frames": T, "grid": [h, w], "tokens": tokens, "cells": T * h * w}
