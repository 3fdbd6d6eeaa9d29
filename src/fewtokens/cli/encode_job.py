"""The work of `fewtokens encode` as a job, see `fewtokens.jobs`: the files are those of the plain command."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fewtokens.cli.options import RunOptions
from fewtokens.cli.video_parts import VideoParts, encode_parts

if TYPE_CHECKING:
    from fewtokens.jobs import Format, Record
    from fewtokens.tokenizers import Tokenizer
    from fewtokens.tokenizers.files import EncodedWriter
    from fewtokens.video import Video


@lru_cache(maxsize=1)
def load(tokenizer: str, run: RunOptions) -> tuple[Tokenizer, str]:
    """Returns a tokenizer and the hash of its parameters."""
    from fewtokens.tokenizers.load import open_tokenizer

    model = open_tokenizer(tokenizer, seed=run.seed, device=run.device)
    return model, model.fingerprint()


class _Clip(NamedTuple):
    parts: list[Video]
    rate: float | None
    source: dict[str, Any]
    bounds: dict[str, float | None]  # of a part of a file


@dataclass(frozen=True)
class EncodeWork:
    """What `encode` does with each video, a `fewtokens.jobs.Work`: the options, which other processes receive.

    Attributes:
        tokenizer, run: options of the command.
        frames, fps, size: options of reading.
        packed, half: options of the files.
    """

    tokenizer: str
    run: RunOptions
    frames: int | None
    fps: float | None
    size: int | None
    packed: bool
    half: bool

    def request(self) -> dict[str, Any]:
        """Returns what determines the file of a video, as plain values that it stores."""
        return {
            "reading": {"frames": self.frames, "fps": self.fps, "size": self.size}, "packed": self.packed,
            "half": self.half, "fingerprint": load(self.tokenizer, self.run)[1],
        }  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """Returns the settings of the job; see `fewtokens.jobs.run_job`."""
        request = self.request()
        tokenizer = {"fingerprint": request.pop("fingerprint")}
        spec = load(self.tokenizer, self.run)[0].spec
        return {"format": "encoded video", "spec": spec, "tokenizer": tokenizer, **request}

    def read(self, location: str, check: Callable[..., None]) -> _Clip:
        """Decodes the frames of a video; see `fewtokens.jobs.Work`."""
        from fewtokens.jobs.sources import local_source, split_part

        whole, part = split_part(location)
        bounds = {} if part is None else {"start": part[0] or 0.0, "end": part[1]}
        with local_source(whole, check) as (path, source):
            reading = {"frames": self.frames, "fps": self.fps, "size": self.size}
            parts = VideoParts(path, reading | bounds, check)
            frames = list(parts)
        return _Clip(frames, parts.rate, source, bounds)

    def load(self) -> _Encode:
        """Loads the tokenizer; see `fewtokens.jobs.Work`."""
        return _Encode(self)


class _Encode:
    """Encodes videos one at a time, a `fewtokens.jobs.Reduce`."""

    def __init__(self, work: EncodeWork) -> None:
        self.work, self.request = work, work.request()

    def batches(self, videos: Iterable[_Clip]) -> Iterator[list[_Clip]]:
        return ([video] for video in videos)

    def __call__(self, videos: Sequence[_Clip]) -> list[Any]:
        from fewtokens.tokenizers.files import EncodedWriter

        model, fingerprint = load(self.work.tokenizer, self.work.run)
        results = []
        for clip in videos:
            writer = EncodedWriter(model, packed=self.work.packed, half=self.work.half, fingerprint=fingerprint)
            encode_parts(model, writer, clip.parts)
            request = self.request | {"reading": self.request["reading"] | clip.bounds}
            results.append(_Encoded(writer, clip.rate, {"source": clip.source, **request}))
        return results


class _Encoded(NamedTuple):
    """An encoded video, with what a job asks of `Tokens`."""

    writer: EncodedWriter
    rate: float | None
    meta: Mapping[str, Any]

    @property
    def numbers(self) -> dict[str, int]:
        frames, height, width = self.writer.grid
        return {"frames": frames, "cells": frames * height * width, "tokens": sum(self.writer.count)}


def encoded_format() -> Format:
    """Returns the format of files of `fewtokens encode`, one per video."""
    from fewtokens.jobs import Format

    return Format("{key}.safetensors", _write, plain_keys=True)


def _write(path: Path, records: Iterable[Record], label: str) -> int:
    (record,) = records
    encoded: Any = record.tokens
    encoded.writer.save(path, fps=encoded.rate, **encoded.meta)
    return 1
