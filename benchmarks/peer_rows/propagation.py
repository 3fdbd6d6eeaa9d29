"""Label propagation next to DINO's script for DAVIS, on the grid of a ViT-S/16 at 480p, features in memory."""

from __future__ import annotations

import queue
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.evaluation.label_propagation import PROTOCOLS, propagate, to_masks
from fidelity_rows import importing
from peer_rows import Pair, Row, Workload
from propagation_speed import sequence

FRAMES, CELL = 10, 16
PROTOCOL = PROTOCOLS["davis"]["B"]


def _script(peers: Path) -> Any:
    with importing(peers / "dino", "torchvision", "cv2", "tqdm"):
        import eval_video_segmentation as script
    script.args = SimpleNamespace(size_mask_neighborhood=int(PROTOCOL.radius), topk=PROTOCOL.top)
    # The script makes the window once per video, by a loop over cells, which is not measured.
    script.restrict_neighborhood = cache(script.restrict_neighborhood)
    return script


def dino(peers: Path, work: Workload) -> Pair:
    """Soft labels of all frames; the published code gets features from a model that looks them up."""
    script = _script(peers)
    features, labels = sequence(FRAMES, str(work.device))
    _, h, w, C = features.shape
    tokens = torch.cat([features.new_zeros(FRAMES, 1, C), features.flatten(1, 2)], 1)
    # A frame is its number, at the size that the script divides by the size of a patch.
    frames = torch.arange(FRAMES).reshape(-1, 1, 1, 1).expand(-1, 1, h * CELL, w * CELL)
    model = SimpleNamespace(
        get_intermediate_layers=lambda frame, n: [tokens[int(frame[0, 0, 0, 0])][None]],
        patch_embed=SimpleNamespace(patch_size=CELL),
    )
    first = labels.permute(2, 0, 1)[None]

    def theirs() -> Tensor:
        moved = patch.object(Tensor, "cuda", lambda tensor, **_: tensor.to(work.device))
        with moved:
            first_features = script.extract_feature(model, frames[0]).T
            previous: Any = queue.Queue(PROTOCOL.context)
            soft = [first]
            for frame in frames[1:]:
                earlier = list(previous.queue)
                result, feature, _ = script.label_propagation(
                    script.args,
                    model,
                    frame,
                    [first_features, *(f for f, _ in earlier)],
                    [first, *(s for _, s in earlier)],
                )
                if previous.full():
                    previous.get()
                previous.put((feature, result))
                soft.append(result)
        return torch.cat(soft).permute(0, 2, 3, 1)

    return Pair(lambda: propagate(features, labels, PROTOCOL), theirs, _near)


def _near(ours: Tensor, theirs: Tensor) -> float:
    return float(((ours - theirs).abs().amax(-1) < 1e-3).float().mean())


def masks(peers: Path, work: Workload) -> Pair:
    """Soft labels of the grid to masks at the size of the frames."""
    script = _script(peers)
    features, labels = sequence(FRAMES, str(work.device))
    soft = propagate(features, labels, PROTOCOL)
    _, h, w, _ = soft.shape

    def theirs() -> Tensor:
        frames = []
        for frame in soft:
            maps = frame.permute(2, 0, 1)[None].contiguous()
            maps = F.interpolate(
                maps, scale_factor=CELL, mode="bilinear", align_corners=False, recompute_scale_factor=False
            )
            frames.append(torch.max(script.norm_mask(maps[0]), dim=0).indices)
        return torch.stack(frames)

    return Pair(
        lambda: to_masks(soft, (h * CELL, w * CELL), rescale=True),
        theirs,
        lambda ours, theirs: float((ours == theirs).float().mean()),
    )


_DINO = "facebookresearch/dino@7c446df"
ROWS = [
    Row("label_propagation", f"protocol B, {FRAMES} frames of 30x54 cells, 384 channels", _DINO, dino, frames=(0,)),
    Row("label_propagation", f"{FRAMES} soft maps of 4 labels to masks of 480x864", _DINO, masks, frames=(0,)),
]
