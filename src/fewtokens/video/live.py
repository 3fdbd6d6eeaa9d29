"""Reads the frames of a camera or of a stream in the network as they come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from math import floor
from pathlib import Path
from typing import Any

import torch

from fewtokens.video.container import reason
from fewtokens.video.scale import Scaler
from fewtokens.video.select import MAX_PIXELS, Size, check_pixels, check_request
from fewtokens.video.types import Video, VideoError

# Without "file" and "concat", so that a playlist in the network cannot name files of this machine.
_PROTOCOLS = "http,https,httpproxy,tcp,tls,crypto,udp,rtp,rtsp,rtmp,rtmps,srt"
# Seconds without data after which a stream has broken off.
_TIMEOUT = 30.0


def is_live(source: str) -> bool:
    """Whether a source is a URL or a device, instead of a file or a folder."""
    return "://" in source or Path(source).is_char_device()


def live(source: str, *, fps: float = 1.0, size: Size | None = None) -> Iterator[Video]:
    """Reads a camera or a stream in the network, frame by frame, until it ends.

    Args:
        source: a device of Video4Linux, such as "/dev/video0", or a URL that FFmpeg can open, such as "rtsp://...".
        fps: sampling rate in frames per second: the first frame at or after each of 0, 1/fps, ... seconds. A frame
            whose time goes back is always included.
        size: short side in pixels, which preserves the aspect ratio, or (height, width). Default: the original size.

    Yields:
        Each frame as a `Video`, with its time in seconds since the first frame.

    Raises:
        VideoError: the source cannot be opened, has no video, or breaks off (30 seconds without data, for example).
        ValueError: an argument is invalid.
    """
    import av

    check_request(None, fps, size, 0.0, None)
    device = "://" not in source
    options = {} if device else {"protocol_whitelist": _PROTOCOLS}
    try:
        container = av.open(source, format="v4l2" if device else None, options=options, timeout=_TIMEOUT)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{source}: cannot be opened as a stream ({reason(error)})") from None
    with container:
        stream: Any = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise VideoError(f"{source}: has no video that this build of PyAV can decode")
        check_pixels(stream.width, stream.height, source)
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        scaler = Scaler(size, source, float(stream.sample_aspect_ratio or 1))
        start, last, tick = None, 0.0, 0
        frames = container.decode(stream)
        while True:
            try:
                frame = next(frames, None)
            except (av.error.FFmpegError, OSError) as error:
                raise VideoError(f"{source}: breaks off ({reason(error)})") from None
            if frame is None:
                return
            stamp = time.monotonic() if frame.time is None else frame.time
            start = stamp if start is None else start
            second, before = stamp - start, last
            last = second
            if before <= second and second * fps + 1e-6 < tick:
                continue
            tick = floor(second * fps + 1e-6) + 1
            image = torch.from_numpy(scaler.frame(frame))
            yield Video(image[None], torch.tensor([second], dtype=torch.float64))
