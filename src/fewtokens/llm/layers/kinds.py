"""The kinds of layers of a language model, which decide what methods inside it can do.

Tokens can be dropped before any layer with attention, a state (linear attention, convolution, state space) or neither:
none of them counts columns, so that a state is that of the remaining tokens, as keys and values are. Only layers with
attention can score tokens, and only their caches can lose tokens again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# The layers of `DynamicCache`, by name, as releases differ in which they have.
_ATTENTION = {"DynamicLayer", "DynamicSlidingWindowLayer"}
_OTHERS = {"LinearAttentionLayer", "DummyLayer"}


@dataclass(frozen=True)
class LayerKinds:
    """The layers of a language model, in order.

    Attributes:
        names: the kind of each, as transformers names it, such as "full_attention", "linear_attention" or "conv".
        attends: whether each has attention to single columns.
        windows: the number of columns that each can attend to, itself included; None for all of them.
    """

    names: tuple[str, ...]
    attends: tuple[bool, ...]
    windows: tuple[int | None, ...]

    @staticmethod
    def of(text: Any) -> LayerKinds:
        """The kinds of the layers of a language model.

        Raises:
            ValueError: methods cannot act inside it.
        """
        from transformers.cache_utils import DynamicCache

        depth = len(text.layers)
        if any(getattr(module, "is_kv_shared_layer", False) for module in text.modules()):
            raise ValueError("methods inside a language model cannot act in layers that share the keys of others")
        # The model's own choice of cache says what each layer stores.
        layers = DynamicCache(config=text.config).layers
        kinds = [type(layer).__name__ for layer in layers][:depth] or ["DynamicLayer"] * depth
        listed = getattr(text.config, "layer_types", None)
        names = tuple(listed[:depth]) if listed else ("full_attention",) * depth
        if unknown := sorted(
            {name for name, kind in zip(names, kinds, strict=True) if kind not in _ATTENTION | _OTHERS}
        ):
            raise ValueError(
                "methods inside a language model cannot act in layers that choose their keys by an index: "
                f"{', '.join(unknown)}"
            )
        windows = tuple(getattr(layer, "sliding_window", None) for layer in layers) or (None,) * depth
        return LayerKinds(names, tuple(kind in _ATTENTION for kind in kinds), windows[:depth])

    @property
    def scoring(self) -> tuple[int, ...]:
        """The layers with attention."""
        return tuple(index for index, attends in enumerate(self.attends) if attends)

    @property
    def stateful(self) -> str:
        """The kinds without attention, such as "conv, linear_attention"; "" if there are none."""
        return ", ".join(sorted({name for name, attends in zip(self.names, self.attends, strict=True) if not attends}))


def inside_note(text: Any) -> str:
    """What to know of methods inside a language model; "" if all can act before every layer, else why not."""
    try:
        kinds = LayerKinds.of(text)
    except ValueError as error:
        return str(error)
    return f"scores only from layers with attention, not from {kinds.stateful}" if kinds.stateful else ""
