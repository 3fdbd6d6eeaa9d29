"""A stream in the key-value cache of a language model: each frame is processed once, a question when it is asked.

The parts of a prompt are processed in its order: the text before the video with the first frame, each step of frames
when it arrives, and the question with the text after the video when it is asked, against slots that it does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.kv_memory import RAW, TEXT, Columns, KVMemory, KVSlots, KVState, slot_info
from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import Tokens
from fewtokens.llm.answer import Answer
from fewtokens.llm.backends.base import Backend
from fewtokens.llm.clock import Clock, stream_text
from fewtokens.llm.layers.kv_runtime import KVRuntime
from fewtokens.llm.prompts import Processor, inputs_on
from fewtokens.llm.visuals import ReducedVisual
from fewtokens.video import Video


@dataclass(eq=False)
class _Layout:
    """How the prompt of one video is arranged.

    Attributes:
        grid: the rows and columns of cells of a step of frames.
        others: [m,D], rows of the video that are not cells, such as a newline, which follow its last frame.
        prefix: ids of the text before the video.
        offset: where the text after the video begins, see `position_ids`.
    """

    grid: Grid
    others: Tensor
    prefix: Tensor
    offset: int | None

    __repr__ = shape_repr


class KVStream:
    """The frames of streams as slots of a `KVMemory`; a state has what differs between streams.

    Args:
        model, processor: as `load` returns them.
        backend: the family of the model.
        method: the memory.

    Raises:
        ValueError: the layers of the model cannot be run against slots, the model is a `ComposedVideoLLM` with methods
            inside its language model, or the family has text between frames.
    """

    def __init__(self, model: Any, processor: Processor, backend: Backend, method: KVMemory) -> None:
        if getattr(model, "inside", None) is not None:
            raise ValueError(f"the model has methods inside its language model, which {method.name} would skip")
        self.model, self.processor, self.backend, self.method = model, processor, backend, method
        self.runtime = KVRuntime(model, backend, method)
        self._text("?", Grid(1, 1, 1))  # raises an error if the family cannot

    def start(self, grid: Grid, others: Tensor) -> KVState:
        """Returns the state after the text before the video.

        Args:
            grid: the rows and columns of cells of a step of frames.
            others: [m,D], rows of a video that are not cells, such as a newline, which follow its last frame.

        Raises:
            ValueError: such rows follow each frame.
        """
        prefix, _ = self._text("?", grid)
        if len(self._prompt("?", grid, 2)[1]) != 2 * grid.cells_per_frame + len(others):
            raise ValueError(f"{self.backend.name} has rows between frames, which {self.method.name} does not support")
        columns = Columns(self.runtime.embed(prefix), slot_info(TEXT, len(prefix)))
        state = KVState(self.runtime.empty(), layout=_Layout(grid, others, prefix, self._text_offset(grid)))
        if len(columns):  # a chat template may begin with the video
            state.slots = self._run(state, columns, state.slots)
        return state

    def push(self, state: KVState, features: Tensor, places: Tensor, second: float) -> None:
        """Adds a step of frames, in place.

        Args:
            state: the state.
            features: [P,D], its tokens.
            places: [P,2], their row and column in the grid.
            second: its second.

        Raises:
            ValueError: its positions are beyond the context of the model.
        """
        if len(features):
            self._write(state, features, places, second, state.steps)
        state.steps += 1

    def _write(
        self, state: KVState, features: Tensor, places: Tensor, second: Tensor | float, step: Tensor | int
    ) -> None:
        y, x = places.T.cpu()
        info = slot_info(RAW, len(features), second=second, step=step, y=y, x=x)
        self.method.write(Columns(features, info), state, partial(self._run, state))

    def push_video(self, reduced: ReducedVisual) -> KVState:
        """Returns the state after all frames of a video; its seconds are the indices of the frames."""
        tokens, others = reduced.tokens, reduced.visual.features
        if tokens is None or reduced.visual.deepstack or reduced.visual.kind != "video":
            raise ValueError(f"{self.method.name} holds videos, without DeepStack features; use it without images")
        return self.push_tokens(tokens, others[tokens.N :])

    def push_tokens(self, tokens: Tokens, others: Tensor) -> KVState:
        """Returns the state after all frames of the tokens of one video; the rows `others` are those of `start`."""
        state = self.start(tokens.grid, others)
        features, places = tokens.features[0], tokens.positions[0]
        frames, step = places[:, 0].round().long().unique(return_inverse=True)
        if self.method.joins:  # one pass for each piece that the method makes of them, instead of one for each frame
            order = step.argsort(stable=True)
            self._write(state, features[order], places[order, 1:], frames[step[order]], step[order])
            state.steps = len(frames)
            return state
        for index, second in enumerate(frames.tolist()):
            self.push(state, features[step == index], places[step == index, 1:], float(second))
        return state

    def ask(
        self, state: KVState, question: str, max_new_tokens: int, on_text: Callable[[str], None] | None, clock: Clock
    ) -> Answer:
        """Answers a question by greedy decoding, without the other settings of the model's `generation_config`.

        Raises:
            ValueError: prompt and answer are longer than the context, or the chat template depends on the question
                before the video.
        """
        layout, tail = state.layout, self._question(state, question)
        slots = self.method.read(state, partial(self._relevance, state, tail))
        self._check_length(slots, len(tail), max_new_tokens)
        clock.lap("reduce")
        read = int((slots.kind != TEXT).sum())
        stop = self.model.generation_config.eos_token_id
        stops = set(stop if isinstance(stop, Sequence) else [] if stop is None else [stop])
        stream = stream_text(self.processor.tokenizer, on_text)
        stream.put(layout.prefix[None])
        prompt_tokens, first, count = len(slots) + len(tail), state.columns, 0
        columns = tail
        while count < max_new_tokens:
            new, hidden, _ = self.runtime.run(columns, slots, first=first, offset=layout.offset)
            token = self.runtime.logits(hidden[-1:]).argmax(-1)
            stream.put(token.cpu())
            slots, first, count = KVSlots.concatenate([slots, new]), first + len(columns), count + 1
            if int(token) in stops:
                break
            columns = Columns(self.runtime.embed(token), slot_info(TEXT, 1))
        stream.end()
        clock.lap_at("prefill", stream.first)
        duration = stream.last - stream.first
        return Answer(
            text="".join(stream.pieces), tokens=read, cells=state.steps * layout.grid.cells_per_frame,
            prompt_tokens=prompt_tokens, new_tokens=count, seconds=clock.seconds, generation_seconds=duration,
            speed=(count - 1) / duration if duration > 0 else None,
        )  # fmt: skip

    def prefill(self, state: KVState, question: str) -> Tensor:
        """Returns the logits of each column of the prompt after the video, [m,V]; the state is unchanged."""
        return self.prefill_ids(state, *self._text(question, state.layout.grid))

    def prefill_ids(self, state: KVState, prefix: Tensor, suffix: Tensor, question: int | None = None) -> Tensor:
        """As `prefill`, of a prompt with the ids `prefix` before the video and `suffix` after it, such as answers.

        Args:
            question: the number of ids of the suffix by which a memory may choose slots; None for all.
        """
        layout, tail = state.layout, self._tail(state.layout, prefix, suffix)
        asked = tail if question is None else tail.take(0, len(layout.others) + question)
        slots = self.method.read(state, partial(self._relevance, state, asked))
        _, hidden, _ = self.runtime.run(tail, slots, first=state.columns, offset=layout.offset)
        return self.runtime.logits(hidden)

    def _question(self, state: KVState, question: str) -> Columns:
        """The columns of the prompt after the video."""
        return self._tail(state.layout, *self._text(question, state.layout.grid))

    def _tail(self, layout: _Layout, prefix: Tensor, suffix: Tensor) -> Columns:
        """The columns after the video, of a prompt with some ids before and after it."""
        if not torch.equal(prefix, layout.prefix):
            raise ValueError("the chat template puts the question before the video, which a stream cannot")
        embeddings = torch.cat([layout.others, self.runtime.embed(suffix)])
        return Columns(embeddings, slot_info(TEXT, len(embeddings)))

    def _relevance(self, state: KVState, tail: Columns, slots: KVSlots) -> Tensor:
        rates = self.runtime.run(tail, slots, first=state.columns, offset=state.layout.offset, rates=True)[2]
        assert rates is not None
        return rates.cpu()

    def _run(self, state: KVState, columns: Columns, context: KVSlots, visible: Tensor | None = None) -> KVSlots:
        slots, _, _ = self.runtime.run(columns, context, visible, first=state.columns, offset=state.layout.offset)
        state.columns += int(slots.info[:, -1].sum())
        return slots

    def _check_length(self, slots: KVSlots, tail: int, new_tokens: int) -> None:
        """Raises a ValueError if prompt and answer are longer than the context."""
        limit, length = self.runtime.limit, len(slots) + tail
        if limit is not None and length + new_tokens > limit:
            raise ValueError(
                f"the prompt has {length} tokens and the answer may have {new_tokens}, but the context of this model "
                f"is {limit}; use a smaller memory"
            )

    def _text_offset(self, grid: Grid) -> int | None:
        """Where the text after a video begins in the model's own positions, see `position_ids`."""
        if self.runtime.axes == 1:
            return None
        steps = grid.H + grid.W + 1  # the longest axis
        prompt, at = self._prompt("?", grid, steps)
        ids = self.backend.original_positions(self.model, prompt, torch.ones_like(prompt["input_ids"]))[:, 0]
        offset = int(ids[0, int(at[-1]) + 1] - ids[0, int(at[0])])
        return None if offset == steps else offset

    def _prompt(self, question: str, frame: Grid, steps: int) -> tuple[dict[str, Any], Tensor]:
        """A prompt with a video of some steps, without its pixels, and the columns of its rows."""
        grid = Grid(steps, frame.H, frame.W)
        blank = torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(steps * self.backend.tubelet(self.model), -1, -1, -1)
        video = Video(blank, torch.arange(len(blank), dtype=torch.float64))
        prepared = self.backend.describe(self.model, self.processor, video, grid)
        ids = self.processor.ids(question, prepared.text).to(self.model.device)
        rows = prepared.text.count(self.processor.placeholder)
        modality = "image" if self.backend.needs_items else "video"
        at = self.backend.locate(self.model, modality, {"input_ids": ids}, rows)[1][:, 1]
        return inputs_on(self.model, prepared.inputs) | {"input_ids": ids}, at

    def _text(self, question: str, grid: Grid) -> tuple[Tensor, Tensor]:
        """The ids of a prompt before and after the video."""
        prompt, at = self._prompt(question, grid, 2)
        ids = prompt["input_ids"]
        if int(at[-1] - at[0]) + 1 != len(at):
            raise ValueError(
                f"{self.backend.name} has text between frames, which {self.method.name} does not support; use a memory "
                "before the language model, such as 'moviechat'"
            )
        return ids[0, : int(at[0])], ids[0, int(at[-1]) + 1 :]
