"""Questions to a video language model of parts (`ComposedVideoLLM`), with the interface of `Session`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.llm.chat import check_question
from fewtokens.llm.clock import Clock, stream_text
from fewtokens.llm.composed import ComposedVideoLLM, load_video_llm
from fewtokens.llm.interface import unwrapped
from fewtokens.llm.session import Answer, video_key
from fewtokens.llm.splice import warn_untrained
from fewtokens.networks.base import read_config
from fewtokens.profiling.cost import peak_memory
from fewtokens.video import Video, read


class PartsSession:
    """Answers questions on videos; each is read and encoded once.

    Args:
        model: in eval mode, with its methods.
        frames, size: of each video, spread evenly; the middle square, in pixels.
        kept: videos whose features are kept.

    Attributes:
        progress: called with what is being done, where it is set.
    """

    def __init__(self, model: ComposedVideoLLM, frames: int = 16, size: int = 224, *, kept: int = 4) -> None:
        if min(frames, size, kept) < 1:
            raise ValueError(f"frames, size and kept must be at least 1, got {frames}, {size} and {kept}")
        self.model, self.frames, self.size, self.kept = unwrapped(model), frames, size, kept
        self.progress: Callable[[str], None] | None = None
        self._cells: OrderedDict[Hashable, tuple[Tensor, Grid, Any]] = OrderedDict()

    @staticmethod
    def load(folder: str | Path, spec: str | None = None, *, frames: int | None = None, device: str = "auto") -> Any:
        """A session with a saved model, which is asked about as many frames of the size that it was trained on.

        Raises:
            ValueError: what `load_video_llm` says.
        """
        model = load_video_llm(folder, spec=spec, device=device)
        if spec is not None:
            warn_untrained(list(model.compressor.methods))  # type: ignore[arg-type]
        trained = read_config(folder).get("trained", {})
        return PartsSession(model, frames or trained.get("frames", 16), trained.get("size", 224))

    def unreduced(self) -> PartsSession:
        """The same with all visual tokens; the two share what they encode, and the parts but for the methods."""
        whole = ComposedVideoLLM(
            self.model.frames,
            self.model.llm,
            self.model.tokenizer,
            pool=self.model.pool,
            positions=self.model.positions,
        )
        whole.projector = self.model.projector
        other = PartsSession(whole.eval(), self.frames, self.size, kept=self.kept)
        other.progress, other._cells = self.progress, self._cells
        return other

    @torch.no_grad()
    def ask(
        self,
        video: str | Path | Video,
        question: str,
        max_new_tokens: int = 128,
        on_text: Callable[[str], None] | None = None,
        *,
        memory: bool = False,
    ) -> Answer:
        """Answers a question on a video, greedily; see `Session.ask`.

        Raises:
            ValueError: a video that cannot be read, a question with a special token, or a prompt and answer that are
                longer than the context.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        check_question(self.model.tokenizer, question)
        clock = Clock(self.model.device)
        cells, grid = self._encode(video, clock)
        self._say("reducing")
        batch: dict[str, Any] = {**self.model.ask([question]), "cells": cells, "grid": grid}
        tokens = self.model.tokens(batch)
        made = self.model.embedded(batch, tokens)
        self._check_length(made, max_new_tokens)
        clock.lap("reduce")
        self._say("answering")
        model, tokenizer = self.model.llm, self.model.tokenizer
        stream = stream_text(tokenizer, on_text, prompt=False)
        ids = model.generate(
            **made,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            streamer=stream,
        )
        clock.lap_at("prefill", stream.first)
        later, new = stream.last - stream.first, ids.shape[1]
        return Answer(
            text="".join(stream.pieces),
            tokens=int(tokens.count[0]),
            cells=grid.cells,
            prompt_tokens=made["inputs_embeds"].shape[1],
            new_tokens=new,
            seconds=clock.seconds,
            later=later,
            speed=(new - 1) / later if later > 0 else None,
            memory=peak_memory(lambda: model(**made, use_cache=True), self.model.device) if memory else None,
        )

    @torch.no_grad()
    def warm_up(self) -> None:
        """See `Session.warm_up`."""
        ids = torch.ones(1, 1, dtype=torch.int64, device=self.model.device)
        words = self.model.llm.get_input_embeddings()(ids)
        self.model.llm.generate(
            inputs_embeds=words, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False,
            pad_token_id=self.model.tokenizer.pad_token_id,
        )  # fmt: skip

    def _encode(self, video: Any, clock: Clock) -> tuple[Tensor, Grid]:
        key = video_key(video)
        if key in self._cells:
            self._cells.move_to_end(key)
            return self._cells[key][:2]
        self._say("reading")
        clip = video if isinstance(video, Video) else read(video, frames=self.frames, size=self.size)
        frames = square(clip.frames, self.size, len(clip.frames))
        clock.lap("decode")
        self._say("encoding")
        cells, grid = self.model.cells(frames[None], clip.times)
        clock.lap("encode")
        self._cells[key] = cells, grid, video
        while len(self._cells) > self.kept:
            self._cells.popitem(last=False)
        return cells, grid

    def _check_length(self, made: dict[str, Tensor], max_new_tokens: int) -> None:
        most = getattr(self.model.config, "max_position_embeddings", None)
        reach = int(made["position_ids"].max()) + 1
        if most is not None and reach + max_new_tokens > most:
            raise ValueError(
                f"the prompt reaches position {reach} and the answer may have {max_new_tokens}, but this model takes "
                f"{most} in all; take fewer frames or a smaller keep"
            )

    def _say(self, what: str) -> None:
        if self.progress is not None:
            self.progress(what)


def square(frames: Tensor, size: int, count: int) -> Tensor:
    """The middle square of frames uint8 [T,3,H,W], resized so that the short side fits; a video of fewer frames than
    `count` repeats its last."""
    height, width = frames.shape[2:]
    if min(height, width) != size:
        scale = size / min(height, width)
        shape = (max(size, round(height * scale)), max(size, round(width * scale)))
        resized = F.interpolate(frames.float(), size=shape, mode="bicubic", antialias=True, align_corners=False)
        frames = resized.round().clamp(0, 255).to(torch.uint8)
    top, left = (frames.shape[2] - size) // 2, (frames.shape[3] - size) // 2
    frames = frames[:, :, top : top + size, left : left + size]
    return torch.cat([frames, frames[-1:].expand(max(0, count - len(frames)), -1, -1, -1)])
