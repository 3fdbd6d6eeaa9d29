"""`KVMemory`: the base class of memories in the key-value cache of a language model, and their slots.

A slot is the keys and values of one column in every layer. Keys are stored before their rotation (RoPE) and rotated in
each pass, so that the columns that are held can be counted without gaps, however long the stream is. A method only
decides which columns are processed against which slots, and which are kept; `fewtokens.llm.layers.kv_runtime` runs the
model.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from fewtokens.core.layer_method import LayerMethod
from fewtokens.core.shapes import shape_repr

TEXT, SUMMARY, RAW = 0, 1, 2
"""The kinds of slots: text, which is always kept; summaries; and tokens of frames."""
KIND, MASS, SECOND, FIRST, LAST, Y, X, INDEX, STEP, COUNTED = range(10)
"""The numbers of a slot, columns of `KVSlots.info`."""
_POSITIONS = ("contiguous", "absolute")


def slot_info(
    kind: int, n: int, *, second: Tensor | float = 0.0, step: Tensor | int = 0, y: Tensor | float = 0.0,
    x: Tensor | float = 0.0,
) -> Tensor:  # fmt: skip
    """Returns the numbers of `n` new slots, float64 [n,10], see `KVSlots.info`; one number for all, or one for each."""
    info = torch.zeros(n, COUNTED + 1, dtype=torch.float64)
    values = {KIND: kind, MASS: 1, SECOND: second, FIRST: second, LAST: second, Y: y, X: x, STEP: step, COUNTED: 1}
    for column, value in values.items():
        info[:, column] = torch.as_tensor(value, dtype=torch.float64, device="cpu")
    return info


@dataclass(eq=False)
class KVSlots:
    """n slots, in the order in which a query reads them. Slots are not changed in place.

    Attributes:
        keys: of each layer, [heads,n,d], before rotation.
        values: of each layer, [heads,n,d].
        info: float64 [n,10], on the CPU: the kind; the number of columns that a slot stands for; their mean, first and
            last second; their mean row and column in the grid of a frame; the index among all columns of the stream;
            the index of the step of frames; and whether the slot counts in the positions of later ones.
    """

    keys: list[Tensor]
    values: list[Tensor]
    info: Tensor

    __repr__ = shape_repr

    def __len__(self) -> int:
        return len(self.info)

    @property
    def kind(self) -> Tensor:
        """The kind of each slot, int64 [n]."""
        return self.info[:, KIND].long()

    @property
    def nbytes(self) -> int:
        """The number of bytes of all tensors."""
        return sum(part.numel() * part.element_size() for part in (*self.keys, *self.values, self.info))

    def take(self, index: Tensor) -> KVSlots:
        """Returns the slots at `index`, int64 [m], or where a mask is True, bool [n]."""
        index = index.nonzero().squeeze(1) if index.dtype == torch.bool else index
        if not self.keys:  # of no layers yet
            return KVSlots([], [], self.info[index])
        at = index.to(self.keys[0].device)
        keys, values = ([part.index_select(1, at) for part in parts] for parts in (self.keys, self.values))
        return KVSlots(keys, values, self.info[index])

    def to(self, device: torch.device | str) -> KVSlots:
        """Returns the slots with keys and values on a device."""
        return KVSlots([k.to(device) for k in self.keys], [v.to(device) for v in self.values], self.info)

    @staticmethod
    def concatenate(parts: Sequence[KVSlots]) -> KVSlots:
        """Concatenates slots of the same layers; those of none are left out."""
        parts = [part for part in parts if part.keys] or parts[:1]
        if len(parts) == 1:
            return parts[0]
        keys = [torch.cat(layer, 1) for layer in zip(*(part.keys for part in parts), strict=True)]
        values = [torch.cat(layer, 1) for layer in zip(*(part.values for part in parts), strict=True)]
        return KVSlots(keys, values, torch.cat([part.info for part in parts]))

    def pool(self, size: int) -> KVSlots:
        """Averages each `size` consecutive slots, as summaries; the last ones may be fewer."""
        group = torch.arange(len(self)) // size
        count = group.bincount().double()

        def average(values: Tensor) -> Tensor:
            dtype = torch.promote_types(values.dtype, torch.float32)
            total = values.new_zeros(*values.shape[:-2], len(count), values.shape[-1], dtype=dtype)
            total = total.index_add(-2, group.to(values.device), values.to(dtype))
            return (total / count.to(values.device, dtype)[:, None]).to(values.dtype)

        info = average(self.info)
        first = torch.arange(0, len(self), size)
        info[:, KIND], info[:, MASS] = SUMMARY, count
        info[:, FIRST], info[:, LAST] = (
            self.info[first, FIRST],
            self.info[(first + size - 1).clamp(max=len(self) - 1), LAST],
        )
        info[:, INDEX:] = self.info[first, INDEX:]
        return KVSlots([average(k) for k in self.keys], [average(v) for v in self.values], info)

    def merge(self, left: Tensor) -> KVSlots:
        """Averages slots with the next one, weighted by mass.

        Args:
            left: int64 [m], the first slot of each pair, rising by at least 2.
        """
        mass = self.info[:, MASS]
        share = mass[left + 1] / (mass[left] + mass[left + 1])

        def average(values: Tensor, dim: int) -> Tensor:
            at = left.to(values.device)
            first, second = values.index_select(dim, at), values.index_select(dim, at + 1)
            dtype = torch.promote_types(values.dtype, torch.float32)
            mixed = torch.lerp(first.to(dtype), second.to(dtype), share.to(values.device, dtype)[:, None])
            return values.index_copy(dim, at, mixed.to(values.dtype))

        info = average(self.info, 0)
        info[left, MASS] = mass[left] + mass[left + 1]
        info[left, FIRST], info[left, LAST] = self.info[left, FIRST], self.info[left + 1, LAST]
        info[left, INDEX:] = self.info[left + 1, INDEX:]
        merged = KVSlots([average(k, 1) for k in self.keys], [average(v, 1) for v in self.values], info)
        kept = torch.ones(len(self), dtype=torch.bool)
        kept[left + 1] = False
        return merged.take(kept)


def position_ids(info: Tensor, axes: int, *, absolute: bool = False, offset: int | None = None) -> Tensor:
    """Returns the positions of columns, float64 [axes,n].

    With one axis these are a count. With three (t, h, w), as in Qwen2-VL, text counts in all axes; t of a video is the
    rank of its distinct seconds, and h and w are the row and the column in the frame.

    Args:
        info: [n,10], see `KVSlots.info`.
        axes: 1 or 3.
        absolute: count all columns, and steps, of the stream instead of those that are held.
        offset: with three axes, where the text after a video begins, from where the video begins; None for beyond it.
    """
    counted = info[:, COUNTED]
    count = info[:, INDEX] if absolute else counted.cumsum(0) - counted
    video = info[:, KIND] != TEXT
    if axes == 1 or not bool(video.any()):
        return count.expand(axes, -1).clone()
    start = int(video.long().argmax())
    text = torch.arange(len(info), dtype=torch.float64)
    ids = text.expand(3, -1).clone()
    time = info[video, STEP] if absolute else info[video, SECOND].unique(return_inverse=True)[1].double()
    ids[:, video] = start + torch.stack([time, info[video, Y], info[video, X]])
    after = ~video & (text > start)
    end = ids[:, video].max().floor() + 1 if offset is None else start + offset
    ids[:, after] = end - 1 + after.double().cumsum(0)[after]
    return ids


@dataclass(eq=False)
class Columns:
    """Columns that are processed.

    Attributes:
        embeddings: [n,D], inputs of the first layer.
        info: float64 [n,10], see `KVSlots.info`; the index is set when they are processed.
    """

    embeddings: Tensor
    info: Tensor

    __repr__ = shape_repr

    def __len__(self) -> int:
        return len(self.info)

    def take(self, start: int, stop: int | None = None) -> Columns:
        """Returns the columns start..stop-1."""
        return Columns(self.embeddings[start:stop], self.info[start:stop])


class Run(Protocol):
    """Processes columns and returns their slots."""

    def __call__(self, columns: Columns, context: KVSlots, visible: Tensor | None = None) -> KVSlots:
        """Processes columns, each of which attends to the context, to earlier columns and to itself.

        Args:
            columns: n columns.
            context: m slots.
            visible: bool [n,m+n], which slots and columns each attends to instead.
        """
        ...


Relevance = Callable[[KVSlots], Tensor]
"""The attention of a question to each of some slots, float32 [n], the mean over its rows, heads and layers."""


@dataclass(eq=False)
class KVState:
    """The state of a stream.

    Attributes:
        slots: those that are held on the model's device, text first.
        columns: the number of columns that were counted so far.
        steps: the number of steps of frames so far.
        host: parts of the stream in host memory.
        stats: small tensors of the method by name.
        layout: what whoever runs the model must know of this video; not in `tensors`.
    """

    slots: KVSlots
    columns: int = 0
    steps: int = 0
    host: list[KVSlots] = field(default_factory=list)
    stats: dict[str, Tensor] = field(default_factory=dict)
    layout: Any = None

    __repr__ = shape_repr

    @property
    def nbytes(self) -> int:
        """The number of bytes of all tensors, with those in host memory."""
        stats = sum(value.numel() * value.element_size() for value in self.stats.values())
        return sum(slots.nbytes for slots in (self.slots, *self.host)) + stats

    def copy(self) -> KVState:
        """Returns a state whose changes have no effect on this one; tensors, which no method changes, are shared."""
        return replace(self, host=list(self.host), stats=dict(self.stats))

    def tensors(self) -> dict[str, Tensor]:
        """Returns all tensors and counters by name, for a file. Those of slots are [layers,heads,n,d] and [n,10]."""
        tensors = {f"stats.{name}": value for name, value in self.stats.items()}
        tensors["counters"] = torch.tensor([self.columns, self.steps, len(self.host)])
        for index, slots in enumerate([self.slots, *self.host]):
            parts = {"keys": torch.stack(slots.keys), "values": torch.stack(slots.values), "info": slots.info}
            tensors |= {f"slots.{index}.{name}": part for name, part in parts.items()}
        return tensors

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], device: torch.device) -> KVState:
        """Returns the state of which `tensors` are those, with the slots that were on a device.

        Raises:
            KeyError: a tensor is missing.
        """
        columns, steps, count = tensors["counters"].tolist()
        slots = []
        for index in range(count + 1):
            keys, values = (list(tensors[f"slots.{index}.{name}"].unbind(0)) for name in ("keys", "values"))
            slots.append(KVSlots(keys, values, tensors[f"slots.{index}.info"]))
        stats = {name.removeprefix("stats."): value for name, value in tensors.items() if name.startswith("stats.")}
        return KVState(slots[0].to(device), columns, steps, slots[1:], {k: v.to(device) for k, v in stats.items()})


class KVMemory(LayerMethod):
    """A method that holds a stream as keys and values of a language model, for `StreamSession` and `Session`.

    Each step of frames (one, or a tubelet) is processed once, after the slots that are held, and `write` decides what
    stays of it. The question is processed when it is asked, against a copy, so that the memory does not depend on it.

    Positions: "contiguous" counts the slots that are held, so that a stream may be of any length; "absolute" are those
    at which columns were first processed, which end at the context of the model, where they are refused.

    Class attributes:
        on_jump: what to do if time goes back, see `Memory`; always "error".
        summarizes: whether columns of the kind `SUMMARY` share one embedding and projections, which may be
            trained (`fewtokens.llm.layers.summary_tokens`), instead of the embeddings that the method gives them.
        joins: whether several steps of frames that are written together give the same state, to rounding.

    Attributes:
        cap: the number of slots (or of what a method counts) that are held; None for no limit.
        positions: see above.
        checkpoint: a file with the weights of summary tokens, or None.
    """

    on_jump: ClassVar[str] = "error"
    summarizes: ClassVar[bool] = False
    joins: ClassVar[bool] = False

    checkpoint: str | None = None

    cap: int | None
    positions: str

    def set_memory(self, cap: int | None, positions: str) -> None:
        """Sets `cap` and `positions` from the arguments of the constructor.

        Raises:
            ValueError: `cap` is below 1, or `positions` is unknown.
        """
        if cap is not None and cap < 1:
            raise ValueError(f"{self.name}: cap must be at least 1, got {cap}")
        if positions not in _POSITIONS:
            raise ValueError(f"{self.name}: positions must be 'contiguous' or 'absolute', got {positions!r}")
        self.cap, self.positions = cap, positions

    @abstractmethod
    def write(self, frame: Columns, state: KVState, run: Run) -> None:
        """Processes a step of frames, or several if it `joins` them, and updates the state, in place.

        Args:
            frame: its tokens, in the order in which the model reads them.
            state: the state.
            run: processes columns.
        """

    def read(self, state: KVState, relevance: Relevance) -> KVSlots:
        """Returns the slots that a question and its answer attend to, text first.

        Args:
            state: the state, which is not changed.
            relevance: returns the question's attention to slots.
        """
        return state.slots
