"""VideoLLM-MoD: in some layers of the language model only a part of each frame's tokens is processed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.budget import Budget
from fewtokens.core.layer_method import LayerDecision, LayerMethod, LayerState, PrunePoint
from fewtokens.core.method import load_weights
from fewtokens.core.plan import group_count

_ROUTERS = ("shared", "own")
# The factor of the auxiliary loss, as in the published code.
_AUXILIARY = 0.01


class VideoLLMMoD(LayerMethod, nn.Module):
    """Lets only the tokens of each frame with the highest routing scores pass through some layers; others skip them.

    Mixture of depths of VideoLLM-MoD (arXiv 2408.16730), with the router of LION-FS (arXiv 2503.03663), which contains
    the only published code. A router, linear and without bias, gives two logits for each video token after the norm of
    the layer; p is their softmax for "pass". In each of `layers`, ceil(keep * n) of the n tokens of a frame are
    processed, those with the highest p, with their original positions; the others return unchanged after the layer, and
    its cache has no keys of them. What the layer adds to a token that passes is multiplied by p (`gate`), through which
    the router is trained, as well as by the cross-entropy of its logits with which tokens pass, weighted by 0.01. Text
    always passes, with factor 1.

    Differences from the published code: the choice is made in each frame, so that it does not depend on later frames
    (theirs ranks all tokens of the prompt together); positions are kept (theirs are renumbered, and the rotary
    embedding is lost); p multiplies all that the layer adds, as in the paper (only what its MLP adds); the loss is that
    of video tokens, averaged over layers. The paper's one logit per layer is `router="own"`: the softmax of two logits
    is the sigmoid of their difference.

    Args:
        keep: fraction of the tokens of a frame that pass, in (0, 1]. Default: 0.2, as in VideoLLM-MoD; LION-FS has 0.5.
        dim: hidden size of the language model.
        layers: indices of the layers, ascending. Default: None, every 2nd from the first, as in the published code.
        router: "shared" (default), one router for all layers, or "own", one for each of `layers`.
        gate: whether p multiplies what the layer adds. Default: True. Without training this changes the output also if
            all tokens pass.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    paper = "VideoLLM-MoD, arXiv 2408.16730; router of LION-FS, arXiv 2503.03663"
    license = "written from the papers; reference code of LION-FS MIT"
    cost = "2*D MACs per video token and layer; the layer then processes fewer tokens"
    learned = True

    def __init__(
        self,
        keep: float = 0.2,
        *,
        dim: int = 384,
        layers: Sequence[int] | None = None,
        router: str = "shared",
        gate: bool = True,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.keep = Budget.parse(keep, units=("fraction",)).value
        if layers is not None and (not layers or list(layers) != sorted({*layers}) or layers[0] < 0):
            raise ValueError(f"{self.name}: layers must be ascending indices, got {layers!r}")
        if router not in _ROUTERS:
            raise ValueError(f"{self.name}: router must be 'shared' or 'own', got {router!r}")
        if router == "own" and layers is None:
            raise ValueError(f"{self.name}: router='own' requires layers, such as layers=(0, 2, 4)")
        self.dim, self.layers, self.router = dim, None if layers is None else tuple(layers), router
        self.gate, self.checkpoint = gate, checkpoint
        count = len(layers) if layers is not None and router == "own" else 1
        self.routers = nn.ModuleList(nn.Linear(dim, 2, bias=False) for _ in range(count))
        self._losses: list[Tensor] = []
        load_weights(self, checkpoint)

    @property
    def untrained(self) -> bool:
        """Whether the parameters are random because no checkpoint is given."""
        return self.checkpoint is None

    def prune_points(self, depth: int) -> list[PrunePoint]:
        layers = range(0, depth, 2) if self.layers is None else self.layers
        return [PrunePoint(layer, skips=True) for layer in layers]

    def begin(self) -> None:
        self._losses = []

    def choose(self, state: LayerState, index: int) -> LayerDecision:
        if (D := state.hidden.shape[2]) != self.dim:
            raise ValueError(f"{self.name} was built for {self.dim} channels, but this model has {D}; set dim={D}")
        router = self.routers[index % len(self.routers)]
        assert isinstance(router, nn.Linear)
        logits = router(state.norm(state.hidden).to(router.weight.dtype)).float()
        passing = logits.softmax(2)[..., 1]
        kept = highest_of_frames(passing.detach(), frames_of(state), self.keep)
        if self.training and torch.is_grad_enabled() and bool(state.video.any()):
            self._losses.append(F.cross_entropy(logits[state.video], kept[state.video].long()))
        return LayerDecision(kept, gate=passing if self.gate else None)

    def auxiliary_loss(self) -> Tensor | None:
        return _AUXILIARY * torch.stack(self._losses).mean() if self._losses else None


def frames_of(state: LayerState) -> Tensor:
    """The frame of each column, counted over the videos of a prompt, int64 [B,M]; -1 for other columns."""
    frames = torch.full_like(state.video, -1, dtype=torch.int64)
    first = [0] * len(frames)
    for video in state.videos:
        real = video.columns >= 0
        frames[video.row, video.columns[real]] = first[video.row] + video.tokens.frame[0][real].to(frames.device)
        first[video.row] += video.tokens.grid.T
    return frames


def highest_of_frames(scores: Tensor, frame: Tensor, keep: float) -> Tensor:
    """Selects the fraction `keep` of each frame's columns with the highest scores, rounded up; ties go to the first.

    Args:
        scores: [B,M].
        frame: int64 [B,M], -1 for columns that are not selected.
        keep: in (0, 1].

    Returns:
        bool [B,M].
    """
    other = int(frame.max()) + 1
    group = frame.masked_fill(frame < 0, other)
    order = scores.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, group.gather(1, order).argsort(dim=1, stable=True))
    count = group_count(group, other + 1)
    start = (count.cumsum(1) - count).gather(1, group.gather(1, order))
    rank = torch.empty_like(order).scatter(1, order, torch.arange(order.shape[1], device=order.device) - start)
    quota = (count * keep - 1e-6).ceil().long()
    return (rank < quota.gather(1, group)) & (frame >= 0)
