"""`--one-spec`: the laws on every method as it is by default, one case of each law, for `make check`."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--one-spec"):
        return
    cases: dict[tuple[str, str], list[pytest.Item]] = {}
    for item in items:
        if HERE in item.path.parents:
            params = item.callspec.params if hasattr(item, "callspec") else {}
            method = str(params.get("spec", params.get("name", "")))
            cases.setdefault((item.nodeid.partition("[")[0], method), []).append(item)
    chosen = set()
    for number, ((_, method), group) in enumerate(cases.items()):
        if method.isidentifier() or not method:
            # Each method takes another dtype, shape or chunking, so that together they cover them all.
            chosen.add(group[number % len(group)])
    dropped = [item for item in items if HERE in item.path.parents and item not in chosen]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in set(dropped)]
