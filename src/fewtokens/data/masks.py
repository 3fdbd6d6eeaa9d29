"""Object masks as image files: one channel with one value per object, in the DAVIS palette."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewtokens.core.files import atomic_file
from fewtokens.data.images import open_image
from fewtokens.video import VideoError

# In a palette, 255 is "void": pixels of no object. This leaves 254 values for objects.
VOID = 255
MAX_OBJECTS = 254
# A grayscale mask has one value per object; more values than this are soft edges or a photograph.
_MAX_GRAYS = 32


def palette() -> np.ndarray:
    """The 256 colors of the DAVIS (and PASCAL VOC) palette, uint8 [256,3].

    The bits of an index go to red, green and blue in turn; the lowest bits of the index become the highest of a color.
    """
    index = np.arange(256)[:, None]
    colors = np.zeros((256, 3), dtype=np.int64)
    for bit in range(8):
        colors |= ((index >> (3 * bit + np.arange(3))) & 1) << (7 - bit)
    return colors.astype(np.uint8)


def read_masks(files: Sequence[Path], *, values: bool = False) -> Tensor:
    """Reads masks as uint8 [T,H,W]; the objects are the palette indices, or the sorted values of a grayscale image.

    Void (255 in a palette) becomes background, as in semi-supervised DAVIS.

    Args:
        files: one image per frame.
        values: return the stored values unchanged; for masks of classes.

    Raises:
        ValueError: there are no masks, their sizes differ, one cannot be read or has several channels, or there are
            too many gray values for objects.
    """
    if not files:
        raise ValueError("no masks to read")
    masks, is_gray = [], set()
    for file in files:
        with open_image(file, str(file), "a mask") as image:
            if image.mode not in ("P", "L", "1"):
                raise VideoError(f"{file}: a mask must have one channel (palette or grayscale), got mode {image.mode}")
            is_gray.add(image.mode != "P")
            masks.append(np.array(image).astype(np.uint8))
    if len({mask.shape for mask in masks}) > 1 or len(is_gray) > 1:
        problem = "masks of different sizes" if len(is_gray) == 1 else "mixed palette and grayscale masks"
        raise ValueError(f"{Path(files[0]).parent}: {problem}")
    stacked = np.stack(masks)
    if values:
        return torch.from_numpy(stacked)
    if is_gray == {True}:
        grays = np.flatnonzero(np.bincount(stacked.ravel(), minlength=256) + (np.arange(256) == 0))
        if len(grays) > _MAX_GRAYS:
            raise ValueError(
                f"{Path(files[0]).parent}: masks must have one value per object, got {len(grays)} gray values "
                "(soft edges, or images that are not masks)"
            )
        stacked = np.searchsorted(grays, np.arange(256)).astype(np.uint8)[stacked]
    else:
        stacked[stacked == VOID] = 0
    return torch.from_numpy(stacked)


def write_masks(masks: Tensor, files: Sequence[Path]) -> None:
    """Writes integer masks [T,H,W] as PNGs with the DAVIS palette, one file per frame, each atomically.

    Raises:
        ValueError: a value is negative or above `MAX_OBJECTS`.
    """
    low, high = int(masks.min()), int(masks.max())
    if high > MAX_OBJECTS or low < 0:
        raise ValueError(f"masks must have values from 0 to {MAX_OBJECTS}, got {low} to {high}")
    colors = palette().tobytes()
    for mask, file in zip(masks.to(torch.uint8).cpu().numpy(), files, strict=True):
        image = Image.fromarray(mask)
        image.putpalette(colors)
        with atomic_file(file) as temporary:
            image.save(temporary, format="PNG")


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes integer masks [T,H,W] to (height, width) by the nearest pixel center."""
    rows, columns = (
        ((torch.arange(new, dtype=torch.float64) + 0.5) * old / new).long().to(masks.device)
        for new, old in zip(size, masks.shape[1:], strict=True)
    )
    return masks[:, rows][:, :, columns]
