"""Positions of a later turn, which continue from those of the conversation whose cache it brings.

The text after a shortened video has positions ahead of a count of the columns, by an offset that differs between
conversations. It is stored with the cache. The models of transformers store it on themselves, so that two conversations
disturb each other, and that of Qwen2.5-VL is counted from the video's last frame instead of the text after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.shapes import shape_repr
from fewtokens.llm.backends.base import backend_of
from fewtokens.llm.interface import cache_of, is_filled

_ATTRIBUTE = "_positions_by_fewtokens"


@dataclass
class LastPass:
    """The last pass over several columns that wrote to a cache.

    Attributes:
        positions: int64 [B or 1,m] or [A,B or 1,m] of its columns; None if they are a count.
        end: the number of columns in the cache after it.
    """

    positions: Tensor | None
    end: int

    __repr__ = shape_repr


def remember(model: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    """A forward hook that stores the positions of a pass with the cache that it wrote to.

    Single tokens are skipped, because their positions only continue. They add no cost and can be compiled.
    """
    cache = cache_of(kwargs)
    cache = cache_of(output) if cache is None else cache
    if cache is None:
        return
    positions, recorded = kwargs.get("position_ids"), getattr(cache, _ATTRIBUTE, None) is not None
    if positions is None:
        ids = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
        # Positions are a count of the columns if this is the first pass.
        new = not recorded and ids is not None and int(cache.get_seq_length()) == ids.shape[1]
        if new and ids is not None and backend_of(model).axes(model) == 1:
            # Of all columns, also of padding, which a mask does not count.
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
    else:
        new = not recorded or positions.shape[-1] > 1
    if new:
        setattr(cache, _ATTRIBUTE, LastPass(positions, int(cache.get_seq_length())))


def later_positions(cache: Any, inputs: dict[str, Any], *, axes: int, all_columns: bool) -> Tensor | None:
    """Returns the positions of the columns of a later turn, as `forward` and `generate` take them.

    Args:
        cache: the cache of the earlier turns.
        inputs: input_ids or inputs_embeds [B,l,...], of all columns or the new ones; attention_mask [B,L] of all.
        all_columns: whether ids without a mask are those of all columns, as in `generate`, or only of the new ones.
        axes: the number of axes of positions.

    Returns:
        The positions, [B,l] if they have one axis, otherwise [1 + A,B,l] after a count of the columns; None if no pass
        was recorded for the cache.

    Raises:
        ValueError: several prompts without a mask.
    """
    last: LastPass | None = getattr(cache, _ATTRIBUTE, None)
    if last is None or not is_filled(cache):
        return None
    ids = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
    B, length = ids.shape[:2]
    cached = int(cache.get_seq_length())
    mask = inputs.get("attention_mask")
    if mask is None or mask.ndim != 2:
        if B > 1:
            raise ValueError(
                "a later turn of several prompts requires their attention_mask [B,L] of all columns so far"
            )
        mask = torch.ones(B, length if all_columns else cached + length, dtype=torch.int64, device=ids.device)
    count = (mask.long().cumsum(1) - 1).clamp(min=0)
    shift = _shift(last, count, mask, cached, axes)
    if axes > 1:
        new = count + shift.expand(axes, -1)[..., None]
        return torch.cat([count[None], new])[..., -length:]
    return (count + shift[-1][:, None])[:, -length:]


def _shift(last: LastPass, count: Tensor, mask: Tensor, cached: int, axes: int) -> Tensor:
    """The offset of text positions from a count of the columns, int64 [A or 1,B] of A axes."""
    B = len(count)
    if last.positions is None:
        return count.new_zeros(1, B)
    at = last.positions if last.positions.ndim == 3 else last.positions[None]
    at = at[-axes:].to(count.device)
    # Beams are several rows of one prompt.
    at = at.repeat_interleave(B // at.shape[1], 1) if at.shape[1] < B else at[:, :: at.shape[1] // B]
    # The last column of that pass that is still cached (rejected draft tokens are removed) and is not padding.
    begin = last.end - at.shape[2]
    column = torch.arange(begin, last.end, device=count.device)
    usable = (column < max(cached, begin + 1)) & mask[:, begin : last.end].bool()
    end = torch.where(usable, column, begin).amax(1)
    position = at.gather(2, (end - begin).expand(len(at), -1)[..., None]).squeeze(2)
    return position - count.gather(1, end[:, None]).squeeze(1)
