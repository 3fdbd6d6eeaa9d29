"""What a cue of the vision tower costs, as a share of the time of one of its layers.

    OMP_NUM_THREADS=1 python benchmarks/tower_cue.py

A minute on one core. A layer of the shape of SigLIP-so400m with random weights, one frame of 729 patches; CPU time of
the layer and of what the hooks add, which alternate. Expected: less than half of one layer for the attention received,
that is, 1 to 2 % of the 27 layers of the model.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from common import write
from fewtokens.core.attention_rule import AttentionRule
from fewtokens.llm.tower import Tower

LAYERS = 27
REPEATS = 5


def cpu_seconds(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The median CPU time of each run; they alternate."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def main() -> None:
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=1, num_attention_heads=16, image_size=384,
        patch_size=14, vision_use_head=False,
    )  # fmt: skip
    model = SiglipVisionModel(config).eval()
    tower = Tower(SimpleNamespace(config=SimpleNamespace(vision_feature_layer=-1)), model)
    block, attention = tower.blocks[0], tower.attentions[0]
    hidden = torch.randn(1, 729, 1152)

    def record(*needs: str, query: str = "received") -> None:
        with tower.recording(needs, AttentionRule((query,))) as recording:
            recording.record_attention(attention, (hidden,), {})

    def record_shift() -> None:
        with tower.recording(("shift",), AttentionRule()) as recording:
            recording.record_before_mlp(block, (hidden,))
            recording.record_shift(block, (), hidden)

    runs: dict[str, Callable[[], object]] = {
        "one layer": lambda: block(hidden, None),
        "attention, received": lambda: record("attention"),
        "attention, mean query": lambda: record("attention", query="mean_query"),
        "attention and keys": lambda: record("attention", "keys"),
        "shift": record_shift,
    }
    times = cpu_seconds(runs)
    layer = times.pop("one layer")
    rows = [
        {
            "cue": name,
            "ms": round(1000 * seconds, 1),
            "share of one layer": f"{seconds / layer:.2f}",
            f"share of {LAYERS} layers": f"{seconds / layer / LAYERS:.1%}",
        }
        for name, seconds in times.items()
    ]
    write(
        "tower_cue",
        "Cues of a vision tower of the shape of SigLIP-so400m, 729 patches",
        "OMP_NUM_THREADS=1 python benchmarks/tower_cue.py",
        rows,
        f"One layer takes {1000 * layer:.0f} ms. CPU time; medians of {REPEATS} runs that alternate.",
    )


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_grad_enabled(False)
    main()
