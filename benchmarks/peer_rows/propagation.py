"""Label propagation next to the scripts of DINO and CropMAE for DAVIS, on the grid of a ViT-S/16 at 480p."""

from __future__ import annotations

import io
import queue
from contextlib import redirect_stdout
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

FRAMES, CROPMAE_FRAMES, CELL = 10, 40, 16
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


def cropmae(peers: Path, work: Workload) -> Pair:
    """Soft labels of all frames. The script looks features up, and hands each map to a function that keeps it."""
    with importing(peers / "CropMAE" / "downstreams" / "propagation", "timm", "cv2", "matplotlib", "imageio", "scipy"):
        from src import test as script
    protocol = PROTOCOLS["davis"]["A"]
    features, labels = sequence(CROPMAE_FRAMES, str(work.device))
    T, h, w, _ = features.shape
    # The data set of the script puts as many copies of the first frame in front as there are previous frames.
    number = torch.cat([torch.zeros(protocol.context, dtype=torch.long), torch.arange(T)])
    frames = number.reshape(1, -1, 1, 1, 1).expand(-1, -1, 1, h * CELL, w * CELL)
    tokens = F.pad(features.flatten(1, 2), (0, 0, 1, 0))
    given = torch.cat([labels[None].expand(protocol.context + 1, -1, -1, -1), labels.new_zeros(T - 1, *labels.shape)])
    args = SimpleNamespace(
        model_type="vits16",
        map_scale=(CELL, CELL),
        batch_size=5,
        no_l2=False,
        norm_mask=False,
        video_len=protocol.context,
        radius=protocol.radius,
        topk=protocol.top,
        temperature=protocol.temperature,
        long_mem=[0],
        device=str(work.device),
        filelist="davis",
        save_path="",
    )

    def theirs() -> Tensor:
        soft: list[Tensor] = []

        def keep(labels: Any, *_: Any) -> tuple[None, None, None]:
            soft.append(torch.from_numpy(labels).clone())
            return None, None, None

        clip = (frames, torch.zeros(1, len(number), 3, 1, 1), given[None].clone(), None, [None], None)
        with redirect_stdout(io.StringIO()), patch.object(script.test_utils, "dump_predictions", keep):
            script.test([clip], lambda batch: tokens[batch[:, 0, 0, 0].long()], args)
        return torch.stack(soft).to(work.device)

    return Pair(lambda: propagate(features, labels, protocol), theirs, _near)


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
_CROPMAE = "alexandre-eymael/CropMAE@5d0dab2"
ROWS = [
    Row("label_propagation", f"protocol B, {FRAMES} frames of 30x54 cells, 384 channels", _DINO, dino, frames=(0,)),
    Row(
        "label_propagation",
        f"protocol A, {CROPMAE_FRAMES} frames of 30x54 cells, 384 channels",
        _CROPMAE,
        cropmae,
        frames=(0,),
        repeats=3,
    ),
    Row("label_propagation", f"{FRAMES} soft maps of 4 labels to masks of 480x864", _DINO, masks, frames=(0,)),
]
