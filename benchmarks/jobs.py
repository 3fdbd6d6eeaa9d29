"""Jobs of `fewtokens tokenize` over many generated clips: throughput, memory over time, and kills at random moments.

    python benchmarks/jobs.py throughput [--clips 10000] [--loop 20] [--engines local,ray]
    python benchmarks/jobs.py kills [--kills 100] [--kill-clips 200] [--engines local,ray] [--seed 0]

Each part replaces its table in results/jobs.*, of kills the rows of its engines.

Throughput: one job with each engine, the plain command over --loop clips, and a shell loop that starts the command for
each of them. Memory: resident bytes of all processes of the job, sampled twice a second; the highest value in each
third of the run, which must not grow with the number of clips.

Kills: a job over --kill-clips clips is started again and again, and each time a process of it is killed with SIGKILL at
a random moment: a worker, the driver (the command, or with Ray the process that is connected to it), or with Ray the
raylet (the process of a node). Then it runs to its end, and its
files must be those of an undisturbed run: tensors and headers bit-equal, rows of the manifest equal except for seconds,
nothing left over. The exit code is 1 if anything differs.

Cost on two cores: throughput 5 minutes; kills 15 minutes for 50 with local, 25 with Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from common import RESULTS, write
from fewtokens.video import synthetic
from fewtokens.video import write as write_video

THROUGHPUT, KILLS = "Throughput and memory", "Kills"
DISTINCT = 50
# Seconds without a new file, or without an end after the last one, after which a job hangs.
HANG = 300
WORDS = ("--frames", "8", "--size", "48", "--with", "evs(keep=0.1)")


def make_clips(folder: Path, number: int) -> Path:
    """Writes clips of 8 frames of 48x64 pixels; every 50th has the content of another."""
    folder.mkdir()
    for index in range(number):
        path = folder / f"{index:05}.mp4"
        if index < DISTINCT:
            write_video(path, synthetic("shapes", frames=8, size=(48, 64), seed=index).frames, 8)
        else:
            shutil.copyfile(folder / f"{index % DISTINCT:05}.mp4", path)
    return folder


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "fewtokens", "tokenize", *map(str, words), *WORDS]


def job(clips: Path, out: Path, engine: str, format: str = "shards", per_shard: int = 100) -> list[str]:
    options = ("--engine", engine, "--format", format, "--per-shard", per_shard, "--workers", os.cpu_count() or 1)
    return command(clips, "--out", out, *options)


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and all processes that it has started."""
    with suppress(psutil.Error):
        return [process, *process.children(recursive=True)]
    return []


def resident(process: psutil.Process) -> int:
    total = 0
    for each in family(process):
        with suppress(psutil.Error):
            total += each.memory_info().rss
    return total


def measure(words: list[str]) -> dict[str, Any]:
    """Wall-clock seconds of a command, and the peak of its memory in each third, in MiB."""
    samples: list[tuple[float, int]] = []
    start = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            samples.append((time.perf_counter() - start, resident(psutil.Process(process.pid))))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    _, errors = process.communicate()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}: exit code {process.returncode}\n{errors}")
    thirds = [[rss for at, rss in samples if n <= 3 * at / seconds < n + 1] for n in range(3)]
    return {"seconds": seconds, "mib": [max(third, default=0) / 2**20 for third in thirds]}


def contents(folder: Path) -> dict[str, Any]:
    """What a job wrote, without times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name == "manifest.parquet":
            continue
        content: Any = path.read_bytes()
        if path.parent.name == "manifest":
            rows = [json.loads(line) for line in content.splitlines()]
            content = [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
        elif path.suffix == ".safetensors":  # the order of the entries of its header is random
            size = 8 + int.from_bytes(content[:8], "little")
            content = json.loads(content[8:size])["__metadata__"], content[size:]
        found[str(path.relative_to(folder))] = content
    return found


def victims(process: psutil.Process, kind: str, engine: str) -> list[psutil.Process]:
    """The processes of a job of one kind."""
    found = [process] if kind == "driver" else []
    for child in family(process)[1:]:
        with suppress(psutil.Error):
            words = " ".join(child.cmdline())
            own = "spawn_main" in words
            is_worker = words.startswith("ray::") if engine == "ray" else own
            is_driver = own and engine == "ray"
            is_node = child.name().startswith("raylet")
            if {"worker": is_worker, "driver": is_driver, "node": is_node}[kind]:
                found.append(child)
    return found


def end_all(processes: list[psutil.Process]) -> None:
    """Ends what a killed driver of Ray left, so that the next run starts alone."""
    for each in processes:
        with suppress(psutil.Error):
            each.kill()
    psutil.wait_procs(processes, timeout=10)


def await_end(process: subprocess.Popen[str], out: Path) -> None:
    """Waits for a job to end, which may take long on a busy machine.

    Raises:
        TimeoutExpired: it hangs.
    """
    files, since = -1, time.monotonic()
    while process.poll() is None:
        if (now := sum(path.is_file() for path in out.rglob("*"))) != files:
            files, since = now, time.monotonic()
        if time.monotonic() - since > HANG:
            raise subprocess.TimeoutExpired(process.args, HANG)
        time.sleep(0.5)


def kill_runs(
    words: list[str], engine: str, kills: int, length: float, chance: random.Random, expected: dict[str, Any]
) -> dict[str, int]:
    """Runs a job until it ends, killing its processes at random moments; again in a new folder up to `kills` kills."""
    kinds = ("worker", "driver") if engine == "local" else ("worker", "driver", "node")
    counts = dict.fromkeys(kinds, 0)
    out = Path(words[words.index("--out") + 1])
    starts = ends = different = 0
    while True:
        starts += 1
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        watched, begin, before = psutil.Process(process.pid), time.monotonic(), sum(counts.values())
        everyone: list[psutil.Process] = []
        while sum(counts.values()) < kills and process.poll() is None:
            kind = chance.choice(kinds)
            end = time.monotonic() + chance.uniform(0.05, 1) * length
            while time.monotonic() < end and process.poll() is None:
                time.sleep(0.02)
            everyone = family(watched) or everyone
            targets = victims(watched, kind, engine)
            if targets and process.poll() is None:
                with suppress(psutil.Error):
                    chance.choice(targets).send_signal(signal.SIGKILL)
                    counts[kind] += 1
            if kind != "worker":
                break
        await_end(process, out)
        end_all(everyone)  # before reading, since they may hold the pipe
        _, errors = process.communicate()
        if process.returncode == 0:
            if sum(counts.values()) == before:  # kills come too late
                length = min(length, time.monotonic() - begin)
            actual, ends = contents(out), ends + 1
            different += sum(expected.get(name) != actual.get(name) for name in expected.keys() | actual.keys())
            if sum(counts.values()) >= kills:
                return {"starts": starts, "ends": ends, "different": different, **counts}
            shutil.rmtree(out)
            print(f"{engine}: {starts} starts, {ends} ends, {different} files differ, kills {counts}", flush=True)
        elif process.returncode not in (-signal.SIGKILL, 2):
            raise SystemExit(f"exit code {process.returncode} after {counts}\n{errors}")


def throughput(folder: Path, clips: Path, number: int, loop: int, engines: list[str]) -> list[dict]:
    rows = []
    for engine in engines:
        result = measure(job(clips, folder / f"whole {engine}", engine))
        first, second, third = (round(value) for value in result["mib"])
        rows.append({
            "command": f"--engine {engine}", "clips": number, "seconds": round(result["seconds"], 1),
            "clips per second": round(number / result["seconds"], 2), "peak MiB, first third": first,
            "second third": second, "last third": third,
        })  # fmt: skip
    sample = sorted(clips.iterdir())[:loop]
    blank = dict.fromkeys(("peak MiB, first third", "second third", "last third"))
    runs = {
        "one plain command": [command(*sample, "--out", folder / "plain")],
        "shell loop": [command(path, "--out", folder / "loop" / f"{path.stem}.safetensors") for path in sample],
    }
    for name, commands in runs.items():
        start = time.perf_counter()
        for words in commands:
            subprocess.run(words, check=True, capture_output=True)
        seconds = time.perf_counter() - start
        rows.append({
            "command": name, "clips": loop, "seconds": round(seconds, 1), "clips per second": round(loop / seconds, 2),
            **blank,
        })  # fmt: skip
    return rows


def killed(folder: Path, clips: Path, kills: int, engine: str, seed: int) -> dict[str, Any]:
    chance = random.Random(f"{seed} {engine}")
    words = job(clips, folder / f"killed {engine}", engine, per_shard=5)
    result = measure(job(clips, folder / f"undisturbed {engine}", engine, per_shard=5))
    expected = contents(folder / f"undisturbed {engine}")
    counts = kill_runs(words, engine, kills, result["seconds"], chance, expected)
    return {
        "engine": engine, "clips": len(list(clips.iterdir())), "starts": counts["starts"], "ends": counts["ends"],
        "workers killed": counts["worker"],
        "drivers killed": counts["driver"], "nodes killed": counts.get("node"), "files": len(expected),
        "files that differ": counts["different"],
    }  # fmt: skip


def report(title: str, rows: list[dict]) -> None:
    """Writes one table, and the other one as it was."""
    path = RESULTS / "jobs.json"
    tables = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else {}
    if title == KILLS:
        done = {row["engine"] for row in rows}
        rows = sorted([*rows, *(row for row in tables.get(title, []) if row["engine"] not in done)], key=str)
    tables = {name: rows if name == title else tables.get(name) for name in (THROUGHPUT, KILLS)}
    notes = (
        "Clips of 8 frames of 48x64 pixels. Memory is the sum of the resident bytes of all processes, so pages that "
        "they share count several times. *Starts*: how often a job was started or resumed. *Ends*: how many jobs came "
        "to their end; a new folder is begun after each. *Files that differ* from an undisturbed run, in all of them: "
        "tensors, headers and rows of the manifest, except for seconds."
    )
    write(
        "jobs",
        "Jobs of `fewtokens tokenize` over generated clips",
        "python benchmarks/jobs.py throughput|kills",
        {name: table for name, table in tables.items() if table},
        notes,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("throughput", "kills"))
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=100, help="of all engines together")
    parser.add_argument("--kill-clips", type=int, default=200)
    parser.add_argument("--loop", type=int, default=20)
    parser.add_argument("--engines", default="local,ray")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    engines = options.engines.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = make_clips(folder / "clips", options.clips if options.part == "throughput" else options.kill_clips)
        if options.part == "throughput":
            report(THROUGHPUT, throughput(folder, clips, options.clips, options.loop, engines))
            return
        different = 0
        for engine in engines:
            row = killed(folder, clips, options.kills // len(engines), engine, options.seed)
            report(KILLS, [row])
            different += row["files that differ"]
    if different:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
