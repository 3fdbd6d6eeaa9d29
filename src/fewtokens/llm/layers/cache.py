"""A layer of a cache that stores fewer entries than it has seen.

`Cache` of transformers is a list of layers with one interface; a layer with fewer entries replaces a `DynamicLayer` in
it. It reports the length of the original prompt (`get_seq_length`), so that the positions and masks that `generate`
prepares stay correct, and records which columns of the prompt it still has, so that a hook can cut the mask.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer


class PrunedLayer(DynamicLayer):
    """Keys and values [B,heads,n,d] of n of the `length` columns seen.

    Attributes:
        columns: int64 [B,n], the column of each entry in the original sequence, ascending; -1 is padding and first.
        length: the number of columns seen.
        padded: whether some entry is padding; stored, because reading it from `columns` would synchronize a GPU at
            every token.
        window: the number of columns that a query sees, itself included; None for all of them.
        offloaded: keys, values and columns of entries that were moved to host memory, or None.
        notes: tensors [B,...] that follow the rows of the batch (beams).
    """

    columns: Tensor
    incoming: Tensor | None

    def __init__(self, window: int | None = None) -> None:
        super().__init__()
        self.window, self.is_sliding = window, window is not None
        self.length = 0
        self.incoming = None
        self.ready = self.padded = False
        self.offloaded: tuple[Tensor, Tensor, Tensor] | None = None
        self.notes: dict[str, Tensor] = {}

    @staticmethod
    def from_layer(layer: DynamicLayer, columns: Tensor) -> PrunedLayer:
        """Converts a layer that has seen the columns `columns` [B,n]; one with a window has the last of them."""
        pruned = PrunedLayer(getattr(layer, "sliding_window", None))
        if layer.is_initialized:
            assert layer.keys is not None and layer.values is not None
            pruned.lazy_initialization(layer.keys, layer.values)
            pruned.keys, pruned.values = layer.keys, layer.values
            pruned.columns, pruned.length = columns[:, columns.shape[1] - layer.keys.shape[2] :], columns.shape[1]
            pruned.padded = bool((pruned.columns < 0).any())
        return pruned

    def expect(self, columns: Tensor, length: int, padded: bool) -> None:
        """Sets the columns [B,m] of the next update, the length after it, and whether some entry is padding."""
        self.incoming, self.length, self.padded, self.ready = columns, length, padded, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.ready:
            raise ValueError(
                "this cache has fewer entries than the prompt; continue inside `with attach(model, ...)` with the same "
                "methods, or start with a new cache"
            )
        first = not self.is_initialized
        columns = self.incoming
        if columns is None:
            new = torch.arange(self.length, self.length + key_states.shape[-2], device=key_states.device)
            columns = new.expand(len(key_states), -1)
            self.length += key_states.shape[-2]
        result = super().update(key_states, value_states)
        self.columns = columns if first else torch.cat([self.columns, columns], 1)
        self.incoming, self.ready = None, False
        if self.window is not None:  # later queries see at most that many of these entries
            assert self.keys is not None and self.values is not None
            self.keys, self.values = (part[:, :, 1 - self.window :] for part in (self.keys, self.values))
            self.columns = self.columns[:, 1 - self.window :]
        return result

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        length = self.get_seq_length()
        first = 0 if self.window is None else max(0, length + 1 - self.window)
        return length - first + query_length, first

    def get_seq_length(self) -> int:
        return self.length if self.is_initialized else 0

    def select(self, selected: Tensor, *, revive: bool = False) -> None:
        """Keeps the entries of the columns that `selected` bool [B,length] marks.

        Args:
            revive: move the other entries to host memory, from which they return when selected again; otherwise they
                are discarded.
        """
        keys, values, columns = self.keys, self.values, self.columns
        assert keys is not None and values is not None
        if self.offloaded is not None:
            returned = [part.to(keys.device) for part in self.offloaded]
            keys, values = torch.cat([keys, returned[0]], 2), torch.cat([values, returned[1]], 2)
            columns = torch.cat([columns, returned[2]], 1)
            order = columns.argsort(dim=1, stable=True)
            keys, values, columns = _gather(keys, order), _gather(values, order), columns.gather(1, order)
        survives = selected.gather(1, columns.clamp(min=0)) & (columns >= 0)
        slots = to_slots(survives)
        if revive:
            dropped = to_slots(~survives & (columns >= 0))
            offloaded = columns.gather(1, dropped.clamp(min=0)).masked_fill(dropped < 0, -1)
            self.offloaded = (_gather(keys, dropped).cpu(), _gather(values, dropped).cpu(), offloaded.cpu())
        self.keys, self.values = _gather(keys, slots), _gather(values, slots)
        self.columns = columns.gather(1, slots.clamp(min=0)).masked_fill(slots < 0, -1)
        self.padded = bool((slots < 0).any())

    def _apply(self, change: Any) -> None:
        if not self.is_initialized:
            return
        self.columns = change(self.columns)
        self.notes = {name: change(note) for name, note in self.notes.items()}
        if self.offloaded is not None:
            keys, values, columns = self.offloaded
            self.offloaded = (change(keys), change(values), change(columns))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self._apply(lambda value: value.index_select(0, beam_idx.to(value.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._apply(lambda value: value.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._apply(lambda value: value[indices.to(value.device)])

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last columns, whose entries must all be in the cache (those after the prompt are).

        Raises:
            ValueError: entries have left a window that would return to it.
        """
        if tokens_to_remove and self.window is not None and self.length >= self.window:
            raise ValueError("a cache with a window cannot be shortened after methods inside the language model")
        super().crop(tokens_to_remove)
        if tokens_to_remove and self.is_initialized:
            self.columns = self.columns[:, : -abs(tokens_to_remove)]
            self.length -= abs(tokens_to_remove)

    def reset(self) -> None:
        super().reset()
        self.length, self.incoming, self.offloaded, self.notes = 0, None, None, {}


def to_slots(marked: Tensor) -> Tensor:
    """The indices marked in each row, in order and right-aligned: int64 [B, largest count], -1 is padding."""
    width = int(marked.sum(1).max())
    slots = marked.to(torch.uint8).argsort(dim=1, stable=True)[:, marked.shape[1] - width :]
    return slots.masked_fill(~marked.gather(1, slots), -1)


def _gather(values: Tensor, slots: Tensor) -> Tensor:
    """Entries [B,heads,m,d] of values [B,heads,n,d]; arbitrary at padding."""
    return values.gather(2, slots.clamp(min=0)[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[3]))


def pruned_layer(cache: Cache, index: int) -> PrunedLayer | None:
    """Layer `index` of a cache, or None if it has all entries."""
    layer = cache.layers[index] if index < len(cache.layers) else None
    return layer if isinstance(layer, PrunedLayer) else None


def check_growing(cache: Cache) -> None:
    """Raises a ValueError if layers of a cache have a fixed length, or another interface than those known here."""
    known = (DynamicLayer, DynamicSlidingWindowLayer, PrunedLayer)
    for index, layer in enumerate(cache.layers):
        if isinstance(layer, CacheLayerMixin) and type(layer) not in known:
            raise ValueError(
                f"methods inside a language model require a cache that grows (DynamicCache); layer {index} is a "
                f"{type(layer).__name__}"
            )


def prune_layer(cache: Cache, index: int, columns: Tensor) -> PrunedLayer:
    """Replaces layer `index`, which has seen the columns `columns` [B,n], with a `PrunedLayer`."""
    while len(cache.layers) <= index:
        cache.layers.append(DynamicLayer())
    layer = cache.layers[index]
    if isinstance(layer, PrunedLayer):
        return layer
    assert isinstance(layer, DynamicLayer)
    pruned = PrunedLayer.from_layer(layer, columns)
    cache.layers[index] = pruned
    return pruned


def read_only(cache: Cache, index: int) -> Cache:
    """Returns a cache whose layer `index` can be updated without an effect on `cache`."""
    view, layer = copy(cache), copy(cache.layers[index])
    if isinstance(layer, PrunedLayer):
        layer.ready = True
    view.layers = [*cache.layers[:index], layer, *cache.layers[index + 1 :]]
    return view


def cache_bytes(cache: Cache, *, offloaded: bool = False) -> list[int]:
    """Bytes of keys and values of each layer on the model's device; with `offloaded`, also of those in host memory.

    Layers without attention have none.
    """
    sizes = []
    for layer in cache.layers:
        parts = [part for name in ("keys", "values") if (part := getattr(layer, name, None)) is not None]
        if offloaded and isinstance(layer, PrunedLayer) and layer.offloaded is not None:
            parts += layer.offloaded[:2]
        sizes.append(sum(part.numel() * part.element_size() for part in parts))
    return sizes
