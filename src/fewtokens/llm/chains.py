"""Splits a spec into the methods before a language model and those inside it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import nn

from fewtokens.core import registry
from fewtokens.core.layer_method import LayerMethod
from fewtokens.core.method import Method
from fewtokens.core.pipeline import Pipeline

# For methods that cannot act before the language model, by stage.
_REMEDIES = {
    "llm": "it acts inside the language model; use `with attach(model, ...)`, or a Session",
}

Methods: TypeAlias = str | Sequence[Method] | Pipeline


def split_chain(spec: Methods, model: Any) -> tuple[Sequence[Method] | Pipeline, list[LayerMethod]]:
    """Returns the part of a chain that comes before the language model, and the part that acts inside it.

    Raises:
        ValueError: a method before the language model follows one inside it.
    """
    if isinstance(spec, Pipeline):
        return spec, []
    methods = build_methods(spec, model)
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
        if isinstance(method, Method) and method.untrained:
            warnings.warn(
                f"{method.name} has random weights, so its output is meaningless; load trained weights with "
                "checkpoint='FILE'",
                stacklevel=2,
            )
