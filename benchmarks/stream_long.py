"""Memory of `fewtokens tokenize --chunked` on files of 1, 10 and 30 minutes, and equality with processing in one call.

    python benchmarks/stream_long.py

About four minutes and 200 MB of disk on 2 cores. Generates files of 320x180 at 10 frames per second (a static room,
moving objects, a cut every minute) and runs `rlt` on pixel patches in chunks of 32. Expected: the peak resident memory
of the process differs by a few MiB between 1 and 30 minutes; on the one-minute file all tokens equal those of the run
in one call.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch

from common import write
from fewtokens import Tokens
from fewtokens.core.streaming import load
from fewtokens.video import synthetic

COMMAND = Path(sys.executable).with_name("fewtokens")
RATE = 10


def make_video(path: Path, minutes: int) -> None:
    """Writes a video of `minutes` minutes, with one minute in memory at a time."""
    scenes = [synthetic("static", frames=60 * RATE, size=(180, 320), seed=seed).frames for seed in range(2)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "20", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for minute in range(minutes):
            for frame in scenes[minute % 2]:
                image = np.ascontiguousarray(frame.permute(1, 2, 0).numpy())
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def run(*arguments: str) -> tuple[float, float]:
    """Runs a command; returns seconds and peak resident memory in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen([str(COMMAND), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"fewtokens {' '.join(arguments)} exited with {status}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make", nargs=2, metavar=("FILE", "MINUTES"), help=argparse.SUPPRESS)
    if request := parser.parse_args().make:
        make_video(Path(request[0]), int(request[1]))
        raise SystemExit
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for minutes in (1, 10, 30):
            video = folder / f"{minutes}.mp4"
            # In a separate process, because the memory of this one would count in the peak of its children.
            subprocess.run([sys.executable, __file__, "--make", str(video), str(minutes)], check=True)
            options = ("--with", "rlt", "--size", "112")
            seconds, peak = run("tokenize", str(video), "--chunked", *options, "--out", str(folder / "s"))
            tokens = load(folder / "s" / video.stem)
            row = {
                "minutes": minutes,
                "frames": tokens.grid.T,
                "tokens": tokens.N,
                "tokens kept": f"{100 * tokens.N / tokens.grid.cells:.2f} %",
                "seconds": round(seconds, 1),
                "peak MiB, streamed": round(peak),
                "peak MiB, in one call": None,
                "equal to one call": None,
            }
            if minutes == 1:
                _, peak = run(
                    "tokenize", str(video), *options, "--fps", str(RATE), "--out", str(folder / "w.safetensors")
                )
                reference = Tokens.load(folder / "w.safetensors")
                row["peak MiB, in one call"] = round(peak)
                row["equal to one call"] = all(
                    torch.equal(getattr(tokens, part), getattr(reference, part))
                    for part in ("features", "assignment", "sizes")
                )
            rows.append(row)
            print(row, flush=True)
    write(
        "stream_long",
        "Long files in constant memory",
        "python benchmarks/stream_long.py",
        rows,
        "Peak: resident memory of the process, including Python and torch.",
    )
