"""Checks that no test leaves a hook on a tiny model, because all tests share them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fewtokens.llm.layers.hooks import language_model
from tests.llm.tiny import MODELS


@pytest.fixture(autouse=True)
def _no_hooks_remain() -> Iterator[None]:
    yield
    hooks_left = []
    for model in MODELS:
        # The hooks of transformers for hidden states are on the encoder.
        for module in (model, *language_model(model).modules()):
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                hooks_left += [getattr(hook, "__qualname__", repr(hook)) for hook in hooks.values()]
                hooks.clear()
    assert not hooks_left
