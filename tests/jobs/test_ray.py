"""The engine ray: the files of the engine local, whatever dies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import cast

import psutil
import pytest

from fewtokens.jobs import FORMATS, Shard, Store, Task, Work, find_sources, run_job, run_ray
from tests.cli.test_command import quick
from tests.helpers.command import run
from tests.jobs.test_jobs import WORDS, WORK, Deadly, clips, contents, settings

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")
__all__ = ["clips"]


@pytest.fixture(scope="module")
def expected(clips, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("local") / "out"
    run("tokenize", clips, *WORDS, "--per-shard", "2", "--format", "shards", "--out", out)
    return contents(out)


@pytest.fixture(scope="module")
def cluster(clips):
    """Ray starts once, with a simulated GPU: the actor decodes by tasks on the CPUs."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    for attempt in range(5):
        try:
            ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            break
        except Exception:  # the start has 30 seconds, which a busy machine may exceed
            ray.shutdown()
            if attempt == 4:
                pytest.skip("Ray does not start within 30 seconds")
    yield
    ray.shutdown()


def job(clips, out: Path, work=WORK, **options):
    return run_job(
        find_sources([str(clips)]), work, settings(WORK, "shards"), str(out), engine="ray", per_shard=2, **options
    )


def test_same_files_and_an_actor_that_dies_is_replaced(clips, expected, cluster, tmp_path):
    work = Deadly(*Deadly._parts(WORK), str(tmp_path / "once"))
    report = job(clips, tmp_path / "out", work)
    assert (tmp_path / "once").exists() and len(report.rows) == report.new == 6
    assert contents(tmp_path / "out") == expected
    assert job(clips, tmp_path / "out").new == 0


def test_frames_of_training(clips, cluster, tmp_path):
    words = ("train", "frames", clips, "--size", "16", "--per-shard", "3", "--engine")
    quick(*words, "local", "--workers", "1", "--out", tmp_path / "local")
    quick(*words, "ray", "--out", tmp_path / "ray")
    files = contents(tmp_path / "ray")
    assert files == contents(tmp_path / "local") and sum(name.endswith(".npy") for name in files) == 6


def test_a_full_disk_is_one_error(clips, cluster, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "shards").write_text("a file where a folder must be", encoding="utf-8")
    with pytest.raises(OSError, match="shards") as error:
        job(clips, out)
    assert not isinstance(error.value, ray.exceptions.RayError)


def test_no_cluster_at_an_address(clips, tmp_path):
    words = ("tokenize", clips, *WORDS, "--engine", "ray", "--address", "127.0.0.1:1", "--out", tmp_path / "o")
    line = run(*words, code=2).stderr
    assert "no Ray cluster there" in line and len(line.strip().splitlines()) == 1


class Ending:
    """Ends the process that unpickles it, as Ray does when its node dies."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_driver_that_dies_is_one_error(tmp_path):
    task = Task(Store(str(tmp_path)), FORMATS["shards"], cast(Work, Ending()))
    with pytest.raises(ValueError, match=r"went away .* finished shards are kept") as error:
        next(run_ray([Shard(0, ())], task))
    assert "\n" not in str(error.value)


def test_a_cluster_that_goes_away(clips, expected, tmp_path):
    """The only node is killed while the job runs; the same command completes it."""
    out = tmp_path / "out"
    words = [sys.executable, "-m", "fewtokens", "tokenize", str(clips), *WORDS[:-1], "2", "--per-shard", "2", "--out",
             str(out), "--format", "shards"]  # fmt: skip
    process = subprocess.Popen(
        [*words, "--engine", "ray"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None:
        node = [each for each in family(process.pid) if each.name().startswith("raylet")]
        # An actor, because Ray also has idle workers while it still starts.
        if node and any(each.name().startswith("ray::Map") for each in family(process.pid)):
            node[0].kill()
            break
        time.sleep(0.02)
    _, errors = process.communicate()
    if "Ray cannot start" in errors:
        pytest.skip("Ray does not start within 30 seconds")
    assert process.returncode == 2 and errors.count("\n") == 1 and "went away" in errors
    run(*words[3:])
    assert contents(out) == expected


def family(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []
