"""Opening a video file, its packet index, and whether it was cut."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewtokens.core.shapes import by_shape
from fewtokens.video.select import MOST_PIXELS, check_pixels
from fewtokens.video.types import VideoError

# Decoders that see the transparency of VP8 and VP9; those of FFmpeg leave it out.
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


def url(path: Path) -> str:
    """The path as FFmpeg takes it: what comes before a colon in a file's name is no protocol."""
    return f"file:{path}"


@contextmanager
def opened(path: Path, number: int | None) -> Iterator[tuple[Any, Any, Any]]:
    """The PyAV container, the video stream to read and its decoder; closed afterwards.

    The decoder has one thread. With several, what it does after an error is a matter of luck, and so are the marks of
    frames in which it concealed errors: a damaged file would be another one each time.

    Args:
        path: the file.
        number: which of its video streams, counted from 0; None = the one FFmpeg calls best, cover pictures
            left out.

    Raises:
        VideoError: not a video, no such stream, frames of an impossible size.
    """
    import av
    from av.stream import Disposition

    if path.stat().st_size == 0:
        raise VideoError(f"{path}: is empty (0 bytes)")
    # A playlist in disguise reaches no network, and a % in a name stands for itself.
    options = {"protocol_whitelist": "file", "pattern_type": "none"}
    try:
        container = av.open(url(path), metadata_errors="replace", options=options)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: not a video that can be opened ({reason(error)}); is it whole?") from None
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
        decoder = _decoder(stream, path)
        decoder.options = {"max_pixels": str(MOST_PIXELS)}
        decoder.thread_count, decoder.thread_type = 1, "NONE"
        yield container, stream, decoder


def _decoder(stream: Any, path: Path) -> Any:
    """The decoder of a stream: another one than PyAV chose if there is transparency that it would leave out."""
    import av

    own = stream.codec_context
    said = {name.lower(): value for name, value in stream.metadata.items()}
    if said.get("alpha_mode") != "1" or own.name not in _WITH_ALPHA:
        return own
    try:
        decoder = av.CodecContext.create(_WITH_ALPHA[own.name], "r")
    except (av.error.FFmpegError, ValueError):
        raise VideoError(f"{path}: is transparent, and this build of PyAV lacks libvpx to decode that") from None
    decoder.extradata = own.extradata
    return decoder


@dataclass(frozen=True)
class Index:
    """All frames of a stream, known from its packets without decoding.

    Attributes:
        pts: time stamps in the order of showing, int64 [n].
        keys: time stamps of the keyframes, rising.
        end: time stamp at which the last frame is no longer shown, or None where the file does not say.
        packets: how many there are.
        sound: the stamps tell all frames apart, and nothing speaks against them: frames are found by them.
        headless: begins with frames that refer to others before them.
    """

    pts: NDArray[np.int64]
    keys: NDArray[np.int64]
    end: int | None
    packets: int
    sound: bool
    headless: bool

    __repr__ = by_shape


def index_of(container: Any, stream: Any) -> Index:
    """Reads through the packets of a stream: a few milliseconds a minute of video."""
    import av

    stamps, keys = array("q"), array("q")
    count, end, headless = 0, None, False
    # AVI keeps no time stamps; with frames out of order those that FFmpeg makes up depend on where one starts.
    sound = not (container.format.name == "avi" and stream.codec_context.has_b_frames)
    try:
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            headless = headless or (count == 0 and not packet.is_keyframe)
            count += 1
            sound = sound and packet.pts is not None and not packet.is_corrupt
            if packet.pts is None:
                continue
            stamps.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
            if packet.duration and (end is None or packet.pts + packet.duration > end):
                end = packet.pts + packet.duration
    except (av.error.FFmpegError, OSError):
        sound = False
    pts = np.unique(np.array(stamps, dtype=np.int64))
    # Stamps that are missing or come twice cannot tell frames apart; those of a hostile file may overflow.
    sound = sound and 0 < len(pts) == count and len(keys) > 0 and pts[0] == min(keys)
    sound = sound and int(pts[-1]) - int(pts[0]) < 1 << 62
    return Index(pts, np.unique(np.array(keys, dtype=np.int64)), end, count, sound, headless)


def is_cut(path: Path) -> bool:
    """Whether the outer structure of an MP4, MOV, AVI, MKV or WebM file says that more should follow."""
    length = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
        if len(head) < 16:
            return False
        if head[:4] == b"RIFF":
            size = struct.unpack("<I", head[4:8])[0]
            return size != 0xFFFFFFFF and 8 + size > length  # all ones: written without knowing
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
    header = _ebml_number(head, 4)
    at = 4 + header[1] + header[0] if header else len(head)
    segment = _ebml_number(head, at + 4) if head[at : at + 4] == b"\x18\x53\x80\x67" else None
    if segment is None:
        return False
    size, width = segment
    unknown = size == (1 << 7 * width) - 1
    return not unknown and at + 4 + width + size > length


def _ebml_number(head: bytes, at: int) -> tuple[int, int] | None:
    """A number of variable length: its value and its bytes; None where there is none."""
    if at >= len(head) or head[at] == 0:
        return None
    width = 9 - head[at].bit_length()
    value = head[at] & ((1 << (8 - width)) - 1)
    for byte in head[at + 1 : at + width]:
        value = value << 8 | byte
    return value, width


def reason(error: BaseException) -> str:
    """What an exception says, in one line."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
