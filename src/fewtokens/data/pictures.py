"""Images out of data sets, opened with one check of what they declare, whether they lie in files or in tars."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fewtokens.video import VideoError
from fewtokens.video.images import FORMATS, load_picture
from fewtokens.video.select import check_pixels


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
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            check_pixels(*image.size, name)
            yield image
    except VideoError:
        raise
    except Exception as error:  # Pillow's decoders fail on damaged bytes in any way they like
        reason = " ".join(f"{error}".split())[:120] or type(error).__name__
        raise VideoError(f"{name}: not {kind} that can be read ({reason})") from None


def read_picture(source: Path | bytes, name: str) -> Tensor:
    """The pixels of an image as `fewtokens.video.images.load_picture` reads them, uint8 [3,H,W] in RGB."""
    if isinstance(source, Path) and not source.is_file():
        raise VideoError(f"{name}: no such file")
    pixels = load_picture(io.BytesIO(source) if isinstance(source, bytes) else source, name)
    return torch.from_numpy(pixels).permute(2, 0, 1)
