"""Milliseconds of pushing a frame to each memory, next to encoding that frame with DINOv2-small.

    taskset -c 1 python benchmarks/memory_speed.py [--data shared/data]

Frames of real/long/real_mix.mp4, one per second, 224 x 224: 256 tokens of 384 channels each. Every memory has its
default arguments, and random weights if it has any. It is filled first; then 64 pushes and 8 encodings are timed in
turn, by the time of the processor on one thread. Expected: at most 5 % of encoding. About two minutes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fewtokens
from common import write
from fewtokens.core import registry
from fewtokens.core.grid import Grid
from fewtokens.core.memory import Memory
from fewtokens.core.tokens import Tokens
from fewtokens.video import read

FRAMES, PUSHES, ENCODINGS = 96, 64, 8
LIMIT = 5.0
NOTES = (
    "Milliseconds of the processor, one thread. `push` is the mean, which includes the frames at which a step is "
    "complete and slots are merged; `tenths` is the range from the lowest to the highest tenth of the pushes. "
    "`encoding` is the median of the same frame through DINOv2-small (ViT-S/14), in turn with the pushes. On a "
    "machine with other work everything takes longer, so only the percentages can be compared between runs. The "
    "memories above 5 % run a network on all tokens of a step of frames, as published, which cannot be cheap next "
    "to so small an encoder: videostreaming two causal layers over the 16 x 256 tokens of a clip, video_xl_pro "
    "attention and 3-D convolutions over four frames, videollamb a layer over the tokens of a segment, vidcompress "
    "a query transformer over eight frames."
)


def milliseconds(run: Callable[[], Any]) -> float:
    """Milliseconds of the processor in this process."""
    start = time.process_time_ns()
    run()
    return (time.process_time_ns() - start) / 1e6


def spread(values: list[float]) -> str:
    """The range from the lowest to the highest tenth."""
    tenths = statistics.quantiles(values, n=10)
    return f"{tenths[0]:.3g} to {tenths[-1]:.3g}"


def measure(name: str, features: torch.Tensor, encode: Callable[[], Any]) -> dict[str, Any]:
    """One row: a memory after it has been filled."""
    (memory,) = registry.build(name, dim=features.shape[-1])
    memory.eval()
    side = int(features.shape[1] ** 0.5)
    state: Any = None
    second = 0

    def push() -> None:
        nonlocal second, state
        grid = Grid(1, side, side, torch.tensor([float(second)], dtype=torch.float64))
        frame = features[second % len(features)]
        second += 1
        state = memory.push(Tokens.from_cells(frame[None], grid), state)

    assert isinstance(memory, Memory)
    for _ in range(2 * memory.cap + 8):
        push()
    pushes: list[float] = []
    encodings: list[float] = []
    for n in range(PUSHES):
        pushes.append(milliseconds(push))
        if n % (PUSHES // ENCODINGS) == 0:
            encodings.append(milliseconds(encode))
    push_ms, encode_ms = statistics.fmean(pushes), statistics.median(encodings)
    return {
        "memory": memory.spec,
        "push, ms": push_ms,
        "median, ms": statistics.median(pushes),
        "tenths, ms": spread(pushes),
        "encoding, ms": encode_ms,
        "percent": 100 * push_ms / encode_ms,
        "within 5 %": 100 * push_ms / encode_ms <= LIMIT,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("shared/data"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    video = read(given.data / "real" / "long" / "real_mix.mp4", fps=1, size=(224, 224), end=FRAMES)
    encoder = fewtokens.load_encoder(given.data / "weights" / "dinov2-small", device="cpu")
    with torch.inference_mode():
        features = torch.cat([encoder(part[None])[0].features[0] for part in video.frames.split(16)])
        features = features.view(len(video), -1, features.shape[-1])
        frame = video.frames[:1][None]
        rows = []
        for name in registry.names():
            if issubclass(registry.get(name), Memory):
                rows.append(measure(name, features, lambda: encoder(frame)))
                print(rows[-1], flush=True)
    write(
        "memory_speed",
        "Pushing a frame to a memory, next to encoding it",
        "python benchmarks/memory_speed.py",
        {f"A frame of {features.shape[1]} tokens, {features.shape[2]} channels": rows},
        notes=NOTES,
        digits=3,
    )
