"""The engines of a job: processes of this machine, or a Ray cluster. Both call `run_shard` and nothing else."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any, cast

import torch

from fewtokens.jobs.folder import Row, Shard, Source
from fewtokens.jobs.shard import Decoded, Reduce, Task, decode, run_shard, threads_per_process

# Deaths of worker processes in a row, without a finished shard, after which a job gives up.
MAX_DEATHS = 5

# An engine yields the rows of each shard when it is finished, in any order.
Engine = Callable[..., Generator[list[Row], None, None]]


def run_local(shards: Sequence[Shard], task: Task, workers: int | None = None) -> Generator[list[Row], None, None]:
    """Runs shards in processes of this machine. A process that dies is replaced, and its shards run again.

    Args:
        shards: what is to be done.
        task: how.
        workers: number of processes; 1 is this process itself. Default: one per GPU, or one per core without a GPU.

    Raises:
        ValueError: worker processes die again and again.
        OSError: the disk is full, or the folder is not writable.
    """
    workers = min(workers or default_workers(), len(shards))
    if workers <= 1:
        reduce = task.work.load() if shards else None
        for shard in shards:
            assert reduce is not None
            yield run_shard(shard, task, reduce)
        return
    waiting, deaths = list(shards), 0
    while waiting:
        finished: set[int] = set()
        try:
            for number, rows in _run_pool(waiting, task, workers):
                finished.add(number)
                yield rows
        except BrokenProcessPool:
            deaths = 1 if finished else deaths + 1
            if deaths >= MAX_DEATHS:
                names = ", ".join(str(shard.number) for shard in waiting[: 2 * workers] if shard.number not in finished)
                raise ValueError(
                    f"worker processes died {deaths} times in a row (out of memory?), among shards {names}; give fewer "
                    "--workers, or remove the video that ends them; finished shards are kept"
                ) from None
        waiting = [shard for shard in waiting if shard.number not in finished]


def default_workers() -> int:
    """Returns the number of GPUs, or of cores if there is none."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return torch.cuda.device_count() or cores


def _run_pool(shards: Sequence[Shard], task: Task, workers: int) -> Iterator[tuple[int, list[Row]]]:
    """Runs shards in a pool of processes, at most two per process in its queue."""
    context = multiprocessing.get_context("spawn")  # a fork after torch has started threads can hang
    devices = context.Queue()
    for number in range(workers):
        devices.put(number)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (task, workers, devices))
    try:
        running: dict[Future[list[Row]], int] = {}
        queue = iter(shards)
        while True:
            while len(running) < 2 * workers and (shard := next(queue, None)) is not None:
                running[pool.submit(_run_in_worker, shard)] = shard.number
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            # Results first: those of shards that were finished before a process died count.
            for future in sorted(done, key=lambda each: each.exception() is not None):
                yield running.pop(future), future.result()
    finally:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


_worker: tuple[Task, Reduce] | None = None


def _start_worker(task: Task, workers: int, devices: Any) -> None:
    """Prepares a process: one device, its share of the cores, and no life after its parent."""
    global _worker
    parent = multiprocessing.parent_process()
    assert parent is not None
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its workers
    threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()
    if torch.cuda.device_count():
        torch.cuda.set_device(devices.get() % torch.cuda.device_count())
    torch.set_num_threads(threads_per_process(workers))
    _worker = task, task.work.load()


def _follow(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _run_in_worker(shard: Shard) -> list[Row]:
    assert _worker is not None
    task, reduce = _worker
    return run_shard(shard, task, reduce)


def run_ray(
    shards: Sequence[Shard], task: Task, workers: int | None = None, address: str | None = None
) -> Generator[list[Row], None, None]:
    """Runs shards on Ray Data: actors that hold the encoder, one per GPU, or one per core if there is none.

    With GPUs, videos are decoded by tasks on the CPUs of the cluster, at most 2 per CPU of an actor's share ahead of
    the encoder. Without, each actor decodes in threads. Ray replaces actors that die, also with their node, and runs
    their shards again.

    Args:
        shards: what is to be done.
        task: how; the output folder must be one that all nodes see.
        workers: number of actors. Default: one per GPU, or one per core without a GPU.
        address: of a cluster, such as "auto" or "ray://host:10001". Default: a cluster of this machine only, which
            ends with the job.

    Raises:
        ValueError: Ray is not installed, or the cluster cannot be reached or goes away.
        OSError: the disk is full, or the folder is not writable.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anyone
    try:
        import ray
        import ray.data
    except ImportError:
        raise ValueError("--engine ray requires Ray; install it with pip install 'fewtokens[jobs]'") from None
    if not shards:
        return
    with _cluster(ray, address, workers):
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        actors = min(workers or gpus or cpus, len(shards))
        ahead = max(2, 2 * (cpus - 1) // actors) if gpus else 0
        data = ray.data.from_items(
            [{"shard": json.dumps(shard)} for shard in shards],  # Arrow stores no names that are not UTF-8
            override_num_blocks=len(shards),
        ).map(
            cast(Any, _Actor),  # its annotation has functions only
            fn_constructor_args=(task, ahead, max(1, cpus // actors)),
            compute=ray.data.ActorPoolStrategy(size=actors),
            # Fractions, so that as many actors as cores fit besides Ray's own tasks.
            num_cpus=0.1 if gpus else 0.9 * min(1, cpus / actors),
            num_gpus=1 if gpus else 0,
        )
        try:
            for result in data.iter_rows():
                yield json.loads(result["rows"])
        except (ValueError, OSError, ray.exceptions.RayError) as error:
            raise _cause(error, ray) from None


@contextmanager
def _cluster(ray: Any, address: str | None, workers: int | None) -> Iterator[None]:
    """Connects to a cluster, or starts one on this machine."""
    own = not ray.is_initialized()
    if address:
        _check_address(address)
    if own:
        options: dict[str, Any] = {"address": address} if address else {
            "address": "local", "include_dashboard": False, "num_cpus": max(workers or 0, default_workers()),
        }  # fmt: skip
        try:
            ray.init(**options, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # Ray has no class for this
            where = f"--address {address}: no Ray cluster there" if address else "Ray cannot start on this machine"
            raise ValueError(f"{where} ({_first_line(error)})") from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    try:
        yield
    finally:
        if own:
            ray.shutdown()


def _check_address(address: str) -> None:
    """Raises a ValueError if nobody listens at host:port; Ray itself would end this process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # such as "auto"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ValueError(f"--address {address}: no Ray cluster there ({error.strerror or error})") from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().split("\n")
    return lines[0][:200]


def _cause(error: BaseException, ray: Any) -> Exception:
    """The error of a video or a disk within an error of Ray, or one line about the cluster."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ValueError | OSError) and not isinstance(seen, ray.exceptions.RayError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__ or seen.__context__
    return ValueError(
        f"the Ray cluster does not answer or lost too much ({_first_line(error)}); finished shards are kept: give the "
        "same command again"
    )


class _Actor:
    """Holds the encoder in a process of Ray, and runs one shard at a time.

    Args:
        task: what is done.
        ahead: number of videos that tasks of Ray decode ahead of the encoder; 0 to decode in threads.
        threads: threads of PyTorch.
    """

    def __init__(self, task: Task, ahead: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self.task, self.ahead = task, ahead
        self.reduce = task.work.load()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        number, sources = json.loads(row["shard"])
        shard = Shard(number, tuple(Source(*source) for source in sources))
        return {"rows": json.dumps(run_shard(shard, self.task, self.reduce, self._decode if self.ahead else None))}

    @contextmanager
    def _decode(self, sources: Sequence[Source]) -> Iterator[Iterator[Decoded]]:
        """Decodes videos by tasks of Ray, in order, with a bounded number of them ahead."""
        import ray

        remote = ray.remote(num_cpus=1, max_retries=3, scheduling_strategy="SPREAD")(_decode_remotely)
        work = ray.put(self.task.work)

        def results() -> Iterator[Decoded]:
            waiting: list[Any] = []
            for source in sources:
                waiting.append(remote.remote(work, source))
                if len(waiting) > self.ahead:
                    yield ray.get(waiting.pop(0))
            while waiting:
                yield ray.get(waiting.pop(0))

        yield results()


def _decode_remotely(work: Any, source: Source) -> Decoded:
    torch.set_num_threads(1)
    return decode(work, source, lambda *_: None)
