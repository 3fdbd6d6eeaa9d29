"""`--one-spec` runs one case of each law for every method with default arguments; used by `make check`."""

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
    selected = set()
    for index, ((_, method), group) in enumerate(cases.items()):
        if method.isidentifier() or not method:
            # Successive methods use different dtypes, shapes and chunkings, so that together they cover all.
            selected.add(group[index % len(group)])
    dropped = [item for item in items if HERE in item.path.parents and item not in selected]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in set(dropped)]
