"""Time and peak memory of every method at 8 to 2,048 frames of 196 tokens, and where each runs out of memory.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --only tome,kmeans         # these methods; other rows are unchanged
    python benchmarks/scaling.py --features FOLDER          # keeps the encoded clips there for the next run

Real features: frames of the clips of ../shared/data (or $FEWTOKENS_DATA), encoded by the DINOv2 ViT-S/14 there, with
its cues; 384 channels, float32, one CPU thread. Each method runs with its default arguments in a separate process.
Methods of stage "encoder" run once on all frames, as in one block of the encoder; learned methods have random
parameters. The first run at 8 frames is not counted. A size is skipped if the sizes before it predict more than
`--seconds` or 20 GB.

"Of encoding" is the time at 32 frames divided by that of encoding the same frames. Exponent: slope of log(time) between
the two largest measured sizes; 1 is linear. Memory is the peak of the process above its level before the call, which
includes the features. "24 GB at" is the number of frames at which features, cues and peak memory together reach 24 GB,
extrapolated from the two largest sizes.

About 40 minutes and 10 GB. Expected: no exponent above 1.2 except for the methods that state a higher one in `cost`.
"""

from __future__ import annotations

import argparse
import ctypes
import inspect
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import fewtokens
from common import RESULTS, write
from fewtokens.core import registry
from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.frames import patchify
from fewtokens.show.colors import method_styles
from fewtokens.show.plots import save_plot

DATA = Path(os.environ.get("FEWTOKENS_DATA") or Path(__file__).parents[2] / "shared" / "data")
SIZES = (8, 32, 128, 512, 2048)
SIDE, PATCH, DIM = 14, 14, 384
CUES = ("keys", "attention", "shift")
LIMIT = 24e9
NOTES = (
    "Seconds and MiB on one CPU thread. Peak: memory of the process above its level before the call. Of encoding: time "
    "at 32 frames divided by that of encoding these frames with the ViT-S/14, in percent. Exponent: slope of log(time) "
    "between the two largest measured sizes. 24 GB at: frames at which features, cues and peak together reach 24 GB, "
    "extrapolated. '-': skipped, because the smaller sizes predict more than the limits."
)


def encode(folder: Path) -> None:
    """Writes features, cues and pixels of 2,048 real frames to memory-mapped files."""
    encoder = fewtokens.load_encoder(DATA / "weights" / "dinov2-small", device="cpu")
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in ("features", "frame_global", "pixels", *CUES)}
    missing = max(SIZES)
    for clip in sorted((DATA / "clips").iterdir()):
        if not missing:
            break
        frames = fewtokens.read(clip, frames=min(missing, 400), size=(SIDE * PATCH, SIDE * PATCH)).frames[None]
        for chunk in frames.split(32, 1):
            tokens, cues = encoder(chunk, needs=(*CUES, "frame_global"))
            parts["features"].append(tokens.features[0])
            parts["pixels"].append(patchify(chunk.float() / 255, 1, PATCH)[0])
            for name, value in cues.items():
                parts[name].append(value[0])
        missing -= frames.shape[1]
    for name, values in parts.items():
        torch.save(torch.cat(values), folder / f"{name}.pt")


def load(folder: Path, frames: int, needs: tuple[str, ...]) -> tuple[Tokens, dict[str, torch.Tensor]]:
    """The tokens of the first frames, and the cues of these names."""

    def rows(name: str, count: int) -> torch.Tensor:
        return torch.load(folder / f"{name}.pt", mmap=True, weights_only=True)[:count].clone()[None]

    N = frames * SIDE**2
    cues = {
        name: rows(name, frames if name == "frame_global" else N) for name in needs if name not in ("text", "sharpness")
    }
    if "text" in needs:
        cues["text"] = torch.randn(1, 16, DIM)
    return Tokens.from_cells(rows("features", N), Grid(frames, SIDE, SIDE)), cues


def peak_bytes(reset: bool = False) -> int:
    """The largest resident memory of this process so far, or since the last reset (Linux)."""
    if reset:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def run(folder: Path, name: str, seconds: float) -> list[dict[str, float]]:
    """Time, peak memory and input bytes of one method at each size that fits the limits."""
    shape = {"side": SIDE} if "side" in inspect.signature(registry.get(name)).parameters else {}
    (method,) = registry.build(name, dim=DIM, **shape)
    method.eval()
    per_frame = method.stage == "encoder"
    results: list[dict[str, float]] = []
    for frames in SIZES:
        if len(results) > 1:
            power = math.log(frames / results[-1]["frames"])
            predicted = [results[-1][key] * math.exp(power * _exponent(results, key)) for key in ("seconds", "peak")]
            if predicted[0] > seconds or predicted[1] > 20e9:
                break
        tokens, cues = load(folder, frames, tuple(method.needs))
        size = tokens.features.nbytes + sum(value.nbytes for value in cues.values())
        options: dict[str, Any] = {}
        if per_frame:
            options = {"layer": 3, "depth": 12}
            tokens = Tokens.from_cells(tokens.features.reshape(frames, 1, SIDE, SIDE, DIM))
            cues = {key: value.reshape(frames, SIDE**2, *value.shape[2:]) for key, value in cues.items()}
            if "sharpness" in method.needs:
                cues["sharpness"] = -torch.rand(frames, SIDE**2)
        if not results:
            method(tokens, **cues, **options)
        before = peak_bytes(reset=True)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            method(tokens, **cues, **options)
            times.append(time.perf_counter() - start)
            if len(times) == 1:
                peak = peak_bytes() - before
            if times[0] > 5:
                break
        results.append({"frames": frames, "seconds": statistics.median(times), "peak": max(peak, 1), "input": size})
    return results


def _exponent(results: list[dict[str, float]], key: str) -> float:
    first, last = results[-2:]
    return math.log(last[key] / first[key]) / math.log(last["frames"] / first["frames"])


def encoding_seconds() -> float:
    """The time of encoding 32 frames of 196 tokens."""
    encoder = fewtokens.load_encoder(DATA / "weights" / "dinov2-small", device="cpu")
    frames = torch.rand(1, 32, 3, SIDE * PATCH, SIDE * PATCH)
    encoder(frames)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        encoder(frames)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def row(name: str, results: list[dict[str, float]], encoding: float) -> dict[str, Any]:
    """One line of the table."""
    line: dict[str, Any] = {"method": f"`{name}`"}
    measured = {int(result["frames"]): result for result in results}
    for key, unit in (("seconds", 1.0), ("peak", 2.0**20)):
        for frames in SIZES:
            value = measured[frames][key] / unit if frames in measured else None
            line[f"{frames:,} frames, {'s' if key == 'seconds' else 'MiB'}"] = (
                None if value is None else round(value, 4 if key == "seconds" else 1)
            )
    line["of encoding, %"] = round(100 * measured[32]["seconds"] / encoding, 2) if 32 in measured else None
    line["exponent"] = round(_exponent(results, "seconds"), 2)
    line["24 GB at"] = f"{frames_that_fit(results):,} frames"
    return line


def frames_that_fit(results: list[dict[str, float]]) -> int:
    """The number of frames at which input and peak memory reach the limit, to two digits."""
    last = results[-1]
    power = max(1.0, _exponent(results, "peak"))

    def total(frames: float) -> float:
        factor = frames / last["frames"]
        return last["input"] * factor + last["peak"] * factor**power

    low, high = 1.0, 1e9
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if total(middle) < LIMIT else (low, middle)
    digits = 10 ** max(0, int(math.log10(low)) - 1)
    return int(low // digits * digits)


def plot(rows: list[dict[str, Any]]) -> None:
    """Time and peak memory of the training-free methods after the encoder against frames."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = [row["method"].strip("`") for row in rows]
    shown = [name for name in names if registry.get(name).stage == "tokens" and not registry.get(name).learned]
    styles = method_styles(names)
    figure, axes = plt.subplots(1, 2, figsize=(12, 6), layout="constrained")
    for axis, unit, label in zip(axes, ("s", "MiB"), ("time (s)", "peak memory above the input (MiB)"), strict=True):
        for name, row in zip(names, rows, strict=True):
            if name in shown:
                points = [(frames, value) for frames in SIZES if (value := row[f"{frames:,} frames, {unit}"])]
                axis.plot(*zip(*points, strict=True), label=name, lw=1, **styles[name])
        axis.set(xscale="log", yscale="log", xlabel="frames of 196 tokens", ylabel=label)
        axis.set_xticks(SIZES, [f"{frames:,}" for frames in SIZES])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    caption = (
        "Default arguments, features of 384 channels, one CPU thread. A line ends where the next size was skipped."
    )
    save_plot(figure, RESULTS / "scaling.png", title="Methods after the encoder as videos grow", caption=caption)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="comma-separated methods; other rows are unchanged")
    parser.add_argument("--features", type=Path, metavar="FOLDER", help="keep the encoded clips in this folder")
    parser.add_argument("--seconds", type=float, default=60, help="skip sizes predicted to take longer (default: 60)")
    parser.add_argument("--run", nargs=2, metavar=("FOLDER", "METHOD"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.run:
        print(json.dumps(run(Path(args.run[0]), args.run[1], args.seconds)))
        return
    if not DATA.is_dir():
        print("scaling: skipped, requires $FEWTOKENS_DATA")
        return
    names = registry.names()
    requested = args.only.split(",") if args.only else names
    if unknown := set(requested) - set(names):
        parser.error(f"unknown methods: {', '.join(sorted(unknown))}")
    path = RESULTS / "scaling.json"
    rows = {line["method"]: line for line in json.loads(path.read_text())["rows"]} if path.exists() else {}
    failed = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = str(args.features or temporary)
        if not (Path(folder) / "features.pt").exists():
            Path(folder).mkdir(parents=True, exist_ok=True)
            encode(Path(folder))
        encoding = encoding_seconds()
        for name in requested:
            command = [sys.executable, "-W", "ignore", __file__, "--seconds", str(args.seconds), "--run", folder, name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                failed.append(name)
                print(f"{name}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
                continue
            line = row(name, json.loads(done.stdout.splitlines()[-1]), encoding)
            rows[line["method"]] = line
            print(json.dumps(line), flush=True)
    ordered = [rows[f"`{name}`"] for name in names if f"`{name}`" in rows]
    plot(ordered)
    title, command = "Time and memory as videos grow", "python benchmarks/scaling.py"
    write("scaling", title, command, ordered, NOTES, images=("scaling.png",))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    main()
