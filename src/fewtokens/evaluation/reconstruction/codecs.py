"""Codecs as baselines for tokenizers: x264 and x265 as raw elementary streams, and JPEG, at a rate in bits.

A tokenizer is compared with a codec at the same bits, so nothing that a file adds is counted: no container, and the
headers separately. Codecs store 4:2:0 chroma; `yuv420` shows what that costs without any coding.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewtokens.core.shapes import shape_repr

VideoCodec = Literal["x264", "x265"]

# Encoder, decoder, and options that keep the stream small and equal in each run. x265 would else write its own settings
# into the stream; x264 always does, as SEI.
_CODECS: dict[str, tuple[str, str, dict[str, str]]] = {
    "x264": ("libx264", "h264", {}),
    "x265": ("libx265", "hevc", {"x265-params": "log-level=none:info=0:pools=none:frame-threads=1"}),
}
# Units of a stream that hold no pixels: SEI, parameter sets, delimiters (H.264 table 7-1, H.265 table 7-1).
_HEADERS = {"x264": {6, 7, 8, 9}, "x265": {32, 33, 34, 35, 39, 40}}
_MAX_CRF = 51
# Steps per unit of crf in a search, finer than the rate changes.
_CRF_STEPS = 4


@dataclass(frozen=True, repr=False)
class Coded:
    """A reconstruction, and the bits it was made from.

    Attributes:
        name: codec or baseline with its setting, such as "x264(crf=28)".
        frames: float32 [T,3,H,W] in 0..1.
        bits: bits of the content, without headers.
        header_bits: bits of headers: parameter sets and SEI of a video stream, tables of JPEG, sizes of a grid.
        settings: values that determine the result, such as the crf.
        above_target: whether `bits` is above the requested rate, because the codec does not reach a lower one.
    """

    name: str
    frames: Tensor
    bits: int
    header_bits: int = 0
    settings: Mapping[str, float | str] = field(default_factory=dict)
    above_target: bool = False
    __repr__ = shape_repr

    @property
    def bits_per_pixel(self) -> float:
        """Bits per pixel without headers: `bits` / (T·H·W)."""
        T, _, H, W = self.frames.shape
        return self.bits / (T * H * W)


def encode_video(
    frames: Tensor, codec: VideoCodec = "x264", *, crf: float = 23, preset: str = "slow", fps: float = 25
) -> Coded:
    """Encodes frames with x264 or x265 to a raw elementary stream (Annex B), and decodes them.

    Args:
        frames: [T,3,H,W], uint8 or float in 0..1. Odd sizes are padded by repeating the last row or column, and
            cropped after decoding.
        codec: "x264" (H.264) or "x265" (HEVC).
        crf: constant rate factor, 0 (best) to 51. Equal factors of x264 and x265 are not equal qualities.
        preset: speed of the encoder, "ultrafast" to "placebo".
        fps: frames per second, to which the rate control of both adapts slightly.

    Returns:
        `bits` of slices, `header_bits` of parameter sets and SEI. Chroma is 4:2:0.

    Raises:
        ValueError: frames have another shape or dtype, a setting is unknown or out of range, PyAV is built without
            this codec, or the codec does not support the size.
    """
    if codec not in _CODECS:
        raise ValueError(f"codec must be one of {', '.join(_CODECS)}, got {codec!r}")
    if not 0 <= crf <= _MAX_CRF:
        raise ValueError(f"crf must be in 0..{_MAX_CRF}, got {crf}")
    if not 0.01 <= fps <= 10_000:
        raise ValueError(f"fps must be 0.01 to 10,000, got {fps}")
    pixels = _to_bytes(frames)
    stream = _encode(pixels, codec, crf, preset, fps)
    header = sum(8 * size for kind, size in _units(stream, codec) if kind in _HEADERS[codec])
    return Coded(
        name=f"{codec}(crf={crf:g})",
        frames=_to_frames(_decode(stream, codec)[:, : pixels.shape[1], : pixels.shape[2]]),
        bits=8 * len(stream) - header,
        header_bits=header,
        settings={"codec": codec, "crf": crf, "preset": preset, "fps": fps, "chroma": "4:2:0"},
    )


def encode_jpeg(frames: Tensor, quality: int) -> Coded:
    """Encodes each frame as a JPEG image by Pillow, and decodes it.

    Args:
        frames: [T,3,H,W], uint8 or float in 0..1.
        quality: 1 (worst) to 95.

    Returns:
        `bits` of the scans, `header_bits` of the rest, mostly standard tables. Chroma is 4:2:0.

    Raises:
        ValueError: frames have another shape or dtype, or quality is out of range.
    """
    from PIL import Image

    if not 1 <= quality <= 95:
        raise ValueError(f"quality must be in 1..95, got {quality}")
    bits = header = 0
    decoded = []
    for pixels in _to_bytes(frames):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="JPEG", quality=quality, subsampling="4:2:0")
        content = file.getvalue()
        # The scan follows the marker FFDA and its header, whose length is the next two bytes; FFD9 ends it.
        marker = content.index(b"\xff\xda") + 2
        scan = len(content) - (marker + int.from_bytes(content[marker : marker + 2], "big")) - 2
        bits += 8 * scan
        header += 8 * (len(content) - scan)
        decoded.append(np.asarray(Image.open(file).convert("RGB")))
    settings: dict[str, float | str] = {"codec": "jpeg", "quality": quality, "chroma": "4:2:0"}
    return Coded(f"jpeg(quality={quality})", _to_frames(np.stack(decoded)), bits, header, settings)


def at_bits(
    frames: Tensor,
    bits: float,
    codec: VideoCodec | Literal["jpeg"] = "x264",
    *,
    preset: str = "slow",
    fps: float = 25,
    count_header: bool = False,
) -> Coded:
    """Encodes frames at the highest rate that is not above `bits`, by bisection over crf or quality.

    About eight encodings; the crf has steps of 1/4. Bisection rather than the bit rate control of the codecs, which
    misses its target on clips of a few frames.

    Args:
        frames: [T,3,H,W], uint8 or float in 0..1.
        bits: target for the whole clip, such as the bits of a tokenizer's codes.
        codec: "x264", "x265" or "jpeg".
        preset, fps: as for `encode_video`.
        count_header: the target includes the headers. Default: False, as the bits of a tokenizer are those of its
            codes only; on clips of 64 pixels the SEI of x264 alone would exceed them.

    Returns:
        The encoding. If even the lowest rate of the codec is above the target, that one, with `above_target` set: it
        must not be compared at these bits.

    Raises:
        ValueError: as for `encode_video`, or `bits` is not positive.
    """
    if not bits > 0:
        raise ValueError(f"bits must be above 0, got {bits}")
    if codec == "jpeg":
        worst, best = 1, 95

        def encode(step: int) -> Coded:
            return encode_jpeg(frames, step)
    else:
        worst, best = 0, _MAX_CRF * _CRF_STEPS

        def encode(step: int) -> Coded:
            return encode_video(frames, codec, crf=(best - step) / _CRF_STEPS, preset=preset, fps=fps)

    def rate(coded: Coded) -> int:
        return coded.bits + count_header * coded.header_bits

    result = _bisect(encode, worst, best, lambda coded: rate(coded) <= bits)
    return replace(result, above_target=rate(result) > bits)


def yuv420(frames: Tensor) -> Tensor:
    """Converts frames to 4:2:0 chroma with 8 bits and back, without coding: the limit of every codec of this module.

    Args:
        frames: [T,3,H,W], uint8 or float in 0..1.

    Returns:
        float32 [T,3,H,W] in 0..1.
    """
    import av

    pixels = _to_bytes(frames)
    H, W = pixels.shape[1:3]
    planes = (av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p") for image in _even(pixels))
    return _to_frames(np.stack([frame.to_ndarray(format="rgb24")[:H, :W] for frame in planes]))


def _bisect(encode: Callable[[int], Coded], low: int, high: int, fits: Callable[[Coded], bool]) -> Coded:
    """The encoding of the largest step that fits, if rates grow with the step; that of `low` if none fits."""
    best = encode(low)
    if not fits(best):
        return best
    while low < high:
        middle = (low + high + 1) // 2
        coded = encode(middle)
        if fits(coded):
            low, best = middle, coded
        else:
            high = middle - 1
    return best


def _to_bytes(frames: Tensor) -> NDArray[np.uint8]:
    """uint8 [T,H,W,3]."""
    x = frames.detach().cpu()
    if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape:
        raise ValueError(f"frames must be [T,3,H,W] with at least one frame, got {list(x.shape)}")
    if x.is_floating_point():
        x = (x.clamp(0, 1) * 255).round().byte()
    if x.dtype != torch.uint8:
        raise ValueError(f"frames must be uint8, or float in 0..1, got {x.dtype}")
    return x.permute(0, 2, 3, 1).contiguous().numpy()


def _to_frames(pixels: NDArray[np.uint8]) -> Tensor:
    """float32 [T,3,H,W] in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255


def _even(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    H, W = pixels.shape[1:3]
    return np.pad(pixels, ((0, 0), (0, H % 2), (0, W % 2), (0, 0)), mode="edge")


def _encode(pixels: NDArray[np.uint8], codec: str, crf: float, preset: str, fps: float) -> bytes:
    import av

    name, _, options = _CODECS[codec]
    pixels = _even(pixels)
    try:
        context: Any = av.CodecContext.create(name, "w")
    except ValueError:
        raise ValueError(f"PyAV is built without {name}; install it with pip install av") from None
    context.height, context.width = pixels.shape[1:3]
    context.pix_fmt, context.thread_count = "yuv420p", 1
    context.framerate = Fraction(fps).limit_denominator(60000)
    context.time_base = 1 / context.framerate
    context.options = {"crf": f"{crf:g}", "preset": preset, **options}
    packets = []
    try:
        for index, image in enumerate(pixels):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = index
            packets += context.encode(frame)
        packets += context.encode(None)
    except av.error.FFmpegError as error:
        raise ValueError(
            f"{codec} does not encode {context.width}x{context.height} with preset {preset!r} ({error.strerror})"
        ) from None
    return b"".join(bytes(packet) for packet in packets)


def _decode(stream: bytes, codec: str) -> NDArray[np.uint8]:
    """uint8 [T,H,W,3]."""
    import av

    context: Any = av.CodecContext.create(_CODECS[codec][1], "r")
    packets = [*context.parse(stream), *context.parse(None)]
    frames = [frame for packet in packets for frame in context.decode(packet)] + context.decode(None)
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


def _units(stream: bytes, codec: str) -> list[tuple[int, int]]:
    """The units of a stream in Annex B: (type, bytes with the start code)."""
    starts = [match.span() for match in re.finditer(rb"\x00?\x00\x00\x01", stream)]
    ends = [start for start, _ in starts[1:]] + [len(stream)]
    kinds = [stream[after] & 31 if codec == "x264" else stream[after] >> 1 & 63 for _, after in starts]
    return [(kind, end - start) for kind, (start, _), end in zip(kinds, starts, ends, strict=True)]
