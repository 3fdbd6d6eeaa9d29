"""Features that were reduced, as objects that say so: what `generate` hands to the model carries them along."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from fewtokens.core.pipeline import Pipeline
from fewtokens.llm.layout import Layout


def mark_reduced(outputs: Any, layout: Layout | None = None) -> Any:
    """An encoder's output as an object that says that it was reduced, and where its rows stand, see `attach`.

    By its type, so that parts of it are marked too: `generate` cuts it for `prefill_chunk_size`. Those have no layout.
    """
    kind: Any = type(outputs)
    marked = _marked(kind)(**outputs)
    object.__setattr__(marked, "layout_by_fewtokens", layout)
    return marked


@cache
def _marked(kind: type) -> type:
    return dataclass(type(kind.__name__, (kind,), {"reduced_by_fewtokens": True, "__module__": __name__}))


def is_reduced(outputs: Any) -> bool:
    """Whether an encoder's output was reduced."""
    return getattr(outputs, "reduced_by_fewtokens", False)


def layout_of(outputs: Any) -> Layout | None:
    """Where the rows of an encoder's output stand; None for a part of it, or if it was not reduced."""
    return getattr(outputs, "layout_by_fewtokens", None)


def note_pipeline(outputs: Any, pipeline: Pipeline) -> None:
    """Keeps with an encoder's output what reduced it."""
    object.__setattr__(outputs, "pipeline_by_fewtokens", pipeline)


def pipeline_of(outputs: Any) -> Pipeline | None:
    """What reduced an encoder's output."""
    return getattr(outputs, "pipeline_by_fewtokens", None)
