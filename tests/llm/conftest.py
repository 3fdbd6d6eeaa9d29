"""No test leaves a hook behind on a tiny model, which all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fewtokens.llm.layers.hooks import language_model
from tests.llm.tiny import MADE


@pytest.fixture(autouse=True)
def _no_hooks_left() -> Iterator[None]:
    yield
    left = []
    for model in MADE:
        # Those of transformers for hidden states are on the encoder.
        for module in (model, *language_model(model).modules()):
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                left += [getattr(hook, "__qualname__", repr(hook)) for hook in hooks.values()]
                hooks.clear()
    assert not left
