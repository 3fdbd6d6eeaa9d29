"""`FrameSelector`: the base class of methods that select the frames of a video before any is decoded in full."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, final

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.plan import Plan
from fewtokens.core.shapes import shape_repr
from fewtokens.core.spec import Spec
from fewtokens.core.tokens import Tokens

# Inputs that a selector may need in addition to the times; T is the number of candidates.
NEEDS = {
    "thumbnails": "T small frames, uint8 [3,h,w] each, decoded when they are read",
    "features": "[T,C] one vector per candidate; by default from the pixels of the thumbnails",
    "relevance": "[T] score of each candidate for the question, by a scorer",
    "question": "the text of the question",
    "keyframes": "the keyframes of the codec as candidates",
}
# Thumbnails that are decoded and processed together, unless they say how many (`at_once`).
CHUNK = 256
# Side of the pooled thumbnail in `pixel_features`.
_SIDE = 8
_KEEP = "keep must be a count of frames of at least 1 such as 32, or a fraction of the candidates in (0, 1] such as 0.1"


class Thumbnails(Protocol):
    """A sequence of small frames that are decoded when they are read; a tensor [T,3,h,w] is one."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Selection:
    """The frames of a video to read.

    Attributes:
        index: int64 [K], indices of the selected candidates in ascending order.
        scale: float64 [K,2], height and width of each frame relative to the frame that is read, in (0, 1].
        why: what decided: scores, anchors, cuts; for figures and logs. Indices in it are those of candidates.
    """

    index: Tensor
    scale: Tensor
    why: dict[str, Any] = field(default_factory=dict)

    __repr__ = shape_repr

    def __len__(self) -> int:
        """The number of frames."""
        return len(self.index)

    @property
    def full_size(self) -> bool:
        """Whether all frames have their full size."""
        return bool((self.scale == 1).all())

    def cells(self, rows: int, columns: int) -> Tensor:
        """Returns the rows and columns of cells of each frame, int64 [K,2], of a grid of `rows` x `columns`.

        Rounded down, so that the total stays within the budget, but at least one cell per frame.
        """
        return (self.scale * torch.tensor([rows, columns]) + 1e-6).floor().long().clamp(min=1)

    def tokens(self, rows: int, columns: int) -> Tensor:
        """Returns the planned number of tokens of each frame, int64 [K], of a grid of `rows` x `columns` cells."""
        return self.cells(rows, columns).prod(1)


@dataclass(frozen=True, eq=False)
class Candidates:
    """The frames among which a selector selects, as `FrameSelector.choose` receives them.

    Attributes:
        times: float64 [T], seconds, ascending.
        count: number of frames to select, in 1..T.
        thumbnails: T small frames, or None if the selector does not need them.
        question: the question, or None.
        relevance: float32 [T], finite; empty if the selector does not need it.
        features: float32 [T,C], unit vectors; empty if the selector does not need them.
        generator: source of random numbers, or None.
    """

    times: Tensor
    count: int
    thumbnails: Thumbnails | None
    question: str | None
    relevance: Tensor
    features: Tensor
    generator: torch.Generator | None

    __repr__ = shape_repr

    def __len__(self) -> int:
        """The number of candidates."""
        return len(self.times)

    @property
    def duration(self) -> float:
        """Seconds from the first candidate to the end of the last one, which is shown for the median interval."""
        if len(self) == 1:
            return 0.0
        return float(self.times[-1] - self.times[0] + self.times.diff().median())


class FrameSelector(Spec):
    """The base class of methods that select frames from times, thumbnails and a question, before full decoding.

        selector = fewtokens.create_method("aks", keep=32)
        selection = selector.select(times, thumbnails, relevance=scores)

    A subclass calls `set_budget` in its constructor and overrides `choose`. The candidates are frames of the video at
    `rate`; only these are decoded, as thumbnails, and only if the selector needs more than their times.

    Class attributes:
        stage: always "frames".
        learned: whether it has trainable parameters.
        sizes: whether selected frames may have different sizes. Its budget `keep` is then the number of full frames
            whose cells the selected frames have together at most.
        always: whether `choose` also runs if there are not more candidates than the budget, because it states more than
            the frames.
        paper: citation, in one line.
        license: license of the authors' code, in one line.
        cost: computational cost, in one line; T is the number of candidates, K of selected frames.

    Attributes:
        keep: number of frames (int), or fraction of the candidates (float).
        rate: candidates per second; "keyframes" for those of the codec, "all" for all frames.
        needs: what `select` requires in addition to the times, keys of `NEEDS`.
    """

    stage: ClassVar[str] = "frames"
    learned: ClassVar[bool] = False
    sizes: ClassVar[bool] = False
    always: ClassVar[bool] = False
    paper: ClassVar[str] = ""
    license: ClassVar[str] = ""
    cost: ClassVar[str] = ""

    keep: float | int
    rate: float | str

    def set_budget(self, keep: float | int, rate: float | str = "all") -> None:
        """Sets `keep` and `rate` from the arguments of the constructor.

        Raises:
            ValueError: a value is invalid.
        """
        fraction = isinstance(keep, float)
        if isinstance(keep, bool) or not isinstance(keep, int | float) or not (0 < keep <= 1 if fraction else keep > 0):
            raise ValueError(f"{self.name}: {_KEEP}, got {keep!r}")
        number = isinstance(rate, int | float) and not isinstance(rate, bool)
        if rate not in ("keyframes", "all") and not (number and 0 < float(rate) <= 1e6):
            raise ValueError(
                f"{self.name}: rate must be the number of candidates per second, 'keyframes' or 'all', got {rate!r}"
            )
        self.keep, self.rate = keep, rate

    @property
    def needs(self) -> tuple[str, ...]:
        """What `select` requires in addition to the times, keys of `NEEDS`."""
        return ()

    def num_frames(self, candidates: int) -> int:
        """Returns the number of frames to select among a number of candidates, in 1..candidates."""
        count = int(self.keep * candidates + 1e-6) if isinstance(self.keep, float) else self.keep
        return max(1, min(count, candidates))

    def max_candidates(self, seconds: float) -> int | None:
        """Returns the maximum number of candidates of a video of this duration, or None for no limit."""
        return None

    def thin(self, candidates: int, most: int) -> Tensor:
        """Returns which `most` of the candidates remain if there are more: evenly spaced ones, int64 [most]."""
        return evenly_spaced(candidates, most)

    @final
    def select(
        self,
        times: Tensor,
        thumbnails: Thumbnails | None = None,
        *,
        question: str | None = None,
        relevance: Tensor | None = None,
        features: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Selection:
        """Selects frames.

        Args:
            times: [T], seconds of the candidates, ascending.
            thumbnails: T small frames, uint8 [3,h,w] each; None if the selector does not need them.
            question: the question, for selectors that need it.
            relevance: [T], score of each candidate, for selectors that need it.
            features: [T,C], for selectors that need them. Default: from the pixels of the thumbnails.
            generator: source of random numbers; None for the seed of the selector.

        Returns:
            A `Selection` within the budget; all frames if there are not more than that.

        Raises:
            ValueError: there are no candidates, an input is missing, of the wrong length, or not finite.
        """
        times = torch.as_tensor(times, dtype=torch.float64)
        if times.ndim != 1 or not len(times) or not bool((times.diff() >= 0).all()):
            raise ValueError(f"{self.name}: times must be seconds [T] in ascending order, at least one")
        if "question" in self.needs and not question:
            raise ValueError(f"{self.name} requires a question")
        if thumbnails is not None and len(thumbnails) != len(times):
            raise ValueError(f"{self.name}: {len(thumbnails)} thumbnails for {len(times)} times")
        missing = {"thumbnails": thumbnails, "relevance": relevance, "features": thumbnails if features is None else 0}
        for need in self.needs:
            if need in missing and missing[need] is None:
                raise ValueError(f"{self.name} requires {need}: {NEEDS[need]}")
        if "features" in self.needs and features is None:
            assert thumbnails is not None
            features = pixel_features(thumbnails)
        candidates = Candidates(
            times,
            self.num_frames(len(times)),
            thumbnails,
            question,
            self._checked("relevance", relevance, len(times), 1),
            F.normalize(self._checked("features", features, len(times), 2), dim=-1),
            generator,
        )
        if len(times) <= candidates.count and not (self.sizes or self.always):
            return full_size(torch.arange(len(times)))
        return self.choose(candidates)

    def _checked(self, need: str, values: Tensor | None, length: int, ndim: int) -> Tensor:
        if need not in self.needs or values is None:
            return torch.zeros([0] * ndim)
        values = torch.as_tensor(values).detach().float().cpu()
        if values.ndim != ndim or len(values) != length:
            raise ValueError(f"{self.name}: {need} must be {NEEDS[need].split()[0]}, got {list(values.shape)}")
        if not bool(values.isfinite().all()):
            frame = int((~values.isfinite()).reshape(length, -1).any(1).nonzero()[0])
            value = values[frame][~values[frame].isfinite()].flatten()[0]
            raise ValueError(
                f"{self.name}: {need} must be finite, got {float(value)} for candidate {frame} of {length}"
            )
        return values

    @abstractmethod
    def choose(self, candidates: Candidates) -> Selection:
        """Selects frames from valid inputs; overridden by the selector.

        Args:
            candidates: at least one; more than its budget, unless the selector has `sizes` or `always`.
        """


def full_size(index: Tensor, **why: Any) -> Selection:
    """Returns the selection of these candidates, int64 [K] in any order, at full size."""
    index = index.sort().values
    return Selection(index, torch.ones(len(index), 2, dtype=torch.float64), why)


def evenly_spaced(total: int, count: int) -> Tensor:
    """Returns `count` of `total` indices, evenly spaced from the first to the last, as `fewtokens.read`; int64."""
    return torch.linspace(0, total - 1, count, dtype=torch.float64).round().long()


def chunks(thumbnails: Thumbnails) -> Iterator[Tensor]:
    """Yields thumbnails in parts of bounded size, uint8 [n,3,h,w]."""
    count = getattr(thumbnails, "at_once", CHUNK)
    for start in range(0, len(thumbnails), count):
        yield thumbnails[start : min(start + count, len(thumbnails))]


def pixel_features(thumbnails: Thumbnails) -> Tensor:
    """Returns features without a model: the mean colors of 8 x 8 regions, relative to gray, float32 [T,192]."""
    pooled = []
    for part in chunks(thumbnails):
        rows, columns = (_region_means(length) for length in part.shape[2:])
        pooled.append((rows @ (part.float() / 255 - 0.5) @ columns.T).flatten(1))
    return torch.cat(pooled)


def _region_means(length: int) -> Tensor:
    """The matrix that averages a row of pixels over 8 regions of equal length, float32 [8,length]."""
    # A thumbnail that is smaller than 8 pixels has regions of one pixel, some of them the same.
    edge = torch.arange(_SIDE + 1) * length
    start, end = edge[:-1] // _SIDE, (edge[1:] + _SIDE - 1) // _SIDE
    pixel = torch.arange(length)
    inside = ((pixel >= start[:, None]) & (pixel < end[:, None])).float()
    return inside / inside.sum(1, keepdim=True)


def pool_frames(tokens: Tokens, selection: Selection) -> Plan:
    """Returns the plan that reduces each frame to the size that a selector chose, by averaging disjoint regions.

    Args:
        tokens: one token per cell, [B,T*H*W,C].
        selection: K = T frames.

    Raises:
        ValueError: tokens were dropped, or the grid has another number of frames, as after an encoder with tubelets.
    """
    tokens.require_full_grid("a selector of frames of several sizes")
    T, H, W = tokens.grid.shape
    if len(selection) != T:
        raise ValueError(
            f"{len(selection)} frames of several sizes became {T} frames of tokens; use an encoder without tubelets"
        )
    rows, columns = selection.cells(H, W).to(tokens.device).unbind(1)
    counts = rows * columns
    y, x = torch.arange(H, device=tokens.device), torch.arange(W, device=tokens.device)
    row, column = y * rows[:, None] // H, x * columns[:, None] // W
    first = (counts.cumsum(0) - counts)[:, None, None]
    dest = (first + row[:, :, None] * columns[:, None, None] + column[:, None]).flatten().expand(tokens.B, -1)
    total = int(counts.sum())
    return Plan(torch.full((tokens.B,), total, device=tokens.device), total, dest)


def among(selection: Selection, candidates: Tensor) -> Selection:
    """Returns a selection whose indices are those of the video, given the candidates' own, int64 [T]."""
    return replace(selection, index=candidates[selection.index])
