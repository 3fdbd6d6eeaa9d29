"""Memories in the key-value cache without a model: keys are the embeddings, values their negatives, in two layers."""

from __future__ import annotations

from collections.abc import Sequence
from math import radians

import torch
from torch import Tensor

from fewtokens.core.kv_memory import COUNTED, INDEX, RAW, SUMMARY, TEXT, Columns, KVMemory, KVSlots, KVState, slot_info

PREFIX = 2


class Runs:
    """Processes columns; records the contexts and the masks."""

    def __init__(self, state: KVState) -> None:
        self.state, self.contexts, self.masks = state, [], []

    def __call__(self, columns: Columns, context: KVSlots, visible: Tensor | None = None) -> KVSlots:
        self.contexts.append(context)
        self.masks.append(visible)
        info = columns.info.clone()
        info[:, INDEX] = self.state.columns + info[:, COUNTED].cumsum(0) - info[:, COUNTED]
        self.state.columns += int(info[:, COUNTED].sum())
        keys = columns.embeddings[None]
        return KVSlots([keys, 2 * keys], [-keys, -2 * keys], info)


def new_state(dim: int = 2) -> tuple[KVState, Runs]:
    """A state with two columns of text, and what processes columns."""
    state = KVState(KVSlots([], [], slot_info(TEXT, 0)))
    runs = Runs(state)
    state.slots = runs(Columns(torch.zeros(PREFIX, dim), slot_info(TEXT, PREFIX)), state.slots)
    return state, runs


def push(method: KVMemory, frames: Sequence[Tensor], state: KVState | None = None) -> KVState:
    """The state after frames [P,D], one per second."""
    state, runs = new_state(frames[0].shape[1]) if state is None else (state, Runs(state))
    for frame in frames:
        info = slot_info(RAW, len(frame), second=float(state.steps), step=state.steps)
        method.write(Columns(frame, info), state, runs)
        state.steps += 1
    return state


def at_angles(*degrees: float, tokens: int = 1) -> list[Tensor]:
    """Frames of unit vectors in the plane."""
    points = torch.tensor([radians(angle) for angle in degrees])
    return list(torch.stack([points.cos(), points.sin()], 1)[:, None].expand(-1, tokens, -1))


def kinds(state: KVState) -> list[int]:
    return state.slots.kind.tolist()


__all__ = ["PREFIX", "RAW", "SUMMARY", "TEXT", "Runs", "at_angles", "kinds", "new_state", "push"]
