"""Speed of label propagation against the reference implementations, on the grid of a ViT-S/16 at 480p.

    python benchmarks/propagation_speed.py                      # 70 frames, the average of DAVIS, 3 repeats
    python benchmarks/propagation_speed.py --frames 8 --repeats 1 --name propagation_speed_try

About 13 minutes and 3 GB on 2 cores. Features [70, 30, 54, 384] that drift over time, labels of 3 objects; only the
propagation is timed. The references follow the published scripts:

* A (videowalk, CropMAE): for each frame the features of all 21 context frames are stacked (frames before the start are
  copies of the first); one similarity table [1620, 21 * 1620], a mask added to it, top-k over the full table;
* B (DINO; RSP with its parameters): the same for the existing frames: exp of the full table, times the window, top-k
  along its columns, the rest set to 0, and a product of the full table with the labels.

Ours compares each pair of frames once, in bands that skip most of what is outside the radius, and merges the best
matches of each frame. Expected on 2 cores: the same labels (to 5e-4 if votes are nearly equal); A about 2 times, B-rsp
(whose window excludes nothing) about 4 times, B about 5 times faster, with a sixth to a tenth of the memory; most of
our time is the matrix product.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from common import time_side_by_side, write
from fewtokens.evaluation.label_propagation import PROTOCOLS, Protocol, propagate
from fewtokens.profiling.memory import peak_memory

GRID, DIM, OBJECTS = (30, 54), 384, 3


def sequence(frames: int, device: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features [T,h,w,C] of a background that moves by one cell every three frames, with noise; labels [h,w,K]."""
    g = torch.Generator().manual_seed(seed)
    h, w = GRID
    background = torch.randn(h, w, DIM, generator=g)
    x = torch.stack([background.roll(t // 3, 1) + 0.5 * torch.randn(h, w, DIM, generator=g) for t in range(frames)])
    labels = F.one_hot(torch.randint(0, OBJECTS + 1, (h // 6, w // 6), generator=g), OBJECTS + 1).float()
    return x.to(device), labels.repeat_interleave(6, 0).repeat_interleave(6, 1).to(device)


def offsets(device: torch.device) -> tuple[Tensor, Tensor]:
    """Vertical and horizontal distance of all pairs of cells, [n,n] each."""
    h, w = GRID
    y, x = (axis.flatten().float() for axis in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    return (y[:, None] - y).abs().to(device), (x[:, None] - x).abs().to(device)


@torch.no_grad()
def reference_a(features: Tensor, labels: Tensor, protocol: Protocol) -> Tensor:
    T, n = len(features), GRID[0] * GRID[1]
    down, across = offsets(features.device)
    mask = torch.where(down.hypot(across) < protocol.radius, 0.0, -1e10)
    soft = [labels.flatten(0, 1)]
    for t in range(1, T):
        context = [0, *(max(0, s) for s in range(t - protocol.context, t))]
        keys = F.normalize(features[context].flatten(1, 2), dim=2)
        query = F.normalize(features[t].flatten(0, 1), dim=1)
        similarity = torch.einsum("nc,smc->nsm", query, keys)
        similarity[:, 1:] += mask[:, None]
        value, index = similarity.flatten(1).topk(protocol.top, 1)
        weight = (value / protocol.temperature).softmax(1)
        candidates = torch.stack([soft[s] for s in context]).flatten(0, 1)
        soft.append((weight[..., None] * candidates[index]).sum(1))
        assert len(soft[-1]) == n
    return torch.stack(soft).reshape(T, *GRID, -1)


@torch.no_grad()
def reference_b(features: Tensor, labels: Tensor, protocol: Protocol) -> Tensor:
    T = len(features)
    down, across = offsets(features.device)
    window = ((down <= protocol.radius) & (across <= protocol.radius)).float()
    soft = [labels.flatten(0, 1)]
    for t in range(1, T):
        context = [0, *range(max(1, t - protocol.context), t)]
        keys = F.normalize(features[context].flatten(1, 2), dim=2)
        query = F.normalize(features[t].flatten(0, 1), dim=1)
        affinity = torch.exp(torch.bmm(query.expand(len(context), -1, -1), keys.transpose(1, 2)) / protocol.temperature)
        affinity = (affinity * window).transpose(1, 2).flatten(0, 1)  # [s*m,n]
        threshold = affinity.topk(protocol.top, 0).values.amin(0)
        affinity[affinity < threshold] = 0
        affinity = affinity / affinity.sum(0, keepdim=True)
        soft.append(affinity.T @ torch.cat([soft[s] for s in context]))
    return torch.stack(soft).reshape(T, *GRID, -1)


def row(name: str, frames: int, repeats: int, device: str) -> dict:
    protocol = PROTOCOLS["davis"][name]
    reference = reference_a if name == "A" else reference_b
    features, labels = sequence(frames, device)
    runs = {
        "ours": lambda: propagate(features, labels, protocol),
        "reference": lambda: reference(features, labels, protocol),
    }
    memory, results = {}, {}
    for key, run in runs.items():
        # This first run also warms up.
        memory[key] = peak_memory(lambda run=run, key=key: results.update({key: run()}), features.device) / 2**20
    difference = float((results["ours"] - results["reference"]).abs().max())
    times = time_side_by_side(runs, repeats, warm=True)

    def show(key: str) -> str:
        part = times[key]
        return f"{part['median'] / 1000:.2f} ({part['min'] / 1000:.2f}..{part['max'] / 1000:.2f})"

    return {
        "protocol": f"{name}: context {protocol.context}, radius {protocol.radius:g}, top {protocol.top}",
        "frames": frames,
        "ours, s": show("ours"),
        "reference, s": show("reference"),
        "reference / ours": round(times["reference"]["median"] / times["ours"]["median"], 2),
        "ours, peak MiB": round(memory["ours"]),
        "reference, peak MiB": round(memory["reference"]),
        "largest difference": f"{difference:.0e}",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=70, help="frames of the sequence (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs (default: %(default)s)")
    parser.add_argument(
        "--name", default="propagation_speed", help="stem of the files in results/ (default: %(default)s)"
    )
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    write(
        options.name,
        "Label propagation against the reference implementations",
        f"python benchmarks/propagation_speed.py --frames {options.frames} --repeats {options.repeats}",
        [row(name, options.frames, options.repeats, device) for name in PROTOCOLS["davis"]],
        f"Seconds per sequence, median (min..max) of {options.repeats}, on features [T, 30, 54, 384] ({device}), "
        "without the encoder. Peak: memory in addition to the features.",
    )
