"""Clips of labelled images and videos, each drawn from a seed of its own.

What an item gives depends on the seed, the epoch and its number alone: not on the workers, nor on the items before.
So a run that is resumed sees exactly what it would have seen.
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

from fewtokens.core.shapes import by_shape
from fewtokens.data.footage import list_pictures, told
from fewtokens.data.listing import Item, Listing
from fewtokens.data.pictures import read_picture
from fewtokens.data.tars import copy_member, read_member
from fewtokens.data.transforms import Transform
from fewtokens.video import VideoError, read

# Frames a second of a folder of images, and of a video of a single frame, which do not say.
_RATE = 25.0


@dataclass(frozen=True)
class View:
    """Which frames of a video make a clip.

    Attributes:
        frames: of a clip.
        stride: source frames from one to the next; or
        fps: frames each second.
        clips, crops: views of one item in a test: so many clips evenly over the video, so many crops of each.
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
        clip: [V,T,3,H,W] float in 0..1; V views, one in training. None where the file is broken.
        target: class number, or zeros and ones for each class where there may be several.
        index: of the item.
        broken: what is wrong with the file, or "".
        enlarged: whether the picture is smaller than the crop and was scaled up.
    """

    clip: Tensor | None
    target: Tensor
    index: int
    broken: str = ""
    enlarged: bool = False

    __repr__ = by_shape


class ClipData(Dataset[Sample]):
    """The clips of a listing.

    Indexed by (epoch, number) in training, by number in a test.

    Args:
        listing: items and classes.
        transform, view: what is made of them.
        training: draw, or take the fixed views of a test.
        seed: of everything drawn.
        keep: hold decoded pictures in memory, as bytes; for small sets that fit.
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
        self._kept: dict[int, Tensor] | None = {} if keep else None

    def __len__(self) -> int:
        return len(self.listing.items)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        item = self.listing.items[index]
        target = self.target(item)
        generator = torch.Generator().manual_seed(mix(self.seed, epoch, index))
        try:
            return replace(self._sample(item, index, generator), target=target)
        except (OSError, ValueError) as error:
            return Sample(None, target, index, told(item.name, error))

    def target(self, item: Item) -> Tensor:
        if not self.listing.multi_label:
            return torch.tensor(item.labels[0])
        target = torch.zeros(len(self.listing.classes))
        target[list(item.labels)] = 1
        return target

    def _sample(self, item: Item, index: int, generator: torch.Generator) -> Sample:
        view = self.view
        if item.is_picture:
            picture = self._picture(item, index).expand(view.frames, -1, -1, -1)
            clips = [picture]
        else:
            clips = self._clips(item, generator)
        small = item.is_picture and min(clips[0].shape[-2:]) < self.transform.size
        if self.training:
            out = [self.transform.training(clips[0], generator)]
        else:
            out = [self.transform.view(clip, crop, view.crops) for clip in clips for crop in range(view.crops)]
            if len(clips) < view.clips:
                out = out * view.clips
        return Sample(torch.stack(out), torch.empty(0), index, enlarged=small)

    def _picture(self, item: Item, index: int) -> Tensor:
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        packed = item.member is not None
        pixels = read_picture(read_member(item.path, item.offset, item.size) if packed else Path(item.path), item.name)
        pixels = pixels[None]
        if self._kept is not None:
            self._kept[index] = pixels
        return pixels

    def _clips(self, item: Item, generator: torch.Generator) -> list[Tensor]:
        """One drawn clip, or the evenly spread ones, uint8 [T,3,H,W] each."""
        if item.member is None:
            return self._read(item.path, item, generator)
        with tempfile.NamedTemporaryFile(suffix=Path(item.member).suffix) as file:
            copy_member(item.path, item.offset, item.size, file)
            return self._read(file.name, item, generator)

    def _read(self, path: str, item: Item, generator: torch.Generator) -> list[Tensor]:
        view, transform = self.view, self.transform
        draw = float(torch.rand((), generator=generator))
        shares = [draw] if self.training else [0.5] if view.clips == 1 else np.linspace(0, 1, view.clips).tolist()

        def pick(times: NDArray[np.float64]) -> NDArray[np.int64]:
            rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else _RATE
            step = 1 / view.fps if view.fps else view.stride / rate
            first, last = item.start or 0.0, min(float(times[-1]), times[-1] if item.end is None else item.end)
            if first > times[-1] or last < first:
                raise VideoError(f"has no frame between {item.start} s and {item.end} s")
            spare = max(0.0, last - first - (view.frames - 1) * step)
            wanted = first + spare * np.array(shares)[:, None] + step * np.arange(view.frames)
            # Each time the last frame shown by then; a clip that is longer than the video holds its last frame.
            shown = np.searchsorted(times, np.minimum(wanted, last) + 1e-6, side="right") - 1
            return shown.clip(0).reshape(-1).astype(np.int64)

        # Decoded at the largest side that a transform can ask for, so that most of the scaling is done by then.
        largest = transform.area != (1.0, 1.0) and self.training
        short = None if largest else round(transform.short_side * (transform.scale[1] if self.training else 1))
        if os.path.isdir(path):
            files = list_pictures(Path(path))
            chosen = pick(np.arange(len(files)) / _RATE).tolist()
            pictures = {n: read(files[n], size=short).frames for n in sorted(set(chosen))}
            frames = torch.cat([pictures[n] for n in chosen])
        else:
            frames = read(path, pick=pick, size=short).frames
        return list(frames.split(view.frames))


def mix(*numbers: int) -> int:
    """One seed out of several, the same on every machine."""
    seed = 0x9E3779B97F4A7C15
    for number in numbers:
        seed = ((seed ^ (number + 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9) % 2**64
        seed ^= seed >> 31
    return seed % 2**63


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """A batch of the samples that are whole.

    Returns:
        clips [n,V,T,3,H,W], targets [n] or [n,classes], index [n]; broken: what is wrong with the others; enlarged:
        numbers of the pictures that are smaller than the crop.
    """
    whole = [sample for sample in samples if sample.clip is not None]
    batch: dict[str, Any] = {
        "broken": [sample.broken for sample in samples if sample.clip is None],
        "enlarged": [sample.index for sample in whole if sample.enlarged],
        "index": torch.tensor([sample.index for sample in whole]),
    }
    if whole:
        batch["clips"] = torch.stack([sample.clip for sample in whole])  # type: ignore[misc]
        batch["targets"] = torch.stack([sample.target for sample in whole])
    return batch
