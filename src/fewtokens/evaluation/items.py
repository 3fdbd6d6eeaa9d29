"""One pass over labelled items: every view through a function, broken files left out and told."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewtokens.data import ClipData, collate
from fewtokens.data.loading import load_batches


@torch.no_grad()
def over_items(
    run: Callable[[Tensor], Tensor],
    data: ClipData,
    *,
    device: torch.device | str = "cpu",
    batch: int = 64,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor, list[str]]:
    """What `run` gives for every view of every item.

    Args:
        run: clips [B,T,3,H,W] in 0..1 to [B,D].
        data: of a test; its view says how many clips and crops.
        device: where clips are given to `run`.
        batch: views in one pass. workers: processes that read.
        progress: called with (items done, in all).

    Returns:
        values [n,V,D] float32 on the CPU, targets [n] or [n,classes], and what is wrong with items left out.

    Raises:
        ValueError: no item can be read; the processes that read died, are stuck, or find no memory.
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
            made = torch.cat([run(view.to(device)).float().cpu() for view in clips.flatten(0, 1).split(batch)])
            values.append(made.unflatten(0, (len(clips), -1)))
            targets.append(part["targets"])
            done += len(clips)
        if progress is not None:
            progress(done, len(data))
    if not values:
        raise ValueError(f"none of the {len(data)} items can be read; the first: {broken[0] if broken else 'none'}")
    return torch.cat(values), torch.cat(targets), broken
