"""Answers questions about an endless stream at any time, from a memory of bounded size.

session = StreamSession(model, processor, "moviechat(cap=64)")
for video in fewtokens.stream("camera.mp4", chunk=8, fps=1):
    session.push(video)
print(session.ask("What happened so far?").text)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from fewtokens.core import files
from fewtokens.core.grid import Grid
from fewtokens.core.kv_memory import KVMemory, KVState
from fewtokens.core.layer_method import LayerMethod
from fewtokens.core.memory import TOLERANCE, Memory
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.streaming import SceneTrigger, drop_ratios
from fewtokens.core.tokens import Tokens
from fewtokens.llm.answer import Answer, check_length, check_question, generate
from fewtokens.llm.attach import layer_hooks
from fewtokens.llm.backends.base import backend_of
from fewtokens.llm.backends.rows import VisualFeatures, row_layout
from fewtokens.llm.chains import Methods, as_pipeline, split_chain
from fewtokens.llm.clock import Clock
from fewtokens.llm.cues import attention_rule, check_cues, make_cues, needed_cues
from fewtokens.llm.interface import unwrap
from fewtokens.llm.kv_stream import KVStream
from fewtokens.llm.prompt_editor import Compressed, check_prompt_options, edit_prompts
from fewtokens.llm.prompts import Processor, inputs_on
from fewtokens.llm.visuals import EncodedVisuals, ReducedVisual
from fewtokens.methods.pruning.dtd import Dtd
from fewtokens.video import Video

DEFAULT_MEMORY = "moviechat(cap=24, short=8)"


class StreamSession:
    """Answers questions about an endless stream, from a memory of bounded size.

    Each frame is encoded by the vision tower on its own (families with tubelets encode each pair), reduced by the
    methods before the memory, and pushed to the memory; nothing else is stored, so that any chunks give a bit-equal
    state. A question reads the memory and leaves it unchanged; a memory that selects by the question receives its
    embeddings. In the prompt, each slot of the memory is a frame at its
    mean second: families with times in the prompt show it (Qwen3-VL, SmolVLM, VideoLLaMA 3), Qwen2.5-VL has it in the
    position of the tokens. Where these positions would exceed the context, time is scaled down to fit. In families with
    DeepStack features, these are stored with the tokens, as further channels, for which a learned memory must be built
    (dim=).

    Args:
        model, processor: as `load` returns them; the model may be wrapped, see `attach`.
        spec: causal methods, a memory, and methods inside the language model, such as "moviechat(cap=64)" or
            "tail_drop(keep='8/frame') | ring(cap=32) | fastv(keep=0.5, layer=2)"; or causal methods and a memory in
            the key-value cache, such as "videoscan_cache(cap=64)", for families without text between frames.
            Default: "moviechat(cap=24, short=8)", which returns up to 32 frames.
        layout, positions: see `compress`.
        trigger: fraction of the frames at which `push` reports that a scene begins, see `SceneTrigger`, by how many
            tokens `dtd` drops; None for no reports.

    Attributes:
        frames: the number of frames pushed so far, since the last reset (see `Memory`).

    Raises:
        ValueError: the spec is invalid, has no memory or cannot be streamed, a method needs a cue that is not
            available, or the family cannot describe a video by its cells.
    """

    def __init__(
        self,
        model: Any,
        processor: Processor,
        spec: Methods = DEFAULT_MEMORY,
        *,
        layout: str = "per_frame",
        positions: str | None = None,
        trigger: float | None = None,
    ) -> None:
        check_prompt_options(layout, positions)
        model = unwrap(model)
        self.model, self.processor, self.backend = model, processor, backend_of(model)
        self.layout, self.positions = layout, positions
        before, inside = split_chain(spec, model)
        chain = as_pipeline(before, model)
        self.spec = " | ".join(method.spec for method in (*chain.methods, *inside))
        self.methods, self.memory, inside = _split_memory(chain, inside)
        check_cues(self.backend, model, chain)
        if "text" in chain.needs:
            raise ValueError(
                f"{chain.spec} reads the question, which is unknown while frames arrive; use other methods"
            )
        # Raises an error if the family cannot.
        one = Video(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), torch.zeros(1, dtype=torch.float64))
        self.backend.describe(model, processor, one, Grid(1, 1, 1))
        self.needs, self.rule = needed_cues(self.methods), attention_rule(self.methods)
        self.layer_hooks = layer_hooks(model, inside)
        self.modality = "image" if self.backend.needs_items else "video"
        self.tubelet = self.backend.tubelet(model)
        self._kv: KVStream | None = None
        if isinstance(self.memory, KVMemory):
            if layout != "per_frame" or positions is not None:
                raise ValueError(f"layout and positions have no effect with {self.memory.name}, which has its own")
            self._kv = KVStream(model, processor, self.backend, self.memory)
        self.trigger = None if trigger is None else SceneTrigger(trigger)
        self._dtd = Dtd()
        self._clear()

    def _reset(self) -> None:
        """Forgets all frames."""
        self._state: Any = None  # a MemoryState or KVState
        self._method_states: list[Any] = [None] * len(self.methods.methods)
        self._tokens: int | None = None  # of a step, in the memory
        self._last_cells: Any = None  # the state of `_dtd`
        self._pending: list[tuple[Tensor, float]] = []  # frames of a tubelet that is not full
        self.frames = 0

    def _clear(self) -> None:
        """Returns to the state before the first frame."""
        self._reset()
        self._last = -torch.inf  # the second of the last frame
        self._shape: tuple[int, int] | None = None  # of the frames that are pushed
        self._size: tuple[int, int] | None = None  # to which they are resized, see `Backend.frame_size`
        self._outputs: Any = None  # an output of the encoder, into which the rows of a prompt are inserted
        self._others: Tensor | None = None  # the rows of a frame that are not cells
        if self.trigger is not None:
            self.trigger = SceneTrigger(self.trigger.fraction)

    @property
    def second(self) -> float | None:
        """The second of the last frame; None before the first."""
        return None if self._last == -torch.inf else self._last

    @property
    def _is_empty(self) -> bool:
        return self._state is None and not self._pending

    @property
    def nbytes(self) -> int:
        """The number of bytes of the state, which has an upper bound."""
        tensors = [frame for frame, _ in self._pending]
        for state in (*self._method_states, self._last_cells):
            tensors += _tensors(state)
        memory = 0 if self._state is None else self._state.nbytes
        return memory + sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @torch.no_grad()
    def push(self, frames: Video | Tensor, times: Tensor | Sequence[float] | None = None) -> list[float]:
        """Adds the next frames.

        Args:
            frames: uint8 [T,3,H,W], or a `Video`, which has times.
            times: the second of each frame, [T]. Default: 1 s after the frame before; the first at 0.

        Returns:
            The seconds at which a scene begins, if the session has a trigger.

        Raises:
            ValueError: the frames have another type or size than earlier ones, an earlier method of the chain leaves
                frames with different numbers of tokens, or a time goes back and the memory has on_jump="error". Frames
                before the one that causes an error are added.
        """
        if isinstance(frames, Video):
            times = frames.times if times is None else times
            frames = frames.frames
        if not isinstance(frames, Tensor) or frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
            found = f"{frames.dtype} {list(frames.shape)}" if isinstance(frames, Tensor) else type(frames).__name__
            raise ValueError(f"frames must be uint8 [T,3,H,W] or a Video, got {found}")
        if times is None:
            start = 0.0 if self.second is None else self._last + 1
            times = start + torch.arange(len(frames), dtype=torch.float64)
        seconds = torch.as_tensor(times, dtype=torch.float64).tolist()
        if len(seconds) != len(frames):
            raise ValueError(f"{len(frames)} frames need as many times, got {len(seconds)}")
        scenes: list[float] = []
        for frame, second in zip(frames, seconds, strict=True):
            scenes += self._push_frame(frame, second)
        return scenes

    def _push_frame(self, frame: Tensor, second: float) -> list[float]:
        size = int(frame.shape[1]), int(frame.shape[2])
        if self._shape is None:
            self._set_shape(size)
        if size != self._shape:
            (height, width), (new_height, new_width) = self._shape, size  # type: ignore[misc]
            raise ValueError(f"the frames of this stream have {width}x{height} pixels, got {new_width}x{new_height}")
        if not torch.isfinite(torch.tensor(second)):
            raise ValueError(f"the time of every frame must be finite, got {second}")
        scenes = []
        if second < self._last - TOLERANCE:
            if self.memory.on_jump == "error":
                remedy = (
                    "give the memory on_jump='shift' to continue at the earlier time, or on_jump='reset' to forget all "
                    "earlier frames"
                )
                remedy = "start another session" if self._kv else remedy
                raise ValueError(f"time goes back from {self._last:.3f} s to {second:.3f} s; {remedy}")
            if self.memory.on_jump == "reset":
                self._reset()
            else:
                scenes += self._flush()  # a step does not extend over a jump
        self._last, self.frames = second, self.frames + 1
        self._pending.append((frame.clone(), second))
        return scenes + (self._flush() if len(self._pending) == self.tubelet else [])

    def _set_shape(self, shape: tuple[int, int]) -> None:
        """Sets the size of the frames of the stream, and that to which they are resized.

        The latter is that of a video with as many frames as the memory can return.
        """
        slots = 1
        if isinstance(self.memory, Memory):
            slots = self.memory.cap + (self.memory.recent if self.memory.recent > 1 else 0)
        longest = torch.zeros(1, 3, *shape, dtype=torch.uint8).expand(slots * self.tubelet, -1, -1, -1)
        video = Video(longest, torch.arange(len(longest), dtype=torch.float64))
        self._shape, self._size = shape, self.backend.frame_size(self.model, self.processor, video)

    def _flush(self) -> list[float]:
        """Encodes the frames that wait, and pushes them to the memory as one step."""
        pending, self._pending = self._pending, []
        if not pending:
            return []
        cells, tokens, states = self._reduce(*self._encode(pending), self._method_states)
        if self._kv is None and self._tokens not in (None, tokens.N):
            raise ValueError(
                f"{self.methods.spec} leaves {tokens.N} tokens of this frame and {self._tokens} of earlier ones, but a "
                "memory requires the same number; use methods with a budget per frame, such as '16/frame'"
            )
        self._state = self._push(tokens, self._state)
        self._tokens, self._method_states = tokens.N, states
        if self.trigger is None:
            return []
        kept, last = self._dtd.step(cells, self._last_cells)
        first, self._last_cells = self._last_cells is None, last
        # The first frame has no earlier one, so nothing in it can be dropped.
        return [] if first or not self.trigger(float(drop_ratios(kept)[0])) else [pending[0][1]]

    def _push(self, tokens: Tokens, state: Any) -> Any:
        """Returns the state of the memory after the tokens of a step; it may be changed in place."""
        if self._kv is None:
            return self.memory.push(tokens, state)  # type: ignore[union-attr]
        assert self._others is not None and tokens.grid.times is not None
        state = self._kv.start(tokens.grid, self._others) if state is None else state
        if self._others.shape[1] != tokens.C:
            raise ValueError(f"{self.backend.name} has DeepStack features, which {self.memory.name} does not support")
        real = tokens.mask[0]
        self._kv.push(state, tokens.features[0, real], tokens.positions[0, real, 1:], float(tokens.grid.times[0]))
        return state

    def _encode(self, pending: Sequence[tuple[Tensor, float]]) -> tuple[VisualFeatures, float]:
        """Encodes the frames of one step; returns its rows and its second. The last frame is repeated if one misses."""
        filled = [*pending, *[pending[-1]] * (self.tubelet - len(pending))]
        seconds = [second for _, second in filled]
        video = Video(torch.stack([frame for frame, _ in filled]), torch.tensor(seconds, dtype=torch.float64))
        backend, model = self.backend, self.model
        inputs = inputs_on(model, backend.prepare_at(model, self.processor, video, self._size).inputs)
        with backend.recording(model, self.modality, inputs, self.needs, self.rule) as set_cues:
            outputs = backend.encode(model, self.modality, inputs)
            groups = [("video", len(backend.entries(model, outputs)))]
            pixels = ["video"] if "pixels" in self.needs else []
            (visual,) = backend.visuals(model, self.modality, outputs, inputs, groups, pixels)
            set_cues([visual])
        if self._outputs is None:
            assert visual.layout is not None
            self._others = visual.features[visual.layout.others(visual.features.device)]
            self._outputs = backend.pack(self.modality, outputs, [visual])
        return visual, sum(seconds) / len(seconds)

    def _reduce(self, visual: VisualFeatures, second: float, states: Sequence[Any]) -> tuple[Tokens, Tokens, list[Any]]:
        """Returns the cells of a step, its tokens for the memory, and the new states of the methods before it."""
        assert visual.layout is not None
        grid, rows = visual.layout.grid, visual.layout.cells(visual.features.device)
        grid = Grid(1, grid.H, grid.W, torch.tensor([second], dtype=torch.float64))
        cells = Tokens.from_cells(visual.features[None, rows], grid)
        tokens, new_states = cells, list(states)
        if len(states):
            cues = make_cues(self.needs, self.model, {}, [visual], cells, [0], None)
            tokens, new_states = self.methods.step(cells, list(states), **cues)
        layers = [layer[None, rows] for layer in visual.deepstack]
        if layers:
            pooled = layers if tokens is cells else [tokens.pool(layer, cells) for layer in layers]
            tokens = tokens.replace(features=torch.cat([tokens.features, *pooled], 2))
        return cells, tokens, new_states

    @torch.no_grad()
    def ask(self, question: str, max_new_tokens: int = 128, on_text: Callable[[str], None] | None = None) -> Answer:
        """Answers a question about all frames so far by greedy decoding; the state is unchanged.

        Args:
            question, max_new_tokens, on_text: see `Session.ask`.

        Returns:
            The answer; its `cells` are those of all frames so far.

        Raises:
            ValueError: there is no frame yet, the question contains a special token, prompt and answer are longer than
                the context, or methods are attached to the model.
        """
        check_question(self.model, question, max_new_tokens)
        if self._is_empty:
            raise ValueError("no frame was pushed yet; a question needs at least one")
        clock = Clock(self.model.device)
        state = self._state
        if self._pending:
            _, tokens, _ = self._reduce(*self._encode(self._pending), self._method_states)
            state = self._push(tokens, None if state is None else state.copy() if self._kv else state.clone())
        clock.lap("encode")
        if self._kv is not None:
            return self._kv.ask(state, question, max_new_tokens, on_text, clock)
        assert isinstance(self.memory, Memory)
        cues = self._read_cues(question, state.slots.features.shape[3])
        short = self._prompt(self.memory.read(state, **cues), float(state.clock[0, 0]), question, max_new_tokens)
        check_length(self.backend, self.model, short.inputs, max_new_tokens, "a smaller memory")
        clock.lap("reduce")
        with self.layer_hooks() as runtime:
            answer = generate(self.model, self.processor, short, max_new_tokens, on_text, clock)
            answer.layer_tokens = [] if runtime is None else runtime.layer_tokens
        answer.cells = int(state.seen[0]) * state.H * state.W
        return answer

    def _read_cues(self, question: str, channels: int) -> dict[str, Tensor]:
        """The cues with which the memory is read: the embeddings of the question [1,L,C], if it uses them.

        C is the number of channels of the memory; those of DeepStack features are zero.
        """
        if not isinstance(self.memory, Memory) or "text" not in self.memory.optional_cues:
            return {}
        ids = self.processor.tokenizer(question, add_special_tokens=False, return_tensors="pt")["input_ids"]
        if not ids.shape[1]:
            return {}
        text = self.model.get_input_embeddings()(ids.to(self.model.device))
        return {"text": nn.functional.pad(text, (0, channels - text.shape[2]))}

    def _prompt(self, tokens: Tokens, duration: float, question: str, max_new_tokens: int) -> Compressed:
        """Returns the prompt of a question, with what was read from the memory.

        Args:
            tokens: what was read.
            duration: the second of the last frame.
        """
        backend, model, grid = self.backend, self.model, tokens.grid
        assert grid.times is not None and self._others is not None
        blank = torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(grid.T * self.tubelet, -1, -1, -1)
        video = Video(blank, grid.times.repeat_interleave(self.tubelet), duration=duration)
        prepared = backend.describe(model, self.processor, video, grid)
        ids = self.processor.ids(question, prepared.text).to(model.device)
        prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | inputs_on(model, prepared.inputs)
        rows = prepared.text.count(self.processor.placeholder)
        placeholder, at = backend.locate(model, self.modality, prompt, rows)
        layout = row_layout(rows, grid.shape, 1)
        assert layout is not None
        tokens = self._place(tokens, prompt, at[:, 1], max_new_tokens)
        D = self._others.shape[1]
        features, *layers = tokens.features[0].split(D, 1)
        whole = VisualFeatures("video", features[:0], layout)
        deepstack = [torch.cat([layer, layer.new_zeros(len(self._others), D)]) for layer in layers]
        short = ReducedVisual(
            replace(whole, features=torch.cat([features, self._others]), deepstack=deepstack),
            tokens.replace(features=features[None]),
        )
        encoded = EncodedVisuals(self._outputs, placeholder, [whole], [0], [at[:, 1]])
        return edit_prompts(
            backend, model, prompt, {self.modality: encoded}, {self.modality: [short]}, layout=self.layout,
            positions=self.positions,
        )  # fmt: skip

    def _place(self, tokens: Tokens, prompt: dict[str, Any], columns: Tensor, max_new_tokens: int) -> Tokens:
        """Moves tokens to the seconds of their slots, in families whose positions count seconds at equal intervals.

        Sets the interval in the prompt: the mean one, or a shorter one if the positions would exceed the context.
        """
        times = tokens.grid.times
        assert times is not None
        span = float(times[-1] - times[0])
        if "second_per_grid_ts" not in prompt or not span:
            return tokens
        interval = span / (tokens.grid.T - 1)
        prompt["second_per_grid_ts"] = prompt["second_per_grid_ts"].new_tensor([interval])
        limit = self.backend.context_length(self.model)
        old = self.backend.original_positions(self.model, prompt, prompt["attention_mask"])
        excess = 0 if limit is None else int(old.max()) + 1 + max_new_tokens - limit
        if excess > 0:
            length = int(old[0, 0, columns[-1]] - old[0, 0, columns[0]])
            prompt["second_per_grid_ts"] *= max(0, length - excess) / max(1, length)
        # A token between two slots is between their seconds.
        step = ((times - times[0]) / interval).to(tokens.positions)
        frame = tokens.positions[..., 0]
        before, after = (step[index.long()] for index in (frame.floor(), frame.ceil()))
        moved = torch.lerp(before, after, frame.frac())[..., None]
        return tokens.replace(positions=torch.cat([moved, tokens.positions[..., 1:]], 2))

    def snapshot(self, path: str | Path) -> Path:
        """Writes the state to a safetensors file, atomically; `restore` continues from it bit-equally.

        Raises:
            ValueError: there is no frame yet.
            OSError: the path is not writable.
        """
        if self._is_empty:
            raise ValueError("no frame was pushed yet, so there is no state to save")
        if isinstance(self._state, KVState):
            tensors = {f"memory.{name}": tensor for name, tensor in self._state.tensors().items()}
        else:
            leaves = [] if self._state is None else tree_flatten(self._state)[0]
            tensors = {f"memory.{index}": leaf for index, leaf in enumerate(leaves)}
        tensors |= {f"pending.{index}": frame for index, (frame, _) in enumerate(self._pending)}
        for index, state in enumerate([*self._method_states, self._last_cells]):
            tensors |= {f"method.{index}.{number}": tensor for number, tensor in enumerate(_tensors(state))}
        if self.trigger is not None:
            tensors["trigger"] = torch.cat([self.trigger.counts, torch.tensor([int(self.trigger.below)])])
        header = {
            "spec": self.spec, "family": self.backend.name, "shape": self._shape, "frames": self.frames,
            "last": self._last, "pending": [second for _, second in self._pending],
        }  # fmt: skip
        return files.save(path, "stream", tensors, header)

    @torch.no_grad()
    def restore(self, path: str | Path) -> None:
        """Replaces the state by one that `snapshot` wrote; the session is empty after an error in the file.

        Model and spec must be those of the snapshot, with a trigger in both sessions or in none.

        Raises:
            ValueError: the file does not exist, is corrupt, or does not fit this session.
        """
        tensors, header = files.load(path, "stream")
        has_trigger = "a trigger" if "trigger" in tensors else "no trigger"
        found = (header.get("spec"), header.get("family"), has_trigger)
        expected = (self.spec, self.backend.name, "no trigger" if self.trigger is None else "a trigger")
        for before, now in zip(found, expected, strict=True):
            if before != now:
                raise ValueError(f"{path}: is of a session with {files.one_line(before)}, not with {now}")
        self._clear()
        try:
            self._set_shape((int(header["shape"][0]), int(header["shape"][1])))
            assert self._shape is not None
            # The states after a blank frame have the structure of those in the file.
            cells, tokens, states = self._reduce(
                *self._encode([(torch.zeros(3, *self._shape, dtype=torch.uint8), 0.0)]), self._method_states
            )
            if any(name.startswith("memory.") for name in tensors):
                blank = self._push(tokens, None)
                if isinstance(blank, KVState):
                    self._state = _restore_slots(tensors, blank)
                else:
                    leaves, structure = tree_flatten(blank)
                    saved = [_fit(tensors[f"memory.{index}"], leaf) for index, leaf in enumerate(leaves)]
                    self._state = tree_unflatten(saved, structure)
                self._tokens = tokens.N
                last = None if self.trigger is None else self._dtd.step(cells)[1]
                *self._method_states, self._last_cells = (
                    _replace_tensors(state, [tensors[f"method.{index}.{n}"] for n in range(len(_tensors(state)))])
                    for index, state in enumerate([*states, last])
                )
            if self.trigger is not None:
                *counts, below = tensors["trigger"].tolist()
                self.trigger.counts, self.trigger.below = torch.tensor(counts), bool(below)
            pending = enumerate(header["pending"])
            self._pending = [(tensors[f"pending.{index}"], float(second)) for index, second in pending]
            self.frames, self._last = int(header["frames"]), float(header["last"])
        except Exception as error:
            self._clear()
            if isinstance(error, _DoesNotFit):
                raise ValueError(f"{path}: is of another model: {error}") from None
            if isinstance(error, KeyError | TypeError | IndexError):
                raise ValueError(f"{path}: is incomplete ({type(error).__name__} {files.one_line(error)})") from None
            raise


class _DoesNotFit(ValueError):
    """A saved tensor has another shape or dtype than that of this session."""


def _fit(saved: Tensor, own: Tensor) -> Tensor:
    """Returns a saved tensor on the device of the session's own, after comparing the two."""
    if (saved.shape, saved.dtype) != (own.shape, own.dtype):
        raise _DoesNotFit(f"{saved.dtype} {list(saved.shape)} instead of {own.dtype} {list(own.shape)}")
    return saved.to(own.device)


def _restore_slots(tensors: dict[str, Tensor], own: KVState) -> KVState:
    """Returns the state in a file, after comparing the keys and values with those of the session's own."""
    saved = {name.removeprefix("memory."): value for name, value in tensors.items() if name.startswith("memory.")}
    for name, value in own.tensors().items():
        shape, expected = list(saved[name].shape), list(value.shape)
        if (saved[name].dtype, saved[name].ndim) != (value.dtype, value.ndim) or shape[:-2] + shape[-1:] != (
            expected[:-2] + expected[-1:]
        ):
            raise _DoesNotFit(f"{saved[name].dtype} {shape} instead of {value.dtype} {expected}")
    state = KVState.from_tensors(saved, own.slots.keys[0].device)
    state.layout = own.layout
    return state


def _tensors(state: Any) -> list[Tensor]:
    """The tensors and numbers of the state of a causal method, None or a dataclass of these."""
    return [] if state is None else [torch.as_tensor(getattr(state, field.name)) for field in fields(state)]


def _replace_tensors(state: Any, tensors: Sequence[Tensor]) -> Any:
    """Returns a state with other tensors and numbers, see `_tensors`."""
    if state is None:
        return None
    values = {}
    for field, tensor in zip(fields(state), tensors, strict=True):
        own = getattr(state, field.name)
        values[field.name] = _fit(tensor, own) if isinstance(own, Tensor) else type(own)(tensor.item())
    return replace(state, **values)


def _split_memory(chain: Pipeline, inside: list[LayerMethod]) -> tuple[Pipeline, Memory | KVMemory, list[LayerMethod]]:
    """Returns the methods before the memory of a chain, the memory, and those inside the language model after it.

    Raises:
        ValueError: the last method is no memory, there is more than one, or an earlier one cannot be streamed.
    """
    methods: list[Any] = [*chain.methods]
    if inside and isinstance(inside[0], KVMemory):
        methods, inside = [*methods, inside[0]], inside[1:]
        if inside:
            raise ValueError(f"{methods[-1].name} holds keys and values, which {inside[0].name} cannot drop; remove it")
    before, memory = methods[:-1], methods[-1] if methods else None
    if not isinstance(memory, Memory | KVMemory):
        raise ValueError(
            f"a stream requires a memory as the last method before the language model, such as {DEFAULT_MEMORY!r}; got "
            f"{chain.spec!r}"
        )
    for method in before:
        if isinstance(method, Memory):
            raise ValueError(f"{method.name} is followed by another memory; use one of them")
        if method.stage == "encoder":
            raise ValueError(f"{method.name} acts inside the vision tower, which a stream does not support; remove it")
    pipeline = Pipeline(before)
    pipeline.check_causal()
    return pipeline, memory, inside
