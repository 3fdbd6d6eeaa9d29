"""Fuzzing of every file reader: damaged files must not cause crashes, hangs, unexpected errors or unstable results.

    python benchmarks/fuzz.py --work WORK                 # 13,100 mutants, 2 minutes on 2 cores
    python benchmarks/fuzz.py --work WORK --only tokens   # targets whose name contains this
    python benchmarks/fuzz.py --work WORK --share 0.01    # 1 % of each target; tests/test_fuzz.py runs such a part
    python benchmarks/fuzz.py --work WORK --show "tokens" 17   # read one mutant again, with its traceback

A mutant is a valid example (`fuzzing/targets.py`) with one damaged file (`fuzzing/mutate.py`); target, index and
`--seed` determine it, so that it can be reproduced. Worker processes read each mutant two or three times with limits on
time and memory. Allowed outcomes are a result, ValueError and OSError with a one-line message. Anything else is a fault
and is listed with its index, as is a second reading that differs from the first. Six targets that misbehave on purpose
run first: if one of them is not detected, the campaign stops. Interrupted campaigns resume.

Expected: no faults. Results are written to results/fuzz.json and fuzz.md (full campaigns only); the exit code is 1 if
there is a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent))

# Limits of one reading: CPU seconds, and wall-clock seconds on a busy machine.
CPU_SECONDS, WALL_SECONDS = 10.0, 60.0
# Limits of a worker: address space, and growth of resident memory during one reading, in bytes.
ADDRESS_SPACE, GROWTH = 12 << 30, 1 << 30
FAULTS = ("undocumented", "untidy", "unsteady", "crash", "hang", "memory")


def folder_name(name: str) -> str:
    return name.replace(" ", "_")


def make_mutant(work: Path, target: Any, index: int, seed: int, folder: Path) -> str:
    """Writes a damaged copy of the example to `folder`, undamaged if `index` is negative; returns the damaged file."""
    rng = random.Random(f"{seed} {target.name} {index}")
    shutil.rmtree(folder, ignore_errors=True)
    source = work / "examples" / folder_name(target.name)
    if source.is_dir():
        shutil.copytree(source, folder)
    else:
        folder.mkdir(parents=True)
        target.make(folder)
    if index < 0:
        return "nothing"
    matches = {
        path: damage for pattern, damage in target.damage.items() for path in folder.rglob(pattern) if path.is_file()
    }
    # Patterns are equally likely: in a folder with many tensor files and one config, the config is damaged too.
    pattern = rng.choice(list(target.damage))
    path = rng.choice(sorted(path for path in folder.rglob(pattern) if path.is_file()) or sorted(matches))
    path.write_bytes(matches[path](rng, path.read_bytes()))
    return str(path.relative_to(folder))


def read_once(target: Any, folder: Path, index: int) -> tuple[str, str]:
    """(outcome, detail) of one reading."""
    from fuzzing.targets import digest

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return "read", digest(target.read(folder, index))
        except (ValueError, OSError) as error:
            message = str(error)
            tidy = message.strip() and "\n" not in message and len(message) < 1500
            return "refused" if tidy else "untidy", f"{type(error).__name__}: {message[:300]}"
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            at = next((f for f in reversed(frames) if "fewtokens" in f.filename and "fuzzing" not in f.filename), None)
            where = f"{Path(at.filename).name}:{at.lineno}" if at else "?"
            return "undocumented", f"{type(error).__name__} at {where}: {' '.join(str(error).split())[:200]}"


def resident_peak() -> int:
    """Peak resident memory since `reset_peak`, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def reset_peak() -> None:
    with contextlib.suppress(OSError):  # without this file, the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def run_worker(work: Path, seed: int) -> None:
    """A worker: reads "target<tab>index" lines; writes a line of JSON per reading and one at the end."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import torch

    from fuzzing.targets import find

    torch.set_num_threads(1)
    folder = work / "mutants" / str(os.getpid())
    for line in sys.stdin:
        name, index = line.rstrip("\n").split("\t")
        target = find(name)
        damaged = make_mutant(work, target, int(index), seed, folder)
        outcomes, seconds = [], 0.0
        reset_peak()
        before = resident_peak()
        for _ in range(target.readings):
            print(json.dumps({"reading": len(outcomes)}), flush=True)
            start = time.process_time()
            outcomes.append(read_once(target, folder, int(index)))
            seconds = max(seconds, time.process_time() - start)
        growth = resident_peak() - before
        outcome, detail = outcomes[0]
        if len(set(outcomes)) > 1:
            outcome, detail = "unsteady", " / ".join(dict.fromkeys(f"{name} {text}" for name, text in outcomes))[:600]
        elif growth > GROWTH and outcome in ("read", "refused"):
            outcome, detail = "memory", f"{growth >> 20} MiB, then {outcome} {detail}"
        row = {"outcome": outcome, "what": detail, "file": damaged, "seconds": round(seconds, 3), "MiB": growth >> 20}
        print(json.dumps(row), flush=True)
    shutil.rmtree(folder, ignore_errors=True)


def _cpu_seconds(process: int) -> float:
    """CPU time that a process has used, in seconds."""
    try:
        times = psutil.Process(process).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system


def _forward_lines(process: subprocess.Popen[str], lines: queue.SimpleQueue[str]) -> None:
    """Puts the lines that a process prints into the queue, and an empty line at its end."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line)
    lines.put("")


class Worker:
    """A process that reads mutants, restarted after a crash or a hang."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.seed, self.log = work, seed, (work / "workers.log").open("ab")
        self.process: subprocess.Popen[str] | None = None
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def run(self, name: str, index: int) -> dict[str, Any]:
        if self.process is None:
            command = [sys.executable, __file__, "--work", str(self.work), "--seed", str(self.seed), "--worker"]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, bufsize=1
            )
            self.lines = queue.SimpleQueue()
            threading.Thread(target=_forward_lines, args=(self.process, self.lines), daemon=True).start()
        process = self.process
        assert process.stdin is not None
        process.stdin.write(f"{name}\t{index}\n")
        process.stdin.flush()
        # The first line comes after the imports of a new process and the creation of the mutant.
        start, used, cpu_limit, wall_limit = time.monotonic(), 0.0, 60.0, 300.0
        while True:
            try:
                line = self.lines.get(timeout=0.5)
            except queue.Empty:
                spent, elapsed = _cpu_seconds(process.pid) - used, time.monotonic() - start
                if spent > cpu_limit or elapsed > wall_limit:
                    return self._fail(name, index, "hang", f"{spent:.0f} s of CPU time in {elapsed:.0f} s")
                continue
            if not line:
                return self._fail(name, index, "crash", f"exit code {process.wait()}")
            answer = json.loads(line)
            if "outcome" in answer:
                return {"target": name, "number": index, **answer}
            start, used, cpu_limit, wall_limit = time.monotonic(), _cpu_seconds(process.pid), CPU_SECONDS, WALL_SECONDS

    def _fail(self, name: str, index: int, outcome: str, detail: str) -> dict[str, Any]:
        self.stop()
        return {"target": name, "number": index, "outcome": outcome, "what": detail, "seconds": CPU_SECONDS, "MiB": 0}

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process = None


def campaign(work: Path, jobs: list[tuple[str, int]], seed: int, workers: int, verbose: bool) -> list[dict[str, Any]]:
    """Reads the mutants in worker processes; each row is written immediately."""
    rows: list[dict[str, Any]] = []
    lock = threading.Lock()
    waiting = iter(jobs)
    start = time.perf_counter()

    def take() -> None:
        worker = Worker(work, seed)
        try:
            while True:
                with lock:
                    job = next(waiting, None)
                if job is None:
                    return
                row = worker.run(*job)
                with lock, (work / "rows.jsonl").open("a") as file:
                    file.write(json.dumps(row) + "\n")
                    rows.append(row)
                    if verbose and (row["outcome"] in FAULTS or len(rows) % 500 == 0):
                        done = f"{len(rows)} of {len(jobs)} in {time.perf_counter() - start:.0f} s"
                        print(f"{done}  {row['target']} {row['number']}: {row['outcome']} {row['what']}", flush=True)
        finally:
            worker.stop()
            worker.log.close()

    threads = [threading.Thread(target=take) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rows


def check_detection(work: Path, seed: int, targets: list[Any]) -> None:
    """Checks that targets that misbehave on purpose are detected, and that valid examples are read."""
    from fuzzing.targets import CHECKS

    worker = Worker(work, seed)
    try:
        for target in [*targets, *CHECKS]:
            expected = target.name.removeprefix("check ") if target in CHECKS else "read"
            row = worker.run(target.name, 0 if target in CHECKS else -2)
            if row["outcome"] != expected:
                raise SystemExit(f"{target.name}: expected {expected!r}, got {row['outcome']!r}: {row['what']}")
    finally:
        worker.stop()
        worker.log.close()


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per target, and one for all."""
    names = list(dict.fromkeys(row["target"] for row in rows))
    lines = []
    for name in [*names, "all"]:
        part = [row for row in rows if name in ("all", row["target"])]
        count = Counter(row["outcome"] for row in part)
        lines.append(
            {"target": name, "mutants": len(part), "read": count["read"], "refused": count["refused"]}
            | {fault: count[fault] for fault in FAULTS}
            | {"max s": max(row["seconds"] for row in part), "max MiB": max(row["MiB"] for row in part)}
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("fuzz-work"),
        help="directory of examples, mutants and rows (default: %(default)s)",
    )
    parser.add_argument(
        "--share", type=float, default=1.0, help="fraction of the mutants of each target (default: %(default)s)"
    )
    parser.add_argument("--only", default="", help="only targets whose name contains this")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="worker processes (default: all cores)"
    )
    parser.add_argument("--show", nargs=2, metavar=("TARGET", "INDEX"), help="read one mutant, with its traceback")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if options.worker:
        run_worker(work, options.seed)
        return
    from fuzzing.targets import TARGETS, find, make_examples

    if options.show:
        target, index = find(options.show[0]), int(options.show[1])
        folder = work / "shown"
        print("damaged:", make_mutant(work, target, index, options.seed, folder), "in", folder)
        print(target.read(folder, index))
        return
    selected = [target for target in TARGETS if options.only in target.name]
    if not selected:
        parser.error(
            f"--only {options.only!r} matches no target; targets: {', '.join(target.name for target in TARGETS)}"
        )
    make_examples(work / "examples", selected)
    check_detection(work, options.seed, selected)
    log = work / "rows.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")] if log.exists() else []
    done = {(row["target"], row["number"]) for row in rows}
    counts = {target.name: max(1, round(options.share * target.count)) for target in selected}
    jobs = [(name, index) for name, count in counts.items() for index in range(count)]
    random.Random(0).shuffle(jobs)
    rows += campaign(work, [job for job in jobs if job not in done], options.seed, options.workers, verbose=True)
    requested = set(jobs)
    rows = sorted(
        (row for row in rows if (row["target"], row["number"]) in requested),
        key=lambda row: (list(counts).index(row["target"]), row["number"]),
    )
    faults = [row for row in rows if row["outcome"] in FAULTS]
    lines = table(rows)
    if options.share == 1 and not options.only:
        from common import write

        notes = "\n".join(f"* {row['target']} {row['number']}: {row['outcome']}, {row['what']}" for row in faults[:100])
        title = "Fuzzing of every file reader"
        write("fuzz", title, f"python benchmarks/fuzz.py --seed {options.seed}", lines, notes or "No faults.")
    else:
        print(json.dumps(lines[-1]))
    shutil.rmtree(work / "mutants", ignore_errors=True)
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
