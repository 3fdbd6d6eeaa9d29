"""Opening a video file, its packet index, and whether it was cut."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewtokens.video.select import check_pixels
from fewtokens.video.types import VideoError


@contextmanager
def opened(path: Path, number: int | None, *, one_thread: bool = False) -> Iterator[tuple[Any, Any]]:
    """The PyAV container and the video stream to read; closed afterwards.

    Args:
        path: the file.
        number: which of its video streams, counted from 0; None = the one FFmpeg calls best, cover pictures
            left out.
        one_thread: for broken files: with several, how many frames come before an error is a matter of luck.

    Raises:
        VideoError: not a video, no such stream, frames of an impossible size.
    """
    import av
    from av.stream import Disposition

    if path.stat().st_size == 0:
        raise VideoError(f"{path}: is empty (0 bytes)")
    try:
        container = av.open(str(path), metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError, UnicodeDecodeError) as error:
        raise VideoError(f"{path}: not a video that can be opened ({_reason(error)}); is it whole?") from None
    with container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            what = "only sound" if container.streams.audio else "no video stream"
            raise VideoError(f"{path}: has {what}, so there are no frames to read")
        if number is None:
            best = container.streams.best("video")
            stream = best if best in streams else max(streams, key=lambda s: s.width * s.height)
        elif 0 <= number < len(streams):
            stream = streams[number]
        else:
            raise VideoError(f"{path}: has {len(streams)} video streams, counted from 0; there is no {number}")
        if stream.codec_context is None:
            raise VideoError(f"{path}: no decoder for its video here")
        check_pixels(stream.width, stream.height, str(path))
        if one_thread:
            stream.codec_context.thread_count = 1
        stream.thread_type = "NONE" if one_thread else "AUTO"
        yield container, stream


@dataclass(frozen=True)
class Index:
    """All frames of a stream, known from its packets without decoding.

    Attributes:
        pts: time stamps in the order of showing, int64 [n], or None where packets do not carry sound ones.
        keys: time stamps of the keyframes, rising.
        declared: how many frames the file says it has, or None.
        cut: the file ends before its contents do.
    """

    pts: NDArray[np.int64] | None
    keys: NDArray[np.int64]
    packets: int
    declared: int | None
    cut: bool


def index_of(path: Path, container: Any, stream: Any) -> Index:
    """Reads through the packets of a stream: a few milliseconds a minute of video."""
    import av

    stamps, keys, count, broken = [], [], 0, False
    # AVI keeps no time stamps; with frames out of order those that FFmpeg makes up depend on where one starts.
    known = not (container.format.name == "avi" and stream.codec_context.has_b_frames)
    try:
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            count += 1
            broken = broken or packet.is_corrupt
            if packet.pts is None:
                known = False
                continue
            stamps.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
    except (av.error.FFmpegError, OSError):
        broken = True
    pts = np.unique(np.array(stamps, dtype=np.int64))
    # Stamps that are missing or come twice cannot tell frames apart; such files are counted by decoding.
    sound = known and count > 0 and len(pts) == count and len(keys) > 0
    return Index(
        pts=pts if sound else None,
        keys=np.unique(np.array(keys, dtype=np.int64)),
        packets=count,
        declared=stream.frames or None,
        cut=broken or is_cut(path),
    )


def is_cut(path: Path) -> bool:
    """Whether the outer structure of an MP4, MOV, AVI, MKV or WebM file says that more should follow."""
    length = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
        if head[:4] == b"RIFF":
            return 8 + struct.unpack("<I", head[4:8])[0] > length
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _is_cut_ebml(head, length)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
            position = 0
            while position + 8 <= length:
                file.seek(position)
                box = file.read(16)
                size = struct.unpack(">I", box[:4])[0]
                if size == 1 and len(box) == 16:
                    size = struct.unpack(">Q", box[8:16])[0]
                elif size == 0:
                    return False  # to the end of the file
                if size < 8:
                    return False
                position += size
            return position > length
    return False


def _is_cut_ebml(head: bytes, length: int) -> bool:
    """Matroska: the size of the segment that follows the EBML header."""

    def number(at: int) -> tuple[int, int, bool]:
        """A variable-length number: value, bytes, and whether it means "unknown"."""
        first = head[at]
        width = 9 - first.bit_length()
        value = first & ((1 << (8 - width)) - 1)
        for byte in head[at + 1 : at + width]:
            value = value << 8 | byte
        return value, width, value == (1 << 7 * width) - 1

    size, width, _ = number(4)
    at = 4 + width + size
    if head[at : at + 4] != b"\x18\x53\x80\x67" or at + 12 > len(head):
        return False
    size, width, unknown = number(at + 4)
    return not unknown and at + 4 + width + size > length


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
