"""Video-XL-Pro: one frame synthesized of each four, and the tokens that are relevant for a question."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.memory import Memory, MemoryState, Slots
from fewtokens.core.method import load_weights
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.memory_rules import adjacency_stats, average, check_question, merge_adjacent
from fewtokens.methods.ops.per_frame import check_dim
from fewtokens.methods.ops.resample import IdentityLayer

# Each of two blocks halves the number of frames.
_GROUP = 4


class VideoXLPro(Memory):
    """Synthesizes one frame of each four consecutive frames by attention in space and time and convolutions.

    The reconstructive compression of Video-XL-Pro (arXiv 2503.18478). A learned code of its index is added to each
    frame of a group. Two blocks follow, each of attention within frames, attention between the tokens of a place, and a
    3-D convolution of size 3 that halves the number of frames. A group depends on no other. The frames of a group that
    is not full are synthesized too, with the last one repeated (the published code fills a group with random frames).

    `read` with the cue "text", [B,L,dim], returns the fraction `share` of the tokens with the highest scores. The score
    of a token is the mean over the tokens of the text of its inner product with their MLP, scaled to 0..1 over the
    video (0 if all are equal), and is added to its features, so that the language model sees it and the scorer can be
    trained.

    Differences from the published code: layers are pre-norm and start so that without training the result is the
    average of the four; beyond `cap`, the most similar neighbors in time are averaged, weighted by frames (theirs
    grow without bound). Projection and pooling to 144 tokens are not part of this method. The share is constant (theirs
    is random in 0.7..0.99, also at inference, and rounded to multiples of 16 tokens), and scores depend on the tokens
    (theirs on attention to embedded time stamps, which replaces the tokens). If frames do not have one token per cell,
    they are a single row to the convolutions.

    Args:
        cap: number of slots, each of four frames at first. Default: 64.
        dim: channels of the features and of the text.
        share: fraction of the tokens that a question selects. Default: 0.85.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
        on_jump: "error" (default), "shift" or "reset", what to do if time goes back; see `Memory`.
    """

    learned = True
    optional_cues = ("text",)
    spare = 1
    paper = "Video-XL-Pro, arXiv 2503.18478"
    license = "written from the paper; reference code is Apache-2.0"
    cost = "per group of 4 frames of P tokens: 4 transformer layers over up to 4*P tokens and about 81*P*C*C MACs"

    def __init__(
        self,
        cap: int = 64,
        *,
        dim: int = 384,
        share: float = 0.85,
        checkpoint: str | None = None,
        on_jump: str = "error",
    ) -> None:
        super().__init__()
        self.set_memory(cap, on_jump, recent=_GROUP)
        if not 0 < share <= 1:
            raise ValueError(f"{self.name}: share must be above 0 and at most 1, got {share}")
        self.dim, self.share, self.checkpoint = dim, share, checkpoint
        self.code = nn.Parameter(torch.zeros(_GROUP, 1, dim))
        self.blocks = nn.Sequential(_Block(dim), _Block(dim))
        self.question = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
        load_weights(self, checkpoint)

    def new_stats(self, B: int, P: int, C: int, device: torch.device) -> dict[str, Tensor]:
        return adjacency_stats(B, self.cap, device)

    def write(self, frames: Slots, state: MemoryState, **cues: Any) -> None:
        merge_adjacent(state, self._synthesize(frames, state), state.frames // _GROUP)

    def held(self, state: MemoryState, **cues: Any) -> Slots:
        assert state.recent is not None
        return Slots.concatenate([state.slots, self._synthesize(state.recent, state)])

    def read(self, state: MemoryState, **cues: Any) -> Tokens:
        return self._select(super().read(state, **cues), cues.get("text"))

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        return self._select(super().forward(tokens, **cues), cues.get("text"))

    def _select(self, read: Tokens, text: Tensor | None) -> Tokens:
        """The tokens with the highest scores, which are added to them; all tokens, unchanged, without a question."""
        if text is None:
            return read
        check_question(self.name, text, read.B, self.dim)
        question = self.question(text.to(self.code.dtype)).float().mean(1)
        scores = scale_scores((read.features.float() @ question[..., None])[..., 0], read.mask)
        features = (read.features.float() + scores[..., None]).to(read.features.dtype)
        count = (read.count * self.share + 1e-6).long().clamp(min=1)
        plan = Plan.top(scores.detach(), count, read)
        return read.replace(features=features * read.mask[..., None]).apply(plan)

    def _synthesize(self, frames: Slots, state: MemoryState) -> Slots:
        """The slot [B,1,P,C] of a group [B,4,P,C]; a free slot if no frame is used."""
        P, C = frames.features.shape[2:]
        check_dim(self.name, C, self.dim)
        H, W = (state.H, state.W) if state.H * state.W == P else (1, P)
        last = frames.mask.sum(1, keepdim=True) - 1
        index = torch.arange(_GROUP, device=last.device).minimum(last).clamp(min=0)
        x = frames.take(index).features.to(self.code.dtype) + self.code
        features = self.blocks(x.unflatten(2, (H, W))).flatten(2, 3)
        return Slots(features.to(state.slots.features.dtype), average(frames).info)


def scale_scores(scores: Tensor, mask: Tensor) -> Tensor:
    """Scales scores [B,N] to 0..1 over the real tokens; 0 if all are equal, where the published code divides 0 by 0."""
    low = scores.masked_fill(~mask, torch.inf).amin(1, keepdim=True)
    high = scores.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
    return torch.where(mask & (high > low), (scores - low) / (high - low).clamp(min=1e-12), 0)


class _Block(nn.Module):
    """Attention in space, attention in time, and a convolution that halves the frames; an average before training."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.space, self.time = IdentityLayer(dim), IdentityLayer(dim)
        self.convolution = nn.Conv3d(dim, dim, 3, stride=(2, 1, 1))
        with torch.no_grad():
            self.convolution.weight.zero_()[:, :, 1:, 1, 1] = 0.5 * torch.eye(dim)[..., None]
            assert self.convolution.bias is not None
            self.convolution.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[B,T,H,W,C] to [B,T/2,H,W,C]."""
        B, T, H, W, C = x.shape
        x = self.space(x.reshape(B * T, H * W, C)).reshape(B, T, H * W, C)
        x = self.time(x.transpose(1, 2).flatten(0, 1)).reshape(B, H, W, T, C)
        # The border is repeated, so that equal frames remain equal.
        return self.convolution(F.pad(x.permute(0, 4, 3, 1, 2), (1,) * 6, "replicate")).permute(0, 2, 3, 4, 1)
