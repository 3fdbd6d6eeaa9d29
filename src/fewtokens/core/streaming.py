"""Runs a pipeline on a video in chunks, in constant memory, with the same result as on the full video."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from fewtokens.core import files
from fewtokens.core.legacy import current_spec
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.tokens import Tokens


class Streaming:
    """Runs a pipeline of causal methods on consecutive chunks of a video, in constant memory.

        stream = Streaming(Pipeline("rlt", load_encoder("patches")))
        chunks = [stream(video.frames, video.times) for video in fewtokens.stream("clip.mp4")]
        tokens = stream.pipeline.join(chunks)

    `pipeline.join` returns the same tokens as the pipeline on the full video. Between chunks only the state of each
    method is stored, which is a frame or two.

    Args:
        pipeline: causal methods, and an encoder, which sees only the frames of one chunk.

    Raises:
        ValueError: a method is not causal; the message lists the methods that are.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        pipeline.check_causal()
        self.pipeline = pipeline
        self._state: list[Any] | None = None

    @torch.inference_mode()
    def __call__(self, video: Tensor | Tokens, times: Tensor | None = None, **cues: Tensor) -> Tokens:
        """Returns the tokens of the next frames, on the grid of this chunk.

        Args:
            video: the next frames or tokens, see `Pipeline.forward`.
            times: seconds of each frame, [T] or [B,T].
            cues: cues by name, see `Pipeline.forward`.
        """
        tokens, self._state = self.pipeline.step(video, self._state, times, **cues)
        return tokens


class StreamInfo(TypedDict):
    """The stream.json of a finished stream."""

    spec: str
    chunks: list[str]
    meta: dict[str, Any]


def read_stream_info(folder: str | Path) -> StreamInfo:
    """Reads the stream.json of a folder.

    Raises:
        ValueError: the file does not exist, because the stream is not finished, or is invalid.
    """
    path = Path(folder) / "stream.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no stream.json, so not a finished stream")
    return files.read_json(path, StreamInfo)


def load(folder: str | Path) -> Tokens:
    """Loads the tokens of a full video from a folder written by `fewtokens tokenize --chunked`.

    Raises:
        ValueError: the folder does not exist, the stream is not finished, or a file is invalid.
    """
    folder = Path(folder)
    facts = read_stream_info(folder)
    spec = current_spec(facts["spec"])
    pipeline = Pipeline(spec)
    try:
        pipeline.check_causal()
    except ValueError as error:
        raise ValueError(f"{folder / 'stream.json'}: {error}") from None
    if not facts["chunks"]:
        raise ValueError(f"{folder / 'stream.json'}: lists no chunks")
    if invalid := [name for name in facts["chunks"] if Path(name).name != name or len(os.fsencode(name)) > 255]:
        raise ValueError(f"{folder / 'stream.json'}: {files.one_line(invalid[0])!r} is not a file name")
    chunks = [Tokens.load(folder / name) for name in facts["chunks"]]
    shapes = {(c.B, c.C, c.grid.H, c.grid.W, c.num_prefix, c.codes is None) for c in chunks}
    if len(shapes) > 1:
        raise ValueError(f"{folder}: the chunks are from different videos")
    return pipeline.join(chunks).replace(meta=facts["meta"])


def finish(folder: Path, chunks: list[str], spec: str, meta: dict[str, Any]) -> Path:
    """Writes stream.json, which marks a folder of chunks as complete, and returns its path."""
    files.write_json(folder / "stream.json", {"spec": spec, "chunks": chunks, "meta": meta})
    return folder / "stream.json"


class SceneTrigger:
    """Detects scene changes: steps at which fewer tokens are dropped than at nearly all earlier ones.

    TimeChat-Online (arXiv 2504.17343) answers at the `fraction` of steps with the lowest drop ratios, which are known
    only at the end of the video. Here the quantile is that of the steps so far, from a histogram, so that memory is
    constant and any chunking produces the same events. The first 1/fraction steps only fill the histogram.
    Consecutive steps below the quantile are one event, at the first of them.

    Args:
        fraction: fraction of the steps that trigger, in (0, 1).
        bins: number of bins of the histogram of drop ratios.

    Attributes:
        counts: the histogram, int64 [bins+1].
        below: whether the last step was below the quantile.

    Raises:
        ValueError: `fraction` is out of range.
    """

    def __init__(self, fraction: float = 0.1, bins: int = 1000) -> None:
        if not 0 < fraction < 1:
            raise ValueError(f"the fraction of steps that trigger must be in (0, 1), got {fraction}")
        self.fraction = fraction
        self.counts = torch.zeros(bins + 1, dtype=torch.int64)
        self.below = False

    def __call__(self, drop: float) -> bool:
        """Whether a scene begins at this step.

        Args:
            drop: the drop ratio of the step, in [0, 1].
        """
        index = round(drop * (len(self.counts) - 1))
        steps = int(self.counts.sum())
        threshold = (
            int((self.counts.cumsum(0) >= max(1, math.ceil(self.fraction * steps))).nonzero()[0]) if steps else 0
        )
        self.counts[index] += 1
        previous, self.below = self.below, steps >= 1 / self.fraction and index < threshold
        return self.below and not previous


def drop_ratios(tokens: Tokens) -> Tensor:
    """Returns 1 minus the number of tokens of each frame divided by its number of cells, float64 [T]; requires B=1."""
    counts = torch.bincount(tokens.frame[0, tokens.mask[0]], minlength=tokens.grid.T).double()
    return (1 - counts / tokens.grid.cells_per_frame).clamp(min=0).cpu()
