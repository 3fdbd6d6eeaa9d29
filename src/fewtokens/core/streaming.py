"""A pipeline chunk by chunk: the tokens that it gives of the whole video, in memory that does not grow."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from fewtokens.core import files, registry
from fewtokens.core.batch import concatenate
from fewtokens.core.method import Method
from fewtokens.core.pipeline import Encoder
from fewtokens.core.tokens import Tokens


class Streaming:
    """Runs an encoder and at most one causal method over chunks of videos.

    What is put together by `join` equals the pipeline on the whole video. Between chunks the method's state is
    remembered, a frame or two, and nothing else.

    Args:
        method: one with `step`; None keeps every token.
        encoder: sees the frames of one chunk at a time.

    Raises:
        ValueError: a method that looks at the whole video; says what it takes to stream.
    """

    def __init__(self, method: Method | None, encoder: Encoder) -> None:
        if method is not None and not method.causal:
            streams = ", ".join(name for name in registry.METHODS if hasattr(registry.get(name), "step"))
            raise ValueError(
                f"{method.spec} looks at the whole video; chunk by chunk there are {streams}, by a threshold: "
                "rlt(tau=0.1), dtd(0.5), evs(tau=0.3), dycoke(0.7, last_group='pruned')"
            )
        self.method, self.encoder = method, encoder
        self._state: Any = None

    @property
    def spec(self) -> str:
        return "" if self.method is None else self.method.spec

    @torch.inference_mode()
    def __call__(self, frames: Tensor, times: Tensor | None = None) -> Tokens:
        """The tokens of the next frames [B,T,3,H,W] or [T,3,H,W], on the grid of this chunk.

        Cells whose token lies in an earlier chunk are marked dropped; `join` finds it again.
        """
        frames = frames[None] if frames.ndim == 4 else frames
        method = self.method
        if method is None:
            return self.encoder(frames, times)[0]
        if method.stage == "pixels" and self.encoder.skips:
            return self.encoder(frames, times, before=(_Step(self),))[0]  # type: ignore[arg-type]
        tokens, cues = self.encoder(frames, times, needs=method.needs)
        return self.step(tokens, **cues)

    def step(self, tokens: Tokens, **cues: Tensor) -> Tokens:
        """The method on the next tokens, its state kept."""
        method: Any = self.method
        out, self._state = method.step(tokens, self._state, **cues)
        return out


class _Step:
    """What an encoder sees in place of a pixels method."""

    def __init__(self, owner: Streaming) -> None:
        assert owner.method is not None
        self.owner, self.name, self.stage, self.needs = owner, owner.method.name, "pixels", owner.method.needs

    def __call__(self, tokens: Tokens, **cues: Tensor) -> Tokens:
        return self.owner.step(tokens, **cues)


def join(chunks: Iterable[Tokens], spec: str = "") -> Tokens:
    """The tokens of the whole video from those of its chunks, by the method that made them."""
    chunks = list(chunks)
    return registry.build(spec)[0].join(chunks) if spec else concatenate(chunks)


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
    spec = facts["spec"]
    links = registry.parse(spec) if spec else []
    if len(links) > 1 or any(not hasattr(registry.get(name), "step") for name, _ in links):
        raise ValueError(f"{folder / 'stream.json'}: {spec!r} is not one method that streams")
    if not facts["chunks"]:
        raise ValueError(f"{folder / 'stream.json'}: names no chunks")
    if strange := [name for name in facts["chunks"] if Path(name).name != name or len(os.fsencode(name)) > 255]:
        raise ValueError(f"{folder / 'stream.json'}: {files.in_a_line(strange[0])!r} is no name of a chunk")
    chunks = [Tokens.load(folder / name) for name in facts["chunks"]]
    kinds = {(c.B, c.C, c.grid.H, c.grid.W, c.num_prefix, c.codes is None) for c in chunks}
    if len(kinds) > 1:
        raise ValueError(f"{folder}: its chunks are of different videos")
    return join(chunks, spec).replace(meta=facts["meta"])


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
