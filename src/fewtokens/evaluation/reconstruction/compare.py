"""Compares tokenizers on the same clips, with codecs and simple reconstructions at the same bits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.shapes import shape_repr
from fewtokens.data.footage import Footage, describe_error, read_frames, resize_short
from fewtokens.evaluation.reconstruction import baselines
from fewtokens.evaluation.reconstruction.codecs import Coded, at_bits, encode_jpeg, encode_video
from fewtokens.evaluation.reconstruction.frechet import Distance, Pairs, frechet_random3d, rfid, rfvd
from fewtokens.evaluation.reconstruction.lpips import Lpips
from fewtokens.evaluation.reconstruction.metrics import code_health, evaluate
from fewtokens.evaluation.reconstruction.protocol import Protocol
from fewtokens.profiling.latency import synchronize
from fewtokens.tokenizers.chunks import chunk_frames
from fewtokens.tokenizers.tokenizer import Tokenizer

Progress = Callable[[int, int, str], None]
# Constant rate factors of the curves of x264 and x265.
CRFS = (20.0, 28.0, 36.0, 44.0, 51.0)
# Qualities of the curve of JPEG.
QUALITIES = (5, 20, 50, 80, 95)


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Measures by networks, in addition to those of `evaluate`.

    Attributes:
        lpips: the network of LPIPS.
        rfid, rfvd: files of the weights of Inception and of I3D.
        random3d: whether to measure `frechet_random3d`, which needs no weights.
        shrinkage: of the covariances, see `frechet_distance`.
        split: data set and split, for the record of the protocol.
    """

    lpips: Lpips | None = None
    rfid: str | Path | None = None
    rfvd: str | Path | None = None
    random3d: bool = False
    shrinkage: float | None = None
    split: str = ""

    def distances(self, clips: Sequence[Clip], decoded: Sequence[Tensor]) -> dict[str, Any]:
        """Returns the Fréchet distances by name, and "distances", how each was measured.

        Args:
            clips: the originals.
            decoded: the reconstruction of each, uint8 [T,3,size,size].

        Raises:
            ValueError: weights are missing or of another network, or the clips are too few.
        """
        T, _, height, width = clips[0].frames.shape
        protocol = Protocol(self.split, len(clips), T, height, width, 0, "short side resized, center crop")

        def pairs() -> Pairs:
            for clip, frames in zip(clips, decoded, strict=True):
                yield clip.frames[None].float() / 255, frames[None].float() / 255

        measured: list[Distance] = []
        if self.rfid is not None:
            measured.append(rfid(pairs(), protocol, self.rfid, shrinkage=self.shrinkage))
        if self.rfvd is not None:
            measured.append(rfvd(pairs(), protocol, self.rfvd, shrinkage=self.shrinkage))
        if self.random3d:
            measured.append(frechet_random3d(pairs(), protocol, shrinkage=self.shrinkage))
        if not measured:
            return {}
        return {each.name: each.value for each in measured} | {"distances": [asdict(each) for each in measured]}


@dataclass(frozen=True)
class ClipProtocol:
    """How clips are taken from videos; stored with every result.

    Attributes:
        frames: frames of a clip, consecutive ones with a distance of `gap` frames.
        size: height and width in pixels: the short side is resized, then the center is cropped.
        gap: distance of consecutive frames, in frames of the video.
        clips: clips of each video, evenly spaced.
    """

    frames: int = 17
    size: int = 128
    gap: int = 1
    clips: int = 1

    def __post_init__(self) -> None:
        if min(self.frames, self.size, self.gap, self.clips) < 1:
            raise ValueError(f"frames, size, gap and clips must be at least 1, got {self}")


@dataclass(frozen=True, eq=False)
class Clip:
    """One clip.

    Attributes:
        name: the video, and the number of the clip if there are several.
        frames: uint8 [T,3,size,size].
    """

    name: str
    frames: Tensor

    __repr__ = shape_repr


def read_clips(items: Sequence[Footage], protocol: ClipProtocol) -> tuple[list[Clip], list[str]]:
    """Reads the clips of videos.

    Returns:
        The clips, and one line for each video that cannot be read or is too short.
    """
    clips, broken = [], []
    span = protocol.gap * (protocol.frames - 1) + 1

    def choose(length: int) -> list[int]:
        if length < span:
            raise ValueError(f"a clip requires {span} frames, the video has {length}")
        room = length - span
        starts = [round(room * (2 * number + 1) / (2 * protocol.clips)) for number in range(protocol.clips)]
        return [start + protocol.gap * index for start in starts for index in range(protocol.frames)]

    for item in items:
        try:
            frames = read_frames(item, choose)
        except (ValueError, OSError) as error:
            broken.append(describe_error(item.name, error))
            continue
        for number, part in enumerate(_crop(frames, protocol.size).split(protocol.frames)):
            clips.append(Clip(f"{item.name}#{number}" if protocol.clips > 1 else item.name, part))
    return clips, broken


def _crop(frames: Tensor, size: int) -> Tensor:
    """Resizes the short side of uint8 [n,3,H,W] and crops the center, [n,3,size,size]."""
    resized = resize_short(frames, size)
    top, left = (resized.shape[-2] - size) // 2, (resized.shape[-1] - size) // 2
    return resized[..., top : top + size, left : left + size].contiguous()


@torch.no_grad()
def score_tokenizer(
    tokenizer: Tokenizer,
    clips: Sequence[Clip],
    progress: Progress | None = None,
    *,
    measures: Measures = Measures(),
) -> dict[str, Any]:
    """Scores one tokenizer.

    Args:
        tokenizer: the tokenizer.
        clips: the clips, all of one size.
        progress: called with (clips done, clips, name).
        measures: further measures.

    Returns:
        The means over the clips of `evaluate`, with "bits" of a clip and "bits_per_pixel" by formula, "tokens" of a
        clip; the distances of `measures`; those of `code_health` over all clips and "entropy_bits_per_pixel" from them,
        if there are codes; "encode_fps" and "decode_fps", the frames per second of the fastest clip; and "clips", one
        row for each.
    """
    rows, codes, seconds, frames = [], [], [], []
    books: tuple[int, ...] = ()
    # Chunks are those of encoding in bounded memory, which equals encoding the whole up to rounding.
    first, later = chunk_frames(tokenizer) or (None, None)
    for number, clip in enumerate(clips):
        synchronize(tokenizer.device)
        start = time.perf_counter()
        tokens = tokenizer.encode(clip.frames)
        synchronize(tokenizer.device)
        middle = time.perf_counter()
        decoded = tokenizer.decode(tokens)
        synchronize(tokenizer.device)
        seconds.append((middle - start, time.perf_counter() - middle))
        scores = evaluate(
            clip.frames[None].float() / 255,
            decoded.cpu(),
            chunk=later,
            first_chunk=first,
            perceptual=measures.lpips,
        )
        frames.append((decoded[0].cpu() * 255).round().byte())
        bits = float(tokenizer.bits(tokens).sum())
        rows.append({"name": clip.name, "bits": bits, "tokens": int(tokens.count.sum()), **scores})
        if tokens.codes is not None:
            used, books = tokenizer.codes_by_book(tokens)
            codes.append(used.cpu())
        if progress is not None:
            progress(number + 1, len(clips), clip.name)
    pixels = clips[0].frames[:, 0].numel()
    result = _mean(rows) | measures.distances(clips, frames)
    result["bits_per_pixel"] = result["bits"] / pixels
    if codes:
        result |= code_health(torch.cat(codes), books)
        side = result["bits"] - result["bits_per_token"] * result["tokens"]
        result["entropy_bits_per_pixel"] = (result["entropy_bits"] * result["tokens"] + side) / pixels
    encode, decode = (min(parts) for parts in zip(*seconds, strict=True))
    length = len(clips[0].frames)
    return result | {"encode_fps": length / encode, "decode_fps": length / decode, "clips": rows}


def score_coded(
    code: Callable[[Tensor], Coded], clips: Sequence[Clip], *, measures: Measures = Measures()
) -> dict[str, Any]:
    """Scores a codec or baseline: the means over the clips, "bits" and "header_bits", and "above_target", the share of
    clips for which the codec does not reach the requested rate; and the distances of `measures`."""
    rows, frames = [], []
    for clip in clips:
        original = clip.frames.float() / 255
        coded = code(original)
        scores = evaluate(original, coded.frames, perceptual=measures.lpips)
        frames.append((coded.frames * 255).round().byte())
        rows.append({
            "name": clip.name, "bits": coded.bits, "header_bits": coded.header_bits,
            "above_target": float(coded.above_target), **scores,
        })  # fmt: skip
    pixels = clips[0].frames[:, 0].numel()
    result = _mean(rows) | measures.distances(clips, frames)
    return result | {"bits_per_pixel": result["bits"] / pixels, "clips": rows}


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = [name for name, value in rows[0].items() if isinstance(value, int | float)]
    return {name: sum(row[name] for row in rows) / len(rows) for name in names}


def compare(
    tokenizers: Sequence[tuple[str, Tokenizer]],
    clips: Sequence[Clip],
    protocol: ClipProtocol,
    *,
    codecs: Sequence[str] = ("x264", "x265"),
    curves: bool = True,
    measures: Measures = Measures(),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compares tokenizers, and codecs and baselines at their bits.

    Args:
        tokenizers: names and tokenizers.
        clips: the clips, all of one size.
        protocol: how they were taken.
        codecs: "x264", "x265" and "jpeg", which codes each frame on its own; empty for none.
        curves: whether to also measure the codecs at fixed rate factors (`CRFS`), or JPEG at fixed `QUALITIES`, for
            rate-distortion curves.
        measures: further measures.
        progress: called with (clips done, clips, name).

    Returns:
        "protocol", the settings; "rows", one for each tokenizer, codec and baseline: "name", "kind" ("tokenizer",
        "codec" or "baseline"), "at", the tokenizer whose bits a codec or baseline has, and the scores of
        `score_tokenizer` or `score_coded`.
    """
    rows: list[dict[str, Any]] = []
    for name, tokenizer in tokenizers:
        scores = score_tokenizer(tokenizer, clips, progress, measures=measures)
        rows.append({"name": name, "kind": "tokenizer", "at": "", **scores})
        bits = scores["bits"]
        for codec in codecs:

            def code(frames: Tensor, codec: Any = codec, bits: float = bits) -> Coded:
                return at_bits(frames, bits, codec)

            rows.append({"name": codec, "kind": "codec", "at": name, **score_coded(code, clips, measures=measures)})

        def pool(frames: Tensor, bits: float = bits) -> Coded:
            return baselines.area_pooling(frames, max(bits, 24))

        rows.append(
            {"name": "area_pooling", "kind": "baseline", "at": name, **score_coded(pool, clips, measures=measures)}
        )
    # The mean frame of an image is the image.
    for baseline in (baselines.mean_frame, baselines.mean_color)[protocol.frames == 1 :]:
        scores = score_coded(baseline, clips, measures=measures)
        rows.append({"name": baseline.__name__, "kind": "baseline", "at": "", **scores})
    for codec in codecs if curves else ():
        for rate in QUALITIES if codec == "jpeg" else CRFS:

            def curve(frames: Tensor, codec: Any = codec, rate: Any = rate) -> Coded:
                return encode_jpeg(frames, rate) if codec == "jpeg" else encode_video(frames, codec, crf=rate)

            at = f"{'quality' if codec == 'jpeg' else 'crf'}={rate:g}"
            rows.append({"name": codec, "kind": "codec", "at": at, **score_coded(curve, clips, measures=measures)})
    settings = {**asdict(protocol), "num_clips": len(clips), "crop": "center", "psnr": "mean over frames"}
    return {"protocol": settings, "rows": rows}
