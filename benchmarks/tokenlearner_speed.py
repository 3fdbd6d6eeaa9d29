"""How much of TokenLearner's FLOP ratio arrives as time and memory, and what the rest is.

    python benchmarks/tokenlearner_speed.py

Costs about 2 minutes on 2 cores. Three tables:

1. whole networks against the plain one: time, FLOP ratio, and what a training step keeps in memory; on a GPU, where
   there is one, also in bf16, compiled and not;
2. where the time of a TokenLearner network goes: blocks before the learner, the learner, blocks behind it;
3. one module, versions 1.0 and 1.1, against the straightforward version that makes the [B,M,N,C] product of every
   map with every pixel: time and memory, and the largest difference. Ours is one matrix product.

Expected on 2 cores: the networks are 1.7 to 2.0 times faster at FLOP ratios of 1.75 to 1.95, so nearly all of it
arrives; what holds the rest back is the learner's 3x3 convolutions and the blocks on 8 tokens, which run at 30 to 70 %
of the rate of the large ones. One module is 3 to 12 times faster than the straightforward version (writing the large
product costs more or less by the state of the machine), in a thirteenth of its memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewtokens import networks as models
from fewtokens.methods.learned.tokenlearner import TokenLearner
from fewtokens.profiling.memory import activation_bytes
from fewtokens.profiling.operations import count

sys.path.insert(0, str(Path(__file__).parent))
from common import peak_memory, time_side_by_side, write

MODULES = [(version, shape) for version in ("1.0", "1.1") for shape in ((8, 14, 14, 768), (2, 32, 32, 1024))]
NETWORKS = [
    ("vit_s16", "tokenlearner_vit_s16_8at6", 224, 8),
    ("vit_s16", "tokenlearner_vit_s16_8at6_fuser", 224, 8),
    ("vit_s16", "tokenlearner_vit_s16_8at6", 384, 2),
    ("vit_b16", "tokenlearner_vit_b16_8at6", 224, 2),
    ("vivit_s16", "tokenlearner_vivit_s16_8at6", 112, 1),
]


def whole(device: str, dtype: torch.dtype, compiled: bool) -> list[dict[str, Any]]:
    rows = []
    peaks = on_cpu() if device == "cpu" else {}
    for plain_name, name, size, batch in NETWORKS:
        if device == "cuda":
            batch *= 16
        networks = {}
        for each in (plain_name, name):
            network = models.build(each, image_size=(size, size)).to(device, dtype).eval()
            networks[each] = torch.compile(network) if compiled else network
        clip = torch.rand(batch, networks[name].config.num_frames, 3, size, size, device=device)
        times = time_side_by_side({each: lambda n=network, c=clip: n(c) for each, network in networks.items()}, 7)
        flops, kept = {}, {}
        for each in (plain_name, name):
            build_on_meta = models.build_on_meta(each, image_size=(size, size))
            one = torch.empty(1, *clip.shape[1:], device="meta")
            flops[each] = count(build_on_meta, one).by("paper")
            with torch.enable_grad():
                kept[each] = activation_bytes(build_on_meta, one) / 2**20
        for each, t in times.items():
            rows.append(
                {
                    "network": f"{each}, {size} px, batch {batch}",
                    "where": f"{device} {str(dtype).removeprefix('torch.')}{', compiled' if compiled else ''}",
                    "ms": f"{t['median']:.1f} ({t['min']:.1f}..{t['max']:.1f})",
                    "time ratio": round(times[plain_name]["median"] / t["median"], 2),
                    "GFLOPs": round(flops[each], 3),
                    "FLOP ratio": round(flops[plain_name] / flops[each], 2),
                    "kept for backward, MiB a sample": round(kept[each], 1),
                    "peak, MiB": peaks[f"{each} {size} {batch}"] if peaks else _peak(networks[each], clip),
                }
            )
    return rows


def _peak(network: Any, clip: Tensor) -> float:
    """Memory by which a forward pass without gradient rises at most."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    network(clip)
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def on_cpu() -> dict[str, float]:
    """MiB by which memory rises at most in a forward pass, measured in a process of its own.

    There every large block is given back as soon as it is free (an environment variable of the C library), which costs
    time but makes the resident memory say what is in use.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, __file__, "--peaks"], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def print_peaks() -> None:
    """What `on_cpu` reads."""
    peaks = {}
    for plain_name, name, size, batch in NETWORKS:
        for each in (plain_name, name):
            network = models.build(each, image_size=(size, size)).eval()
            clip = torch.rand(batch, network.config.num_frames, 3, size, size)
            network(clip)
            peaks[f"{each} {size} {batch}"] = _most(lambda n=network, c=clip: n(c))
    for version, shape in MODULES:
        learner = TokenLearner("16/frame", dim=shape[-1], version=version).eval()
        x = torch.randn(*shape)
        for how, run in (
            ("ours", lambda n=learner, x=x: n.learn(x)),
            ("broadcast", lambda n=Broadcast(learner), x=x: n(x)),
        ):
            run()
            peaks[f"{version} {shape} {how}"] = _most(run)
    print(json.dumps(peaks))


def _most(run: Any) -> float:
    return round(max(peak_memory(run) for _ in range(5)) / 2**20, 1)


def parts() -> list[dict[str, Any]]:
    """The pieces of one network, each timed on what it is given there."""
    size, batch = 224, 8
    network = models.build("tokenlearner_vit_s16_8at6", image_size=(size, size)).eval()
    clip = torch.rand(batch, 1, 3, size, size)
    x = network.embed(network.prepare(clip)).flatten(1, 3)
    few, _ = network.learners["6"].learn(x.reshape(batch, 14, 14, -1))
    runs = {
        "patch embedding": (lambda: network.embed(network.prepare(clip)), 1),
        "one block on 196 tokens": (lambda: network.blocks[0](x), 6),
        "the learner": (lambda: network.learners["6"].learn(x.reshape(batch, 14, 14, -1)), 1),
        "one block on 8 tokens": (lambda: network.blocks[6](few), 6),
    }
    times = time_side_by_side({name: run for name, (run, _) in runs.items()}, 15)
    rows = []
    for name, (run, often) in runs.items():
        counted = count(lambda r=run: r())
        rows.append(
            {
                "part": name,
                "times": often,
                "ms each": round(times[name]["median"], 2),
                "ms in all": round(times[name]["median"] * often, 1),
                "GFLOPs in all": round(counted.by("paper") * often, 3),
                "GFLOP/s": round(1e3 * counted.by("paper") / times[name]["median"], 1),
            }
        )
    return rows


class Broadcast(nn.Module):
    """The straightforward pooling: every map times every pixel, then the sum; [B,M,N,C] in between."""

    def __init__(self, learner: TokenLearner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, x: Tensor) -> Tensor:
        maps = self.learner.maps(x)
        return (maps[..., None] * x.flatten(1, 2)[:, None]).sum(2)


def module() -> list[dict[str, Any]]:
    rows = []
    peaks = on_cpu()
    for version, shape in MODULES:
        learner = TokenLearner("16/frame", dim=shape[-1], version=version).eval()
        naive = Broadcast(learner)
        x = torch.randn(*shape)
        times = time_side_by_side(
            {"ours": lambda x=x, n=learner: n.learn(x)[0], "broadcast": lambda x=x, n=naive: n(x)}
        )
        difference = float((learner.learn(x)[0] - naive(x)).abs().max() / naive(x).abs().max())
        for name in ("ours", "broadcast"):
            rows.append(
                {
                    "module": f"version {version}, {list(shape)}, 16 tokens",
                    "how": name,
                    "ms": f"{times[name]['median']:.2f} ({times[name]['min']:.2f}..{times[name]['max']:.2f})",
                    "ratio": round(times["broadcast"]["median"] / times[name]["median"], 2),
                    "peak, MiB": peaks[f"{version} {shape} {name}"],
                    "[B,M,N,C], MiB": round(shape[0] * 16 * shape[1] * shape[2] * shape[3] * 4 / 2**20, 1),
                    "relative difference": f"{difference:.0e}",
                }
            )
    return rows


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    if "--peaks" in sys.argv:
        print_peaks()
        sys.exit()
    tables = {"Whole networks": whole("cpu", torch.float32, False)}
    if torch.cuda.is_available():
        for compiled in (False, True):
            tables["Whole networks"] += whole("cuda", torch.bfloat16, compiled)
    tables["Where the time goes: ViT-S/16, 8 tokens from layer 6, 224 px, batch 8, float32"] = parts()
    tables["The module against the straightforward version, float32"] = module()
    write(
        "tokenlearner_speed",
        "TokenLearner: time and memory against FLOPs",
        "python benchmarks/tokenlearner_speed.py",
        tables,
        "Milliseconds: median (least..most), the runs of a row's group taking turns. Random weights; the time does not "
        "depend on them. Compiled networks are measured on a GPU alone.",
    )
