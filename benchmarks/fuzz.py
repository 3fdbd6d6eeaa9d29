"""Damaged files through everything that reads files: no surprise, no crash, no hang, the same answer each time.

    python benchmarks/fuzz.py --work WORK                 # 13,100 mutants, 2 minutes on 2 cores
    python benchmarks/fuzz.py --work WORK --only tokens   # targets whose name contains this
    python benchmarks/fuzz.py --work WORK --share 0.01    # a hundredth of each; tests/test_fuzz.py runs such a slice
    python benchmarks/fuzz.py --work WORK --show "tokens" 17   # one mutant again, with its traceback

A mutant is a sound example (`fuzzing/targets.py`) with one file damaged (`fuzzing/mutate.py`); target, number and
`--seed` say which, so that each can be made again. Worker processes read it two or three times, with limits of time
and memory. Documented are an answer, ValueError, OSError; a message is one line. Anything else is a fault and is
listed by number; so is a second reading that differs from the first. Six targets that misbehave on purpose run first:
a campaign that does not notice all six ends there. A campaign that was stopped resumes with what is left.

Expected: no fault. Results go to results/fuzz.json and fuzz.md (whole campaigns only); the exit code is 1 if there is
a fault.
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

# For one reading: seconds of computing, and of waiting where the machine is busy. For a worker: the address space, and
# the growth of resident memory in one reading.
SECONDS, PATIENCE = 10.0, 60.0
ADDRESSES, GROWTH = 12 << 30, 1 << 30
FAULTS = ("undocumented", "untidy", "unsteady", "crash", "hang", "memory")


def place_of(name: str) -> str:
    return name.replace(" ", "_")


def make_mutant(work: Path, target: Any, number: int, seed: int, folder: Path) -> str:
    """A damaged copy of the example in `folder`, or a sound one below 0; returns which file was damaged."""
    rng = random.Random(f"{seed} {target.name} {number}")
    shutil.rmtree(folder, ignore_errors=True)
    source = work / "examples" / place_of(target.name)
    if source.is_dir():
        shutil.copytree(source, folder)
    else:
        folder.mkdir(parents=True)
        target.make(folder)
    if number < 0:
        return "nothing"
    matches = {
        path: damage for pattern, damage in target.damage.items() for path in folder.rglob(pattern) if path.is_file()
    }
    # Each pattern has its turn: a folder of many tensors and one config is not all tensors.
    pattern = rng.choice(list(target.damage))
    path = rng.choice(sorted(path for path in folder.rglob(pattern) if path.is_file()) or sorted(matches))
    path.write_bytes(matches[path](rng, path.read_bytes()))
    return str(path.relative_to(folder))


def read_once(target: Any, folder: Path, number: int) -> tuple[str, str]:
    """(outcome, what) of one reading."""
    from fuzzing.targets import digest

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return "read", digest(target.read(folder, number))
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
    """Bytes of resident memory at most since `forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def forget_peak() -> None:
    with contextlib.suppress(OSError):  # where there is no such file, the growth is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def work_off(work: Path, seed: int) -> None:
    """A worker: reads "target<tab>number" lines, answers a line of JSON for each reading and one at the end."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import torch

    from fuzzing.targets import find

    torch.set_num_threads(1)
    folder = work / "mutants" / str(os.getpid())
    for line in sys.stdin:
        name, number = line.rstrip("\n").split("\t")
        target = find(name)
        damaged = make_mutant(work, target, int(number), seed, folder)
        outcomes, seconds = [], 0.0
        forget_peak()
        before = resident_peak()
        for _ in range(target.readings):
            print(json.dumps({"reading": len(outcomes)}), flush=True)
            start = time.process_time()
            outcomes.append(read_once(target, folder, int(number)))
            seconds = max(seconds, time.process_time() - start)
        growth = resident_peak() - before
        outcome, what = outcomes[0]
        if len(set(outcomes)) > 1:
            outcome, what = "unsteady", " / ".join(dict.fromkeys(f"{kind} {text}" for kind, text in outcomes))[:600]
        elif growth > GROWTH and outcome in ("read", "refused"):
            outcome, what = "memory", f"{growth >> 20} MiB, then {outcome} {what}"
        row = {"outcome": outcome, "what": what, "file": damaged, "seconds": round(seconds, 3), "MiB": growth >> 20}
        print(json.dumps(row), flush=True)
    shutil.rmtree(folder, ignore_errors=True)


def _computed(process: int) -> float:
    """Seconds of processor time that a process has used."""
    try:
        times = psutil.Process(process).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system


def _pass_on(process: subprocess.Popen[str], lines: queue.SimpleQueue[str]) -> None:
    """The lines that a process prints, and an empty one at its end."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line)
    lines.put("")


class Worker:
    """A process that reads mutants, begun again after a crash or a hang."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.seed, self.log = work, seed, (work / "workers.log").open("ab")
        self.process: subprocess.Popen[str] | None = None
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def run(self, name: str, number: int) -> dict[str, Any]:
        if self.process is None:
            command = [sys.executable, __file__, "--work", str(self.work), "--seed", str(self.seed), "--worker"]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, bufsize=1
            )
            self.lines = queue.SimpleQueue()
            threading.Thread(target=_pass_on, args=(self.process, self.lines), daemon=True).start()
        process = self.process
        assert process.stdin is not None
        process.stdin.write(f"{name}\t{number}\n")
        process.stdin.flush()
        # The first line comes after the imports of a new process and the making of the mutant.
        begun, used, computing, patience = time.monotonic(), 0.0, 60.0, 300.0
        while True:
            try:
                line = self.lines.get(timeout=0.5)
            except queue.Empty:
                spent, waited = _computed(process.pid) - used, time.monotonic() - begun
                if spent > computing or waited > patience:
                    return self._ended(name, number, "hang", f"{spent:.0f} s of computing in {waited:.0f} s")
                continue
            if not line:
                return self._ended(name, number, "crash", f"exit code {process.wait()}")
            answer = json.loads(line)
            if "outcome" in answer:
                return {"target": name, "number": number, **answer}
            begun, used, computing, patience = time.monotonic(), _computed(process.pid), SECONDS, PATIENCE

    def _ended(self, name: str, number: int, outcome: str, what: str) -> dict[str, Any]:
        self.stop()
        return {"target": name, "number": number, "outcome": outcome, "what": what, "seconds": SECONDS, "MiB": 0}

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process = None


def campaign(work: Path, jobs: list[tuple[str, int]], seed: int, workers: int, say: bool) -> list[dict[str, Any]]:
    """Reads the mutants in worker processes; a row is kept as soon as it is known."""
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
                    if say and (row["outcome"] in FAULTS or len(rows) % 500 == 0):
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


def check_the_campaign(work: Path, seed: int, chosen: list[Any]) -> None:
    """The targets that misbehave on purpose are noticed, and the sound examples are read."""
    from fuzzing.targets import CHECKS

    worker = Worker(work, seed)
    try:
        for target in [*chosen, *CHECKS]:
            wanted = target.name.removeprefix("check ") if target in CHECKS else "read"
            row = worker.run(target.name, 0 if target in CHECKS else -2)
            if row["outcome"] != wanted:
                raise SystemExit(f"{target.name} must show {wanted!r}, but: {row['outcome']!r} {row['what']}")
    finally:
        worker.stop()
        worker.log.close()


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each target, and one for all."""
    names = list(dict.fromkeys(row["target"] for row in rows))
    lines = []
    for name in [*names, "all"]:
        part = [row for row in rows if name in ("all", row["target"])]
        count = Counter(row["outcome"] for row in part)
        lines.append(
            {"target": name, "mutants": len(part), "read": count["read"], "refused": count["refused"]}
            | {fault: count[fault] for fault in FAULTS}
            | {"slowest s": max(row["seconds"] for row in part), "most MiB": max(row["MiB"] for row in part)}
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("fuzz-work"), help="examples, mutants and rows lie there")
    parser.add_argument("--share", type=float, default=1.0, help="of the mutants of each target")
    parser.add_argument("--only", default="", help="targets whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--show", nargs=2, metavar=("TARGET", "NUMBER"), help="read one mutant here, with a traceback")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if options.worker:
        work_off(work, options.seed)
        return
    from fuzzing.targets import TARGETS, find, make_examples

    if options.show:
        target, number = find(options.show[0]), int(options.show[1])
        folder = work / "shown"
        print("damaged:", make_mutant(work, target, number, options.seed, folder), "in", folder)
        print(target.read(folder, number))
        return
    chosen = [target for target in TARGETS if options.only in target.name]
    if not chosen:
        parser.error(f"--only {options.only!r} is in none of {', '.join(target.name for target in TARGETS)}")
    make_examples(work / "examples", chosen)
    check_the_campaign(work, options.seed, chosen)
    kept = work / "rows.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines() if line.endswith("}")] if kept.exists() else []
    done = {(row["target"], row["number"]) for row in rows}
    counts = {target.name: max(1, round(options.share * target.count)) for target in chosen}
    jobs = [(name, number) for name, count in counts.items() for number in range(count)]
    random.Random(0).shuffle(jobs)
    rows += campaign(work, [job for job in jobs if job not in done], options.seed, options.workers, say=True)
    wanted = set(jobs)
    rows = sorted(
        (row for row in rows if (row["target"], row["number"]) in wanted),
        key=lambda row: (list(counts).index(row["target"]), row["number"]),
    )
    faults = [row for row in rows if row["outcome"] in FAULTS]
    lines = table(rows)
    if options.share == 1 and not options.only:
        from common import write

        notes = "\n".join(f"* {row['target']} {row['number']}: {row['outcome']}, {row['what']}" for row in faults[:100])
        title = "Damaged files through everything that reads files"
        write("fuzz", title, f"python benchmarks/fuzz.py --seed {options.seed}", lines, notes or "No fault.")
    else:
        print(json.dumps(lines[-1]))
    shutil.rmtree(work / "mutants", ignore_errors=True)
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
