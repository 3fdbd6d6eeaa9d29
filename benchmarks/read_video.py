"""Reading videos: sparse frames by the packet index against decoding everything, and chunks in constant memory.

    python benchmarks/read_video.py

About four minutes on 2 cores, most of it for generating a 10-minute 1280x720 clip (H.264, 30 frames/s, a keyframe every
2 s), which is kept in the system's temporary folder for the next run. Expected: 32 of 18,000 frames at least 10 times
faster than decoding all; 32 of 300 frames not slower than decoding all; the same memory of `stream` for 1 and for 10
minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from common import time_side_by_side, write
from fewtokens.video import read

FOLDER = Path(tempfile.gettempdir()) / "fewtokens-bench"
SIZE = 224


def make_clip(path: Path, seconds: int, rate: int = 30) -> Path:
    """Writes a moving texture, so that frames depend on each other, with a keyframe every 2 s."""
    if path.exists():
        return path
    FOLDER.mkdir(exist_ok=True)
    coarse = np.random.default_rng(0).integers(0, 255, (90, 320, 3), dtype=np.uint8)
    texture = np.repeat(np.repeat(coarse, 8, 0), 8, 1)
    part = path.with_suffix(".part.mp4")
    with av.open(str(part), "w") as out:
        stream = out.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        stream.codec_context.gop_size = 2 * rate
        stream.options = {"preset": "veryfast", "crf": "28", "sc_threshold": "0"}
        for n in range(seconds * rate):
            offset = abs((3 * n) % 2400 - 1200)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(texture[:, offset : offset + 1280]), format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    part.rename(path)
    return path


def decode_all(path: Path, convert: bool) -> int:
    """The simple method: decodes every frame, with or without conversion."""
    count = 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if convert:
                frame.reformat(398, SIZE, "rgb24", interpolation="AREA").to_ndarray()
            count += 1
    return count


def seek_for_each(path: Path, frames: int) -> int:
    """The naive sparse method: one seek per frame."""
    count = 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        step = stream.duration / frames
        for n in range(frames):
            target = int(n * step)
            container.seek(target, stream=stream)
            for frame in container.decode(stream):
                if frame.pts >= target:
                    frame.reformat(398, SIZE, "rgb24", interpolation="AREA").to_ndarray()
                    count += 1
                    break
    return count


def peak_of_stream(path: Path, seconds: float) -> float:
    """Peak resident memory of a separate process that reads the chunks, in MiB."""
    code = (
        "import resource\n"
        "from fewtokens.video import stream\n"
        f"n = sum(len(part) for part in stream({str(path)!r}, chunk=32, size={SIZE}, end={seconds}))\n"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[1])


def rows() -> list[dict]:
    table = []
    for seconds, repeats in ((600, 3), (10, 7)):
        path = make_clip(FOLDER / f"{seconds}s.mp4", seconds)
        times = time_side_by_side(
            {
                "ours": lambda path=path: read(path, frames=32, size=SIZE),
                "seek for each": lambda path=path: seek_for_each(path, 32),
                "decode all": lambda path=path: decode_all(path, convert=False),
                "decode and convert all": lambda path=path: decode_all(path, convert=True),
            },
            repeats,
        )
        ours = times["ours"]["median"]
        for name, t in times.items():
            table.append(
                {
                    "task": f"32 frames of {seconds} s",
                    "reader": name,
                    "ms": f"{t['median']:.0f}",
                    "min..max": f"{t['min']:.0f}..{t['max']:.0f}",
                    "relative to ours": f"{t['median'] / ours:.1f}",
                }
            )
    path = FOLDER / "600s.mp4"
    for seconds in (60.0, 600.0):
        table.append(
            {
                "task": f"stream over {seconds:.0f} s",
                "reader": "ours, chunks of 32",
                "ms": "-",
                "min..max": "-",
                "relative to ours": f"{peak_of_stream(path, seconds):.0f} MiB peak",
            }
        )
    return table


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write(
        "read_video",
        "Reading 32 uniformly spaced frames of 1280x720 H.264 at 224 px, and memory of chunked reading",
        "python benchmarks/read_video.py",
        rows(),
        "`decode all` does not convert frames. The last rows are the peak resident memory of the process, including "
        "Python and torch.",
    )
