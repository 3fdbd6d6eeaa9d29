"""Masks of objects as files: one channel, a number for each object, in the colours of DAVIS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewtokens.core.files import whole_file
from fewtokens.data.pictures import open_picture
from fewtokens.video import VideoError

# In a palette 255 is "void": pixels that count for no object. So there are numbers for 254 objects.
VOID = 255
MOST_OBJECTS = 254
# A grey mask has one value for each object; more than this are soft edges or a photograph.
_MOST_GREYS = 32


def palette() -> np.ndarray:
    """The 256 colours in which DAVIS (and PASCAL VOC) show objects, uint8 [256,3].

    The bits of a number are dealt to red, green and blue in turn, the lowest ones becoming the highest.
    """
    number = np.arange(256)[:, None]
    colours = np.zeros((256, 3), dtype=np.int64)
    for bit in range(8):
        colours |= ((number >> (3 * bit + np.arange(3))) & 1) << (7 - bit)
    return colours.astype(np.uint8)


def read_masks(files: Sequence[Path], *, values: bool = False) -> Tensor:
    """Masks as uint8 [T,H,W]: a palette's numbers are the objects; in a grey picture its values, in order, are.

    Void (255 in a palette) counts as background, as in semi-supervised DAVIS.

    Args:
        files: a picture each.
        values: give what is in the files, whether palette or grey: for masks of classes.

    Raises:
        ValueError: no mask, masks of different sizes, one that cannot be read, is not of one channel, or has more grey
            values than objects could have.
    """
    if not files:
        raise ValueError("no masks to read")
    masks, greys = [], set()
    for file in files:
        with open_picture(file, str(file), "a mask") as image:
            if image.mode not in ("P", "L", "1"):
                raise VideoError(f"{file}: a mask has one channel (palette or grey), this picture is {image.mode}")
            greys.add(image.mode != "P")
            masks.append(np.array(image).astype(np.uint8))
    if len({mask.shape for mask in masks}) > 1 or len(greys) > 1:
        what = "masks of different sizes" if len(greys) == 1 else "palette and grey masks mixed"
        raise ValueError(f"{Path(files[0]).parent}: {what}")
    stacked = np.stack(masks)
    if values:
        return torch.from_numpy(stacked)
    if greys == {True}:
        found = np.flatnonzero(np.bincount(stacked.ravel(), minlength=256) + (np.arange(256) == 0))
        if len(found) > _MOST_GREYS:
            raise ValueError(
                f"{Path(files[0]).parent}: {len(found)} grey values, which are soft edges or no masks at all; "
                "a mask has one value for each object"
            )
        stacked = np.searchsorted(found, stacked).astype(np.uint8)
    else:
        stacked[stacked == VOID] = 0
    return torch.from_numpy(stacked)


def write_masks(masks: Tensor, files: Sequence[Path]) -> None:
    """Writes masks integers [T,H,W] as PNGs with the palette of DAVIS, one file each, whole or not at all.

    Raises:
        ValueError: more objects than there are colours.
    """
    if int(masks.max()) > MOST_OBJECTS or int(masks.min()) < 0:
        raise ValueError(f"objects are numbered 1 to {MOST_OBJECTS} in a palette, got {int(masks.max())}")
    colours = palette().tobytes()
    for mask, file in zip(masks.to(torch.uint8).cpu().numpy(), files, strict=True):
        image = Image.fromarray(mask)
        image.putpalette(colours)
        with whole_file(file) as temporary:
            image.save(temporary, format="PNG")


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks [T,H,W] of any integers to another size, nearest pixel centre."""
    rows, columns = (
        ((torch.arange(new, dtype=torch.float64) + 0.5) * old / new).long().to(masks.device)
        for new, old in zip(size, masks.shape[1:], strict=True)
    )
    return masks[:, rows][:, :, columns]
