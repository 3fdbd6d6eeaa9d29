"""What a memory does once its slots are full: merge or drop neighbors in time, halve, or sample.

Each rule writes one slot for every video of a state, in place, in O(P*C + M) operations for M slots of P tokens with C
channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.memory import MemoryState, Slots
from fewtokens.methods.ops.seeded import uniform_hash

Key = Callable[[Tensor], Tensor]


def mean_key(features: Tensor) -> Tensor:
    """The direction of the mean token of each slot [B,M,P,C], float32 [B,M,C] of length 1."""
    features = features[:, :, 0] if features.shape[2] == 1 else features.float().mean(2)
    return F.normalize(features.float(), dim=-1)


def flat_key(features: Tensor) -> Tensor:
    """The direction of all tokens of each slot [B,M,P,C] together, float32 [B,M,P*C] of length 1."""
    return F.normalize(features.flatten(2).float(), dim=-1)


def check_question(name: str, text: Tensor, B: int, dim: int) -> None:
    """Raises a ValueError if the cue "text" of `Memory.read` is not [B,L,dim] with L >= 1."""
    if text.ndim != 3 or len(text) != B or not text.shape[1] or text.shape[2] != dim:
        raise ValueError(f"{name} requires text of shape [{B},L,{dim}], got {list(text.shape)}")


def merge(left: Slots, right: Slots, *, weighted: bool = True) -> Slots:
    """Averages slots position by position.

    Args:
        left: [B,K,P,C], the earlier ones.
        right: [B,K,P,C].
        weighted: weight features by mass; otherwise both count equally. Seconds and places are always weighted.
    """
    mass = left.info[..., :1] + right.info[..., :1]
    share = right.info[..., :1] / mass
    mean = torch.lerp(left.info, right.info, share)
    info = torch.cat([mass, mean[..., 1:2], left.info[..., 2:3], right.info[..., 3:4], mean[..., 4:]], 2)
    weight = share[..., None].float() if weighted else 0.5
    features = torch.lerp(left.features.float(), right.features.float(), weight)
    return Slots(features.to(left.features.dtype), info)


def adjacency_stats(B: int, cap: int, device: torch.device) -> dict[str, Tensor]:
    """The statistics that `merge_adjacent` and `drop_adjacent` keep for `cap` slots and a spare one.

    "order" is the slots in the order of time, int64 [B,cap+1], free slots last; "similarity" is that of each slot with
    the next one in this order, float32 [B,cap].
    """
    return {
        "order": torch.arange(cap + 1, device=device).repeat(B, 1),
        "similarity": torch.zeros(B, cap, device=device),
    }


def merge_adjacent(
    state: MemoryState, slot: Slots, written: int, *, key: Key = mean_key, weighted: bool = True
) -> None:
    """Appends a slot; if there are then more than `cap`, merges the most similar neighbors in time.

    Of equally similar pairs the oldest is merged.

    Args:
        state: with `adjacency_stats` and a spare slot.
        slot: the new slot of each video, [B,1,P,C].
        written: number of slots that were appended before.
        key: maps features [B,K,P,C] to rows [B,K,D] of length 1, whose inner product is the similarity.
        weighted: see `merge`.
    """
    _append(state, slot, written, key, lambda left, right: merge(left, right, weighted=weighted))


def drop_adjacent(state: MemoryState, slot: Slots, written: int, *, key: Key = mean_key) -> None:
    """Appends a slot; if there are then more than `cap`, drops the earlier of the most similar neighbors in time.

    Arguments and ties are those of `merge_adjacent`.
    """
    _append(state, slot, written, key, lambda left, right: right)


def _append(state: MemoryState, slot: Slots, written: int, key: Key, combine: Callable[[Slots, Slots], Slots]) -> None:
    slots, order, similarity = state.slots, state.stats["order"], state.stats["similarity"]
    cap = similarity.shape[1]

    def compare(index: Tensor) -> Tensor:
        """The similarity of consecutive slots [B,K-1] at `index` [B,K]."""
        keys = key(slots.take(index).features.detach())
        return (keys[:, :-1] * keys[:, 1:]).sum(2)

    end = min(written, cap)
    slots.put(order[:, end : end + 1], slot)
    if end:
        similarity[:, end - 1 : end] = compare(order[:, end - 1 : end + 1])
    if written < cap:
        return
    pair = similarity.argmax(1, keepdim=True)
    left, right = order.gather(1, pair), order.gather(1, pair + 1)
    slots.put(left, combine(slots.take(left), slots.take(right)))
    slots.info.scatter_(1, right[..., None].expand(-1, -1, slots.info.shape[2]), 0)
    position = torch.arange(cap + 1, device=order.device)
    order = order.gather(1, (position + (position > pair)).clamp(max=cap))
    order[:, cap:] = right  # the spare slot
    similarity = similarity.gather(1, (position + (position >= pair))[:, :cap].clamp(max=cap - 1))
    around = compare(order.gather(1, torch.cat([pair - 1, pair, pair + 1], 1).clamp(0, cap - 1)))
    # The second value overwrites the first if the pair has no predecessor.
    similarity.scatter_(1, (pair - 1).clamp(min=0), around[:, :1]).scatter_(1, pair, around[:, 1:])
    state.stats["order"], state.stats["similarity"] = order, similarity


def merge_down(slots: Slots, count: int, *, key: Key = flat_key, weighted: bool = True, least: bool = False) -> Slots:
    """Merges the most similar neighbors of a short row of slots, one pair at a time, until `count` remain.

    Args:
        slots: [B,K,P,C] in the order of time, all in use.
        count: number of slots of the result.
        key, weighted: see `merge_adjacent`.
        least: merge the least similar neighbors instead.
    """
    while (K := slots.count) > count:
        keys = key(slots.features.detach())
        similarity = (keys[:, :-1] * keys[:, 1:]).sum(2)
        pair = (similarity.argmin(1) if least else similarity.argmax(1))[:, None]
        merged = merge(slots.take(pair), slots.take(pair + 1), weighted=weighted)
        position = torch.arange(K - 1, device=pair.device)
        slots = slots.take(position + (position > pair))
        slots.put(pair, merged)
    return slots


def merge_groups(slots: Slots, group: Tensor, count: int) -> Slots:
    """Averages the slots of each group, weighted by mass.

    Args:
        slots: [B,K,P,C]; free slots have no effect.
        group: int64 [B,K], values in 0..count-1.
        count: number of groups.

    Returns:
        [B,count,P,C]; a group without slots is a free slot.
    """
    B = len(group)

    def total(values: Tensor) -> Tensor:
        flat = values.flatten(2)
        index = group[..., None].expand(-1, -1, flat.shape[2])
        return flat.new_zeros(B, count, flat.shape[2]).scatter_add(1, index, flat).reshape(B, count, *values.shape[2:])

    mass = total(slots.info[..., :1])
    share = slots.info[..., :1] / mass.clamp(min=1).gather(1, group[..., None])
    mean = total(slots.info[..., 1:] * share)
    first = slots.info[..., 2].masked_fill(~slots.mask, torch.inf)
    last = slots.info[..., 3].masked_fill(~slots.mask, -torch.inf)
    first = torch.full_like(mass[..., 0], torch.inf).scatter_reduce(1, group, first, "amin")[..., None]
    last = torch.full_like(mass[..., 0], -torch.inf).scatter_reduce(1, group, last, "amax")[..., None]
    info = torch.cat([mass, mean[..., :1], first, last, mean[..., 3:]], 2).masked_fill(mass == 0, 0)
    return Slots(total(slots.features.float() * share[..., None].float()).to(slots.features.dtype), info)


def average(slots: Slots) -> Slots:
    """Averages all slots, weighted by mass, [B,1,P,C]; a free slot if none is in use."""
    return merge_groups(slots, torch.zeros_like(slots.mask, dtype=torch.int64), 1)


def halve(state: MemoryState, slot: Slots) -> None:
    """Writes every frame, then every 2nd, every 4th, ..., so that at most M are held.

    The index of a held frame is divisible by 2^k for the smallest k for which they fit.

    Args:
        state: the state; the new frame has the index `state.frames`.
        slot: the new frame of each video, [B,1,P,C].
    """
    M, index, stride = state.slots.count, state.frames, 1
    while -(-index // stride) > M:
        stride *= 2
    if index % stride:
        return
    held = index // stride
    if held == M:
        kept = Slots(state.slots.features[:, ::2].clone(), state.slots.info[:, ::2].clone())
        state.slots.put_span(0, kept)
        held, stride = kept.count, 2 * stride
        state.slots.clear(held)
        if index % stride:
            return
    state.slots.put_span(held, slot)


# Random numbers are computed in blocks: a tensor operation on one number takes as long as on a thousand.
_BLOCK = 1024


@lru_cache(maxsize=4)
def _uniform(seed: int, block: int) -> list[float]:
    return uniform_hash(seed, _BLOCK, start=block * _BLOCK).tolist()


def reservoir(state: MemoryState, slot: Slots, seed: int) -> None:
    """Holds a uniform sample of all frames (algorithm R of Vitter), by a hash of seed and index of the frame.

    Args:
        state: the state; the new frame has the index `state.frames`.
        slot: the new frame of each video, [B,1,P,C].
        seed: the random seed.
    """
    M, index = state.slots.count, state.frames
    block, offset = divmod(index, _BLOCK)
    target = index if index < M else int(_uniform(seed, block)[offset] * (index + 1))
    if target < M:
        state.slots.put_span(target, slot)
