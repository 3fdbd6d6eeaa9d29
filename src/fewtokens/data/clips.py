"""Clips of labeled images and videos, each sampled with a separate seed.

A sample depends only on the seed, the epoch and the index of the item, not on the workers or on earlier items. A
resumed run therefore sees exactly the samples of an uninterrupted one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from fewtokens.core.shapes import shape_repr
from fewtokens.data.footage import describe_error, list_images
from fewtokens.data.images import read_image
from fewtokens.data.listing import Item, Listing
from fewtokens.data.tars import copy_member, read_member
from fewtokens.data.transforms import Transform
from fewtokens.video import VideoError, read

# Frames per second of a folder of images and of a video with a single frame, which do not specify it.
_DEFAULT_FPS = 25.0


@dataclass(frozen=True)
class View:
    """How clips are taken from a video.

    Attributes:
        frames: the number of frames per clip.
        stride: distance of consecutive frames of a clip, in source frames.
        fps: frames per second of the clip, instead of `stride`.
        clips, crops: views per item in a test: `clips` clips, evenly spaced over the video, with `crops` crops each.
    """

    frames: int = 1
    stride: int = 1
    fps: float | None = None
    clips: int = 1
    crops: int = 1

    def __post_init__(self) -> None:
        if min(self.frames, self.stride, self.clips, self.crops) < 1 or (self.fps is not None and self.fps <= 0):
            raise ValueError(f"frames, stride, clips and crops must be at least 1 and fps above 0, got {self}")


@dataclass(frozen=True)
class Sample:
    """One clip.

    Attributes:
        clip: [V,T,3,H,W] float in 0..1; V views, one in training. None if the file is broken.
        target: the class index, or one 0 or 1 per class if an item may have several.
        index: index of the item.
        broken: the error if the file is broken, or "".
        enlarged: whether the image is smaller than the crop and was scaled up.
    """

    clip: Tensor | None
    target: Tensor
    index: int
    broken: str = ""
    enlarged: bool = False

    __repr__ = shape_repr


class ClipData(Dataset[Sample]):
    """The clips of a listing.

    Indexed by (epoch, index) in training, by index in a test.

    Args:
        listing: items and classes.
        transform, view: how clips are taken and transformed.
        training: sample random clips and crops; otherwise return the fixed views of a test.
        seed: random seed.
        keep: keep decoded images in memory, as uint8; for small sets that fit.
    """

    def __init__(
        self,
        listing: Listing,
        transform: Transform,
        view: View | None = None,
        *,
        training: bool,
        seed: int = 0,
        keep: bool = False,
    ) -> None:
        self.listing, self.transform, self.view = listing, transform, view or View()
        self.training, self.seed = training, seed
        self._cache: dict[int, Tensor] | None = {} if keep else None

    def __len__(self) -> int:
        return len(self.listing.items)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        item = self.listing.items[index]
        target = self.target(item)
        generator = torch.Generator().manual_seed(combine_seeds(self.seed, epoch, index))
        try:
            return replace(self._sample(item, index, generator), target=target)
        except (OSError, ValueError) as error:
            return Sample(None, target, index, describe_error(item.name, error))

    def target(self, item: Item) -> Tensor:
        if not self.listing.multi_label:
            return torch.tensor(item.labels[0])
        target = torch.zeros(len(self.listing.classes))
        target[list(item.labels)] = 1
        return target

    def _sample(self, item: Item, index: int, generator: torch.Generator) -> Sample:
        view = self.view
        if item.is_image:
            clips = [self._image(item, index).expand(view.frames, -1, -1, -1)]
        else:
            clips = self._clips(item, generator)
        small = item.is_image and min(clips[0].shape[-2:]) < self.transform.size
        if self.training:
            views = [self.transform.training(clips[0], generator)]
        else:
            views = [self.transform.view(clip, crop, view.crops) for clip in clips for crop in range(view.crops)]
            if len(clips) < view.clips:
                views = views * view.clips
        return Sample(torch.stack(views), torch.empty(0), index, enlarged=small)

    def _image(self, item: Item, index: int) -> Tensor:
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        in_tar = item.member is not None
        pixels = read_image(read_member(item.path, item.offset, item.size) if in_tar else Path(item.path), item.name)
        pixels = pixels[None]
        if self._cache is not None:
            self._cache[index] = pixels
        return pixels

    def _clips(self, item: Item, generator: torch.Generator) -> list[Tensor]:
        """One random clip, or the evenly spaced ones, each uint8 [T,3,H,W]."""
        if item.member is None:
            return self._read(item.path, item, generator)
        with tempfile.NamedTemporaryFile(suffix=Path(item.member).suffix) as file:
            copy_member(item.path, item.offset, item.size, file)
            return self._read(file.name, item, generator)

    def _read(self, path: str, item: Item, generator: torch.Generator) -> list[Tensor]:
        view, transform = self.view, self.transform
        start = float(torch.rand((), generator=generator))
        starts = [start] if self.training else [0.5] if view.clips == 1 else np.linspace(0, 1, view.clips).tolist()

        def pick(times: NDArray[np.float64]) -> NDArray[np.int64]:
            fps = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else _DEFAULT_FPS
            step = 1 / view.fps if view.fps else view.stride / fps
            # As everywhere, the frames of a part come before its end.
            before, first = times if item.end is None else times[times < item.end], item.start or 0.0
            if not len(before) or first > times[-1] or (item.end is not None and item.end < first):
                raise VideoError(f"has no frame between {item.start} s and {item.end} s")
            last = max(first, float(before[-1]))
            spare = max(0.0, last - first - (view.frames - 1) * step)
            targets = first + spare * np.array(starts)[:, None] + step * np.arange(view.frames)
            # The frame on display at each time; a clip that is longer than the video repeats its last frame.
            indices = np.searchsorted(times, np.minimum(targets, last) + 1e-6, side="right") - 1
            return indices.clip(0).reshape(-1).astype(np.int64)

        # Decoded at the largest size that the transform can need, so that the decoder does most of the scaling.
        largest = transform.area != (1.0, 1.0) and self.training
        short = None if largest else round(transform.short_side * (transform.scale[1] if self.training else 1))
        if os.path.isdir(path):
            files = list_images(Path(path))
            indices = pick(np.arange(len(files)) / _DEFAULT_FPS).tolist()
            images = {n: read(files[n], size=short).frames for n in sorted(set(indices))}
            if len({image.shape for image in images.values()}) > 1:
                raise ValueError(f"{path}: the images of a video must have the same size")
            frames = torch.cat([images[n] for n in indices])
        else:
            frames = read(path, pick=pick, size=short).frames
        return list(frames.split(view.frames))


def combine_seeds(*numbers: int) -> int:
    """Combines several numbers into one seed, the same on every machine."""
    seed = 0x9E3779B97F4A7C15
    for number in numbers:
        seed = ((seed ^ (number + 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9) % 2**64
        seed ^= seed >> 31
    return seed % 2**63


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """Collates the samples that are not broken.

    Returns:
        clips [n,V,T,3,H,W], targets [n] or [n,classes], index [n]; broken: the errors of the other samples; enlarged:
        indices of the images that are smaller than the crop.
    """
    intact = [sample for sample in samples if sample.clip is not None]
    batch: dict[str, Any] = {
        "broken": [sample.broken for sample in samples if sample.clip is None],
        "enlarged": [sample.index for sample in intact if sample.enlarged],
        "index": torch.tensor([sample.index for sample in intact]),
    }
    if intact:
        batch["clips"] = torch.stack([sample.clip for sample in intact])  # type: ignore[misc]
        batch["targets"] = torch.stack([sample.target for sample in intact])
    return batch
