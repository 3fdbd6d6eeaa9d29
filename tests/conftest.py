"""Tests never access the Hugging Face Hub, nor the user's cache of scores."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["FEWTOKENS_CACHE"] = ""  # tests of the cache of scores set a folder
if "PYTEST_XDIST_WORKER" in os.environ:
    # One process per core; more threads would compete with one another.
    os.environ["OMP_NUM_THREADS"] = "1"

# Runs in the background or under nohup inherit ignored signals; tests of signals need the default handlers.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ("SIGHUP", "SIGTERM"):
    if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
        signal.signal(getattr(signal, name), signal.SIG_DFL)

# A busy machine generates examples slowly, which must not fail a test.
settings.register_profile("all", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("few", settings.get_profile("all"), max_examples=2)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--one-spec", action="store_true", help="run each law with one spec and one case, and few generated examples"
    )


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("few" if config.getoption("--one-spec") else "all")
