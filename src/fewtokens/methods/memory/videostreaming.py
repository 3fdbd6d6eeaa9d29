"""VideoStreaming: memories of clips, each read after the one before, and selected by the question."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.core.memory import Memory, MemoryState, Slots
from fewtokens.core.method import load_weights
from fewtokens.methods.ops.frame_pool import pool_frame
from fewtokens.methods.ops.memory_rules import adjacency_stats, average, check_question, mean_key, merge_adjacent
from fewtokens.methods.ops.per_frame import check_dim
from fewtokens.methods.ops.resample import IdentityLayer, check_counts


class VideoStreaming(Memory):
    """Summarizes each clip to `tokens` tokens, and returns the clips that are most similar to the question.

    VideoStreaming (arXiv 2405.16009). A small causal transformer reads the summary of the clip before, the frames of
    the clip, and `tokens` slots that start as the average of the clip; the final states of these slots are its summary.
    The indicator of a clip is the mean of its summary. `read` with the cue "text", [B,L,dim], returns the `top` clips
    with the highest cosine of indicator and question, the mean of the states of the text in the same transformer, in
    the order of time; without the cue it returns all clips. The frames of a clip that is not full are summarized by
    the same rule.

    Differences from the paper (no code was found): the small language model is replaced by `num_layers` layers without
    position embeddings, which are trained with the rest; they start as the identity, so that without training a summary
    is an average. Beyond `cap`, the most similar neighbors in time are averaged (theirs grow without bound). The
    selection is that of inference, without Gumbel noise, and has no gradient; that of the summaries does not pass from
    a clip to the one before.

    Args:
        cap: number of slots, each a clip. Default: 64.
        dim: channels of the features and of the text.
        clip: number of frames of a clip. Default: 16.
        tokens: number of tokens of a summary, if a frame has as many. Default: 16.
        top: number of clips that a question selects. Default: 4.
        num_layers: number of layers. Default: 2.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
        on_jump: "error" (default), "shift" or "reset", what to do if time goes back; see `Memory`.
    """

    learned = True
    optional_cues = ("text",)
    spare = 1
    paper = "VideoStreaming, arXiv 2405.16009"
    license = "written from the paper; no code was found"
    cost = "per clip of n frames of P tokens: num_layers transformer layers over n*P + 2 * `tokens` tokens"

    def __init__(
        self,
        cap: int = 64,
        *,
        dim: int = 384,
        clip: int = 16,
        tokens: int = 16,
        top: int = 4,
        num_layers: int = 2,
        checkpoint: str | None = None,
        on_jump: str = "error",
    ) -> None:
        super().__init__()
        self.set_memory(cap, on_jump, recent=clip)
        check_counts(tokens=tokens, top=top, num_layers=num_layers)
        self.dim, self.clip, self.tokens, self.top = dim, clip, tokens, top
        self.num_layers, self.checkpoint = num_layers, checkpoint
        self.layers = nn.ModuleList(IdentityLayer(dim) for _ in range(num_layers))
        load_weights(self, checkpoint)

    def slot_tokens(self, P: int) -> int:
        return min(self.tokens, P)

    def new_stats(self, B: int, P: int, C: int, device: torch.device) -> dict[str, Tensor]:
        return adjacency_stats(B, self.cap, device) | {"last": torch.zeros(B, self.slot_tokens(P), C, device=device)}

    def write(self, frames: Slots, state: MemoryState, **cues: Any) -> None:
        clip = self._summarize(frames, state)
        state.stats["last"] = clip.features[:, 0].detach().float()
        merge_adjacent(state, clip, state.frames // self.clip)

    def held(self, state: MemoryState, **cues: Any) -> Slots:
        slots = state.slots
        if state.recent is not None:
            slots = Slots.concatenate([slots, self._summarize(state.recent, state)])
        text = cues.get("text")
        return slots if text is None else self._select(slots, text)

    def _select(self, slots: Slots, text: Tensor) -> Slots:
        """The `top` slots with the highest cosine with the question."""
        check_question(self.name, text, len(slots.info), self.dim)
        question = mean_key(self._states(text, torch.ones_like(text[..., 0], dtype=torch.bool))[:, None])
        score = (mean_key(slots.features) * question).sum(2).masked_fill(~slots.mask, -torch.inf)
        return slots.take(score.argsort(dim=1, descending=True, stable=True)[:, : self.top])

    def _summarize(self, frames: Slots, state: MemoryState) -> Slots:
        """The slot [B,1,S,C] of a clip [B,n,P,C]; a free slot if no frame is used."""
        P, C = frames.features.shape[2:]
        check_dim(self.name, C, self.dim)
        count = self.slot_tokens(P)
        mean = average(frames)
        start = pool_frame(mean.features, state.H, state.W, count)[:, 0]
        dtype = next(self.parameters()).dtype
        before = state.stats["last"].to(dtype)
        x = torch.cat([before, frames.features.flatten(1, 2).to(dtype), start.to(dtype)], 1)
        # The first clip has none before it.
        later = state.slots.mask.any(1, keepdim=True).expand(-1, count)
        mask = torch.cat([later, frames.mask.repeat_interleave(P, 1), torch.ones_like(later)], 1)
        features = self._states(x, mask)[:, None, -count:]
        place = pool_frame(mean.place, state.H, state.W, count)
        return Slots.create(features.to(state.slots.features.dtype), mean.mass, mean.seconds, place)

    def _states(self, x: Tensor, mask: Tensor) -> Tensor:
        """The final states of tokens [B,N,C] with a mask [B,N]; each sees itself and those before it."""
        N = x.shape[1]
        visible = torch.ones(N, N, dtype=torch.bool, device=x.device).tril() & mask[:, None]
        x = x.to(next(self.parameters()).dtype)
        for layer in self.layers:
            x = layer(x, None, visible)
        return x
