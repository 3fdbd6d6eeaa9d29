"""A layer of a cache that stores fewer entries than it has seen.

`Cache` of transformers keeps a list of layers of one interface; a layer with fewer entries takes the place of a
`DynamicLayer` in it. It says the length of the original prompt (`get_seq_length`), so that positions and masks that
`generate` prepares stay right, and knows which columns of the prompt it still has, so that a hook can cut the mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from fewtokens.llm.interface import attribute


class FewerLayer(DynamicLayer):
    """Keys and values [B,heads,n,d] of n of the `length` columns seen.

    Attributes:
        columns: int64 [B,n], the column of each entry in the original sequence, ascending; -1 is padding and first.
        length: columns seen.
        padded: some entry is padding; known without a look at the columns, which would hold up a GPU at every word.
        away: keys, values and columns of entries that were moved to the host's memory, or None.
        notes: tensors [B,...] that follow the rows of the batch (beams).
    """

    columns: Tensor
    incoming: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.length = 0
        self.incoming = None
        self.ready = self.padded = False
        self.away: tuple[Tensor, Tensor, Tensor] | None = None
        self.notes: dict[str, Tensor] = {}

    @staticmethod
    def of(layer: DynamicLayer, columns: Tensor) -> FewerLayer:
        """A full layer whose entries stand at `columns` [B,n], one each."""
        fewer = FewerLayer()
        if layer.is_initialized:
            assert layer.keys is not None and layer.values is not None
            fewer.lazy_initialization(layer.keys, layer.values)
            fewer.keys, fewer.values = layer.keys, layer.values
            fewer.columns, fewer.length = columns, columns.shape[1]
            fewer.padded = bool((columns < 0).any())
        return fewer

    def expect(self, columns: Tensor, length: int, padded: bool) -> None:
        """Says where the entries of the next update stand: [B,m] of `length` columns, some of them padding or not."""
        self.incoming, self.length, self.padded, self.ready = columns, length, padded, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.ready:
            raise ValueError(
                "this cache holds fewer entries than the prompt has; go on inside `with attach(model, ...)` of the "
                "same methods, or start with a new cache"
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
        return result

    def get_seq_length(self) -> int:
        return self.length if self.is_initialized else 0

    def select(self, wanted: Tensor, *, revive: bool = False) -> None:
        """Keeps the entries of the columns marked in `wanted` bool [B,length].

        Args:
            revive: what goes is moved to the host's memory, and what is wanted again comes back; otherwise it is lost.
        """
        keys, values, columns = self.keys, self.values, self.columns
        assert keys is not None and values is not None
        if self.away is not None:
            more = [part.to(keys.device) for part in self.away]
            keys, values = torch.cat([keys, more[0]], 2), torch.cat([values, more[1]], 2)
            columns = torch.cat([columns, more[2]], 1)
            order = columns.argsort(dim=1, stable=True)
            keys, values, columns = _rows(keys, order), _rows(values, order), columns.gather(1, order)
        stays = wanted.gather(1, columns.clamp(min=0)) & (columns >= 0)
        slots = to_slots(stays)
        if revive:
            gone = to_slots(~stays & (columns >= 0))
            away = columns.gather(1, gone.clamp(min=0)).masked_fill(gone < 0, -1)
            self.away = (_rows(keys, gone).cpu(), _rows(values, gone).cpu(), away.cpu())
        self.keys, self.values = _rows(keys, slots), _rows(values, slots)
        self.columns = columns.gather(1, slots.clamp(min=0)).masked_fill(slots < 0, -1)
        self.padded = bool((slots < 0).any())

    def _each(self, change: Any) -> None:
        if not self.is_initialized:
            return
        self.columns = change(self.columns)
        self.notes = {name: change(note) for name, note in self.notes.items()}
        if self.away is not None:
            keys, values, columns = self.away
            self.away = (change(keys), change(values), change(columns))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self._each(lambda value: value.index_select(0, beam_idx.to(value.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._each(lambda value: value.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._each(lambda value: value[indices.to(value.device)])

    def crop(self, tokens_to_remove: int) -> None:
        """Takes the last columns off again, which must all be there (those after the prompt are)."""
        super().crop(tokens_to_remove)
        if tokens_to_remove and self.is_initialized:
            self.columns = self.columns[:, : -abs(tokens_to_remove)]
            self.length -= abs(tokens_to_remove)

    def reset(self) -> None:
        super().reset()
        self.length, self.incoming, self.away, self.notes = 0, None, None, {}


def to_slots(marked: Tensor) -> Tensor:
    """The places marked in each row, in order and aligned to the right: int64 [B, most of a row], -1 is padding."""
    width = int(marked.sum(1).max())
    slots = marked.to(torch.uint8).argsort(dim=1, stable=True)[:, marked.shape[1] - width :]
    return slots.masked_fill(~marked.gather(1, slots), -1)


def _rows(values: Tensor, slots: Tensor) -> Tensor:
    """Entries [B,heads,m,d] of values [B,heads,n,d]; those of padding are any."""
    return values.gather(2, slots.clamp(min=0)[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[3]))


def fewer_layer(cache: Cache, number: int) -> FewerLayer | None:
    """Layer `number` of a cache where it holds fewer entries."""
    layer = cache.layers[number] if number < len(cache.layers) else None
    return layer if isinstance(layer, FewerLayer) else None


def make_fewer(cache: Cache, number: int, columns: Tensor) -> FewerLayer:
    """Puts a `FewerLayer` in the place of layer `number`; what that holds stands at `columns` [B,n].

    Raises:
        ValueError: the cache's layers are of a fixed length or a window.
    """
    while len(cache.layers) <= number:
        cache.layers.append(DynamicLayer())
    layer = cache.layers[number]
    if isinstance(layer, FewerLayer):
        return layer
    if type(layer) is not DynamicLayer:
        raise ValueError(
            f"methods inside a language model need a cache that grows (DynamicCache); layer {number} is a "
            f"{type(layer).__name__}"
        )
    fewer = FewerLayer.of(layer, columns)
    cache.layers[number] = fewer
    return fewer


def cache_bytes(cache: Cache, *, away: bool = False) -> list[int]:
    """Bytes of keys and values of each layer where the model is; with `away`, those moved to the host's memory too."""
    sizes = []
    for layer in cache.layers:
        parts = [attribute(layer, name) for name in ("keys", "values")] if layer.is_initialized else []  # type: ignore[union-attr]
        if away and isinstance(layer, FewerLayer) and layer.away is not None:
            parts += layer.away[:2]
        sizes.append(sum(part.numel() * part.element_size() for part in parts))
    return sizes
