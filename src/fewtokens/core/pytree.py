"""Registers dataclasses as PyTorch pytrees, for `torch.compile`, `torch.export` and `tree_map`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from torch.utils import _pytree


def register(kind: type[Any], children: Sequence[str]) -> None:
    """Registers a frozen dataclass as a pytree node.

    Args:
        kind: the dataclass.
        children: names of the fields that contain tensors or other nodes. Fields that are None are skipped, so that
            all leaves are tensors. The other fields are the context: plain values, compared by equality.
    """
    constants = [field.name for field in fields(kind) if field.name not in children]

    def present(value: Any) -> list[str]:
        return [name for name in children if getattr(value, name) is not None]

    def context(value: Any) -> list[Any]:
        return [present(value), [getattr(value, name) for name in constants]]

    def flatten(value: Any) -> tuple[list[Any], list[Any]]:
        return [getattr(value, name) for name in present(value)], context(value)

    def flatten_with_keys(value: Any) -> tuple[list[tuple[Any, Any]], list[Any]]:
        pairs = [(_pytree.GetAttrKey(name), getattr(value, name)) for name in present(value)]
        return pairs, context(value)

    def unflatten(leaves: Iterable[Any], context: list[Any]) -> Any:
        names, values = context
        # Bypasses the constructor, which validates tensors: leaves may be any object.
        instance = object.__new__(kind)
        for name, value in {
            **dict.fromkeys(children),
            **dict(zip(constants, values, strict=True)),
            **dict(zip(names, leaves, strict=True)),
        }.items():
            object.__setattr__(instance, name, value)
        return instance

    _pytree.register_pytree_node(
        kind,
        flatten,
        unflatten,
        serialized_type_name=f"{kind.__module__}.{kind.__qualname__}",
        to_dumpable_context=lambda context: [context[0], [dict(v) if isinstance(v, dict) else v for v in context[1]]],
        from_dumpable_context=lambda context: context,
        flatten_with_keys_fn=flatten_with_keys,
    )
