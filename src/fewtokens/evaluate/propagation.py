"""Label propagation: the mask of the first frame carried through a video by the likeness of frozen features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Protocol:
    """How labels are propagated. The defaults are protocol A, that of CropMAE and ToBo on DAVIS (from videowalk).

    Attributes:
        context: earlier frames that vote beside the first one; before there are so many, the first one stands in.
        radius: cells (Euclidean) within which a voter must lie; the first frame is not restricted. The published 20
            belongs to a grid of 30 rows, see `rows`.
        top: voters of a cell, over all frames together.
        temperature: of the softmax over their likenesses.
        rows: of the grid to which the radius belongs; on another grid it grows in proportion.
    """

    context: int = 20
    radius: float = 20.0
    top: int = 7
    temperature: float = 0.7
    rows: int = 30


@torch.no_grad()
def propagate(features: Tensor, labels: Tensor, protocol: Protocol | None = None) -> Tensor:
    """Soft labels of every frame, float32 [T,h,w,K].

    Cosine of features; each cell takes the softmax-weighted mean of the labels of its `top` most similar cells among
    all voting frames. What is predicted stays soft where it votes again. Memory: one frame against one other.

    Args:
        features: [T,h,w,C].
        labels: of the first frame, float [h,w,K].
        protocol: protocol A where not given.
    """
    protocol = protocol or Protocol()
    T, h, w, _ = features.shape
    x = F.normalize(features.float().flatten(1, 2), dim=2)
    n = h * w
    places = torch.cartesian_prod(torch.arange(float(h)), torch.arange(float(w))).to(x.device)
    far = torch.cdist(places, places) >= protocol.radius * h / protocol.rows
    everything = bool((~far).all())
    top = min(protocol.top, n)
    soft = [labels.float().flatten(0, 1)]

    def voters(query: Tensor, frame: int, near: bool) -> tuple[Tensor, Tensor]:
        """The most similar cells of one frame: likeness [n,top], and their place among all cells."""
        like = query @ x[frame].T
        if near and not everything:
            like = like.masked_fill(far, -1e10)
        value, index = like.topk(top, dim=1)
        return value, index + frame * n

    for t in range(1, T):
        found = [voters(x[t], 0, False)]
        stand_ins = max(0, protocol.context - (t - 1))
        if stand_ins:
            # The first frame in place of those that are not there yet; restricted as they are.
            again = voters(x[t], 0, True)
            found += [again] * stand_ins
        found += [voters(x[t], s, True) for s in range(max(0 if not stand_ins else 1, t - protocol.context), t)]
        value = torch.cat([v for v, _ in found], 1)
        index = torch.cat([i for _, i in found], 1)
        best, place = value.topk(top, dim=1)
        weight = (best / protocol.temperature).softmax(1)
        known = torch.cat(soft)
        soft.append((weight[..., None] * known[index.gather(1, place)]).sum(1))
    return torch.stack(soft).reshape(T, h, w, -1)


def soft_labels(mask: Tensor, objects: int, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """The first frame's labels on the grid, float32 [h,w,objects+1]: one-hot at `size`, then bilinear to the grid.

    Args:
        mask: integers [H,W], 0 = background, 1..objects.
        size: rows and columns at which it is made one-hot (nearest).
        grid: rows and columns of cells.
    """
    hot = F.one_hot(resize_masks(mask[None], size)[0].long(), objects + 1).permute(2, 0, 1)[None].float()
    return F.interpolate(hot, grid, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)


def to_masks(soft: Tensor, size: tuple[int, int]) -> Tensor:
    """Soft labels [T,h,w,K] to masks uint8 [T,H,W]: bilinear to `size`, then the largest, the first of equals."""
    masks = torch.zeros(len(soft), *size, dtype=torch.uint8, device=soft.device)
    for frame, mask in zip(soft, masks, strict=True):
        # Label by label: a maximum over so short an axis is slow.
        first, *others = F.interpolate(frame.permute(2, 0, 1)[None], size, mode="bilinear", align_corners=False)[0]
        for number, value in enumerate(others, 1):
            mask.masked_fill_(value > first, number)
            first = torch.maximum(first, value)
    return masks


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks [T,H,W] of any integers to another size, nearest pixel centre."""
    rows, columns = (
        ((torch.arange(new, dtype=torch.float64) + 0.5) * old / new).long().to(masks.device)
        for new, old in zip(size, masks.shape[1:], strict=True)
    )
    return masks[:, rows][:, :, columns]
