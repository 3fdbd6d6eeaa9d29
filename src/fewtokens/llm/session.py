"""Answers questions about videos and images; each is read and encoded once for all its questions.

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
from weakref import WeakKeyDictionary

import torch

from fewtokens.core.identity import identity
from fewtokens.core.kv_memory import KVMemory, KVState
from fewtokens.core.selection import FrameSelector, Selection
from fewtokens.llm.answer import Answer, check_length, check_question, generate
from fewtokens.llm.attach import layer_hooks
from fewtokens.llm.backends.base import backend_of
from fewtokens.llm.chains import Methods, as_pipeline, image_pipeline, split_chain
from fewtokens.llm.clock import Clock
from fewtokens.llm.cues import attention_rule, check_cues, needed_cues
from fewtokens.llm.frame_sizes import average_first, describe_sizes, prepare_runs, share_budget
from fewtokens.llm.interface import unwrap
from fewtokens.llm.kv_stream import KVStream
from fewtokens.llm.prompt_editor import Compressed, check_prompt_options, edit_prompts
from fewtokens.llm.prompts import Processor, inputs_on
from fewtokens.llm.relevance import ModelScorer
from fewtokens.llm.tower_run import TowerMethods
from fewtokens.llm.visuals import EncodedVisuals, ReducedVisual, encode_visuals, reduce_visuals
from fewtokens.profiling.memory import peak_memory
from fewtokens.selection import Scorer, load_scorer, read
from fewtokens.selection.choose import load_selector
from fewtokens.video import Video
from fewtokens.video.images import is_image


@dataclass(frozen=True)
class VideoPart:
    """A part of a file.

    Attributes:
        path: the file.
        start, end: in seconds; None for its end.
    """

    path: str | Path
    start: float = 0.0
    end: float | None = None


@dataclass(eq=False)
class CachedVideo:
    """An encoded video.

    Attributes:
        inputs: the inputs of the prompt other than pixels and ids.
        kind: "image" or "video".
        text: the text that represents it in the prompt.
        encoded: its features by modality; their columns are those of the first question.
        average: the sizes to which its frames are averaged after the vision tower; None for none.
        sizes: (steps, rows, columns) in cells of each run of frames of equal size; empty if all have full size.
        source: the video object, kept alive so that no other object gets its id.
    """

    inputs: dict[str, Any]
    kind: str
    text: str
    encoded: dict[str, EncodedVisuals]
    average: Selection | None = None
    sizes: list[tuple[int, int, int]] = field(default_factory=list)
    source: Any = None


class Session:
    """Answers questions about videos with few visual tokens.

    Args:
        model, processor: as `load` returns them; the model may be wrapped, see `attach`.
        spec: a chain of methods, see `attach`; "" keeps all tokens. Default: the model's own methods, if it has any. It
            may end with a memory in the key-value cache instead, such as "videoscan_cache", see `StreamSession`.
        frames: the number of evenly spaced frames per video. Default: `num_frames` of the processor.
        fps: frames per second, instead of `frames`.
        select, scorer: the method that selects the frames to read of a file, instead of `frames`, and what scores their
            relevance for the question; see `fewtokens.read`. "model" is `ModelScorer` with this model. For frames of
            several sizes see `fewtokens.llm.frame_sizes`.
        near: see `fewtokens.read`.
        layout, positions, tower: see `compress`.
        cache_size: the number of videos, the most recently used ones, whose features stay in memory.

    Attributes:
        progress: called with the name of each step, if set.

    Raises:
        ValueError: the spec is invalid, or needs a cue that the family cannot provide.
    """

    def __init__(
        self,
        model: Any,
        processor: Processor,
        spec: Methods | None = None,
        frames: int | None = None,
        *,
        fps: float | None = None,
        select: str | FrameSelector | None = None,
        scorer: str | Scorer | None = None,
        near: float = 0.0,
        layout: str = "per_frame",
        positions: str | None = None,
        tower: str = "kept",
        cache_size: int = 4,
    ) -> None:
        check_prompt_options(layout, positions)
        if cache_size < 1:
            raise ValueError(f"cache_size must be at least 1, got {cache_size}")
        if select is not None and (frames is not None or fps is not None):
            raise ValueError("pass select= or frames= and fps=, not both")
        if near and select is None:
            raise ValueError("near= requires select=")
        self.select, self.near = None if select is None else load_selector(select), near
        model = unwrap(model)
        self.scorer: Scorer | None = None
        if scorer is not None:
            self.scorer = ModelScorer(model, processor) if scorer == "model" else load_scorer(scorer)
        self.model, self.processor, self.backend = model, processor, backend_of(model)
        self.fps, self.cache_size = fps, cache_size
        self.frames = None if fps is not None else processor.num_frames if frames is None else frames
        self.layout, self.positions = layout, positions
        before, inside = split_chain(self.backend.default_methods(model) if spec is None else spec, model)
        self.pipeline = as_pipeline(before, model)
        self._stream: KVStream | None = None
        if len(inside) == 1 and isinstance(inside[0], KVMemory):
            if layout != "per_frame" or positions is not None:
                raise ValueError(f"layout and positions have no effect with {inside[0].name}, which has its own")
            self._stream, inside = KVStream(model, processor, self.backend, inside[0]), []
        self.layer_hooks = layer_hooks(model, inside)
        check_cues(self.backend, model, self.pipeline)
        self.tower_methods = TowerMethods.of(self.pipeline, tower)
        self.needs, self.rule = needed_cues(self.pipeline), attention_rule(self.pipeline)
        self.per_question = "text" in self.needs
        self.progress: Callable[[str], None] | None = None
        self._encoded: OrderedDict[Hashable, CachedVideo] = OrderedDict()
        # With the spec of this session; gone with the video, which another session may share.
        self._reduced: WeakKeyDictionary[CachedVideo, dict[str, list[ReducedVisual]]] = WeakKeyDictionary()
        self._slots: WeakKeyDictionary[CachedVideo, KVState] = WeakKeyDictionary()

    def unreduced(self) -> Session:
        """Returns a session with all visual tokens, which shares read and encoded videos with this one."""
        other = Session(self.model, self.processor, "", cache_size=self.cache_size)
        other.frames, other.fps, other.select, other.scorer = self.frames, self.fps, self.select, self.scorer
        other.near = self.near
        other.needs, other.rule = self.needs, self.rule
        other.progress, other._encoded = self.progress, self._encoded
        return other

    @torch.no_grad()
    def warm_up(self) -> None:
        """Generates two tokens, so that the next answer does not include one-time costs."""
        ids = torch.ones(1, 1, dtype=torch.int64, device=self.model.device)
        self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)

    @torch.no_grad()
    def ask(
        self,
        video: str | Path | Video | VideoPart,
        question: str,
        max_new_tokens: int = 128,
        on_text: Callable[[str], None] | None = None,
        *,
        memory: bool = False,
    ) -> Answer:
        """Answers a question about a video or an image by greedy decoding.

        Args:
            video: a file, a folder of images, a part of a file, or frames with times. A file with one image is an image
                in the prompt, if the family takes images here; methods that compare frames cannot reduce it.
            question: the question, without special tokens of the model.
            max_new_tokens: the maximum length of the answer.
            on_text: called with each piece of the answer during generation; `Answer.text` is all pieces joined.
            memory: also measure the memory of the prefill on a CPU, which runs it twice.

        Raises:
            ValueError: the video cannot be read, the question contains a special token, a method has no effect on an
                image, prompt and answer are longer than the context, or methods are already attached to the model.
        """
        check_question(self.model, question, max_new_tokens)
        clock = Clock(self.model.device)
        by_question = self.select is not None and {"relevance", "question"} & set(self.select.needs)
        key = video_key(video), question if by_question else None, *self.tower_methods.specs
        encoded, prompt = self._encode(key, video, question, clock)
        self._report("reducing")
        if self._stream is not None:
            state = self._slots.get(encoded)
            if state is None or self.per_question:
                reduced = [visual for group in self._reduce(encoded, prompt)[1].values() for visual in group]
                if len(reduced) != 1:  # such as the tiles of an image
                    raise ValueError(f"{self._stream.method.name} holds videos; use it without images")
                state = self._slots[encoded] = self._stream.push_video(reduced[0])
            self._report("answering")
            return self._stream.ask(state, question, max_new_tokens, on_text, clock)
        short = self._shorten(encoded, prompt)
        check_length(self.backend, self.model, short.inputs, max_new_tokens, "fewer frames", "a smaller keep")
        clock.lap("reduce")
        self._report("answering")
        with self.layer_hooks() as runtime:
            answer = generate(self.model, self.processor, short, max_new_tokens, on_text, clock)
            answer.layer_tokens = [] if runtime is None else runtime.layer_tokens
            answer.sizes = encoded.sizes
            if memory and answer.memory is None:
                answer.memory = peak_memory(lambda: self.model(**dict(short.inputs), use_cache=True), self.model.device)
        return answer

    def _encode(self, key: Hashable, video: Any, question: str, clock: Clock) -> tuple[CachedVideo, dict[str, Any]]:
        """Returns the features of a video, cached or new, and the prompt without its pixels."""
        cached = self._encoded.get(key)
        if cached is not None:
            self._encoded.move_to_end(key)
            return cached, self._prompt(cached.text, question, cached.kind) | cached.inputs
        self.processor.render(question)  # raises errors before the work
        self._report("reading")
        clip = video if isinstance(video, Video) else self._read(video, question)
        sized = clip.selection if clip.selection is not None and not clip.selection.full_size else None
        still = not isinstance(video, Video | VideoPart) and is_image(Path(video)) and len(clip) == 1
        if still and self.backend.has_images:
            (prepared,) = self.processor.prepare_images(self.model, [clip])
            kind, items, sized = "image", [[("image", 1)] * prepared.tiles], None
        else:
            in_runs = sized is not None and self.backend.any_size
            prepared = (
                prepare_runs(self.backend, self.processor, self.model, clip)
                if in_runs
                else self.processor.prepare(self.model, clip)
            )
            kind, items = "video", [[("video", len(clip))]]
        del clip  # frees the frames while the model encodes
        clock.lap("decode")
        self._report("encoding")
        prompt = self._prompt(prepared.text, question, kind)
        inputs = inputs_on(self.model, prepared.inputs)
        encoded = encode_visuals(
            self.backend,
            self.model,
            prompt | inputs,
            items,
            needs={kind: self.needs},
            rule=self.rule,
            methods=self.tower_methods,
        )
        clock.lap("encode")
        other_inputs = {name: value for name, value in inputs.items() if not name.startswith("pixel_values")}
        cached = CachedVideo(other_inputs, kind, prepared.text, encoded, source=video)
        if sized is not None:
            (group,) = encoded.values()
            if self.backend.any_size:
                share_budget(group.visuals)
            else:
                cached.average = sized
            cached.sizes = describe_sizes(group.visuals, cached.average)
        self._encoded[key] = cached
        while len(self._encoded) > self.cache_size:
            self._encoded.popitem(last=False)
        return cached, prompt | other_inputs

    def _read(self, video: str | Path | VideoPart, question: str) -> Video:
        part = video if isinstance(video, VideoPart) else VideoPart(video)
        options: dict[str, Any] = {"start": part.start, "end": part.end, "size": self.processor.read_size}
        if self.select is not None:
            selecting: dict[str, Any] = {
                "select": self.select,
                "question": question,
                "scorer": self.scorer,
                "near": self.near,
            }
            return read(part.path, **selecting, **options)
        return read(part.path, frames=self.frames, fps=self.fps, **options)

    def _prompt(self, text: str, question: str, kind: str) -> dict[str, Any]:
        ids = self.processor.ids(question, text, kind).to(self.model.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _shorten(self, cached: CachedVideo, prompt: dict[str, Any]) -> Compressed:
        """Returns the shortened prompt."""
        encoded, reduced = self._reduce(cached, prompt)
        options = {"layout": self.layout, "positions": self.positions}
        return edit_prompts(self.backend, self.model, prompt, encoded, reduced, **options)  # type: ignore[arg-type]

    def _reduce(
        self, cached: CachedVideo, prompt: dict[str, Any]
    ) -> tuple[dict[str, EncodedVisuals], dict[str, list[ReducedVisual]]]:
        """Returns the features before and after reduction. This is the only place where the spec is applied."""
        encoded = {modality: self._relocate(modality, visuals, prompt) for modality, visuals in cached.encoded.items()}
        reduced = self._reduced.get(cached)
        if reduced is None:
            if cached.kind == "image":
                image_pipeline(True, self.pipeline, self.model)  # raises an error if a method compares frames
            pipeline = self.pipeline if cached.average is None else average_first(self.pipeline, cached.average)
            reduced = reduce_visuals(self.backend, self.model, pipeline, prompt, encoded, pipeline)
            if not self.per_question:
                self._reduced[cached] = reduced
        return encoded, reduced

    def _relocate(self, modality: str, encoded: EncodedVisuals, prompt: dict[str, Any]) -> EncodedVisuals:
        """Returns the features with their columns in another prompt."""
        at = (prompt["input_ids"][0] == encoded.placeholder).nonzero().squeeze(1)
        return replace(encoded, columns=list(at.split([len(visual.features) for visual in encoded.visuals])))

    def _report(self, step: str) -> None:
        if self.progress is not None:
            self.progress(step)


def video_key(video: Any) -> Hashable:
    """Identifies a video: a file or folder by path, bytes and modification times, frames by object identity."""
    if isinstance(video, Video):
        return id(video)
    if isinstance(video, VideoPart):
        return video_key(video.path), video.start, video.end
    path = Path(video)
    return identity([path.resolve()]) if path.exists() else str(path)
