"""Pairs of frames for pre-training: two of one video, two crops of one frame, or a single one.

What a sample is follows from the seed, the epoch and its number alone (see `fewtokens.data.clips`); so do the numbers
it draws its mask from, whatever the batch and the process it falls into.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fewtokens.core.shapes import by_shape
from fewtokens.data.clips import mix
from fewtokens.data.footage import Footage, read_frames, told
from fewtokens.data.transforms import random_part, resize

MODES = ("pair", "crops", "frame")


@dataclass(frozen=True)
class Pairing:
    """How a sample is drawn.

    Attributes:
        mode: "pair": two frames of a video, one crop box and one mirror image for both. "crops": one frame; the
            source is a crop of it, the target a crop of that, mirrored each for itself (CropMAE). "frame": one frame.
        size: side of the square that comes out, in pixels (bicubic, antialiased).
        min_gap, max_gap: frames between source and target; 0 and 0 is the same frame twice. Token Bottleneck's code
            draws 1..96, its paper says 4..96.
        area: share of the picture that is cut out. local: of the source that the target of "crops" is.
        flip: probability of a mirror image.
        repeats: samples that one decoding gives (repeated sampling).
        short: short side before the crop, in pixels; 0 leaves frames as they are.
    """

    mode: str = "pair"
    size: int = 224
    min_gap: int = 1
    max_gap: int = 96
    area: tuple[float, float] = (0.5, 1.0)
    local: tuple[float, float] = (0.3, 0.6)
    flip: float = 0.5
    repeats: int = 1
    short: int = 0

    def __post_init__(self) -> None:
        for name in ("area", "local"):
            low, high = getattr(self, name)
            object.__setattr__(self, name, (low, high))
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} must be a range in (0, 1], got {low} and {high}")
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if not 0 <= self.min_gap <= self.max_gap:
            raise ValueError(f"gaps must be 0 <= min_gap <= max_gap, got {self.min_gap} and {self.max_gap}")
        if self.size < 1 or self.repeats < 1 or self.short < 0 or not 0 <= self.flip <= 1:
            raise ValueError("size and repeats must be at least 1, short at least 0, flip a probability")

    @property
    def frames(self) -> int:
        """Of a sample."""
        return 1 if self.mode == "frame" else 2


@dataclass(frozen=True)
class PairSample:
    """What one video gave.

    Attributes:
        frames: uint8 [R,F,3,size,size], R repeats; None where the file is broken or too short.
        seeds: of each repeat, for its mask.
        broken: what is wrong, or "".
    """

    frames: Tensor | None
    seeds: tuple[int, ...]
    broken: str = ""

    __repr__ = by_shape


def draw_pair(length: int, min_gap: int, max_gap: int, generator: torch.Generator) -> list[int]:
    """Numbers of source and target in a video of so many frames.

    The gap is uniform in [min_gap, max_gap]; in a video too short for that in what is left of it, at least 1.

    Raises:
        ValueError: no two frames to draw.
    """
    if length < 1 + min(1, max_gap):
        raise ValueError(f"has {length} frame, so no pair can be drawn")
    longest = min(max_gap, length - 1)
    gap = _between(min(min_gap, longest), longest, generator)
    # As the published code: where any gap would fit, the start leaves room for the longest, whatever the gap is.
    start = _between(0, length - 1 - (max_gap if length > max_gap else gap), generator)
    return [start, start + gap]


class PairData(Dataset[PairSample]):
    """Samples of videos, indexed by (epoch, number) or by number.

    Args:
        items: the videos.
        pairing: what is drawn of them.
        seed: of everything drawn.
        visits: of each video in an epoch, so that few videos make long epochs.
    """

    def __init__(self, items: Sequence[Footage], pairing: Pairing, *, seed: int = 0, visits: int = 1) -> None:
        if visits < 1:
            raise ValueError(f"visits must be at least 1, got {visits}")
        self.items, self.pairing, self.seed, self.visits = items, pairing, seed, visits

    def __len__(self) -> int:
        return len(self.items) * self.visits

    def __getitem__(self, key: int | tuple[int, int]) -> PairSample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        seed = mix(self.seed, epoch, index)
        generator = torch.Generator().manual_seed(seed)
        item, pairing = self.items[index % len(self.items)], self.pairing

        def choose(length: int) -> list[int]:
            if pairing.mode == "pair":
                pairs = [draw_pair(length, pairing.min_gap, pairing.max_gap, generator) for _ in range(pairing.repeats)]
                return [n for pair in pairs for n in pair]
            return [_between(0, length - 1, generator) for _ in range(pairing.repeats)]

        try:
            frames = read_frames(item, choose, short=pairing.short)
        except (ValueError, OSError) as error:
            return PairSample(None, (), told(item.name, error))
        samples = [self._cut(part, generator) for part in frames.chunk(pairing.repeats)]
        return PairSample(torch.stack(samples), tuple(mix(seed, 1, n) for n in range(pairing.repeats)))

    def _cut(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """The frames of one sample, uint8 [1 or 2,3,H,W] to [F,3,size,size]."""
        pairing = self.pairing
        source = _mirrored(_crop(frames, pairing.area, pairing.size, generator), pairing.flip, generator)
        if pairing.mode != "crops":
            return source
        target = _mirrored(_crop(source, pairing.local, pairing.size, generator), pairing.flip, generator)
        return torch.cat([source, target])


def collate_pairs(samples: Sequence[PairSample]) -> dict[str, Any]:
    """A batch of the samples that are whole.

    Returns:
        frames uint8 [n,F,3,H,W] and seeds, n numbers, repeats one after the other; broken: what is wrong with the
        others.
    """
    whole = [sample.frames for sample in samples if sample.frames is not None]
    batch: dict[str, Any] = {
        "broken": [sample.broken for sample in samples if sample.frames is None],
        "seeds": [seed for sample in samples for seed in sample.seeds],
    }
    return batch | ({"frames": torch.cat(whole)} if whole else {})


def mask_noise(seeds: Sequence[int], patches: int) -> Tensor:
    """A number for each patch of each sample, float32 [n,patches] in 0..1, drawn from the seed of the sample."""
    return torch.stack([torch.rand(patches, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def first_good(data: PairData, tries: int = 64) -> PairSample:
    """A sample, the first that can be read out of so many videos, evenly spread.

    Raises:
        ValueError: none can; says why of the first.
    """
    numbers = np.unique(np.linspace(0, len(data.items) - 1, tries).round().astype(int)).tolist()
    reasons = []
    for number in numbers:
        sample = data[number]
        if sample.frames is not None:
            return sample
        reasons.append(sample.broken)
    raise ValueError(
        f"none of {len(numbers)} videos gives a sample; the first: {reasons[0]}. Give videos of two frames or more"
    )


def _crop(frames: Tensor, area: tuple[float, float], size: int, generator: torch.Generator) -> Tensor:
    top, left, rows, columns = random_part(frames.shape[-2], frames.shape[-1], area, generator)
    return resize(frames[..., top : top + rows, left : left + columns], (size, size), "bicubic")


def _mirrored(frames: Tensor, chance: float, generator: torch.Generator) -> Tensor:
    return frames.flip(-1) if float(torch.rand((), generator=generator)) < chance else frames


def _between(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))
