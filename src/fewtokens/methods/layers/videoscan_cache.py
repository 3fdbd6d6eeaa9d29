"""VideoScan: the keys and values of one carrier token per frame, of which the most redundant are dropped."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.kv_memory import KIND, SUMMARY, TEXT, Columns, KVMemory, KVSlots, KVState, Run

_RULES = ("drop", "merge")


class VideoScanCache(KVMemory):
    """Holds the keys and values of one carrier per frame, and drops the most redundant ones.

    VideoScan (arXiv 2503.09387). The carrier is the mean of a frame's tokens, appended to them as one more token. The
    frame and its carrier are processed after the carriers so far, and only the carrier's keys and values stay. Beyond
    `cap` carriers, the earlier of the two most similar neighbors is dropped, by the cosine of their embeddings and of
    equally similar pairs the oldest; or their keys and values are averaged, weighted by frames (rule "merge", ours).

    Differences from the reference: keys are stored before rotation, so that positions stay right after a drop; the
    question is processed when it is asked, instead of after every frame; the limit is the number that is held (the
    published code tests for equality after appending, so its limit of 64 holds 63). Further tokens of a frame besides
    the carrier are not held. The paper trains the model for carriers; without that this is a variant.

    Args:
        cap: number of carriers. Default: 63.
        rule: "drop" (default) or "merge".
        positions: "contiguous" (default) or "absolute", see `KVMemory`.
    """

    paper = "VideoScan, arXiv 2503.09387"
    license = "written from the paper; reference code says Apache-2.0 in its README, without a file"
    cost = "each token of a frame attends to its frame and to `cap` carriers"

    def __init__(self, cap: int = 63, *, rule: str = "drop", positions: str = "contiguous") -> None:
        self.set_memory(cap, positions)
        if rule not in _RULES:
            raise ValueError(f"{self.name}: rule must be 'drop' or 'merge', got {rule!r}")
        self.rule = rule

    def write(self, frame: Columns, state: KVState, run: Run) -> None:
        carrier = frame.embeddings.float().mean(0, keepdim=True)
        info = frame.info.mean(0, keepdim=True)
        info[:, KIND] = SUMMARY
        embeddings = torch.cat([frame.embeddings, carrier.to(frame.embeddings.dtype)])
        new = run(Columns(embeddings, torch.cat([frame.info, info])), state.slots)
        slots = KVSlots.concatenate([state.slots, new.take(torch.tensor([len(frame)]))])
        carriers = torch.cat([state.stats.get("carriers", carrier[:0]), carrier])
        assert self.cap is not None
        if len(carriers) > self.cap:
            slots, carriers = self._shorten(slots, carriers)
        state.slots, state.stats["carriers"] = slots, carriers

    def _shorten(self, slots: KVSlots, carriers: Tensor) -> tuple[KVSlots, Tensor]:
        """Removes one carrier, whose embeddings are [n,D]."""
        pair = F.cosine_similarity(carriers[:-1], carriers[1:], dim=1).argmax().cpu()
        kept = torch.arange(len(carriers)) != pair
        left = int((slots.kind == TEXT).sum()) + pair
        if self.rule == "drop":
            return slots.take(torch.arange(len(slots)) != left), carriers[kept.to(carriers.device)]
        weight = slots.info[left : left + 2, 1]
        both = carriers[int(pair) : int(pair) + 2]
        mean = (weight.to(both)[:, None] * both).sum(0) / float(weight.sum())
        carriers = carriers.index_copy(0, pair.to(carriers.device)[None] + 1, mean[None])
        return slots.merge(left[None]), carriers[kept.to(carriers.device)]
