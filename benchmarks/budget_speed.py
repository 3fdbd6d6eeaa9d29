"""The cost of a budget compared with that of a threshold which leaves about as many tokens.

    python benchmarks/budget_speed.py

Features: those of peers.py, 32 and 128 frames of 14x14 tokens with 896 channels from a real clip of ../shared/data (or
$FEWTOKENS_DATA); the budget is a quarter. Both alternate in one process, with one thread. The last column is the part
of `keep=` in the time that the ViT-S/14 takes to encode the same frames.

About 10 minutes and 4 GB on 2 cores. Expected: a budget costs up to twice as much as a threshold, because the result
needs to be known on both sides of the final threshold, and because the last tokens are merged pairwise.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import torch

import fewtokens
from common import time_side_by_side, write
from fewtokens.core import registry
from fewtokens.core.tokens import Tokens
from fidelity_rows import Features
from peer_rows import Workload

DATA = Path(os.environ.get("FEWTOKENS_DATA") or Path(__file__).parents[2] / "shared" / "data")
SPECS = {"sttm": "sttm({tau}, tau_time={tau})", "scissor": "scissor({tau})"}


def threshold(spec: str, tokens: Tokens, target: int) -> float:
    """The highest threshold, in steps of 1/256, that leaves no more than `target` tokens."""
    low, high = 0, 256
    while high - low > 1:
        middle = (low + high) // 2
        (method,) = registry.build(spec.format(tau=middle / 256))
        low, high = (low, middle) if target < method(tokens).N else (middle, high)
    return low / 256


def main() -> None:
    torch.set_num_threads(1)
    features = Features(
        DATA / "clips" / "vtest.avi", fewtokens.load_encoder(DATA / "weights" / "dinov2-small", device="cpu")
    )
    rows = []
    for frames in (32, 128):
        tokens, pixels = Workload(features, frames, "cpu").tokens(), features.frames(frames)
        for name, spec in SPECS.items():
            tau = threshold(spec, tokens, tokens.N // 4)
            (by_tau,), (by_budget,) = registry.build(spec.format(tau=tau)), registry.build(f"{name}(keep=0.25)")
            runs = {
                "tau": partial(by_tau, tokens),
                "keep": partial(by_budget, tokens),
                "encode": partial(features.encoder, pixels),
            }
            times = time_side_by_side(runs, repeats=5 if frames == 32 else 3)
            tau_ms, keep_ms, encode_ms = (times[key]["median"] for key in runs)
            rows.append(
                {
                    "method": f"`{name}`",
                    "frames": frames,
                    "tau": tau,
                    "tokens with tau": by_tau(tokens).N,
                    "tokens with keep": by_budget(tokens).N,
                    "tau, ms": round(tau_ms, 1),
                    "keep, ms": round(keep_ms, 1),
                    "keep / tau": round(keep_ms / tau_ms, 2),
                    "part of encoding": round(keep_ms / encode_ms, 3),
                }
            )
    write("budget_speed", "A budget compared with a threshold", "python benchmarks/budget_speed.py", rows)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
