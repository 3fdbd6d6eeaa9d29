"""The work of `fewtokens tokenize` as a job, see `fewtokens.jobs`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from fewtokens.cli.options import EncoderOptions, MethodOptions, ReadOptions, RunOptions, SelectOptions
from fewtokens.cli.pipelines import (
    made_with,
    make_pipeline,
    plain_selection,
    read_video,
    selection_of,
    with_defaults,
    within_part,
)

if TYPE_CHECKING:
    from fewtokens.core.pipeline import Pipeline
    from fewtokens.core.tokens import Tokens
    from fewtokens.video import Video


@lru_cache(maxsize=1)
def _pipeline(method: MethodOptions, encoding: EncoderOptions, run: RunOptions) -> Pipeline:
    return make_pipeline(method, encoding, run)


@lru_cache(maxsize=1)
def load_selection(selecting: SelectOptions, question: str | None, run: RunOptions) -> dict[str, Any]:
    """Returns the result of `selection_of`, with the scorer loaded once per process."""
    return selection_of(selecting, question, run)


class _Clip(NamedTuple):
    video: Video
    source: dict[str, Any]
    # start and end, if the location names a part of the file
    part: dict[str, float | None]


@dataclass(frozen=True)
class TokenizeWork:
    """What `tokenize` does with each video, a `fewtokens.jobs.Work`: the options, which other processes receive."""

    method: MethodOptions
    encoding: EncoderOptions
    run: RunOptions
    reading: ReadOptions
    selecting: SelectOptions
    question: str | None

    def read(self, location: str, check: Callable[..., None]) -> _Clip:
        """Decodes the frames of a video; see `fewtokens.jobs.Work`."""
        from fewtokens.jobs.sources import local_source, split_part

        whole, part = split_part(location)
        reading = within_part(self.reading, part)
        bounds = {} if part is None else {"start": reading.start, "end": reading.end}
        with local_source(whole, check) as (path, source):
            selection = load_selection(self.selecting, self.question, self.run)
            return _Clip(read_video(path, reading, check, selection), source, bounds)

    def load(self) -> _Reduce:
        """Loads the encoder and the methods; see `fewtokens.jobs.Work`."""
        return _Reduce(self)

    def settings(self) -> dict[str, Any]:
        """Returns what determines the tokens of a video, as plain values."""
        pipeline = _pipeline(self.method, self.encoding, self.run)
        reading = with_defaults(
            asdict(self.reading) | plain_selection(load_selection(self.selecting, self.question, self.run))
        )
        return {
            **made_with(pipeline), "reading": reading, "seed": self.run.seed,
        }  # fmt: skip


class _Reduce:
    """Encodes and reduces videos, a `fewtokens.jobs.Reduce`."""

    def __init__(self, work: TokenizeWork) -> None:
        self.work = work
        self.pipeline = _pipeline(work.method, work.encoding, work.run)
        self.reading = asdict(work.reading) | plain_selection(load_selection(work.selecting, work.question, work.run))
        # Frames per forward pass of the encoder; the encoder patches has no such limit, and gains nothing.
        self.frames = 0 if work.encoding.encoder == "patches" else work.encoding.batch

    def batches(self, videos: Iterable[_Clip]) -> Iterator[list[_Clip]]:
        """Groups consecutive videos of one size, up to --batch frames in all."""
        group: list[_Clip] = []
        for clip in videos:
            shape = clip.video.frames.shape
            if group and (
                clip.video.selection is not None
                or group[0].video.selection is not None
                or shape != group[0].video.frames.shape
                or (len(group) + 1) * len(clip.video) > self.frames
            ):
                yield group
                group = []
            group.append(clip)
        if group:
            yield group

    def __call__(self, videos: Sequence[_Clip]) -> list[Tokens]:
        """Returns the tokens of each video, with its source and settings."""
        import torch

        with torch.inference_mode():
            if len(videos) == 1:
                results = [self.pipeline(videos[0].video).to("cpu")]
            else:
                frames = torch.stack([clip.video.frames for clip in videos])
                results = list(self.pipeline(frames, torch.stack([clip.video.times for clip in videos])).to("cpu"))
        return [
            tokens.replace(
                meta={
                    "spec": tokens.meta["spec"], "encoder": tokens.meta["encoder"], "source": clip.source,
                    "reading": self.reading | clip.part, "seed": self.work.run.seed,
                }
            )
            for tokens, clip in zip(results, videos, strict=True)
        ]  # fmt: skip
