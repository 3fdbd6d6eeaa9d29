"""Reads a video in parts, for `encode` and `decode`, and encodes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewtokens.tokenizers import Tokenizer
    from fewtokens.tokenizers.files import EncodedWriter
    from fewtokens.video import Video

# Frames that are read at a time.
_CHUNK = 32


class VideoParts:
    """Reads a video in parts, and notes the frames per second of what it has read.

    Args:
        video: the file.
        reading: number of `frames`, `fps`, short side `size`, and `start` and `end` in seconds; None or absent for
            those of the video.
        advance: receives the number of frames read and their estimated total.
    """

    def __init__(self, video: Path, reading: Mapping[str, Any], advance: Callable[..., None] | None = None) -> None:
        self.video, self.reading, self.advance = video, reading, advance
        self.rate: float | None = None

    def __iter__(self) -> Iterator[Video]:
        from fewtokens.core.ahead import iterate_ahead
        from fewtokens.video import read, stream

        frames, fps, size = (self.reading.get(name) for name in ("frames", "fps", "size"))
        start, end = self.reading.get("start") or 0.0, self.reading.get("end")
        if frames is not None:
            videos = iter([read(self.video, frames=frames, size=size, start=start, end=end)])
        else:
            videos = stream(self.video, chunk=_CHUNK, fps=fps, size=size, start=start, end=end)
        first, count = None, 0
        with iterate_ahead(videos) as parts:
            for part in parts:
                first = float(part.times[0]) if first is None else first
                count += len(part)
                span = float(part.times[-1]) - first
                self.rate = round((count - 1) / span, 4) if span > 0 else None
                if self.advance is not None:
                    rate = fps or part.fps
                    total = frames or (round(part.duration * rate) if part.duration and rate else None)
                    self.advance(count, None if total is None else max(total, count))
                yield part


def encode_parts(tokenizer: Tokenizer, writer: EncodedWriter, parts: Iterable[Video]) -> None:
    """Adds the tokens of a video to a writer: chunk by chunk if the tokenizer can, otherwise at once."""
    import torch

    from fewtokens.tokenizers.chunks import can_encode_chunks, encode_chunks

    if can_encode_chunks(tokenizer):
        for tokens in encode_chunks(tokenizer, parts):
            writer.add(tokens)
    else:
        writer.add(tokenizer.encode(torch.cat([part.frames for part in parts])))
