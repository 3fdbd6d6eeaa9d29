"""Speed of label propagation against the reference way, on the grid of a ViT-S/16 at 480p.

    python benchmarks/propagation_speed.py                      # 70 frames, as DAVIS has on average, 3 repeats
    python benchmarks/propagation_speed.py --frames 8 --repeats 1 --name propagation_speed_try

About 13 minutes and 3 GB on 2 cores. Features [70, 30, 54, 384] that drift over time, labels of 3 objects; only the
propagation is timed, for the features are the same. The reference way is written as the published scripts work:

* A (videowalk, CropMAE): for each frame the features of all 21 context frames are stacked, those before the start being
  copies of the first; one table of likenesses [1620, 21 * 1620], a mask added to it, the largest taken over all of it;
* B (DINO; RSP with its numbers): likewise for the frames there are, exp of the whole table, times the window, the
  largest sought along its columns, the rest set to 0, and a product of the whole table with the labels.

Ours compares each pair of frames once, in bands that leave out most of what is out of reach, and merges the best of
each frame. Expected on 2 cores: the same labels (to 5e-4 where votes are nearly equal); A about 2 times, B-rsp (whose
window leaves nothing out) about 4 times, B about 5 times faster, in a sixth to a tenth of the memory; most of our
time is the matrix product itself.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from common import time_side_by_side, write
from fewtokens.evaluation.label_propagation import PROTOCOLS, Protocol, propagate
from fewtokens.profiling.memory import peak_memory

GRID, WIDTH, OBJECTS = (30, 54), 384, 3


def sequence(frames: int, device: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features [T,h,w,C] of a ground that pans by a cell each third frame under slow noise, and labels [h,w,K]."""
    g = torch.Generator().manual_seed(seed)
    h, w = GRID
    ground = torch.randn(h, w, WIDTH, generator=g)
    x = torch.stack([ground.roll(t // 3, 1) + 0.5 * torch.randn(h, w, WIDTH, generator=g) for t in range(frames)])
    labels = F.one_hot(torch.randint(0, OBJECTS + 1, (h // 6, w // 6), generator=g), OBJECTS + 1).float()
    return x.to(device), labels.repeat_interleave(6, 0).repeat_interleave(6, 1).to(device)


def apart(device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns between all pairs of cells, [n,n] each."""
    h, w = GRID
    y, x = (place.flatten().float() for place in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    return (y[:, None] - y).abs().to(device), (x[:, None] - x).abs().to(device)


@torch.no_grad()
def reference_a(features: Tensor, labels: Tensor, protocol: Protocol) -> Tensor:
    T, n = len(features), GRID[0] * GRID[1]
    down, across = apart(features.device)
    mask = torch.where(down.hypot(across) < protocol.radius, 0.0, -1e10)
    soft = [labels.flatten(0, 1)]
    for t in range(1, T):
        context = [0, *(max(0, s) for s in range(t - protocol.context, t))]
        keys = F.normalize(features[context].flatten(1, 2), dim=2)
        query = F.normalize(features[t].flatten(0, 1), dim=1)
        like = torch.einsum("nc,smc->nsm", query, keys)
        like[:, 1:] += mask[:, None]
        value, place = like.flatten(1).topk(protocol.top, 1)
        weight = (value / protocol.temperature).softmax(1)
        known = torch.stack([soft[s] for s in context]).flatten(0, 1)
        soft.append((weight[..., None] * known[place]).sum(1))
        assert len(soft[-1]) == n
    return torch.stack(soft).reshape(T, *GRID, -1)


@torch.no_grad()
def reference_b(features: Tensor, labels: Tensor, protocol: Protocol) -> Tensor:
    T = len(features)
    down, across = apart(features.device)
    window = ((down <= protocol.radius) & (across <= protocol.radius)).float()
    soft = [labels.flatten(0, 1)]
    for t in range(1, T):
        context = [0, *range(max(1, t - protocol.context), t)]
        keys = F.normalize(features[context].flatten(1, 2), dim=2)
        query = F.normalize(features[t].flatten(0, 1), dim=1)
        like = torch.exp(torch.bmm(query.expand(len(context), -1, -1), keys.transpose(1, 2)) / protocol.temperature)
        like = (like * window).transpose(1, 2).flatten(0, 1)  # [s*m,n]
        least = like.topk(protocol.top, 0).values.amin(0)
        like[like < least] = 0
        like = like / like.sum(0, keepdim=True)
        soft.append(like.T @ torch.cat([soft[s] for s in context]))
    return torch.stack(soft).reshape(T, *GRID, -1)


def row(name: str, frames: int, repeats: int, device: str) -> dict:
    protocol = PROTOCOLS["davis"][name]
    reference = reference_a if name == "A" else reference_b
    features, labels = sequence(frames, device)
    runs = {
        "ours": lambda: propagate(features, labels, protocol),
        "reference": lambda: reference(features, labels, protocol),
    }
    memory = {}
    found = {}
    for which, run in runs.items():
        # This first run also warms up.
        memory[which] = peak_memory(lambda run=run, which=which: found.update({which: run()}), features.device) / 2**20
    difference = float((found["ours"] - found["reference"]).abs().max())
    times = time_side_by_side(runs, repeats, warm=True)

    def show(which: str) -> str:
        part = times[which]
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
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=70)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--name", default="propagation_speed", help="of the files in results/")
    wanted = parser.parse_args()
    where = "cuda" if torch.cuda.is_available() else "cpu"
    write(
        wanted.name,
        "Label propagation against the reference way",
        f"python benchmarks/propagation_speed.py --frames {wanted.frames} --repeats {wanted.repeats}",
        [row(name, wanted.frames, wanted.repeats, where) for name in PROTOCOLS["davis"]],
        f"Seconds a sequence, median (least..most) of {wanted.repeats}, on features [T, 30, 54, 384] ({where}); the "
        "encoder is not in it. Peak: what operations give out beside the features.",
    )
