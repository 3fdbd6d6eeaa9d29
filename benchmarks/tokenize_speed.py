"""`fewtokens tokenize` over many videos: the cores that it uses, and one command against one command per clip.

    python benchmarks/tokenize_speed.py [--loop 20]

Real clips of ../shared/data/clips (or $FEWTOKENS_DATA/clips), 20 times under other names, with the encoder `patches`;
and 200 small generated clips (16 frames of 128x128), in one command and in a shell loop that starts the command for
each of the first --loop clips. About five minutes on 2 idle cores, of which the loop takes a minute; its time is
proportional to the number of clips. Expected: at least 1.8 of 2 cores over the real clips; one command at least 10
times faster per clip than the loop.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import write
from fewtokens.video import synthetic
from fewtokens.video import write as write_video

CLIPS = Path(os.environ.get("FEWTOKENS_DATA") or Path(__file__).parents[2] / "shared" / "data") / "clips"
COPIES = 20
SMALL = 200


def run(command: list[str], folder: Path) -> dict[str, float]:
    """Wall-clock and CPU seconds of a command, and the cores that it uses."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall s": round(seconds, 2), "CPU s": round(cpu, 2), "cores": round(cpu / seconds, 2)}


def tokenize(paths: list[Path], spec: str, out: Path) -> list[str]:
    return [sys.executable, "-m", "fewtokens", "tokenize", *map(str, paths), "--with", spec, "--out", str(out)]


def rows(folder: Path, loop: int) -> list[dict]:
    table = []
    real = folder / "real"
    real.mkdir()
    for copy in range(COPIES):
        for clip in sorted(CLIPS.iterdir()):
            (real / f"{copy}_{clip.name}").symlink_to(clip)
    paths = sorted(real.iterdir())
    for spec in ("evs(keep=0.1)", "tome(keep=0.1)"):
        times = run(tokenize(paths, spec, folder / f"real {spec}"), folder)
        table.append({"videos": f"{len(paths)} real clips, {spec}", **times})
    small = [folder / f"{number:03}.mp4" for number in range(SMALL)]
    for number, path in enumerate(small):
        clip = synthetic("shapes", seed=number)
        write_video(path, clip.frames, fps=8)
    times = run(tokenize(small, "evs(keep=0.1)", folder / "small"), folder)
    table.append({"videos": f"{SMALL} small clips, one command", **times})
    (folder / "loop").mkdir()
    commands = [" ".join(map(repr, tokenize([path], "evs(keep=0.1)", folder / "loop"))) for path in small[:loop]]
    times = run(["sh", "-c", "\n".join(commands)], folder)
    table.append({"videos": f"{loop} small clips, one command each", **times})
    for row, count in zip(table, (len(paths), len(paths), SMALL, loop), strict=True):
        row["wall ms per video"] = round(1000 * row["wall s"] / count, 1)
        row["CPU ms per video"] = round(1000 * row["CPU s"] / count, 1)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", type=int, default=20, help="clips of the shell loop (default: %(default)s)")
    loop = parser.parse_args().loop
    if not CLIPS.is_dir():
        print("tokenize_speed: skipped, requires $FEWTOKENS_DATA")
        return
    with tempfile.TemporaryDirectory() as folder:
        table = rows(Path(folder), loop)
    command = f"python benchmarks/tokenize_speed.py --loop {loop}"
    write("tokenize_speed", "`fewtokens tokenize` over many videos with the encoder patches", command, table)


if __name__ == "__main__":
    main()
