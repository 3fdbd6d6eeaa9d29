"""Samples of unlabeled videos: two frames of a video, two crops of a frame, a single frame, or a clip.

A sample and the seed of its mask depend only on the seed, the epoch and the index (see `fewtokens.data.clips`), not
on the batch or the worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fewtokens.core.shapes import shape_repr
from fewtokens.data.clips import combine_seeds
from fewtokens.data.footage import Footage, describe_error, read_frames
from fewtokens.data.transforms import random_box, resize

MODES = ("pair", "crops", "frame", "clip")


@dataclass(frozen=True)
class Pairing:
    """How samples are taken from a video.

    Attributes:
        mode: "pair": two frames of a video with the same crop and flip. "crops": the source is a crop of one frame and
            the target a crop of the source, flipped independently (CropMAE). "frame": one frame. "clip": `length`
            frames with the same crop and flip.
        size: side of the output in pixels (bicubic, antialiased).
        min_gap, max_gap: range of the distance of source and target in frames, or of consecutive frames of a clip; 0
            and 0 is the same frame twice. The code of Token Bottleneck uses 1 to 96, its paper 4 to 96.
        area: range of the area of a crop, as a fraction of the frame.
        local: range of the area of the target of "crops", as a fraction of the source.
        flip: probability of a horizontal flip.
        repeats: samples per decoded video (repeated sampling).
        short: length in pixels to which the short side is resized before the crop; 0 keeps the original size.
        length: number of frames of a clip. A shorter video repeats its last frame.
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
    length: int = 1

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
        if min(self.size, self.repeats, self.length) < 1 or self.short < 0 or not 0 <= self.flip <= 1:
            raise ValueError("size, repeats and length must be at least 1, short at least 0, flip a probability")

    @property
    def frames(self) -> int:
        """The number of frames per sample."""
        return {"frame": 1, "clip": self.length}.get(self.mode, 2)


@dataclass(frozen=True)
class PairSample:
    """The samples of one video.

    Attributes:
        frames: uint8 [R,F,3,size,size], R repeats; None if the file is broken or too short.
        seeds: the seed of the mask of each repeat.
        broken: the error, or "".
    """

    frames: Tensor | None
    seeds: tuple[int, ...]
    broken: str = ""

    __repr__ = shape_repr


def sample_pair(length: int, min_gap: int, max_gap: int, generator: torch.Generator) -> list[int]:
    """Samples the indices of source and target in a video of `length` frames.

    The gap is uniform in [min_gap, max_gap], with both limits clamped to length - 1.

    Raises:
        ValueError: the video has fewer than two frames.
    """
    if length < 1 + min(1, max_gap):
        raise ValueError(f"a pair requires two frames, the video has {length}")
    longest = min(max_gap, length - 1)
    gap = _randint(min(min_gap, longest), longest, generator)
    # As in the published code, the start leaves room for the longest gap if the video is long enough for it.
    start = _randint(0, length - 1 - (max_gap if length > max_gap else gap), generator)
    return [start, start + gap]


def sample_clip(video_length: int, length: int, min_gap: int, max_gap: int, generator: torch.Generator) -> list[int]:
    """Samples the indices of `length` evenly spaced frames in a video of `video_length` frames.

    The gap is uniform in [min_gap, max_gap], with both limits clamped to the largest gap that fits; at least 1. A
    video with fewer than `length` frames repeats its last one.
    """
    longest = max(1, min(max_gap, (video_length - 1) // max(1, length - 1)))
    gap = _randint(max(1, min(min_gap, longest)), longest, generator)
    start = _randint(0, max(0, video_length - 1 - gap * (length - 1)), generator)
    return [min(start + gap * index, video_length - 1) for index in range(length)]


class PairData(Dataset[PairSample]):
    """Samples of videos, indexed by (epoch, index) or by index.

    Args:
        items: the videos.
        pairing: how samples are taken.
        seed: random seed.
        visits: visits per video in an epoch, so that few videos make long epochs.
    """

    def __init__(self, items: Sequence[Footage], pairing: Pairing, *, seed: int = 0, visits: int = 1) -> None:
        if visits < 1:
            raise ValueError(f"visits must be at least 1, got {visits}")
        self.items, self.pairing, self.seed, self.visits = items, pairing, seed, visits

    def __len__(self) -> int:
        return len(self.items) * self.visits

    def __getitem__(self, key: int | tuple[int, int]) -> PairSample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        seed = combine_seeds(self.seed, epoch, index)
        generator = torch.Generator().manual_seed(seed)
        item, pairing = self.items[index % len(self.items)], self.pairing

        def choose(length: int) -> list[int]:
            if pairing.mode == "pair":
                pairs = [
                    sample_pair(length, pairing.min_gap, pairing.max_gap, generator) for _ in range(pairing.repeats)
                ]
                return [n for pair in pairs for n in pair]
            if pairing.mode == "clip":
                clips = [
                    sample_clip(length, pairing.length, pairing.min_gap, pairing.max_gap, generator)
                    for _ in range(pairing.repeats)
                ]
                return [n for clip in clips for n in clip]
            return [_randint(0, length - 1, generator) for _ in range(pairing.repeats)]

        try:
            frames = read_frames(item, choose, short=pairing.short)
        except (ValueError, OSError) as error:
            return PairSample(None, (), describe_error(item.name, error))
        samples = [self._sample(part, generator) for part in frames.chunk(pairing.repeats)]
        return PairSample(torch.stack(samples), tuple(combine_seeds(seed, 1, n) for n in range(pairing.repeats)))

    def _sample(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Crops and flips the frames of one sample, uint8 [1 or 2,3,H,W] to [F,3,size,size]."""
        pairing = self.pairing
        source = _random_flip(_random_crop(frames, pairing.area, pairing.size, generator), pairing.flip, generator)
        if pairing.mode != "crops":
            return source
        target = _random_flip(_random_crop(source, pairing.local, pairing.size, generator), pairing.flip, generator)
        return torch.cat([source, target])


def collate_pairs(samples: Sequence[PairSample]) -> dict[str, Any]:
    """Collates the samples that are not broken.

    Returns:
        frames uint8 [n,F,3,H,W] and seeds, n numbers; the repeats of a video are consecutive. broken: the errors of
        the other samples.
    """
    intact = [sample.frames for sample in samples if sample.frames is not None]
    batch: dict[str, Any] = {
        "broken": [sample.broken for sample in samples if sample.frames is None],
        "seeds": [seed for sample in samples for seed in sample.seeds],
    }
    return batch | ({"frames": torch.cat(intact)} if intact else {})


def mask_noise(seeds: Sequence[int], patches: int) -> Tensor:
    """Uniform noise in 0..1 per patch, float32 [n,patches], generated from the seed of each sample."""
    return torch.stack([torch.rand(patches, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def first_valid_sample(data: PairData, tries: int = 64) -> PairSample:
    """The first sample that is not broken, from at most `tries` evenly spaced videos.

    Raises:
        ValueError: all of them are broken; contains the error of the first.
    """
    indices = np.unique(np.linspace(0, len(data.items) - 1, tries).round().astype(int)).tolist()
    errors = []
    for index in indices:
        sample = data[index]
        if sample.frames is not None:
            return sample
        errors.append(sample.broken)
    hint = ". Videos must have at least two frames" if data.pairing.mode == "pair" else ""
    raise ValueError(f"none of {len(indices)} videos can be used; the first: {errors[0]}{hint}")


def _random_crop(frames: Tensor, area: tuple[float, float], size: int, generator: torch.Generator) -> Tensor:
    top, left, rows, columns = random_box(frames.shape[-2], frames.shape[-1], area, generator)
    return resize(frames[..., top : top + rows, left : left + columns], (size, size), "bicubic")


def _random_flip(frames: Tensor, chance: float, generator: torch.Generator) -> Tensor:
    return frames.flip(-1) if float(torch.rand((), generator=generator)) < chance else frames


def _randint(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))
