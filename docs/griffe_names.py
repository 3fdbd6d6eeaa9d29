"""A griffe extension: the docstrings of the reference as Markdown; see docs/docstrings.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))

from docstrings import literal, separate


class Names(griffe.Extension):
    """Applies `separate` and `literal` to every docstring."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = literal(separate(obj.docstring.value))
