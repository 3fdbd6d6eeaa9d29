"""CPU time of commands that answer without importing torch, such as --help and error messages.

    python benchmarks/command_start.py [--repeats 7]

User and system time of the process, median of the repeats, next to the time of `import torch`. About a minute.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile

from common import write

COMMANDS = (
    "--version",
    "--help",
    "tokenzie",
    "tokenize --help",
    "tokenize clip.mp4 --ouput o",
    "tokenize missing.mp4 --out o.safetensors",
    "eval --help",
    "eval davis --help",
    "train tobo missing --out run",
    "show missing.safetensors --out a.png",
)


def cpu_seconds(command: list[str], repeats: int) -> dict[str, float]:
    """Median, minimum and maximum; one run before them fills the bytecode cache."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats + 1):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, capture_output=True, cwd=folder, check=False)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    del times[0]
    return {"CPU s": round(statistics.median(times), 3), "min": round(min(times), 3), "max": round(max(times), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="runs of each command (default: %(default)s)")
    repeats = parser.parse_args().repeats
    rows = [
        {"command": f"fewtokens {line}", **cpu_seconds([sys.executable, "-m", "fewtokens", *line.split()], repeats)}
        for line in COMMANDS
    ]
    rows.append({"command": "python -c 'import torch'", **cpu_seconds([sys.executable, "-c", "import torch"], repeats)})
    command = f"python benchmarks/command_start.py --repeats {repeats}"
    write("command_start", "CPU time of commands that answer without torch", command, rows)


if __name__ == "__main__":
    main()
