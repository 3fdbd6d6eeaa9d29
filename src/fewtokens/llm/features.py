"""Marks the outputs of encoders as reduced; the mark stays with them on their way through `generate`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from fewtokens.core.pipeline import Pipeline
from fewtokens.llm.layout import Layout


def mark_reduced(outputs: Any, layout: Layout | None = None) -> Any:
    """Returns an encoder's output marked as reduced, with the layout of its rows, see `attach`.

    The mark is a type, so that it also applies to the parts into which `generate` splits the output for
    `prefill_chunk_size`. Parts have no layout.
    """
    kind: Any = type(outputs)
    marked = _marked_type(kind)(**outputs)
    object.__setattr__(marked, "layout_by_fewtokens", layout)
    return marked


@cache
def _marked_type(kind: type) -> type:
    return dataclass(type(kind.__name__, (kind,), {"reduced_by_fewtokens": True, "__module__": __name__}))


def is_reduced(outputs: Any) -> bool:
    """Whether an encoder's output was reduced."""
    return getattr(outputs, "reduced_by_fewtokens", False)


def layout_of(outputs: Any) -> Layout | None:
    """The layout of an encoder's output; None for a part of it, or if it was not reduced."""
    return getattr(outputs, "layout_by_fewtokens", None)


def note_pipeline(outputs: Any, pipeline: Pipeline) -> None:
    """Stores the pipeline that reduced an encoder's output with it."""
    object.__setattr__(outputs, "pipeline_by_fewtokens", pipeline)


def pipeline_of(outputs: Any) -> Pipeline | None:
    """The pipeline that reduced an encoder's output."""
    return getattr(outputs, "pipeline_by_fewtokens", None)
