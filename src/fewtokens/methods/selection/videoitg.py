"""VideoITG's head: a trained score of each frame."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.method import load_weights
from fewtokens.core.selection import Candidates, FrameSelector, Selection, full_size


class Videoitg(FrameSelector, nn.Module):
    """Selects the frames with the highest score of a trained linear head.

    VideoITG (arXiv 2507.13353), its head: the feature of a frame, here of a scorer, where the paper averages the last
    hidden states of a language model that reads all frames and the instruction; a linear layer; a sigmoid. The scores
    of neighboring frames are similar, so that the best frames are next to each other; with `nms`, a frame is skipped
    if it is within that many seconds of a better one, as long as there are others (ours).

    `loss` trains the head; `fewtokens.core.method.save_weights` writes it.

    Args:
        keep: number of frames (int), or fraction of the candidates (float). Default: 32.
        nms: minimum seconds between selected frames. Default: 0, as published.
        rate: candidates per second, "keyframes" of the codec, or "all" frames; at most 512. Default: 2, as published.
        dim: number of channels of the features. Default: 192, those of pixels.
        checkpoint: file of trained parameters. Default: random ones.
    """

    learned = True
    paper = "head of VideoITG: Multimodal Video Understanding with Instructed Temporal Grounding, arXiv 2507.13353"
    license = "written from a description of its code, Apache-2.0"
    cost = "O(T C), and a thumbnail per candidate"

    def __init__(
        self,
        keep: float | int = 32,
        *,
        nms: float = 0.0,
        rate: float | str = 2.0,
        dim: int = 192,
        checkpoint: str | None = None,
    ) -> None:
        nn.Module.__init__(self)
        if not 0 <= nms < math.inf:
            raise ValueError(f"videoitg: nms must be at least 0 seconds, got {nms}")
        self.set_budget(keep, rate)
        self.nms, self.dim, self.checkpoint = nms, dim, checkpoint
        self.head = nn.Linear(dim, 1)
        load_weights(self, checkpoint)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("features",)

    def max_candidates(self, seconds: float) -> int:
        return 512

    def thin(self, candidates: int, most: int) -> Tensor:
        """The last frame of each of `most` equal parts, as published."""
        return ((torch.arange(most, dtype=torch.float64) + 1) * candidates / most - 1).round().long()

    def loss(self, features: Tensor, relevant: Tensor) -> Tensor:
        """Returns the training loss, a scalar: binary cross-entropy, with the weight of `positive_weight`.

        Args:
            features: [T,C].
            relevant: bool [T], the frames to select.
        """
        logits = self.head(F.normalize(features.float(), dim=1)).squeeze(1)
        weight = logits.new_tensor(positive_weight(int(relevant.sum()), len(relevant)))
        return F.binary_cross_entropy_with_logits(logits, relevant.to(logits.dtype), pos_weight=weight)

    @torch.no_grad()
    def choose(self, candidates: Candidates) -> Selection:
        if candidates.features.shape[1] != self.dim:
            raise ValueError(
                f"videoitg was built for features of {self.dim} channels, got {candidates.features.shape[1]}; set dim="
            )
        # Not the order of their sigmoids, which are 1.0 for many frames if the head is certain.
        logits = self.head(candidates.features.to(self.head.weight)).squeeze(1).float().cpu()
        left = logits.clone()
        selected: list[int] = []
        for _ in range(candidates.count):
            if bool(left.isinf().all()):  # all others are near a better one
                left = logits.clone()
                left[torch.tensor(selected)] = -torch.inf
            best = int(left.argmax())
            selected.append(best)
            near = (candidates.times - candidates.times[best]).abs() < self.nms
            left[near] = -torch.inf
            left[best] = -torch.inf
        return full_size(torch.tensor(selected), scores=logits.sigmoid())


def positive_weight(positive: int, total: int) -> float:
    """Returns the weight of relevant frames in the loss: the root of the ratio of the others to them, at most 5."""
    return min(5.0, math.sqrt((total - positive) / positive)) if positive else 1.0
