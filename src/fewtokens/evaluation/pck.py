"""Joints of JHMDB: conversion to maps on a grid and back, and PCK (correct keypoints), as in UVC and videowalk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewtokens.data.mats import read_array

JOINTS = (
    "neck", "belly", "face", "right shoulder", "left shoulder", "right hip", "left hip", "right elbow", "left elbow",
    "right knee", "left knee", "right wrist", "left wrist", "right ankle", "left ankle",
)  # fmt: skip
# A joint is correct within this fraction of the person's size, which is 0.6 times the diagonal of its joints' box.
THRESHOLDS = (0.1, 0.2)
_BOX = 0.6
_SIGMA = 0.5


def read_joints(path: str | Path) -> Tensor:
    """Reads the joints of a clip from the key pos_img of a JHMDB .mat: float32 [T,15,2] as (x,y) in pixels from 0.

    Raises:
        ValueError: no such file, a truncated file or no .mat, or no pos_img of shape [2,15,T].
    """
    joints = read_array(path, "pos_img")
    if joints is None or joints.shape[:2] != (2, len(JOINTS)) or joints.ndim > 3 or 0 in joints.shape:
        shape = "none" if joints is None else list(joints.shape)
        raise ValueError(f"{path}: pos_img must be [2,{len(JOINTS)},T], got {shape}")
    # MATLAB drops a last axis of length 1.
    joints = np.atleast_3d(joints).astype(np.float32)
    return torch.from_numpy(joints).permute(2, 1, 0) - 1


def joint_maps(joints: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Returns one map per joint and a background map, float32 [h,w,J+1]; the background is last.

    A joint is drawn as a stamp of 4x4 cells: a Gaussian of sigma 0.5 cells whose peak, 1, is in the third row and
    column of the stamp, at the cell nearest to the joint. The stamp is cropped to the grid. As in videowalk, corners
    are rounded toward 0, so that within 1.5 cells of the left or upper border the peak is one cell further inside.

    Args:
        joints: [J,2] as (x,y) in pixels.
        size: rows and columns of the frame in pixels.
        grid: rows and columns of cells.
    """
    h, w = grid
    scale = torch.tensor([w / size[1], h / size[0]])
    place = joints.float().cpu() * scale  # [J,2]
    first, last = (place - 3 * _SIGMA).trunc(), (place + 3 * _SIGMA + 1).trunc() - 1
    profiles = []
    for axis, n in ((1, h), (0, w)):
        cell, start = torch.arange(n)[None], first[:, axis, None]
        offset = cell - start - 2
        inside = (cell >= start) & (cell <= last[:, axis, None])
        profiles.append(torch.where(inside, (-(offset**2) / (2 * _SIGMA**2)).exp(), 0))
    maps = profiles[0][:, :, None] * profiles[1][:, None, :]  # [J,h,w]
    background = (maps == 0).all(0, keepdim=True).float()
    return torch.cat([maps, background]).permute(1, 2, 0).contiguous()


def joints_from_maps(soft: Tensor, size: tuple[int, int], top: int = 5) -> Tensor:
    """Computes joints float32 [T,J,2] as (x,y) in pixels from maps.

    A joint is the mean position of the `top` largest cells of its map, weighted by their values. A joint whose map is
    empty is not predicted: (-1,-1).

    Args:
        soft: maps [T,h,w,J+1], the background last.
        size: rows and columns of the frames in pixels.
        top: number of cells.
    """
    h, w, K = soft.shape[1:]
    maps = soft[..., : K - 1].float().flatten(1, 2).transpose(1, 2)  # [T,J,h*w]
    value, index = maps.topk(min(top, h * w), 2)
    total = value.sum(2)
    x, y = ((value * part).sum(2) / total.clamp(min=1e-12) for part in (index % w, index // w))
    joints = torch.stack([x * size[1] / w, y * size[0] / h], 2)
    return torch.where((total > 0)[..., None], joints, -1.0)


def count_correct(predicted: Tensor, truth: Tensor, size: tuple[int, int]) -> dict[str, list[int]]:
    """Counts in how many frames of a clip each joint is correct; the first frame is given and does not count.

    Joints count if they are inside the frame and predicted. The size of the person is 0.6 times the diagonal of the
    box of the joints in that frame.

    Args:
        predicted, truth: [T,J,2] as (x,y) in pixels.
        size: rows and columns of the frame.

    Returns:
        "counted", "unseen" (inside the frame but not predicted), "found_0_1" and "found_0_2" (correct within that
        threshold), each with one number per joint.
    """
    predicted, truth = predicted[1:].double().cpu(), truth[1:].double().cpu()
    limit = torch.tensor([size[1], size[0]])
    inside = ((truth >= 0) & (truth < limit)).all(2)  # [T,J]
    is_predicted = (predicted >= 0).all(2)
    low = torch.where(inside[..., None], truth, math.inf).amin(1)
    high = torch.where(inside[..., None], truth, -math.inf).amax(1)
    person = _BOX * (high - low).norm(dim=1).nan_to_num(0, 0, 0)
    error = (predicted - truth).norm(dim=2)
    counted = inside & is_predicted & (person > 0)[:, None]
    counts = {"counted": counted.sum(0).tolist(), "unseen": (inside & ~is_predicted).sum(0).tolist()}
    for threshold in THRESHOLDS:
        counts[_key("found", threshold)] = (counted & (error <= threshold * person[:, None])).sum(0).tolist()
    return counts


def pck(counts: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Computes PCK@0.1 and PCK@0.2 ("pck_0_1", "pck_0_2") in percent over clips: the mean over joints of their PCK.

    Joints that were never counted are excluded.

    Args:
        counts: the result of `count_correct` for each clip; other entries are ignored.
    """

    def total(name: str) -> Tensor:
        return torch.tensor([clip[name] for clip in counts]).sum(0).double()

    return {
        _key("pck", threshold): float((100 * total(_key("found", threshold)) / total("counted")).nanmean())
        for threshold in THRESHOLDS
    }


def _key(name: str, threshold: float) -> str:
    """The key of a value at a threshold: "pck_0_1"."""
    return f"{name}_{threshold}".replace(".", "_")
