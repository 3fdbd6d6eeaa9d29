"""Opens images of data sets, from files or tars, after checking their declared size."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fewtokens.video import VideoError
from fewtokens.video.images import FORMATS, load_image
from fewtokens.video.select import check_pixels


@contextmanager
def open_image(source: Path | bytes, name: str, kind: str = "an image") -> Iterator[Image.Image]:
    """Opens an image and checks its size, without decoding it.

    Args:
        source: a file or its contents.
        name: how an error refers to the image.
        kind: what the file should be, for the error.

    Raises:
        VideoError: the file does not exist, is not an image, is truncated or too large; one line.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            check_pixels(*image.size, name)
            yield image
    except VideoError:
        raise
    except Exception as error:  # the decoders of Pillow raise any error on damaged bytes
        reason = " ".join(f"{error}".split())[:120] or type(error).__name__
        raise VideoError(f"{name}: cannot be read as {kind} ({reason})") from None


def read_image(source: Path | bytes, name: str) -> Tensor:
    """Reads an image with `fewtokens.video.images.load_image`; returns uint8 [3,H,W] in RGB."""
    if isinstance(source, Path) and not source.is_file():
        raise VideoError(f"{name}: no such file")
    pixels = load_image(io.BytesIO(source) if isinstance(source, bytes) else source, name)
    return torch.from_numpy(pixels).permute(2, 0, 1)
