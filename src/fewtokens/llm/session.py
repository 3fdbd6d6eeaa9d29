"""Questions on videos: each video is read and encoded once, each question is only spliced in.

model, processor = load("Qwen/Qwen2.5-VL-3B-Instruct")
session = Session(model, processor, spec="token_dynamics(keep=32)")
print(session.ask("clip.mp4", "What happens?").text)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewtokens.llm.attach import check_free, inside_of
from fewtokens.llm.backends.base import backend_of
from fewtokens.llm.chains import Methods, as_pipeline, split_chain
from fewtokens.llm.clock import Clock, stream_text
from fewtokens.llm.cues import check_cues
from fewtokens.llm.interface import unwrapped
from fewtokens.llm.prompt_editor import LAYOUTS, POSITIONS, Compressed, edit_prompts
from fewtokens.llm.prompts import Processor
from fewtokens.llm.visuals import EncodedVisuals, ReducedVisual, encode_visuals, reduce_visuals
from fewtokens.profiling.memory import peak_memory
from fewtokens.video import Video, read


@dataclass
class Answer:
    """An answer, and what it cost.

    Attributes:
        text: the answer.
        tokens: visual tokens that the language model was given, without rows that are no cells (a newline).
        cells: visual tokens there were before reduction.
        prompt_tokens: all that the language model was given.
        new_tokens: how many tokens the answer has.
        seconds: to the first token: "decode" (reading and resizing), "encode", "reduce" (with the prompt) and
            "prefill"; 0 for what was kept from an earlier question.
        later: seconds from the first token to the end of the answer.
        speed: tokens a second after the first; None if there is no second one.
        memory: bytes at most beyond weights and features while the question was answered; None on a CPU, where
            `ask(memory=True)` measures the prefill by running it once more.
    """

    text: str
    tokens: int
    cells: int
    prompt_tokens: int
    new_tokens: int
    seconds: dict[str, float] = field(default_factory=dict)
    later: float = 0.0
    speed: float | None = None
    memory: int | None = None

    @property
    def first_token(self) -> float:
        """Seconds to the first token."""
        return sum(self.seconds.values())


@dataclass
class CachedVideo:
    """A video behind the encoder.

    Attributes:
        inputs: of the prompt beside pixels and ids.
        text: stands for the video.
        encoded: its features by modality; places are those of the question that came first.
        source: the video object that was asked about, so that its id stays its own.
    """

    inputs: dict[str, Any]
    text: str
    encoded: dict[str, EncodedVisuals]
    source: Any = None


class Session:
    """Answers questions on videos with few visual tokens.

    Args:
        model, processor: as `load` gives them; the model may be wrapped, see `attach`.
        spec: a chain of methods, see `attach`; "" keeps all tokens. By default the model's own methods, if it has some.
        frames: of each video, spread evenly; by default as many as the processor says.
        fps: frames each second instead.
        layout, positions: see `compress`.
        kept: how many videos' features are kept, those asked about last.

    Attributes:
        progress: called with what is being done, if set.

    Raises:
        ValueError: a spec that does not parse, acts inside the encoder or needs a cue that the family cannot give.
    """

    def __init__(
        self,
        model: Any,
        processor: Processor,
        spec: Methods | None = None,
        frames: int | None = None,
        *,
        fps: float | None = None,
        layout: str = "per_frame",
        positions: str | None = None,
        kept: int = 4,
    ) -> None:
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
        if positions is not None and positions not in POSITIONS:
            raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, got {positions!r}")
        if kept < 1:
            raise ValueError(f"kept must be at least 1 video, got {kept}")
        model = unwrapped(model)
        self.model, self.processor, self.backend = model, processor, backend_of(model)
        self.fps, self.kept = fps, kept
        self.frames = None if fps is not None else processor.num_frames if frames is None else frames
        self.layout, self.positions = layout, positions
        before, inside = split_chain(self.backend.default_methods(model) if spec is None else spec, model)
        self.pipeline = as_pipeline(before, model)
        self.inside = inside_of(model, inside)
        check_cues(self.backend, self.pipeline)
        self.pixels, self.per_question = ("pixels" in self.pipeline.needs), ("text" in self.pipeline.needs)
        self.progress: Callable[[str], None] | None = None
        self._encoded: OrderedDict[Hashable, CachedVideo] = OrderedDict()
        self._reduced: dict[Hashable, dict[str, list[ReducedVisual]]] = {}

    def unreduced(self) -> Session:
        """The same with all visual tokens; the two share what they read and encode."""
        other = Session(self.model, self.processor, "", self.frames, fps=self.fps, kept=self.kept)
        other.pixels, other.progress, other._encoded = self.pixels, self.progress, self._encoded
        return other

    @torch.no_grad()
    def warm_up(self) -> None:
        """Says two words on one, so that what a first call costs is not part of the answer to come."""
        ids = torch.ones(1, 1, dtype=torch.int64, device=self.model.device)
        self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)

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
        """Answers a question on a video, greedily.

        Args:
            video: a file, a folder of images, or frames with times.
            question: one that does not name the tokens for videos.
            max_new_tokens: at most.
            on_text: called with each piece of the answer as it comes; together they are `Answer.text`.
            memory: measure the prefill on a CPU too, which runs it twice.

        Raises:
            ValueError: a video that cannot be read, a question with a special token, a prompt and answer that are
                longer than the context, or a model that something else is attached to.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        check_free(self.model)
        clock = Clock(self.model.device)
        key = video_key(video)
        encoded, prompt = self._encode(key, video, question, clock)
        self._say("reducing")
        short = self._reduce(key, encoded, prompt)
        self._check_length(short.inputs, max_new_tokens)
        clock.lap("reduce")
        self._say("answering")
        with self.inside():
            answer = self._generate(short, max_new_tokens, on_text, clock)
            if memory and answer.memory is None:
                answer.memory = peak_memory(lambda: self.model(**dict(short.inputs), use_cache=True), self.model.device)
        return answer

    def _encode(self, key: Hashable, video: Any, question: str, clock: Clock) -> tuple[CachedVideo, dict[str, Any]]:
        """The features of a video, kept or new, and the prompt without its pixels."""
        kept = self._encoded.get(key)
        if kept is not None:
            self._encoded.move_to_end(key)
            return kept, self._prompt(kept.text, question) | kept.inputs
        self.processor.render(question)  # errors in it come before the work
        self._say("reading")
        clip = video if isinstance(video, Video) else self._read(video)
        prepared = self.processor.prepare(self.model, clip)
        clock.lap("decode")
        self._say("encoding")
        prompt = self._prompt(prepared.text, question)
        inputs = {name: self._moved(name, value) for name, value in prepared.inputs.items()}
        items = [[("video", len(clip))]] if self.backend.needs_items else None
        encoded = encode_visuals(self.backend, self.model, prompt | inputs, items, pixels=self.pixels)
        clock.lap("encode")
        left = {name: value for name, value in inputs.items() if not name.startswith("pixel_values")}
        cached = CachedVideo(left, prepared.text, encoded, video)
        self._encoded[key] = cached
        while len(self._encoded) > self.kept:
            self._encoded.popitem(last=False)
        return cached, prompt | left

    def _read(self, video: str | Path) -> Video:
        return read(video, frames=self.frames, fps=self.fps, size=self.processor.read_size)

    def _prompt(self, text: str, question: str) -> dict[str, Any]:
        ids = self.processor.ids(question, text).to(self.model.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _moved(self, name: str, value: Tensor) -> Tensor:
        cast = name.startswith("pixel_values") and value.is_floating_point()
        return value.to(self.model.device, self.model.dtype if cast else value.dtype)

    def _reduce(self, key: Hashable, cached: CachedVideo, prompt: dict[str, Any]) -> Compressed:
        """The short prompt. This is where the spec is applied, and nowhere else."""
        encoded = {modality: self._placed(modality, own, prompt) for modality, own in cached.encoded.items()}
        reduced = self._reduced.get(key)
        if reduced is None:
            reduced = reduce_visuals(self.backend, self.model, self.pipeline, prompt, encoded)
            if not self.per_question:
                self._reduced[key] = reduced
                self._reduced = {known: self._reduced[known] for known in self._reduced if known in self._encoded}
        options = {"layout": self.layout, "positions": self.positions}
        return edit_prompts(self.backend, self.model, prompt, encoded, reduced, **options)  # type: ignore[arg-type]

    def _placed(self, modality: str, encoded: EncodedVisuals, prompt: dict[str, Any]) -> EncodedVisuals:
        """The features at their places in another question."""
        at = (prompt["input_ids"][0] == self.backend.placeholder(self.model, modality)).nonzero().squeeze(1)
        return replace(encoded, places=[at])

    def _check_length(self, inputs: dict[str, Any], max_new_tokens: int) -> None:
        """Raises ValueError where prompt and answer are longer than the context."""
        most = self.backend.context_length(self.model)
        length = inputs["input_ids"].shape[1]
        at = inputs.get("position_ids")
        reach = length if at is None else max(length, int(at.max()) + 1)
        if most is None or reach + max_new_tokens <= most:
            return
        why, what = f"has {length} tokens", "fewer frames or a smaller keep"
        if reach > length:
            why, what = f"reaches position {reach}", "fewer frames, a smaller keep, or positions='renumber'"
        asked = f"the prompt {why} and the answer may have {max_new_tokens}"
        raise ValueError(f"{asked}, but this model takes {most} in all; take {what}")

    def _generate(
        self, short: Compressed, max_new_tokens: int, on_text: Callable[[str], None] | None, clock: Clock
    ) -> Answer:
        device, inputs = self.model.device, dict(short.inputs)
        length = inputs["input_ids"].shape[1]
        cuda = device.type == "cuda"
        before = 0
        if cuda:
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
        stream = stream_text(self.processor.tokenizer, on_text)
        out = self.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            # Sampling that a checkpoint's generation_config asks for means nothing here.
            temperature=None,
            top_p=None,
            top_k=None,
            streamer=stream,
        )
        new = out.shape[1] - length
        clock.lap_at("prefill", stream.first)
        later = stream.last - stream.first
        return Answer(
            text="".join(stream.pieces),
            tokens=sum(int(tokens.count.sum()) for tokens in short.tokens),
            cells=sum(tokens.grid.cells for tokens in short.tokens),
            prompt_tokens=length,
            new_tokens=new,
            seconds=clock.seconds,
            later=later,
            speed=(new - 1) / later if later > 0 else None,
            memory=torch.cuda.max_memory_allocated(device) - before if cuda else None,
        )

    def _say(self, what: str) -> None:
        if self.progress is not None:
            self.progress(what)


def video_key(video: Any) -> Hashable:
    """What tells videos apart: a file by path, size and time of change, frames by being the same object."""
    if isinstance(video, Video):
        return id(video)
    path = Path(video)
    if not path.exists():
        return str(path)
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns
