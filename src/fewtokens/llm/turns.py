"""Positions of a later turn: they go on from those of the conversation whose cache it brings.

Words after a shortened video stand further on than a count of the columns says, by a number that differs from
conversation to conversation. It is kept with the cache. The models of transformers keep it on themselves, so that two
conversations disturb each other, and Qwen2.5-VL's is that of the video's last frame and not of the words after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.shapes import by_shape
from fewtokens.llm.interface import cache_of, filled

_KEPT = "_positions_by_fewtokens"


@dataclass
class Passed:
    """The last pass over several columns that wrote to a cache.

    Attributes:
        positions: int64 [B or 1,m] or [A,B or 1,m] of its columns; None if they are a count.
        end: columns in the cache after it.
    """

    positions: Tensor | None
    end: int

    __repr__ = by_shape


def remember(model: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    """A forward hook that leaves the positions of a pass with the cache that it wrote to.

    Not of single words, which only go on: they cost nothing then, and may be compiled.
    """
    cache = cache_of(kwargs)
    cache = cache_of(output) if cache is None else cache
    if cache is None:
        return
    positions, known = kwargs.get("position_ids"), getattr(cache, _KEPT, None) is not None
    if positions is None:
        given = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
        # A count of the columns, where this pass is all that there is.
        new = not known and given is not None and int(cache.get_seq_length()) == given.shape[1]
    else:
        new = not known or positions.shape[-1] > 1
    if new:
        setattr(cache, _KEPT, Passed(positions, int(cache.get_seq_length())))


def later_positions(cache: Any, inputs: dict[str, Any], *, three: bool, whole: bool) -> Tensor | None:
    """Positions of the columns that a later turn brings, as `forward` and `generate` take them.

    Args:
        cache: with what was read before.
        inputs: input_ids or inputs_embeds [B,l,...], all columns or the new ones; attention_mask [B,L] of all.
        whole: without a mask the ids are of all columns, as `generate` takes them, and not of the new ones alone.
        three: positions are (t, h, w), with a count of the columns before them: [4,B,l], otherwise [B,l].

    Returns:
        None if the cache was filled by something that is not known here.

    Raises:
        ValueError: prompts side by side without a mask.
    """
    passed: Passed | None = getattr(cache, _KEPT, None)
    if passed is None or not filled(cache):
        return None
    given = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
    B, length = given.shape[:2]
    kept = int(cache.get_seq_length())
    mask = inputs.get("attention_mask")
    if mask is None or mask.ndim != 2:
        if B > 1:
            raise ValueError("a later turn of several prompts needs their attention_mask [B,L], of all columns so far")
        mask = torch.ones(B, length if whole else kept + length, dtype=torch.int64, device=given.device)
    count = (mask.long().cumsum(1) - 1).clamp(min=0)
    shift = _shift(passed, count, mask, kept)
    if three:
        new = count + shift.expand(3, -1)[..., None]
        return torch.cat([count[None], new])[..., -length:]
    return (count + shift[-1][:, None])[:, -length:]


def _shift(passed: Passed, count: Tensor, mask: Tensor, kept: int) -> Tensor:
    """By how much positions of words are ahead of a count of the columns, int64 [A,B] of A = 1 or 3 axes."""
    B = len(count)
    if passed.positions is None:
        return count.new_zeros(1, B)
    at = passed.positions if passed.positions.ndim == 3 else passed.positions[None]
    at = at[-3:].to(count.device)
    # Beams are several rows of one prompt.
    at = at.repeat_interleave(B // at.shape[1], 1) if at.shape[1] < B else at[:, :: at.shape[1] // B]
    # The last column of that pass that is there still (guessed words are taken back) and is no padding.
    begin = passed.end - at.shape[2]
    column = torch.arange(begin, passed.end, device=count.device)
    there = (column < max(kept, begin + 1)) & mask[:, begin : passed.end].bool()
    last = torch.where(there, column, begin).amax(1)
    found = at.gather(2, (last - begin).expand(len(at), -1)[..., None]).squeeze(2)
    return found - count.gather(1, last[:, None]).squeeze(1)
