"""Applies a function to every view of labeled items; files that cannot be read are skipped and reported."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewtokens.data import ClipData, collate
from fewtokens.data.loading import load_batches


@torch.no_grad()
def apply_to_items(
    run: Callable[[Tensor], Tensor],
    data: ClipData,
    *,
    device: torch.device | str = "cpu",
    batch: int = 64,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor, list[str]]:
    """Computes `run` on every view of every item.

    Args:
        run: maps clips [B,T,3,H,W] in 0..1 to [B,D].
        data: test data; `data.view` specifies the number of clips and crops.
        device: device on which `run` receives clips.
        batch: views per pass. workers: number of reading processes.
        progress: called with (items done, total).

    Returns:
        values [n,V,D] float32 on the CPU, targets [n] or [n,classes], and an error message for each skipped item.

    Raises:
        ValueError: no item can be read, or the reading processes died, are stuck or ran out of memory.
    """
    views = data.view.clips * data.view.crops
    parts = load_batches(data, workers=workers, collate=collate, batch=max(1, batch // views))
    values, targets, broken = [], [], []
    done = 0
    for part in parts:
        broken += part["broken"]
        done += len(part["broken"])
        if "clips" in part:
            clips = part["clips"]
            outputs = torch.cat([run(views.to(device)).float().cpu() for views in clips.flatten(0, 1).split(batch)])
            values.append(outputs.unflatten(0, (len(clips), -1)))
            targets.append(part["targets"])
            done += len(clips)
        if progress is not None:
            progress(done, len(data))
    if not values:
        raise ValueError(f"none of the {len(data)} items can be read; first error: {broken[0] if broken else 'none'}")
    return torch.cat(values), torch.cat(targets), broken
