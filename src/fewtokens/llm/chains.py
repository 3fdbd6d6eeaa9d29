"""Splits a spec into the methods before a language model and those inside it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import copy
from typing import Any, TypeAlias

from torch import nn

from fewtokens.core import registry
from fewtokens.core.budget import Budget
from fewtokens.core.grid import Grid
from fewtokens.core.layer_method import LayerMethod
from fewtokens.core.method import Method
from fewtokens.core.pipeline import Pipeline

# For methods that cannot act before the language model, by stage.
_REMEDIES = {
    "frames": "it selects the frames that are read: select= of a Session or of attach, --select of ask",
    "llm": "it acts inside the language model; use `with attach(model, ...)`, or a Session",
}

# A method that reduces videos of such large frames but not one of these frames compares frames.
_FRAME, _FRAMES = Grid(1, 512, 512), Grid(64, 512, 512)

Methods: TypeAlias = str | Sequence[Method] | Pipeline


def split_chain(spec: Methods, model: Any) -> tuple[Sequence[Method] | Pipeline, list[LayerMethod]]:
    """Returns the part of a chain that comes before the language model, and the part that acts inside it.

    Raises:
        ValueError: a method before the language model follows one inside it.
    """
    if isinstance(spec, Pipeline):
        return spec, []
    return split_inside(build_methods(spec, model))


def split_inside(methods: Sequence[Any]) -> tuple[list[Method], list[LayerMethod]]:
    """Returns the methods before the language model, and those inside it.

    Raises:
        ValueError: a method before the language model follows one inside it.
    """
    within = [method.stage == "llm" for method in methods]
    if within != sorted(within):
        late = methods[within.index(True) + within[within.index(True) :].index(False)].name
        raise ValueError(f"{late} acts before the language model; put it before the methods that act inside it")
    inner = sum(within)
    return list(methods)[: len(within) - inner], list(methods)[len(within) - inner :]


def as_pipeline(spec: Methods, model: Any) -> Pipeline:
    """Returns the chain as a pipeline on the model's device, built for the hidden size of the language model.

    Raises:
        ValueError: a method acts inside the language model.
    """
    if isinstance(spec, Pipeline):
        return spec
    methods = build_methods(spec, model)
    for method in methods:
        if method.stage not in ("pixels", "encoder", "tokens"):
            remedy = _REMEDIES.get(method.stage, "use methods of the stages 'pixels', 'encoder', 'tokens' and 'llm'")
            raise ValueError(f"{method.name} acts in the stage {method.stage!r}; {remedy}")
    return Pipeline(methods)


def image_pipeline(images: bool | Methods, pipeline: Pipeline, model: Any) -> Pipeline | None:
    """Returns the chain that reduces the images of a prompt, see `compress`; None if they are left whole.

    Raises:
        ValueError: a method acts inside the language model, or has no effect on images.
    """
    if images is False:
        return None
    if images is not True:
        before, inside = split_chain(images, model)
        if inside:
            raise ValueError(
                f"{inside[0].name} acts inside the language model, on images and videos together; put it at the end of "
                "the chain for videos"
            )
        pipeline = as_pipeline(before, model)
    for method in pipeline.methods:
        assert isinstance(method, Method)
        if method.stage == "encoder":
            raise ValueError(
                f"{method.name} acts inside the vision tower, where only videos are reduced; give images other "
                "methods, such as images='kmeans(keep=0.25)', or images=False"
            )
        in_full = max(method.min_count(_FRAME), method.planned_count(_FRAME) or 0) >= _FRAME.cells
        if in_full and (method.planned_count(_FRAMES) or 0) < _FRAMES.cells:
            raise ValueError(
                f"{method.name} compares frames, so it has no effect on images; give them other methods, such as "
                "images='kmeans(keep=0.25)', or images=False"
            )
    return pipeline


def share_budgets(pipeline: Pipeline, start: int, cells: int, total: int, kind: str = "image") -> Pipeline:
    """Returns the chain for one of several grids of an image or video, which share its budget by their cells.

    Fractions apply to each grid. Of a count, each has its part, at least one token. Learned methods have a fixed number
    of tokens, which applies to each grid too.

    Args:
        start: the number of cells in the grids before this one.
        cells: the number of its cells.
        total: the number of cells in all grids.
        kind: "image", of which all grids are one frame, or "video", in which a count per frame applies to each frame.
    """
    shared = ("count", "per frame") if kind == "image" else ("count",)

    def share(method: Any) -> Any:
        budget = method.budget
        if budget is None or budget.unit not in shared or method.learned:
            return method
        count = int(budget.value)
        part = copy(method)  # with the same parameters
        part.budget = Budget(max(1, (start + cells) * count // total - start * count // total), "count")
        part.keep = part.budget.keep
        return part

    return Pipeline([share(method) for method in pipeline.methods])


def build_methods(spec: str | Sequence[Method], model: Any) -> Sequence[Any]:
    """Builds the methods of a spec string for a model, in eval mode on its device; returns built methods unchanged."""
    if not isinstance(spec, str):
        return spec
    dim = model.get_input_embeddings().weight.shape[1]
    methods = registry.build(spec, dim=dim) if spec.strip() else []
    for method in methods:
        if isinstance(method, nn.Module):
            method.eval().to(model.device)
    warn_untrained(methods)
    return methods


def warn_untrained(methods: Sequence[Method]) -> None:
    """Warns about methods with random weights, whose output is meaningless."""
    for method in methods:
        if getattr(method, "untrained", False):
            warnings.warn(
                f"{method.name} has random weights, so its output is meaningless; load trained weights with "
                "checkpoint='FILE'",
                stacklevel=2,
            )
