"""From a spec to the methods before a language model, and those inside it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import nn

from fewtokens.core import registry
from fewtokens.core.layer_method import LayerMethod
from fewtokens.core.method import Method
from fewtokens.core.pipeline import Pipeline

Methods: TypeAlias = str | Sequence[Method] | Pipeline


def split_chain(spec: Methods, model: Any) -> tuple[Sequence[Method] | Pipeline, list[LayerMethod]]:
    """A chain as what comes before the language model, and what acts inside it.

    Raises:
        ValueError: a method before the language model after one inside it.
    """
    if isinstance(spec, Pipeline):
        return spec, []
    methods = build_methods(spec, model)
    within = [method.stage == "llm" for method in methods]
    if within != sorted(within):
        late = methods[within.index(True) + within[within.index(True) :].index(False)].name
        raise ValueError(f"{late} acts before the language model; put it before the methods inside it")
    inner = sum(within)
    return list(methods)[: len(within) - inner], list(methods)[len(within) - inner :]


def as_pipeline(spec: Methods, model: Any) -> Pipeline:
    """The chain, on the model's device; trainable methods are built for the width of the language model.

    Raises:
        ValueError: a method that acts inside an encoder or the language model.
    """
    if isinstance(spec, Pipeline):
        return spec
    methods = build_methods(spec, model)
    for method in methods:
        if method.stage not in ("pixels", "tokens"):
            raise ValueError(
                f"{method.name} acts in the stage {method.stage!r}; what an encoder gives is reduced by methods of "
                "the stages pixels and tokens"
            )
    return Pipeline(methods)


def build_methods(spec: str | Sequence[Method], model: Any) -> Sequence[Any]:
    """The methods of a spec string, in eval mode on the model's device and for its width; given ones as they are."""
    if not isinstance(spec, str):
        return spec
    width = model.get_input_embeddings().weight.shape[1]
    methods = registry.build(spec, dim=width) if spec.strip() else []
    for method in methods:
        if isinstance(method, nn.Module):
            method.eval().to(model.device)
    warn_untrained(methods)
    return methods


def warn_untrained(methods: Sequence[Method]) -> None:
    """Warns of methods whose weights are random and would give nonsense."""
    for method in methods:
        if isinstance(method, Method) and method.untrained:
            warnings.warn(
                f"{method.name} has random weights and gives nonsense; give it trained ones by checkpoint='FILE'",
                stacklevel=2,
            )
