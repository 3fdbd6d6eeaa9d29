"""Video-XL: windows of visual tokens are condensed into the keys and values of summary tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.kv_memory import (
    COUNTED,
    KIND,
    MASS,
    RAW,
    SUMMARY,
    TEXT,
    Columns,
    KVMemory,
    KVSlots,
    KVState,
    Relevance,
    Run,
)

_ATTENTION = ("full_coverage", "step_expansion")


class VideoXL(KVMemory):
    """After every `ratio` visual tokens a summary token is processed; at the end of a window only these are held.

    Video-XL (arXiv 2409.14485), which is Activation Beacon (arXiv 2401.03462) on visual tokens. A summary token has one
    learned embedding and its own query, key and value projections. A window of `window` visual tokens and its summaries
    attend to the text before the video, to the summaries of earlier windows, and to what comes before them in the
    window; when it is full, the keys and values of its visual tokens are dropped. Those of an unfinished window stay.
    Counting to `ratio` goes on over windows, so T frames of P tokens leave floor(P*T/ratio) summaries.

    The published training draws a ratio per window, and its code draws one at inference too if several are configured;
    here it is one number. Held summaries grow with the video there; here the most similar of the pairs of neighbors
    (0,1), (2,3), ... are averaged beyond `cap`, weighted by tokens, by the cosine of their values in all layers (ours).

    Untrained, without `checkpoint`, summaries use the embedding of the end-of-sequence token and the model's own
    projections: a variant of the method, without its quality. `fewtokens train video-llm --objective video_xl` trains
    them, for the ratio and the window that they are used with (`fewtokens.train.summary_tokens`).

    Args:
        ratio: visual tokens per summary, at least 1. Default: 8.
        window: visual tokens of a window. Default: 1440, as in the training scripts, 10 frames of 144.
        cap: number of summaries that are held; None for all, as published. Default: 4096.
        attention: "full_coverage" (default, as published), causal; or "step_expansion", where summaries of an
            unfinished window are seen by themselves alone and have no positions.
        positions: "contiguous" (default, as published) or "absolute", see `KVMemory`.
        checkpoint: the summary_tokens.safetensors of a training run; None for the untrained variant.
    """

    paper = "Video-XL, arXiv 2409.14485"
    license = "written from the paper and the description of its code, which is Apache-2.0"
    cost = "1 + 1/ratio passes of each token, each over the window and the summaries"
    summarizes = True
    joins = True

    def __init__(
        self,
        ratio: int = 8,
        *,
        window: int = 1440,
        cap: int | None = 4096,
        attention: str = "full_coverage",
        positions: str = "contiguous",
        checkpoint: str | None = None,
    ) -> None:
        self.set_memory(cap, positions)
        for name, value in (("ratio", ratio), ("window", window)):
            if value < 1:
                raise ValueError(f"{self.name}: {name} must be at least 1, got {value}")
        if attention not in _ATTENTION:
            raise ValueError(f"{self.name}: attention must be 'full_coverage' or 'step_expansion', got {attention!r}")
        self.ratio, self.window, self.attention, self.checkpoint = ratio, window, attention, checkpoint

    def write(self, frame: Columns, state: KVState, run: Run) -> None:
        start = 0
        while start < len(frame):
            filled = int((state.slots.kind == RAW).sum())
            piece = frame.take(start, start + self.window - filled)
            start += len(piece)
            seen = state.stats.get("seen", torch.zeros((), dtype=torch.int64))
            columns = self._interleave(piece, int(seen) % self.ratio)
            state.stats["seen"] = seen + len(piece)
            new = run(columns, state.slots, self._visible(columns, state.slots))
            state.slots = KVSlots.concatenate([state.slots, new])
            if filled + len(piece) == self.window:
                state.slots = self._close(state.slots)

    def read(self, state: KVState, relevance: Relevance) -> KVSlots:
        slots = state.slots
        return slots if self.attention == "full_coverage" else slots.take(slots.info[:, COUNTED] > 0)

    def _interleave(self, piece: Columns, remainder: int) -> Columns:
        """Inserts summary tokens, each with the place and the second of the token before it."""
        places = summary_places(len(piece), self.ratio, remainder)
        source = torch.ones(len(piece) + len(places), dtype=torch.int64)
        source[places] = 0
        source = (source.cumsum(0) - 1).clamp(min=0)
        info = piece.info[source]
        info[places, KIND], info[places, MASS] = SUMMARY, self.ratio
        info[places, COUNTED] = float(self.attention == "full_coverage")
        return Columns(piece.embeddings[source.to(piece.embeddings.device)], info)

    def _visible(self, columns: Columns, context: KVSlots) -> Tensor | None:
        if self.attention == "full_coverage":
            return None
        counted = torch.cat([context.info[:, COUNTED], columns.info[:, COUNTED]]) > 0
        n, held = len(columns), len(context)
        own = torch.eye(held + n, dtype=torch.bool)[held:]
        return torch.ones(n, held + n, dtype=torch.bool).tril(held) & (counted | own)

    def _close(self, slots: KVSlots) -> KVSlots:
        """Drops the visual tokens of a full window, and merges summaries beyond `cap`."""
        slots = slots.take(slots.kind != RAW)
        slots.info[:, COUNTED] = 1
        text = int((slots.kind == TEXT).sum())
        while self.cap is not None and (excess := len(slots) - text - self.cap) > 0:
            values = torch.cat([layer[:, text:].transpose(0, 1).flatten(1) for layer in slots.values], 1)
            rows = F.normalize(values.float(), dim=1)
            pairs = len(rows) // 2
            similarity = (rows[: 2 * pairs : 2] * rows[1 : 2 * pairs : 2]).sum(1)
            best = similarity.argsort(descending=True, stable=True)[:excess].sort().values
            slots = slots.merge(text + 2 * best.cpu())
        return slots


def summary_places(count: int, ratio: int, remainder: int) -> Tensor:
    """The indices of summary tokens among `count` new tokens and themselves, int64.

    Args:
        count: the number of new visual tokens.
        ratio: visual tokens per summary.
        remainder: the number of visual tokens since the last summary.
    """
    index = torch.arange(count + (count + remainder) // ratio)
    return index[index % (ratio + 1) == ratio - remainder]
