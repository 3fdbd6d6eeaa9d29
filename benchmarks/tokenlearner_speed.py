"""How much of TokenLearner's FLOP reduction becomes saved time and memory, and where the rest goes.

    python benchmarks/tokenlearner_speed.py

About 2 minutes on 2 cores. Three tables:

1. full networks against those without a learner: time, FLOP ratio, and memory that a training step saves for the
   backward pass; on a GPU, if available, also in bf16, with and without compilation;
2. where the time of a TokenLearner network goes: blocks before the learner, the learner, blocks after it;
3. one module, versions 1.0 and 1.1, against a simple implementation that materializes the [B,M,N,C] product of every
   map with every pixel: time, memory, and the largest difference. Ours is one matrix product.

Expected on 2 cores: the networks are 1.7 to 2.0 times faster at FLOP ratios of 1.75 to 1.95, so nearly all of the
reduction becomes saved time; the rest is lost in the learner's 3x3 convolutions and the blocks on 8 tokens, which run
at 30 to 70 % of the rate of the large ones. One module is 3 to 12 times faster than the simple implementation (the time
to write the large product varies with the state of the machine), with a thirteenth of its memory.
"""

from __future__ import annotations

import argparse
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
from fewtokens.profiling.operations import count_operations

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


def full_networks(device: str, dtype: torch.dtype, compiled: bool) -> list[dict[str, Any]]:
    rows = []
    peaks = measure_peaks() if device == "cpu" else {}
    for baseline, name, size, batch in NETWORKS:
        if device == "cuda":
            batch *= 16
        networks = {}
        for each in (baseline, name):
            network = models.build(each, image_size=(size, size)).to(device, dtype).eval()
            networks[each] = torch.compile(network) if compiled else network
        clip = torch.rand(batch, networks[name].config.num_frames, 3, size, size, device=device)
        times = time_side_by_side({each: lambda n=network, c=clip: n(c) for each, network in networks.items()}, 7)
        flops, saved = {}, {}
        for each in (baseline, name):
            meta_network = models.build_on_meta(each, image_size=(size, size))
            one = torch.empty(1, *clip.shape[1:], device="meta")
            flops[each] = count_operations(meta_network, one).giga("paper")
            with torch.enable_grad():
                saved[each] = activation_bytes(meta_network, one) / 2**20
        for each, t in times.items():
            rows.append(
                {
                    "network": f"{each}, {size} px, batch {batch}",
                    "device": f"{device} {str(dtype).removeprefix('torch.')}{', compiled' if compiled else ''}",
                    "ms": f"{t['median']:.1f} ({t['min']:.1f}..{t['max']:.1f})",
                    "time ratio": round(times[baseline]["median"] / t["median"], 2),
                    "GFLOPs": round(flops[each], 3),
                    "FLOP ratio": round(flops[baseline] / flops[each], 2),
                    "saved for backward, MiB per sample": round(saved[each], 1),
                    "peak, MiB": peaks[f"{each} {size} {batch}"] if peaks else _peak(networks[each], clip),
                }
            )
    return rows


def _peak(network: Any, clip: Tensor) -> float:
    """Largest increase in memory during a forward pass without gradients, in MiB."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    network(clip)
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def measure_peaks() -> dict[str, float]:
    """Largest increase in memory during each forward pass in MiB, measured in a separate process.

    Environment variables of the C library make it release every freed large block immediately, which takes time but
    makes the resident memory equal to the memory in use.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, __file__, "--peaks"], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def print_peaks() -> None:
    """Prints what `measure_peaks` reads."""
    peaks = {}
    for baseline, name, size, batch in NETWORKS:
        for each in (baseline, name):
            network = models.build(each, image_size=(size, size)).eval()
            clip = torch.rand(batch, network.config.num_frames, 3, size, size)
            network(clip)
            peaks[f"{each} {size} {batch}"] = _largest_peak(lambda n=network, c=clip: n(c))
    for version, shape in MODULES:
        learner = TokenLearner("16/frame", dim=shape[-1], version=version).eval()
        x = torch.randn(*shape)
        for how, run in (
            ("ours", lambda n=learner, x=x: n.learn(x)),
            ("broadcast", lambda n=Broadcast(learner), x=x: n(x)),
        ):
            run()
            peaks[f"{version} {shape} {how}"] = _largest_peak(run)
    print(json.dumps(peaks))


def _largest_peak(run: Any) -> float:
    return round(max(peak_memory(run) for _ in range(5)) / 2**20, 1)


def parts() -> list[dict[str, Any]]:
    """The parts of one network, each timed on its input in that network."""
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
    for name, (run, repetitions) in runs.items():
        counted = count_operations(lambda r=run: r())
        rows.append(
            {
                "part": name,
                "count": repetitions,
                "ms each": round(times[name]["median"], 2),
                "total ms": round(times[name]["median"] * repetitions, 1),
                "total GFLOPs": round(counted.giga("paper") * repetitions, 3),
                "GFLOP/s": round(1e3 * counted.giga("paper") / times[name]["median"], 1),
            }
        )
    return rows


class Broadcast(nn.Module):
    """Pooling in a simple way: every map times every pixel, [B,M,N,C], then the sum."""

    def __init__(self, learner: TokenLearner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, x: Tensor) -> Tensor:
        maps = self.learner.maps(x)
        return (maps[..., None] * x.flatten(1, 2)[:, None]).sum(2)


def module() -> list[dict[str, Any]]:
    rows = []
    peaks = measure_peaks()
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
                    "implementation": name,
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peaks", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().peaks:
        print_peaks()
        sys.exit()
    tables = {"Whole networks": full_networks("cpu", torch.float32, False)}
    if torch.cuda.is_available():
        for compiled in (False, True):
            tables["Whole networks"] += full_networks("cuda", torch.bfloat16, compiled)
    tables["Where the time goes: ViT-S/16, 8 tokens from layer 6, 224 px, batch 8, float32"] = parts()
    tables["The module against a simple implementation, float32"] = module()
    write(
        "tokenlearner_speed",
        "TokenLearner: time and memory against FLOPs",
        "python benchmarks/tokenlearner_speed.py",
        tables,
        "Milliseconds: median (min..max); the runs of a group alternate. Random weights, which do not affect the time. "
        "Compiled networks are measured only on a GPU.",
    )
