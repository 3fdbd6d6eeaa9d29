"""Images out of data sets, opened with one check of what they declare, whether they lie in files or in tars."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewtokens.video import VideoError
from fewtokens.video.select import check_pixels

# Pillow knows formats that start other programs (EPS); a data set has no use for them, whatever a file is called.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


@contextmanager
def open_picture(source: Path | bytes, name: str, kind: str = "an image") -> Iterator[Image.Image]:
    """An image, opened and not yet decoded, whose size has been checked.

    Args:
        source: a file, or what it holds.
        name, kind: what to call it in an error, and what it should be.

    Raises:
        VideoError: no such file, not an image, cut, or larger than any image should be; one line.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as image:
            check_pixels(*image.size, name)
            yield image
    except VideoError:
        raise
    except Exception as error:  # Pillow's decoders fail on damaged bytes in any way they like
        reason = " ".join(f"{error}".split())[:120] or type(error).__name__
        raise VideoError(f"{name}: not {kind} that can be read ({reason})") from None


def read_picture(source: Path | bytes, name: str) -> Tensor:
    """The pixels of an image, uint8 [3,H,W] in RGB; raises as `open_picture`."""
    with open_picture(source, name) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)
