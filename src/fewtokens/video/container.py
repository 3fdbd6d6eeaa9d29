"""Opens video files, reads their packet index and detects truncated files."""

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

from fewtokens.core.shapes import shape_repr
from fewtokens.video.select import MAX_PIXELS, check_pixels
from fewtokens.video.types import VideoError

# Decoders that support the transparency of VP8 and VP9; FFmpeg's own do not.
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# Decoders that decode at a half, a quarter or an eighth of the resolution.
_WITH_LOWRES = frozenset(["mjpeg", "mpeg1video", "mpeg2video", "mpeg4"])


def url(path: Path) -> str:
    """Returns the path as a URL for FFmpeg, so that a colon in the file name is not parsed as a protocol."""
    return f"file:{path}"


@contextmanager
def open_stream(path: Path, video_stream: int | None, draft: int | None = None) -> Iterator[tuple[Any, Any, Any]]:
    """Opens a video file; yields the PyAV container, the video stream and its decoder.

    The decoder uses one thread. With several, neither its recovery from errors nor the frames that it marks as corrupt
    are deterministic, so a damaged file would be read differently each time.

    Args:
        path: the file.
        video_stream: index of the video stream; None for the one that FFmpeg ranks best. Cover images are not counted.
        draft: the short side in pixels for which frames are decoded, see `VideoFile.as_draft`.

    Raises:
        VideoError: the file is not a video, the stream does not exist, or the frame size is invalid.
    """
    import av
    from av.stream import Disposition

    if path.stat().st_size == 0:
        raise VideoError(f"{path}: is empty (0 bytes)")
    # Keeps disguised playlists off the network, and a % in the file name from being parsed as a pattern.
    options = {"protocol_whitelist": "file", "pattern_type": "none"}
    try:
        container = av.open(url(path), metadata_errors="replace", options=options)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: cannot be opened as a video ({reason(error)}); was it cut short?") from None
    with container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            content = "only audio" if container.streams.audio else "no video stream"
            raise VideoError(f"{path}: has {content}, so it contains no frames")
        if video_stream is None:
            best = container.streams.best("video")
            stream = best if best in streams else max(streams, key=lambda s: s.width * s.height)
        elif 0 <= video_stream < len(streams):
            stream = streams[video_stream]
        else:
            raise VideoError(f"{path}: video_stream must be in 0..{len(streams) - 1}, got {video_stream}")
        if stream.codec_context is None:
            raise VideoError(f"{path}: this build of PyAV has no decoder for its video")
        check_pixels(stream.width, stream.height, str(path))
        decoder = _decoder(stream, path)
        decoder.options = {"max_pixels": str(MAX_PIXELS), **_draft_options(decoder, draft)}
        decoder.thread_count, decoder.thread_type = 1, "NONE"
        yield container, stream, decoder


def _draft_options(decoder: Any, size: int | None) -> dict[str, str]:
    """The options of a decoder for thumbnails of this short side; see `VideoFile.as_draft`."""
    if size is None:
        return {}
    options = {"skip_loop_filter": "all"}
    if decoder.name in _WITH_LOWRES:
        halvings = (min(decoder.width, decoder.height) // (2 * size)).bit_length() - 1
        options["lowres"] = str(max(0, min(3, halvings)))
    return options


def _decoder(stream: Any, path: Path) -> Any:
    """Returns the decoder of a stream; replaces PyAV's default one if it does not support the stream's transparency."""
    import av

    default = stream.codec_context
    metadata = {name.lower(): value for name, value in stream.metadata.items()}
    if metadata.get("alpha_mode") != "1" or default.name not in _WITH_ALPHA:
        return default
    try:
        decoder = av.CodecContext.create(_WITH_ALPHA[default.name], "r")
    except (av.error.FFmpegError, ValueError):
        raise VideoError(f"{path}: is transparent, which requires a build of PyAV with libvpx") from None
    decoder.extradata = default.extradata
    return decoder


@dataclass(frozen=True)
class Index:
    """The frames of a stream according to its packets, without decoding.

    Attributes:
        pts: timestamps of all frames in presentation order, int64 [n].
        keys: timestamps of the keyframes, ascending.
        end: timestamp of the end of the last frame, or None if the file does not specify it.
        packets: number of packets.
        reliable: whether the timestamps are unique and consistent, so that frames can be located by them.
        headless: whether the stream starts with frames that depend on missing earlier ones.
    """

    pts: NDArray[np.int64]
    keys: NDArray[np.int64]
    end: int | None
    packets: int
    reliable: bool
    headless: bool

    __repr__ = shape_repr


def read_index(container: Any, stream: Any) -> Index:
    """Reads all packets of a stream, which takes a few milliseconds per minute of video."""
    import av

    stamps, keys = array("q"), array("q")
    count, end, headless = 0, None, False
    # AVI has no timestamps; with B-frames, those that FFmpeg generates depend on where it starts reading.
    reliable = not (container.format.name == "avi" and stream.codec_context.has_b_frames)
    try:
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            headless = headless or (count == 0 and not packet.is_keyframe)
            count += 1
            reliable = reliable and packet.pts is not None and not packet.is_corrupt
            if packet.pts is None:
                continue
            stamps.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
            if packet.duration and (end is None or packet.pts + packet.duration > end):
                end = packet.pts + packet.duration
    except (av.error.FFmpegError, OSError):
        reliable = False
    pts = np.unique(np.array(stamps, dtype=np.int64))
    # Missing or duplicate timestamps do not identify frames; those of a malicious file may overflow.
    reliable = reliable and 0 < len(pts) == count and len(keys) > 0 and pts[0] == min(keys)
    reliable = reliable and int(pts[-1]) - int(pts[0]) < 1 << 62
    return Index(pts, np.unique(np.array(keys, dtype=np.int64)), end, count, reliable, headless)


def is_truncated(path: Path) -> bool:
    """Whether an MP4, MOV, AVI, MKV or WebM file is shorter than its container headers specify."""
    length = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
        if len(head) < 16:
            return False
        if head[:4] == b"RIFF":
            size = struct.unpack("<I", head[4:8])[0]
            return size != 0xFFFFFFFF and 8 + size > length  # all ones: unknown size
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _is_truncated_matroska(head, length)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
            position = 0
            while position + 8 <= length:
                file.seek(position)
                box = file.read(16)
                size = struct.unpack(">I", box[:4])[0]
                if size == 1 and len(box) == 16:
                    size = struct.unpack(">Q", box[8:16])[0]
                elif size == 0:
                    return False  # extends to the end of the file
                if size < 8:
                    return False
                position += size
            return position > length
    return False


def _is_truncated_matroska(head: bytes, length: int) -> bool:
    """Whether a Matroska file is shorter than the segment after the EBML header."""
    header = _ebml_number(head, 4)
    offset = 4 + header[1] + header[0] if header else len(head)
    segment = _ebml_number(head, offset + 4) if head[offset : offset + 4] == b"\x18\x53\x80\x67" else None
    if segment is None:
        return False
    size, width = segment
    unknown = size == (1 << 7 * width) - 1
    return not unknown and offset + 4 + width + size > length


def _ebml_number(head: bytes, offset: int) -> tuple[int, int] | None:
    """Reads a variable-length integer; returns its value and its length in bytes, or None if there is none."""
    if offset >= len(head) or head[offset] == 0:
        return None
    width = 9 - head[offset].bit_length()
    value = head[offset] & ((1 << (8 - width)) - 1)
    for byte in head[offset + 1 : offset + width]:
        value = value << 8 | byte
    return value, width


def reason(error: BaseException) -> str:
    """Returns the message of an exception as one line."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
