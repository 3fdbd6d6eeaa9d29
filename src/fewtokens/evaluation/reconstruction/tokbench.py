"""Text and faces in reconstructions, as TokBench measures them (Wu et al., arXiv 2505.18142).

The recognizers are not part of this package: text is read by a callable `ocr(image, box)`, faces are compared by a
callable `embed(face)`. TokBench uses docTR and InsightFace, so its published numbers need these. `glyphs` has rendered
text and a reader for it, which need no weights.

Images are reduced to `size`, reconstructed, and brought back to their size, where they are read. The same without
reconstruction, "resize only", is the most that a tokenizer can reach, and always reported.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.shapes import shape_repr

Box = tuple[float, float, float, float]
# The text in a box of an image [3,H,W].
Ocr = Callable[[Tensor, Box], str]
# A vector for the crop of a face [3,h,w].
Embed = Callable[[Tensor], Tensor]
# The reconstruction of frames [T,3,H,W], of the same shape.
Reconstruct = Callable[[Tensor], Tensor]

# Edges of the bins by relative size, for each size of the images; smaller text or faces do not count.
TEXT_BINS = {256: (0.02, 0.03, 0.04, 1.0), 512: (0.01, 0.02, 0.03, 1.0), 1024: (0.005, 0.01, 0.02, 1.0)}
FACE_BINS = {256: (0.1, 0.2, 0.3, 1.0), 512: (0.05, 0.1, 0.2, 1.0), 1024: (0.02, 0.05, 0.1, 1.0)}


@dataclass(frozen=True)
class Mark:
    """A text or a face in an image or video.

    Attributes:
        box: left, top, right, bottom in pixels.
        text: what is written there; "" for a face.
        frame: index of the frame; None if it is at the same place in all frames, whose scores are averaged.
        ratio: relative size, if the data set states it. By default, for text the square root of the area of the box
            per character, for a face the square root of the area, divided by the longer side of the image. TokBench
            publishes ratios without their formula, so this one is ours.
    """

    box: Box
    text: str = ""
    frame: int | None = None
    ratio: float | None = None

    def relative_size(self, height: int, width: int) -> float:
        if self.ratio is not None:
            return self.ratio
        left, top, right, bottom = self.box
        area = (right - left) * (bottom - top) / max(1, len(self.text))
        return float(area**0.5 / max(height, width))


@dataclass(frozen=True, repr=False)
class Sample:
    """An image or video with its texts or faces.

    Attributes:
        frames: float [T,3,H,W] in 0..1; T is 1 for an image.
        marks: its texts or faces.
    """

    frames: Tensor
    marks: Sequence[Mark]
    __repr__ = shape_repr

    def __post_init__(self) -> None:
        x = self.frames
        if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape or not x.is_floating_point():
            raise ValueError(f"frames must be float [T,3,H,W] in 0..1, got {x.dtype} {list(x.shape)}")
        T, _, H, W = x.shape
        for mark in self.marks:
            left, top, right, bottom = mark.box
            if not (0 <= left < right <= W and 0 <= top < bottom <= H):
                raise ValueError(f"box {mark.box} is not inside an image of {W}x{H} pixels")
            if mark.frame is not None and not 0 <= mark.frame < T:
                raise ValueError(f"frame must be in 0..{T - 1}, got {mark.frame}")


@dataclass(frozen=True)
class Scores:
    """Scores by relative size.

    Attributes:
        edges: of the bins; a bin includes its lower edge.
        counts: marks in each bin.
        bins: for each measure, the mean of each bin; None for an empty bin.
        means: for each measure, the mean over bins that are not empty: each bin counts the same.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    bins: dict[str, tuple[float | None, ...]]
    means: dict[str, float]


@dataclass(frozen=True)
class Report:
    """Scores of a tokenizer and of resizing only, on the same marks.

    Attributes:
        reconstruction, resize_only: the scores.
        size: longer side of the images that were reconstructed, in pixels.
        too_small: marks below the lowest edge, which do not count.
    """

    reconstruction: Scores
    resize_only: Scores
    size: int
    too_small: int


def text_scores(samples: Sequence[Sample], reconstruct: Reconstruct, ocr: Ocr, *, size: int = 256) -> Report:
    """Measures how well text can be read: "t_acc" and "t_ned", both 0 to 1, higher is better.

    T-ACC is the fraction of texts that are read exactly, with case. T-NED is 1 minus the edit distance divided by the
    longer of both texts.

    Args:
        samples: images or videos with marks that have a text.
        reconstruct: maps frames [T,3,h,w] in 0..1, whose longer side is `size`, to the same shape. Values outside 0..1
            are clamped.
        ocr: reads the text in a box of an image [3,H,W] in 0..1 at the original size.
        size: 256, 512 or 1024.

    Raises:
        ValueError: another size, no mark of a sufficient size, a mark without a text, or a reconstruction of another
            shape.
    """
    if any(not mark.text for sample in samples for mark in sample.marks):
        raise ValueError("a mark has no text; faces are measured by face_scores")

    def score(_: Tensor, image: Tensor, mark: Mark) -> dict[str, float]:
        read = ocr(image, mark.box)
        return {"t_acc": float(read == mark.text), "t_ned": 1 - normalized_edit_distance(read, mark.text)}

    return _report(samples, reconstruct, score, size, TEXT_BINS)


def face_scores(samples: Sequence[Sample], reconstruct: Reconstruct, embed: Embed, *, size: int = 256) -> Report:
    """Measures how well faces are kept: "f_sim", the cosine of the vectors of original and reconstruction, -1 to 1.

    Args:
        samples: images or videos with marks of faces.
        reconstruct: as for `text_scores`.
        embed: maps the crop of a face [3,h,w] in 0..1, at the original size, to a vector.
        size: 256, 512 or 1024.

    Raises:
        ValueError: as for `text_scores`.
    """

    def score(original: Tensor, image: Tensor, mark: Mark) -> dict[str, float]:
        a, b = (embed(_crop(x, mark.box)).flatten().double() for x in (original, image))
        return {"f_sim": float(F.cosine_similarity(a, b, dim=0))}

    return _report(samples, reconstruct, score, size, FACE_BINS)


def normalized_edit_distance(a: str, b: str) -> float:
    """Insertions, deletions and substitutions that turn one text into the other, divided by the longer; 0 to 1."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1] / max(len(a), len(b), 1)


def _report(
    samples: Sequence[Sample],
    reconstruct: Reconstruct,
    score: Callable[[Tensor, Tensor, Mark], dict[str, float]],
    size: int,
    edges: Mapping[int, tuple[float, ...]],
) -> Report:
    if size not in edges:
        raise ValueError(f"size must be one of {', '.join(map(str, edges))}, got {size}")
    bounds = edges[size]
    ours: list[tuple[int, dict[str, float]]] = []
    resized: list[tuple[int, dict[str, float]]] = []
    too_small = 0
    for sample in samples:
        marks = [(mark, _bin(mark.relative_size(*sample.frames.shape[-2:]), bounds)) for mark in sample.marks]
        too_small += sum(index is None for _, index in marks)
        if all(index is None for _, index in marks):
            continue
        small = _reduce(sample.frames, size)
        made = reconstruct(small)
        if made.shape != small.shape:
            raise ValueError(f"the reconstruction must have shape {list(small.shape)}, got {list(made.shape)}")
        for frames, into in ((made, ours), (small, resized)):
            full = _resize(frames.float().clamp(0, 1), *sample.frames.shape[-2:])
            for mark, index in marks:
                if index is not None:
                    into.append((index, _over_frames(score, sample.frames, full, mark)))
    if not ours:
        raise ValueError(f"no text or face has a relative size of at least {bounds[0]}")
    return Report(_scores(ours, bounds), _scores(resized, bounds), size, too_small)


def _over_frames(
    score: Callable[[Tensor, Tensor, Mark], dict[str, float]], original: Tensor, frames: Tensor, mark: Mark
) -> dict[str, float]:
    indices = range(len(frames)) if mark.frame is None else [mark.frame]
    scores = [score(original[t], frames[t], mark) for t in indices]
    return {name: statistics.fmean(each[name] for each in scores) for name in scores[0]}


def _scores(marks: Sequence[tuple[int, dict[str, float]]], edges: tuple[float, ...]) -> Scores:
    groups = [[each for index, each in marks if index == number] for number in range(len(edges) - 1)]
    bins = {
        name: tuple(statistics.fmean(each[name] for each in group) if group else None for group in groups)
        for name in marks[0][1]
    }
    means = {name: statistics.fmean(x for x in values if x is not None) for name, values in bins.items()}
    return Scores(edges, tuple(map(len, groups)), bins, means)


def _bin(ratio: float, edges: tuple[float, ...]) -> int | None:
    """The index of the bin; None below the lowest edge. A text or face of the whole image is in the highest."""
    return None if ratio < edges[0] else sum(ratio >= edge for edge in edges[1:-1])


def _reduce(frames: Tensor, size: int) -> Tensor:
    """Frames whose longer side is `size`; smaller ones are enlarged."""
    H, W = frames.shape[-2:]
    scale = size / max(H, W)
    return _resize(frames.float(), max(1, round(H * scale)), max(1, round(W * scale)))


def _resize(frames: Tensor, height: int, width: int) -> Tensor:
    if frames.shape[-2:] == (height, width):
        return frames
    return F.interpolate(frames, size=(height, width), mode="bicubic", antialias=True).clamp(0, 1)


def _crop(image: Tensor, box: Box) -> Tensor:
    """The pixels that a box touches."""
    left, top, right, bottom = box
    return image[:, int(top) : -int(-bottom // 1), int(left) : -int(-right // 1)]
