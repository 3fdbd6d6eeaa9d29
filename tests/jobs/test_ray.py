"""The engine ray: the files of the engine local, whatever dies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fewtokens.jobs import find_sources, run_job
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
