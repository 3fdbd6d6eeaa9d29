"""Joints of JHMDB: as maps on a grid, back from them, and how many are found (PCK), in the way of UVC and videowalk."""

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
# A joint is found within this share of the person's size, which is 0.6 times the diagonal of the box of its joints.
SHARES = (0.1, 0.2)
_BOX = 0.6
_SIGMA = 0.5


def read_joints(path: str | Path) -> Tensor:
    """The joints of a clip in pixels from 0, float32 [T,15,2] as (x,y), from the key pos_img of a JHMDB .mat.

    Raises:
        ValueError: no such file, one that is cut short or no .mat, or one without pos_img of [2,15,T].
    """
    places = read_array(path, "pos_img")
    if places is None or places.shape[:2] != (2, len(JOINTS)) or places.ndim > 3 or 0 in places.shape:
        shape = "none" if places is None else list(places.shape)
        raise ValueError(f"{path}: pos_img must be [2,{len(JOINTS)},T], got {shape}")
    # MATLAB drops a last axis of length 1.
    places = np.atleast_3d(places).astype(np.float32)
    return torch.from_numpy(places).permute(2, 1, 0) - 1


def joint_maps(joints: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """A map for each joint and one of what is no joint, float32 [h,w,J+1]; the last is the background.

    A joint is a stamp of 4x4 cells, a Gaussian of sigma 0.5 cells whose peak, 1, is in the third row and column, at the
    cell nearest to it. What lies outside of the grid is cut.

    Args:
        joints: in pixels, [J,2] as (x,y).
        size: rows and columns of the frame in pixels. grid: of the cells.
    """
    h, w = grid
    scale = torch.tensor([w / size[1], h / size[0]])
    peak = (joints.float().cpu() * scale + 0.5).floor()  # [J,2]
    # A stamp goes from 2 cells before its peak to 1 after it.
    near = [torch.arange(n)[None] - peak[:, axis, None] for axis, n in ((1, h), (0, w))]
    part = [torch.where((d >= -2) & (d <= 1), (-(d**2) / (2 * _SIGMA**2)).exp(), 0) for d in near]
    maps = part[0][:, :, None] * part[1][:, None, :]  # [J,h,w]
    nothing = (maps == 0).all(0, keepdim=True).float()
    return torch.cat([maps, nothing]).permute(1, 2, 0).contiguous()


def joints_of(soft: Tensor, size: tuple[int, int], top: int = 5) -> Tensor:
    """Joints in pixels from maps, float32 [T,J,2] as (x,y): the mean of the `top` largest cells, weighted by them.

    A joint whose map is empty is not seen: (-1,-1).

    Args:
        soft: [T,h,w,J+1], the background last. size: rows and columns of the frames in pixels.
    """
    h, w, K = soft.shape[1:]
    maps = soft[..., : K - 1].float().flatten(1, 2).transpose(1, 2)  # [T,J,h*w]
    value, index = maps.topk(min(top, h * w), 2)
    total = value.sum(2)
    x, y = ((value * part).sum(2) / total.clamp(min=1e-12) for part in (index % w, index // w))
    places = torch.stack([x * size[1] / w, y * size[0] / h], 2)
    return torch.where((total > 0)[..., None], places, -1.0)


def count_found(predicted: Tensor, truth: Tensor, size: tuple[int, int]) -> dict[str, list[int]]:
    """How often each joint was found in a clip; the first frame is given and does not count.

    Counted are joints that lie in the frame and that are predicted at all. The size of a person is 0.6 times the
    diagonal of the box of the joints in that frame.

    Args:
        predicted, truth: [T,J,2] as (x,y) in pixels. size: rows and columns of the frame.

    Returns:
        "counted", "unseen" (in the frame, and not predicted), "found_0_1", "found_0_2": a number for each joint.
    """
    predicted, truth = predicted[1:].double().cpu(), truth[1:].double().cpu()
    limit = torch.tensor([size[1], size[0]])
    inside = ((truth >= 0) & (truth < limit)).all(2)  # [T,J]
    seen = (predicted >= 0).all(2)
    low = torch.where(inside[..., None], truth, math.inf).amin(1)
    high = torch.where(inside[..., None], truth, -math.inf).amax(1)
    person = _BOX * (high - low).norm(dim=1).nan_to_num(0, 0, 0)
    error = (predicted - truth).norm(dim=2)
    counted = inside & seen & (person > 0)[:, None]
    found = {"counted": counted.sum(0).tolist(), "unseen": (inside & ~seen).sum(0).tolist()}
    for share in SHARES:
        found[_key("found", share)] = (counted & (error <= share * person[:, None])).sum(0).tolist()
    return found


def pck(counts: Sequence[dict[str, Any]]) -> dict[str, float]:
    """PCK@0.1 and PCK@0.2 in percent over clips ("pck_0_1", "pck_0_2"): the mean over joints of each joint's own.

    A joint that was never counted is left out.

    Args:
        counts: of each clip, as `count_found` gives them; other entries are let be.
    """

    def total(name: str) -> Tensor:
        return torch.tensor([one[name] for one in counts]).sum(0).double()

    return {
        _key("pck", share): float((100 * total(_key("found", share)) / total("counted")).nanmean()) for share in SHARES
    }


def _key(name: str, share: float) -> str:
    """The key of a number at a threshold: "pck_0_1"."""
    return f"{name}_{share}".replace(".", "_")
