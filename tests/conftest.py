"""Tests never go to a hub."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    # A process for each core: more threads would only stand in each other's way.
    os.environ["OMP_NUM_THREADS"] = "1"

# A run in the background or under nohup inherits signals that are ignored; tests of signals need those of a terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ("SIGHUP", "SIGTERM"):
    if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
        signal.signal(getattr(signal, name), signal.SIG_DFL)

# A busy machine draws slowly, which is no fault of a test.
settings.register_profile("all", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("few", settings.get_profile("all"), max_examples=2)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--one-spec", action="store_true", help="laws at one spec and one case each, few drawn examples")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("few" if config.getoption("--one-spec") else "all")
