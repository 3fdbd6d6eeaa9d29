"""`import fewtokens` is light."""

from __future__ import annotations

import subprocess
import sys


def seconds(statement: str) -> float:
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def test_nothing_heavy_is_imported():
    code = (
        "import sys, fewtokens, fewtokens.core.registry; fewtokens.core.registry.names(); "
        "print([m for m in ('transformers', 'av', 'PIL', 'typer', 'rich', 'sklearn', 'huggingface_hub', 'torchvision')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_slower_than_torch_plus_a_little():
    # In turns, so that a slow moment of the machine falls on both.
    runs = [(seconds("import fewtokens"), seconds("import torch")) for _ in range(4)]
    ours, torch = (min(times) for times in zip(*runs, strict=True))
    assert ours < torch + 0.3


def test_the_names_it_offers():
    import fewtokens

    for name in fewtokens.__all__:
        assert getattr(fewtokens, name) is not None
