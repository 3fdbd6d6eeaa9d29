"""Tests never go to a hub."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    # A process for each core: more threads would only stand in each other's way.
    os.environ["OMP_NUM_THREADS"] = "1"
