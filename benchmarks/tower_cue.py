"""What a cue of the vision tower costs, as a share of the time of one of its layers.

    OMP_NUM_THREADS=1 python benchmarks/tower_cue.py

Half a minute on one core. Two layers of the shape of SigLIP-so400m with random weights, one frame of 729 patches. The
time of a cue is that of the tower with the cue minus that without; the runs alternate. Expected: less than half of one
layer for the attention received, that is, 1 to 2 % of the 27 layers of the model.
"""

from __future__ import annotations

import argparse
from types import SimpleNamespace

import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from common import time_side_by_side, write
from fewtokens.core.attention_rule import AttentionRule
from fewtokens.llm.tower import Tower

LAYERS = 27


def main() -> None:
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=2, num_attention_heads=16, image_size=384,
        patch_size=14, vision_use_head=False,
    )  # fmt: skip
    model = SiglipVisionModel(config).eval()
    tower = Tower(SimpleNamespace(config=SimpleNamespace(vision_feature_layer=-1)), model)
    frame, hidden = torch.randn(1, 3, 384, 384), torch.randn(1, 729, 1152)

    def encode(*needs: str, query: str = "received") -> None:
        with tower.recording(needs, AttentionRule((query,))):
            model(frame)

    runs = {
        "one layer": lambda: tower.blocks[0](hidden, None),
        "two layers": encode,
        "attention, received": lambda: encode("attention"),
        "attention, mean query": lambda: encode("attention", query="mean_query"),
        "keys": lambda: encode("keys"),
        "shift": lambda: encode("shift"),
        "attention and keys": lambda: encode("attention", "keys"),
    }
    times = {name: time["median"] for name, time in time_side_by_side(runs, 15).items()}
    layer, base = times.pop("one layer"), times.pop("two layers")
    rows = [
        {
            "cue": name,
            "ms": round(time - base, 1),
            "share of one layer": f"{(time - base) / layer:.2f}",
            f"share of {LAYERS} layers": f"{(time - base) / layer / LAYERS:.1%}",
        }
        for name, time in times.items()
    ]
    write(
        "tower_cue",
        "Cues of a vision tower of the shape of SigLIP-so400m, 729 patches",
        "OMP_NUM_THREADS=1 python benchmarks/tower_cue.py",
        rows,
        f"One layer takes {layer:.0f} ms. Medians of 15 runs that alternate.",
    )


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_grad_enabled(False)
    main()
