"""`fewtokens tokenize --chunked` over files of 1, 10 and 30 minutes: the memory stays, the tokens are the same.

    python benchmarks/stream_long.py

About four minutes and 200 MB of disk on 2 cores. Files of 320x180 at 10 frames a second are made (a still room, things
that move, a cut each minute) and run through `rlt` on pixel patches in chunks of 32. Expected: the peak of resident
memory of the whole process differs by a few MiB between one minute and thirty; on the one-minute file every token is
that of the offline run.
"""

from __future__ import annotations

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


def make(path: Path, minutes: int) -> None:
    """Writes so many minutes, one after the other in memory of one of them."""
    scenes = [synthetic("static", frames=60 * RATE, size=(180, 320), seed=seed).frames for seed in range(2)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "20", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for minute in range(minutes):
            for frame in scenes[minute % 2]:
                picture = np.ascontiguousarray(frame.permute(1, 2, 0).numpy())
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def run(*words: str) -> tuple[float, float]:
    """Seconds, and the peak of resident memory in MiB, of one command."""
    start = time.perf_counter()
    process = subprocess.Popen([str(COMMAND), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words)} ended with {status}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


if __name__ == "__main__":
    if len(sys.argv) == 3:
        make(Path(sys.argv[1]), int(sys.argv[2]))
        raise SystemExit
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for minutes in (1, 10, 30):
            video = folder / f"{minutes}.mp4"
            # In a process of its own: what this one holds would count as the peak of those that it starts.
            subprocess.run([sys.executable, __file__, str(video), str(minutes)], check=True)
            words = ("--with", "rlt", "--size", "112")
            seconds, peak = run("tokenize", str(video), "--chunked", *words, "--out", str(folder / "s"))
            tokens = load(folder / "s" / video.stem)
            row = {
                "minutes": minutes,
                "frames": tokens.grid.T,
                "tokens": tokens.N,
                "share": f"{100 * tokens.N / tokens.grid.cells:.2f} %",
                "seconds": round(seconds, 1),
                "peak MiB, streamed": round(peak),
                "peak MiB, at once": None,
                "equal to at once": None,
            }
            if minutes == 1:
                seconds, whole = run(
                    "tokenize", str(video), *words, "--fps", str(RATE), "--out", str(folder / "w.safetensors")
                )
                other = Tokens.load(folder / "w.safetensors")
                row["peak MiB, at once"] = round(whole)
                row["equal to at once"] = all(
                    torch.equal(getattr(tokens, part), getattr(other, part))
                    for part in ("features", "assignment", "sizes")
                )
            rows.append(row)
            print(row, flush=True)
    write(
        "stream_long",
        "A long file in constant memory",
        "python benchmarks/stream_long.py",
        rows,
        "Peak: resident memory of the whole process, Python and torch included.",
    )
