"""The engine ray: actors of Ray Data, which call `run_shard`."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import socket
import sys
import threading
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any, cast

import torch

from fewtokens.jobs.engines import default_workers, follow_parent
from fewtokens.jobs.folder import Row, Shard, Source
from fewtokens.jobs.shard import Decoded, Reduce, Task, decode, run_shard

# Between two checks of the nodes of the cluster.
WATCH_SECONDS = 5.0


def run_ray(
    shards: Sequence[Shard], task: Task, workers: int | None = None, address: str | None = None
) -> Generator[list[Row], None, None]:
    """Runs shards on Ray Data: actors that hold the encoder, one per GPU, or one per core if there is none.

    With GPUs, videos are decoded by tasks on the CPUs of the cluster, at most 2 per CPU of an actor's share ahead of
    the encoder. Without, each actor decodes in threads. Ray replaces actors that die, also with their node, and runs
    their shards again.

    The driver of Ray is a separate process: Ray may end it, or wait forever, when the cluster goes away.

    Args:
        shards: what is to be done.
        task: how; the output folder must be one that all nodes see.
        workers: number of actors. Default: one per GPU, or one per core without a GPU.
        address: of a cluster, such as "auto" or "ray://host:10001". Default: the one that this process is connected to,
            or else a cluster of this machine only, which ends with the job.

    Raises:
        ValueError: Ray is not installed, or the cluster cannot be reached or goes away.
        OSError: the disk is full, or the folder is not writable.
    """
    if find_spec("ray") is None or find_spec("pyarrow") is None:
        raise ValueError("--engine ray requires Ray; install it with pip install 'fewtokens[jobs]'")
    if not shards:
        return
    if address:
        _check_address(address)
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        address = ray.get_runtime_context().gcs_address
    context = multiprocessing.get_context("spawn")
    results, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run_driver, args=(sender, shards, task, workers, address))
    process.start()
    sender.close()  # so that the end of the process is the end of the results
    try:
        while (result := results.recv()) is not None:
            if isinstance(result, Exception):
                raise result
            yield result
    except EOFError:
        raise _gone("its node or its head ended") from None
    finally:
        process.terminate()
        process.join(10)
        process.kill()
        process.join()


def _gone(reason: str) -> ValueError:
    return ValueError(
        f"the Ray cluster went away or lost too much ({reason}); finished shards are kept: give the same command again"
    )


def _run_driver(
    results: Connection, shards: Sequence[Shard], task: Task, workers: int | None, address: str | None
) -> None:
    """Runs shards as the driver of Ray, and sends the rows of each, then None or an error."""
    follow_parent()
    with open(os.devnull, "wb") as nothing:  # Ray prints its own messages when a node dies
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    end: Exception | None = None
    try:
        for rows in _run_shards(shards, task, workers, address):
            results.send(rows)
    except (ValueError, OSError) as error:
        end = error
    except Exception:
        end = RuntimeError(traceback.format_exc())
    results.send(end)


def _run_shards(shards: Sequence[Shard], task: Task, workers: int | None, address: str | None) -> Iterator[list[Row]]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anyone
    import ray
    import ray.data

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
        for row in _results(data, ray):
            result = pickle.loads(row["result"])
            if isinstance(result, Exception):
                raise result
            yield result


def _results(data: Any, ray: Any) -> Iterator[dict[str, Any]]:
    """Runs a pipeline of Ray Data; its errors become one line about the cluster."""
    try:
        yield from data.iter_rows()
    except (ValueError, OSError, ray.exceptions.RayError) as error:
        raise _gone(_first_line(error)) from None


@contextmanager
def _cluster(ray: Any, address: str | None, workers: int | None) -> Iterator[None]:
    """Connects to a cluster, or starts one on this machine."""
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
    end = threading.Event()
    threading.Thread(target=_watch, args=(ray, end), daemon=True).start()
    try:
        yield
    finally:
        end.set()
        ray.shutdown()


def _watch(ray: Any, end: threading.Event) -> None:
    """Ends this process if the cluster has no node, twice in a row; Ray would wait for a new one."""
    missing = 0
    while missing < 2:
        if end.wait(WATCH_SECONDS):
            return
        try:
            alive = any(node["Alive"] for node in ray.nodes())
        except Exception:  # Ray has no class for this
            alive = False
        missing = 0 if alive else missing + 1
    os._exit(1)


def _check_address(address: str) -> None:
    """Raises a ValueError if nobody listens at host:port; Ray itself would try for a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # such as "auto"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ValueError(f"--address {address}: no Ray cluster there ({error.strerror or error})") from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]


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
        self.reduce: Reduce | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Returns the rows of a shard, or the error that ends the job: Ray would not keep its type."""
        number, sources = json.loads(row["shard"])
        shard = Shard(number, tuple(Source(*source) for source in sources))
        result: list[Row] | Exception
        try:
            self.reduce = self.reduce or self.task.work.load()
            result = run_shard(shard, self.task, self.reduce, self._decode if self.ahead else None)
        except ConnectionError:  # of Ray
            raise
        except (ValueError, OSError) as error:
            result = getattr(error, "cause", None) or error  # of a task that decodes
        return {"result": pickle.dumps(result)}

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
