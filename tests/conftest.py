"""Tests never go to a hub."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    # A process for each core: more threads would only stand in each other's way.
    os.environ["OMP_NUM_THREADS"] = "1"

settings.register_profile("few", max_examples=2)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--one-spec", action="store_true", help="laws at one spec and one case each, few drawn examples")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--one-spec"):
        settings.load_profile("few")
