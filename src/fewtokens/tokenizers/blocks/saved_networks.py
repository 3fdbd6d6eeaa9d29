"""Configs of the pretrained networks inside a tokenizer, saved with it, so that it is built without downloading them.

A part that loads a network by folder or hub id has the attributes `network`, its name, and `network_config`, the plain
values that build it without weights, or None if there is nothing to load. The weights are those of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

Configs = Mapping[str, dict[str, Any]]

_configs: ContextVar[Configs] = ContextVar("configs")


def configs_of(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Returns the configs of the pretrained networks in a module, by name."""
    parts = [part for part in module.modules() if getattr(part, "network_config", None) is not None]
    return {str(part.network): part.network_config for part in parts}  # type: ignore[misc]


@contextmanager
def build_from(configs: Configs) -> Iterator[None]:
    """Builds the networks of these names from their configs, with random weights, instead of loading them."""
    token = _configs.set(configs)
    try:
        yield
    finally:
        _configs.reset(token)


def saved_config(network: str) -> dict[str, Any] | None:
    """Returns the config to build a network from, or None if it must be loaded."""
    return _configs.get({}).get(network)
