"""`import fewtokens` is fast."""

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


def test_no_heavy_package_is_imported():
    heavy = ("transformers", "av", "PIL", "typer", "rich", "sklearn", "huggingface_hub", "torchvision")
    code = (
        "import sys, fewtokens; assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "fewtokens.__version__, dir(fewtokens); assert 'torch' not in sys.modules\n"
        "import fewtokens.core.registry; fewtokens.core.registry.names(); "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_import_takes_little_longer_than_torch():
    # Alternating, so that temporary load affects both.
    runs = [(cpu_seconds("import fewtokens"), cpu_seconds("import torch")) for _ in range(4)]
    own, torch = (min(times) for times in zip(*runs, strict=True))
    assert own < torch + 0.3


def test_public_names():
    assert len(set(fewtokens.__all__)) == len(fewtokens.__all__)
    assert set(dir(fewtokens)) == {*fewtokens.__all__, *fewtokens._SUBPACKAGES}
    for name in fewtokens.__all__:
        assert getattr(fewtokens, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Tokenz'"):
        fewtokens.Tokenz  # noqa: B018


def test_names_for_type_checkers_match():
    """Type checkers do not run `__getattr__`, so the names are also imported under TYPE_CHECKING."""
    tree = ast.parse(Path(fewtokens.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    subpackages = {name for name, module in imported.items() if module == "fewtokens"}
    assert subpackages == set(fewtokens._SUBPACKAGES)
    assert {name: imported[name] for name in imported if name not in subpackages} == fewtokens._MODULES


def test_subpackages_are_attributes():
    root = Path(fewtokens.__file__).parent
    packages = {path.parent.name for path in root.glob("*/__init__.py")}
    assert set(fewtokens._SUBPACKAGES) == packages - {"cli"}
    code = (
        "import sys, fewtokens; assert not [m for m in sys.modules if m.startswith('fewtokens.llm')]\n"
        "print(fewtokens.llm.load.__name__, fewtokens.evaluation.__name__, fewtokens.video.read is fewtokens.read)\n"
        "for name in fewtokens._SUBPACKAGES: assert getattr(fewtokens, name).__name__ == f'fewtokens.{name}'"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "load fewtokens.evaluation True"
