"""A pipeline chunk by chunk: the tokens that it gives of the whole video, in memory that does not grow."""

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
    """Runs a pipeline of causal methods over chunks of a video, in memory that does not grow.

    What `pipeline.join` makes of the chunks equals the pipeline on the whole video. Between chunks each method's state
    is remembered, a frame or two, and nothing else.

    Args:
        pipeline: an encoder, which sees the frames of one chunk at a time, and causal methods.

    Raises:
        ValueError: a method that is not causal; says which are.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        pipeline.check_causal()
        self.pipeline = pipeline
        self._state: list[Any] | None = None

    @torch.inference_mode()
    def __call__(self, video: Tensor | Tokens, times: Tensor | None = None, **cues: Tensor) -> Tokens:
        """The tokens of the next frames, on the grid of this chunk; arguments as `Pipeline.step`."""
        tokens, self._state = self.pipeline.step(video, self._state, times, **cues)
        return tokens


class Facts(TypedDict):
    """The stream.json of a finished stream."""

    spec: str
    chunks: list[str]
    meta: dict[str, Any]


def read_facts(folder: str | Path) -> Facts:
    """The stream.json of a folder.

    Raises:
        ValueError: there is none, so the stream was not finished; or it is damaged.
    """
    path = Path(folder) / "stream.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no stream.json, so not a finished stream")
    return files.read_json(path, Facts)


def load(folder: str | Path) -> Tokens:
    """The tokens of a whole video from a folder that `fewtokens tokenize --chunked` wrote.

    Raises:
        ValueError: no such folder, one that was not finished, or a damaged file in it.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    spec = current_spec(facts["spec"])
    pipeline = Pipeline(spec)
    try:
        pipeline.check_causal()
    except ValueError as error:
        raise ValueError(f"{folder / 'stream.json'}: {error}") from None
    if not facts["chunks"]:
        raise ValueError(f"{folder / 'stream.json'}: names no chunks")
    if strange := [name for name in facts["chunks"] if Path(name).name != name or len(os.fsencode(name)) > 255]:
        raise ValueError(f"{folder / 'stream.json'}: {files.in_a_line(strange[0])!r} is no name of a chunk")
    chunks = [Tokens.load(folder / name) for name in facts["chunks"]]
    kinds = {(c.B, c.C, c.grid.H, c.grid.W, c.num_prefix, c.codes is None) for c in chunks}
    if len(kinds) > 1:
        raise ValueError(f"{folder}: its chunks are of different videos")
    return pipeline.join(chunks).replace(meta=facts["meta"])


def finish(folder: Path, chunks: list[str], spec: str, meta: dict[str, Any]) -> Path:
    """Writes what says that the chunks in a folder are all there."""
    files.write_json(folder / "stream.json", {"spec": spec, "chunks": chunks, "meta": meta})
    return folder / "stream.json"


class SceneTrigger:
    """Says when a scene changes: where fewer tokens are dropped than nearly ever before.

    TimeChat-Online (arXiv 2504.17343) answers at the share `part` of a video's steps with the lowest drop ratio, which
    only the end of the video can tell. Here the quantile is that of the steps so far, counted in `bins` equal bins, so
    that memory stays and any chunking gives the same events. The first 1/part steps only fill it. Steps in a row that
    are below it are one event, at the first of them.

    Args:
        part: of the steps, in (0, 1).
        bins: of the drop ratio.
    """

    def __init__(self, part: float = 0.1, bins: int = 1000) -> None:
        if not 0 < part < 1:
            raise ValueError(f"the part of the steps that trigger lies between 0 and 1, got {part}")
        self.part = part
        self.counts = torch.zeros(bins + 1, dtype=torch.int64)
        self._inside = False

    def __call__(self, drop: float) -> bool:
        """Whether a scene begins with this step, whose drop ratio is in [0,1]."""
        place = round(drop * (len(self.counts) - 1))
        seen = int(self.counts.sum())
        threshold = int((self.counts.cumsum(0) >= max(1, math.ceil(self.part * seen))).nonzero()[0]) if seen else 0
        self.counts[place] += 1
        before, self._inside = self._inside, seen >= 1 / self.part and place < threshold
        return self._inside and not before


def drop_ratios(tokens: Tokens) -> Tensor:
    """The share of each frame's cells that have no token of their own, float64 [T], B=1."""
    kept = torch.bincount(tokens.frame[0, tokens.mask[0]], minlength=tokens.grid.T).double()
    return (1 - kept / tokens.grid.cells_per_frame).clamp(min=0).cpu()
