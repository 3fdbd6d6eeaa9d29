"""`import fewtokens` is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fewtokens


def cpu_seconds(statement: str) -> float:
    code = f"import time; start = time.process_time(); {statement}; print(time.process_time() - start)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def test_nothing_heavy_is_imported():
    heavy = ("transformers", "av", "PIL", "typer", "rich", "sklearn", "huggingface_hub", "torchvision")
    code = (
        "import sys, fewtokens; assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "fewtokens.__version__, dir(fewtokens); assert 'torch' not in sys.modules\n"
        "import fewtokens.core.registry; fewtokens.core.registry.names(); "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_slower_than_torch_plus_a_little():
    # In turns, so that a slow moment of the machine falls on both.
    runs = [(cpu_seconds("import fewtokens"), cpu_seconds("import torch")) for _ in range(4)]
    ours, torch = (min(times) for times in zip(*runs, strict=True))
    assert ours < torch + 0.3


def test_the_names_it_offers():
    assert len(set(fewtokens.__all__)) == len(fewtokens.__all__)
    assert set(dir(fewtokens)) == set(fewtokens.__all__)
    for name in fewtokens.__all__:
        assert getattr(fewtokens, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Tokenz'"):
        fewtokens.Tokenz  # noqa: B018


def test_type_checkers_know_the_same_names_from_the_same_modules():
    """They do not run `__getattr__`."""
    tree = ast.parse(Path(fewtokens.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == fewtokens._MODULES
