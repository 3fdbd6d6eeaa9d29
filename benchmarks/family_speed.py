"""Speed of the training-free methods: against loops, and relative to the encoder before them.

    python benchmarks/family_speed.py            # about ten minutes on 2 cores
    python benchmarks/family_speed.py loops      # one part: loops, encoder or rlt

Writes three tables, results/family_speed_loops.md, _encoder.md and _rlt.md:

* loops: each method on [32,196,896] and [128,196,896] at a quarter of the tokens, against the reference in
  tests/helpers/naive.py, which follows the paper with a loop over tokens, frames or segments (quadratic loops, and
  methods that compare all pairs of a video, only on the shorter one). The time of ViT-S/14 for the same number of
  frames of 196 patches is listed too; a method should take at most 2 % of it. Expected: the same tokens except for
  ties; loops 2 to 10 times slower (their inner steps are vectorized too), except for `max_min`, which is one long
  chain of matrix-vector products and faster in numpy.
* encoder: methods inside ViT-S and ViT-B at 224 and 448 px, batch 1 and 8, to a quarter of the tokens: ratio of the
  times next to the ratio of the operations. Expected: at batch 8 most of the saved operations become saved time, at
  batch 1 half of them or none.
* rlt: a static and a moving camera, with the weights in ../shared/data (or $FEWTOKENS_DATA). Expected: the encoder's
  time decreases with the number of tokens.

With CUDA the methods and the encoder run there too.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.helpers import naive

from common import time_side_by_side, write
from fewtokens.core import registry
from fewtokens.core.tokens import Tokens
from fewtokens.encoders import ViT, ViTConfig, VitEncoder, load_encoder
from fewtokens.methods.ops.groups import num_frames_to_keep
from fewtokens.methods.ops.windows import tokens_per_window
from fewtokens.profiling.operations import count_operations
from fewtokens.video import read
from reduce_speed import video_tokens

KEEP = 0.25
SIZES = {"ViT-S": {"dim": 384, "num_heads": 6}, "ViT-B": {"dim": 768, "num_heads": 12}}

# spec -> reference loops over features and method, and whether they are quadratic in the length of the video.
Loops = Callable[[np.ndarray, "object"], list]
LOOPS: dict[str, tuple[Loops, bool]] = {
    "evs": (lambda x, m: naive.evs(x, m.target), False),
    "dtd(0.5)": (lambda x, m: naive.dtd(x, 0.5), False),
    "dycoke(0.7)": (lambda x, m: naive.dycoke(x, 0.7), False),
    "frame_fusion(0.6)": (lambda x, m: naive.frame_fusion(x, 0.6), False),
    "vidcom2": (lambda x, m: naive.vidcom2(x, m.target), False),
    "max_min": (lambda x, m: naive.max_min(x, m.target), True),
    "tome_video": (lambda x, m: naive.tome_video(x, m.target, "video"), True),
    "tome_video(within='frame')": (lambda x, m: naive.tome_video(x, m.target, "frame"), False),
    "merge_windows": (lambda x, m: naive.merge_windows(x, tokens_per_window(m.grid, 7, m.method.budget), 7), False),
    "tempme": (lambda x, m: naive.tempme(x, m.target, (2, 2, 3)), False),
    "testa": (lambda x, m: naive.testa(x, m.target, num_frames_to_keep(m.grid, m.target, m.method.time)), False),
    "lftr": (lambda x, m: naive.lftr(x, m.target, num_frames_to_keep(m.grid, m.target, m.method.time)), False),
    "metok": (lambda x, m: naive.metok(x, m.target, 5, 3, 6), False),
    "prunevid(ratio=0.5)": (lambda x, m: naive.prunevid(x, 0.8, 0.25, 0.5, 7), True),
}
WITHOUT_LOOPS = (
    "tome", "kmeans", "dpc_knn", "visionzip", "holitom", "fastvid", "scissor", "sttm", "hourglass", "centerclip",
    "centerclip(algorithm='spectral')", "representation_shift",
)  # fmt: skip


# These compare all pairs of tokens, or every token for each one kept: minutes on the longer video.
ALL_PAIRS = ("max_min", "kmeans", "dpc_knn", "scissor")


class _Case:
    """The method, grid and token count that a reference needs."""

    def __init__(self, method, grid) -> None:
        self.method, self.grid, self.target = method, grid, method.planned_count(grid)


def loops(device: str) -> list[dict]:
    rows = []
    for frames in (32, 128):
        x = video_tokens(frames, 14, 14, 896)
        tokens = Tokens.from_cells(x.reshape(1, frames, 14, 14, 896)).to(device)
        cues = {
            "attention": x[..., 0].sigmoid(),
            "keys": x[..., :64],
            "shift": x[..., 1].abs(),
            "frame_global": x.unflatten(1, (frames, -1)).mean(2),
        }
        cues = {name: cue.to(device) for name, cue in cues.items()}
        encoding = _encoding(frames, device)
        cells = x[0].double().numpy().reshape(frames, 14, 14, 896)
        for spec in [*LOOPS, *WITHOUT_LOOPS]:
            if frames > 32 and spec in ALL_PAIRS:
                continue
            (method,) = registry.build(spec, keep=KEEP)
            needed = {name: cues[name] for name in method.needs}
            ours = time_side_by_side({"ours": partial(method, tokens, **needed)}, 2)["ours"]
            loop, quadratic = LOOPS.get(spec, (None, True))
            row = {
                "features": f"[{frames},196,896] {device}",
                "method": spec,
                "ours ms": f"{ours['median']:.1f} ({ours['min']:.1f}..{ours['max']:.1f})",
                "relative to encoding": f"{100 * ours['median'] / encoding:.1f} %",
                "loops ms": None,
                "loops / ours": None,
                "same tokens": None,
            }
            if loop is not None and device == "cpu" and (frames == 32 or not quadratic):
                start = time.perf_counter()
                expected = loop(cells, _Case(method, tokens.grid))
                loop_ms = 1000 * (time.perf_counter() - start)
                row["loops ms"] = f"{loop_ms:.0f}"
                row["loops / ours"] = f"{loop_ms / ours['median']:.0f}"
                row["same tokens"] = f"{100 * _same(method(tokens, **needed), expected):.1f} %"
            rows.append(row)
            print(row, flush=True)
        rows.append({**dict.fromkeys(rows[-1]), "features": f"[{frames},196,·] {device}", "method": "ViT-S/14 encoding",
                     "ours ms": f"{encoding:.0f}", "relative to encoding": "100 %"})  # fmt: skip
    return rows


def _same(out: Tokens, expected: list) -> float:
    """The fraction of tokens that represent exactly the same cells."""
    assignment = out.assignment[0].cpu()
    order = assignment.argsort(stable=True)
    counts = torch.bincount(assignment[assignment >= 0], minlength=out.N).tolist()
    members = order[assignment[order] >= 0].split(counts)
    ours = {frozenset(group.tolist()) for group in members}
    return len(ours & {frozenset(cells) for _, cells in expected}) / max(1, len(ours))


def _encoding(frames: int, device: str) -> float:
    """Milliseconds of ViT-S/14 for `frames` frames of 14x14 patches."""
    vit = ViT(ViTConfig(patch_size=14)).eval().to(device)
    video = torch.rand(1, frames, 3, 196, 196)
    return time_side_by_side({"encode": lambda: VitEncoder(vit)(video)}, 3)["encode"]["median"]


def encoder(device: str) -> list[dict]:
    specs = ("tome_in_encoder", "merge_windows_in_encoder", "vid_tldr", "representation_shift_in_encoder")
    rows = []
    for size, shape in SIZES.items():
        torch.manual_seed(0)
        vit = VitEncoder(ViT(ViTConfig(**shape)).eval().to(device))
        for side in (224, 448):
            for batch in (1, 8):
                frames = torch.rand(1, batch, 3, side, side)
                runs = {"unreduced": partial(vit, frames)}
                for spec in specs:
                    methods = registry.build(spec, keep=KEEP)
                    runs[spec] = partial(vit, frames, block_methods=methods)
                times = time_side_by_side(runs, 2)
                base = count_operations(runs["unreduced"]).giga("macs")
                for spec in specs:
                    saved = base / count_operations(runs[spec]).giga("macs")
                    t = times[spec]
                    rows.append(
                        {
                            "network": f"{size}/16 {side} px, batch {batch}, {device}",
                            "method": spec,
                            "unreduced ms": f"{times['unreduced']['median']:.0f}",
                            "ms": f"{t['median']:.0f} ({t['min']:.0f}..{t['max']:.0f})",
                            "time ratio": f"{times['unreduced']['median'] / t['median']:.2f}",
                            "operations ratio": f"{saved:.2f}",
                        }
                    )
                    print(rows[-1], flush=True)
    return rows


def rlt(device: str) -> list[dict]:
    data = Path(os.environ.get("FEWTOKENS_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not data.exists():
        print("rlt: skipped, requires $FEWTOKENS_DATA")
        return []
    dinov2 = load_encoder(data / "weights" / "dinov2-small", device=device)
    rows = []
    for clip, camera in (("vtest.avi", "static"), ("cutie_example.mp4", "moving")):
        frames = read(data / "clips" / clip, fps=10, end=3.2, size=224).frames[None]
        specs = ("rlt(0.05)", "rlt(0.1)", "rlt(0.3)", "rlt(keep=0.1)")
        methods = {spec: registry.build(spec) for spec in specs}
        runs = {"unreduced": partial(dinov2, frames)}
        for spec in specs:
            runs[spec] = partial(dinov2, frames, pixel_methods=methods[spec])
        times = time_side_by_side(runs, 2)
        cells = dinov2(frames)[0].N
        base = count_operations(runs["unreduced"]).giga("macs")
        for spec in specs:
            tokens = dinov2(frames, pixel_methods=methods[spec])[0].N
            rows.append(
                {
                    "clip": f"{clip} ({camera} camera), {frames.shape[1]} frames, {device}",
                    "method": spec,
                    "tokens": f"{100 * tokens / cells:.1f} %",
                    "unreduced ms": f"{times['unreduced']['median']:.0f}",
                    "ms": f"{times[spec]['median']:.0f} ({times[spec]['min']:.0f}..{times[spec]['max']:.0f})",
                    "time ratio": f"{times['unreduced']['median'] / times[spec]['median']:.2f}",
                    "operations ratio": f"{base / count_operations(runs[spec]).by('macs'):.2f}",
                }
            )
            print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    parts = {"loops": loops, "encoder": encoder, "rlt": rlt}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)} (default: all)")
    names = parser.parse_args().parts or list(parts)
    if unknown := set(names) - set(parts):
        parser.error(f"PART must be one of {', '.join(parts)}, got {', '.join(sorted(unknown))}")
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    notes = {
        "loops": "Milliseconds: median (min..max) of two runs; loops run once. Relative to encoding: fraction of the "
        "time of ViT-S/14 for the same number of frames. Same tokens: fraction of tokens that represent exactly the "
        "same cells; loops compute in float64, so ties and last digits may be resolved differently.",
        "encoder": "Milliseconds: median (min..max) of two runs; a quarter of the tokens is kept.",
        "rlt": "Milliseconds from frames to tokens: median (min..max) of two runs.",
    }
    for name in names:
        if rows := [row for device in devices for row in parts[name](device)]:
            command = f"python benchmarks/family_speed.py {name}"
            write(f"family_speed_{name}", f"Training-free methods: speed ({name})", command, rows, notes[name])
