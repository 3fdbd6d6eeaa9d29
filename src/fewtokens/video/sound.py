"""Copies the sound of a video to another one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from fewtokens.video.container import open_stream, url


@dataclass(frozen=True)
class Sound:
    """A part of the sound of a file.

    Attributes:
        path: file with an audio stream.
        start: of the part, in seconds after the first frame of the video.
        seconds: its length.
        video_stream: the video stream whose frames are shown, see `read`; None for the default.
    """

    path: Path
    start: float
    seconds: float
    video_stream: int | None = None


def has_sound(path: str | Path) -> bool:
    """Whether a file is a container with an audio stream."""
    import av

    if not Path(path).is_file():
        return False
    try:
        with av.open(url(Path(path)), options={"protocol_whitelist": "file"}) as container:
            return bool(container.streams.audio)
    except (av.error.FFmpegError, ValueError):
        return False


def add_sound(container: Any, sound: Sound, codec: str) -> Iterator[None]:
    """Encodes a part of the sound of a file into a container that is being written.

    The stream is added before the first value is yielded, since headers list all streams; the packets are written
    afterwards.

    Args:
        container: open for writing, before its first packet.
        sound: the first audio stream of its file is encoded.
        codec: of the output, such as aac.
    """
    import av

    with av.open(url(sound.path), options={"protocol_whitelist": "file"}) as source:
        audio = source.streams.audio[0]
        # Times of both streams count from the first frame of the video.
        origin = 0.0
        if source.streams.video:
            with open_stream(sound.path, sound.video_stream) as (_, video, _):
                origin = float((video.start_time or 0) * (video.time_base or 0))
        rate = 48_000
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "stereo" if audio.layout.nb_channels > 1 else "mono"
        yield
        begin, end = origin + sound.start, origin + sound.start + sound.seconds
        if sound.start > 0:
            assert audio.time_base, "streams of files have a time base"
            source.seek(int(max(0.0, begin - 1) / audio.time_base), stream=audio)
        resampler = av.AudioResampler(format=stream.format.name, layout=stream.layout.name, rate=rate)
        for frame in source.decode(audio):
            if frame.time is None or frame.time < begin:
                continue
            if frame.time >= end:
                break
            # A sound that starts later than the picture stays there.
            frame.pts = round((frame.time - begin) * frame.sample_rate)
            frame.time_base = Fraction(1, frame.sample_rate)
            for part in resampler.resample(frame):
                container.mux(stream.encode(part))
        for part in resampler.resample(None):
            container.mux(stream.encode(part))
        container.mux(stream.encode())
