"""The engine local: processes of this machine, which call `run_shard`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import connection
from typing import Any

import torch

from fewtokens.jobs.folder import Row, Shard, Source
from fewtokens.jobs.shard import Reduce, Task, in_threads, run_shard, threads_per_process

# Deaths of worker processes in a row, without a finished shard, after which a job gives up.
MAX_DEATHS = 5
# Deaths of processes while a shard was running or next, after which it is tried alone.
MAX_SUSPICIONS = 2
ENDS_PROCESS = "ends the process that reads and encodes it (out of memory, or a defect of a decoder)"

# An engine yields the rows of each shard when it is finished, in any order.
Engine = Callable[..., Generator[list[Row], None, None]]


def run_local(shards: Sequence[Shard], task: Task, workers: int | None = None) -> Generator[list[Row], None, None]:
    """Runs shards in processes of this machine. A process that dies is replaced, and its shards run again.

    A shard that was running or next at two deaths is tried video by video in a separate process. A video that ends
    this one too gets a row with an error; then the shard runs without it.

    Args:
        shards: what is to be done.
        task: how.
        workers: number of processes; 1 is this process itself. Default: one per GPU, or one per core without a GPU.

    Raises:
        ValueError: worker processes die again and again.
        OSError: the disk is full, or the folder is not writable.
    """
    workers = workers or default_workers()
    if workers == 1:
        reduce = task.work.load() if shards else None
        for shard in shards:
            assert reduce is not None
            yield run_shard(shard, task, reduce)
        return
    workers = min(workers, len(shards))  # one process too, which a video may end without the job
    waiting, deaths, suspicions = list(shards), 0, Counter[int]()
    while waiting:
        finished: set[int] = set()
        running: dict[Future[list[Row]], Shard] = {}
        try:
            for shard in [shard for shard in waiting if suspicions[shard.number] >= MAX_SUSPICIONS]:
                yield _run_alone(shard, task)
                finished.add(shard.number)
            rest = [shard for shard in waiting if shard.number not in finished]
            for shard, rows in _run_pool(rest, task, workers, running):
                finished.add(shard.number)
                yield rows
        except BrokenProcessPool:
            suspicions.update(shard.number for shard in running.values() if shard.number not in finished)
            deaths = 1 if finished else deaths + 1
            if deaths >= MAX_DEATHS:
                names = ", ".join(str(shard.number) for shard in waiting[: 2 * workers] if shard.number not in finished)
                raise _too_many(deaths, f"among shards {names}") from None
        waiting = [shard for shard in waiting if shard.number not in finished]


def _too_many(deaths: int, where: str) -> ValueError:
    return ValueError(
        f"worker processes died {deaths} times in a row (out of memory?), {where}; give fewer --workers, or remove the "
        "video that ends them; finished shards are kept"
    )


def _run_alone(shard: Shard, task: Task) -> list[Row]:
    """Runs a shard in one process, without those of its videos that end a process which has only them to do.

    Raises:
        BrokenProcessPool: the process ends before the first video, or after all have been tried.
        ValueError: MAX_DEATHS videos in a row end it, which something else must do.
    """
    broken: dict[str, str] = {}
    waiting, deaths = list(shard.sources), 0
    while True:
        with _pool(task, 1) as pool:
            pool.submit(int).result()  # the encoder is loaded; what ends the process from here on is a video
            try:
                while waiting:
                    pool.submit(_try_in_worker, waiting[0]).result()
                    waiting.pop(0)
                    deaths = 0
            except BrokenProcessPool:
                source = waiting.pop(0)
                broken[source.location] = f"{source.location}: {ENDS_PROCESS}"
                deaths += 1
                if deaths >= MAX_DEATHS:
                    raise _too_many(deaths, f"in shard {shard.number}") from None
                continue
            return pool.submit(_run_in_worker, shard, broken).result()


def default_workers() -> int:
    """Returns the number of GPUs, or of cores if there is none."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return torch.cuda.device_count() or cores


@contextmanager
def _pool(task: Task, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that have loaded the work; they end with the block, whatever they do."""
    context = multiprocessing.get_context("spawn")  # a fork after torch has started threads can hang
    devices = context.Queue()
    for number in range(workers):
        devices.put(number)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (task, workers, devices))
    try:
        yield pool
    finally:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _run_pool(
    shards: Sequence[Shard], task: Task, workers: int, running: dict[Future[list[Row]], Shard]
) -> Iterator[tuple[Shard, list[Row]]]:
    """Runs shards in a pool of processes, at most two per process in its queue; `running` are those."""
    if not shards:
        return
    queue = iter(shards)
    with _pool(task, workers) as pool:
        while True:
            while len(running) < 2 * workers and (shard := next(queue, None)) is not None:
                running[pool.submit(_run_in_worker, shard)] = shard
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            # Results first: those of shards that were finished before a process died count.
            for future in sorted(done, key=lambda each: each.exception() is not None):
                rows = future.result()
                yield running.pop(future), rows


_worker: tuple[Task, Reduce] | None = None


def _start_worker(task: Task, workers: int, devices: Any) -> None:
    """Prepares a process: one device, its share of the cores, and no life after its parent."""
    global _worker
    follow_parent()
    if torch.cuda.device_count():
        torch.cuda.set_device(devices.get() % torch.cuda.device_count())
    torch.set_num_threads(threads_per_process(workers))
    _worker = task, task.work.load()


def follow_parent() -> None:
    """Leaves Ctrl-C to the parent process, which ends this one, and ends this process when the parent ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _run_in_worker(shard: Shard, broken: Mapping[str, str] | None = None) -> list[Row]:
    """Runs a shard; `broken` has the errors of videos, by location, that are not touched."""
    assert _worker is not None
    task, reduce = _worker
    return run_shard(shard, task, reduce, in_threads(task.work, broken))


def _try_in_worker(source: Source) -> None:
    """Does with a video all that a shard does, except for writing."""
    assert _worker is not None
    task, reduce = _worker
    with in_threads(task.work)([source]) as videos:
        for batch in reduce.batches(each.video for each in videos if each.error is None):
            with suppress(ValueError):
                reduce(batch)
