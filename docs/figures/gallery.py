"""Draws the images of docs/gallery.md and writes its numbers: every method that needs only pixels, on two clips.

fewtokens demo --json --out demo > demo.json
python docs/figures/gallery.py demo demo.json

The numbers are kept in gallery.json, next to this file; without arguments the table is written again from it.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fewtokens.core import registry
from fewtokens.encoders import Patches
from fewtokens.video import synthetic

DOCS = Path(__file__).parents[1]
NUMBERS = Path(__file__).with_suffix(".json")
CLIPS = ("static", "pan")
KEEP = 0.1
_START, _END = "<!-- numbers: docs/figures/gallery.py -->\n", "<!-- end of numbers -->\n"
_HEAD = (
    "method", "static: tokens", "kept", "PSNR, dB", "pan: tokens", "kept", "PSNR, dB", "CPU, ms", "DINOv2: cosine",
    "rare cosine", "J&F", "method, ms",
)  # fmt: skip


def label(name: str, spec: str) -> str:
    """The name on the sheets: methods without a budget are marked."""
    if "keep=" in spec:
        return name
    return f"{name}({'threshold' if name in ('rlt', 'dtd') else 'default'})"


@torch.inference_mode()
def cpu_ms(spec: str, repeats: int = 3) -> float:
    """CPU time of a method on the patches of the clip `static`, the median after one run that does not count."""
    video = synthetic("static", frames=16, size=(256, 256))
    tokens, cues = Patches(16)(video.frames[None], video.times, needs=("pixels",))
    (method,) = registry.build(spec)
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        method(tokens, **{cue: cues[cue] for cue in method.needs})
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times[1:])


def measure(report: dict[str, Any]) -> dict[str, Any]:
    """The numbers of all methods, from the report of `fewtokens demo --json`."""
    sys.path.insert(0, str(DOCS.parent / "benchmarks"))
    import common

    torch.set_num_threads(1)
    keys = ("tokens", "retention", "psnr_db")
    rows = [
        {"label": label(static["method"], static["spec"]), "spec": static["spec"], "cpu_ms": cpu_ms(static["spec"])}
        | {clip: {key: row[key] for key in keys} for clip, row in zip(CLIPS, (static, pan), strict=True)}
        for static, pan in zip(*(clip["rows"] for clip in report["clips"]), strict=True)
    ]
    return {"machine": common.machine(), "rows": rows}


def table(numbers: dict[str, Any]) -> str:
    """The numbers as Markdown, with those of the comparison on features of DINOv2 (benchmarks/results/family.json)."""
    sys.path.insert(0, str(DOCS))
    import measured

    machine, lines = numbers["machine"], []
    for row in numbers["rows"]:
        cells = [f"`{row['label']}`"]
        for clip in CLIPS:
            tokens, retention, psnr = (row[clip][key] for key in ("tokens", "retention", "psnr_db"))
            cells += [f"{tokens:,}", f"{100 * retention:.1f} %", "exact" if psnr is None else f"{psnr:.1f}"]
        cells.append(f"{row['cpu_ms']:.1f}" if row["cpu_ms"] < 10 else f"{row['cpu_ms']:,.0f}")
        lines.append(cells + measured.at_budget(row["label"], KEEP))
    about = (
        f"Static and pan are the two clips below; PSNR compares all rebuilt frames with the clip. CPU is the time of "
        f"the method alone on the 4,096 patches of the static clip ({machine['cpu']}, one thread, median of 3, "
        f"{machine['date']}).\nThe last four columns are means over 18 real clips at the same budget, on features of "
        f"DINOv2 ViT-S/14 ({measured.machine()}): cosine similarity of all cells to the features with all tokens, the "
        "same in the\n5 % of cells least similar to the mean of their frame, label propagation on eight sequences of "
        "DAVIS (53.1 with all tokens), and the time of the method alone, empty for methods that run before the "
        "encoder. Methods that this\ncomparison does not have are empty there. How it was measured: [The training-free "
        "methods compared](studies/comparison.md).\n\n"
    )
    return about + measured.table(list(_HEAD), lines)


def page(text: str, numbers: dict[str, Any]) -> str:
    """The page with its numbers replaced."""
    before, _, rest = text.partition(_START)
    return before + _START + "\n" + table(numbers) + "\n" + _END + rest.partition(_END)[2]


def main(folder: Path | None = None, report: Path | None = None) -> None:
    if folder is not None and report is not None:
        for name in CLIPS:
            with Image.open(folder / f"{name}.png") as sheet:
                # WebP is a sixth of the PNG; a browser shows at most 16,383 pixels of it.
                sheet.save(DOCS / "images" / f"demo_{name}.webp", quality=80, method=6)
        numbers = measure(json.loads(report.read_text(encoding="utf-8")))
        NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    path = DOCS / "gallery.md"
    numbers = json.loads(NUMBERS.read_text(encoding="utf-8"))
    path.write_text(page(path.read_text(encoding="utf-8"), numbers), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
