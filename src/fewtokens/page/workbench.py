"""Reads a clip, encodes it, and reduces it by two methods at one budget; asks a video language model about it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewtokens.core import registry
from fewtokens.core.encoder import Encoder
from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.tokens import Tokens
from fewtokens.evaluation.bench import EncodedItem, Item, fidelity, select_specs
from fewtokens.llm import ComposedVideoLLM, Processor, Session
from fewtokens.page.jobs import Job
from fewtokens.show import Clip, Result, result_of
from fewtokens.video import Video, read

SIDES = ("left", "right")


@dataclass(frozen=True)
class Request:
    """What to compare.

    Attributes:
        encoder: the name of an encoder of the workbench.
        left, right: two of its specs.
        keep: the budget as a fraction of the cells, for specs that set none.
    """

    encoder: str
    left: str
    right: str
    keep: float


@dataclass(frozen=True, eq=False)
class Encoded:
    """The clip that was read and encoded last.

    Attributes:
        key: identifies the file and the encoder.
        video: its frames.
        item: the features and cues of all cells, on the CPU.
        encoder: returns them again.
        seconds: time to read and to encode.
    """

    key: tuple[Any, ...]
    video: Video
    item: EncodedItem
    encoder: StoredEncoder
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two methods on one clip.

    Attributes:
        request: what was requested.
        name: of the clip.
        encoded: the clip.
        results: left and right; the name of each is its spec with the budget.
        seconds: time of each step.
    """

    request: Request
    name: str
    encoded: Encoded
    results: tuple[Result, Result]
    seconds: dict[str, float]

    @property
    def clip(self) -> Clip:
        video = self.encoded.video
        return Clip(self.name, video.frames, video.times, list(self.results))


class StoredEncoder(Encoder):
    """An encoder with the features of one video, which it returns unless a method acts before or inside it.

    Args:
        encoder: the encoder.
        tokens: the features of all cells of the video.
        values: all cues of the encoder.
    """

    def __init__(self, encoder: Encoder, tokens: Tokens, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.inner, self.tokens, self.values = encoder, tokens, dict(values)
        self.id, self.options, self.fingerprint, self.cues = (
            encoder.id, encoder.options, encoder.fingerprint, encoder.cues
        )  # fmt: skip
        self.skips_dropped_patches, self.exposes_blocks = encoder.skips_dropped_patches, encoder.exposes_blocks
        self.decode = encoder.decode

    @property
    def dim(self) -> int:
        return self.inner.dim

    def grid(self, frames: int, height: int, width: int, times: Tensor | None = None) -> Grid:
        return self.inner.grid(frames, height, width, times)

    def forward(
        self, frames: Tensor, times: Tensor | None = None, *, needs: Sequence[str] = (),
        pixel_methods: Sequence[Any] = (), block_methods: Sequence[Method] = (),
    ) -> tuple[Tokens, dict[str, Tensor]]:  # fmt: skip
        if pixel_methods or block_methods:
            return self.inner(frames, times, needs=needs, pixel_methods=pixel_methods, block_methods=block_methods)
        return self.tokens, {name: self.values[name] for name in needs}


class Workbench:
    """Encoders, specs and a language model, and the clip that was encoded last.

    Args:
        encoders: by name.
        specs: in addition to all methods without trained parameters.
        frames, size: the number of frames of a clip, and their short side in pixels.
        seed: random seed of stochastic methods.
        model, processor: a video language model as `fewtokens.llm.load` returns it, or None.
        model_name: its name.
    """

    def __init__(
        self, encoders: Mapping[str, Encoder], specs: Sequence[str] = (), *, frames: int = 16, size: int = 224,
        seed: int = 0, model: Any = None, processor: Processor | None = None, model_name: str = "",
    ) -> None:  # fmt: skip
        self.encoders, self.frames, self.size, self.seed = dict(encoders), frames, size, seed
        self.model, self.processor, self.model_name = model, processor, model_name
        self.specs = {
            name: list(dict.fromkeys([*specs, *select_specs("all", encoder)])) for name, encoder in encoders.items()
        }
        self._encoded: Encoded | None = None
        for spec in specs:
            for method in registry.build(spec):
                if method.stage == "frames":
                    raise ValueError(
                        f"{spec}: {method.name} selects frames, but the page compares methods on the same frames; "
                        "compare selectors with fewtokens bench"
                    )

    def check(self, request: Request) -> None:
        """Raises ValueError if the request names an encoder or a spec that is not offered, or an invalid budget."""
        if request.encoder not in self.encoders:
            raise ValueError("this encoder is not offered; add it with --encoder")
        for spec in (request.left, request.right):
            if spec not in self.specs[request.encoder]:
                raise ValueError("this method is not offered for this encoder; add it with --with")
        if not 0 < request.keep <= 1:
            raise ValueError(f"the budget must be above 0 and at most 1, got {request.keep}")

    @torch.inference_mode()
    def compare(self, job: Job, path: Path, request: Request) -> Comparison:
        """Compares two methods on a clip; steps are reported to the job."""
        self.check(request)
        encoder = self.encoders[request.encoder]
        encoder.progress = job.counter("encoding")
        try:
            encoded = self._encode(job, path, request.encoder)
            results, seconds = [], dict(encoded.seconds)
            for number, spec in enumerate((request.left, request.right)):
                job.report(f"reducing: {spec}", number, 2)
                result, seconds[SIDES[number]] = self._reduce(encoded, spec, request.keep)
                results.append(result)
        finally:
            encoder.progress = None
        job.report("drawing", 2, 2)
        return Comparison(request, path.name, encoded, (results[0], results[1]), seconds)

    def _encode(self, job: Job, path: Path, name: str) -> Encoded:
        status = path.stat()
        key = (str(path), status.st_size, status.st_mtime_ns, name)
        if self._encoded is not None and self._encoded.key == key:
            return replace(self._encoded, seconds={})
        start = time.perf_counter()
        job.report("reading")
        video = read(path, frames=self.frames, size=self.size, progress=job.counter("reading"))
        middle = time.perf_counter()
        encoder = self.encoders[name]
        job.report("encoding", 0, len(video))
        tokens, cues = encoder(video.frames[None], video.times, needs=encoder.cues)
        seconds = {"read": middle - start, "encode": time.perf_counter() - middle}
        item = EncodedItem(
            Item(path.name, video.frames, video.times), tokens.to("cpu"), {k: cue.cpu() for k, cue in cues.items()},
            (1e3 * seconds["encode"],), 0.0,
        )  # fmt: skip
        self._encoded = Encoded(key, video, item, StoredEncoder(encoder, tokens, cues), seconds)
        return self._encoded

    def _reduce(self, encoded: Encoded, spec: str, keep: float) -> tuple[Result, float]:
        """Returns what is shown of a method, with the numbers of a bench, and its seconds."""
        torch.manual_seed(self.seed)
        encoder = encoded.encoder
        try:
            methods = registry.build(spec, keep=keep, seed=self.seed, dim=encoder.dim)
            pipeline = Pipeline([method.eval().to(encoder.device) for method in methods], encoder)
            start = time.perf_counter()
            tokens = pipeline(encoded.video)
        except ValueError as error:
            raise ValueError(f"{spec}: {error}") from None
        seconds = time.perf_counter() - start
        tokens = tokens.to("cpu")
        short = " | ".join(method.short_spec for method in methods)
        result = result_of(encoded.video, tokens, encoder, short)
        numbers = {name: result.numbers[name] for name in ("tokens", "retention")}
        numbers |= {name: value for name, value in fidelity(tokens, encoded.item, encoder).items() if value is not None}
        alone = all(method.stage == "tokens" for method in methods)
        numbers["method_ms" if alone else "total_ms"] = 1e3 * seconds
        return replace(result, numbers=numbers), seconds

    def ask(self, job: Job, path: Path, request: Request, question: str) -> list[dict[str, Any]]:
        """Asks the language model about a clip, with the tokens that each of the two methods leaves.

        Returns:
            For each method "spec" and either "text", "tokens", "cells" and "seconds", or "error".
        """
        if self.model is None or self.processor is None:
            raise ValueError("no video language model; start the page with --model")
        self.check(request)
        job.texts = ["", ""]
        return [self._answer(job, path, request, question, number) for number in (0, 1)]

    def _answer(self, job: Job, path: Path, request: Request, question: str, number: int) -> dict[str, Any]:
        spec = (request.left, request.right)[number]

        def report(step: str) -> None:
            job.report(f"{step}: {spec}", number, 2)

        def write(text: str) -> None:
            job.texts[number] += text
            report("answering")

        report("answering")
        assert self.processor is not None
        try:
            methods = registry.build(spec, keep=request.keep, seed=self.seed)
            short = " | ".join(method.short_spec for method in methods)
            # A composed model reads as many frames as in training.
            frames = None if isinstance(self.model, ComposedVideoLLM) else self.frames
            session = Session(self.model, self.processor, short, frames)
            session.progress = report
            answer = session.ask(path, question, on_text=write)
        except ValueError as error:
            return {"spec": spec, "error": " ".join(str(error).split())}
        seconds = answer.first_token + answer.generation_seconds
        return {"spec": short, "text": answer.text, "tokens": answer.tokens, "cells": answer.cells, "seconds": seconds}
