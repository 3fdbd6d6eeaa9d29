"""Reads image files: a single image, the frames of an animation, or a folder of images."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewtokens.core.checks import IMAGES
from fewtokens.video.decode import DEFAULT_FPS
from fewtokens.video.scale import Scaler
from fewtokens.video.select import MAX_PIXELS, Size, check_pixels
from fewtokens.video.types import Video, VideoError

if TYPE_CHECKING:
    from PIL import Image

# Accepted formats, regardless of the file name. Pillow supports others that start external programs (EPS).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# GIF is read as a video.


def is_image(path: Path) -> bool:
    """Whether the file name has the suffix of an image."""
    return path.suffix.lower() in IMAGES


class Animation:
    """An image file as a video: a single image, the frames of an animated WebP or PNG, or the pages of a TIFF.

    Frames have the durations that the file specifies. Pages, and frames without a duration, are shown at 25 per second.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.source_size: int | None = path.stat().st_size
        self._path = path
        durations = [seconds for _, seconds in _images(path, self.name, pixels=False)]
        self.times: NDArray[np.float64] = np.cumsum([0.0, *durations[:-1]])
        self.duration: float | None = None
        self.fps: float | None = None
        if len(durations) > 1:
            self.duration = float(self.times[-1] + durations[-1])
            self.fps = len(durations) / self.duration

    def scaler(self, size: Size | None) -> Scaler:
        return Scaler(size, self.name)

    def parts(self, indices: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return [indices]

    def frames(self, indices: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Yields the frames at ascending indices, uint8 [H,W,3] each."""
        remaining = iter(indices.tolist())
        target = next(remaining, None)
        for n, (image, _) in enumerate(_images(self._path, self.name, pixels=True)):
            if n == target:
                assert image is not None
                yield image
                target = next(remaining, None)
            if target is None:
                return


class Folder:
    """The images of a folder as a video, in natural order (2 before 10), at 25 frames per second.

    All frames are scaled to the size of the first one. Only the first frame of an animated image is read.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.source_size: int | None = None
        files = [file for file in path.iterdir() if is_image(file) and file.name[0] != "." and file.is_file()]
        if not files:
            raise VideoError(
                f"{path}: a folder without images ({', '.join(sorted(IMAGES))}); pass video files individually"
            )
        self._files = sorted(files, key=_natural_key)
        self.times: NDArray[np.float64] = np.arange(len(files)) / DEFAULT_FPS
        self.duration: float | None = len(files) / DEFAULT_FPS
        self.fps: float | None = DEFAULT_FPS

    def scaler(self, size: Size | None) -> Scaler:
        return Scaler(size, self.name)

    def parts(self, indices: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return [indices]

    def frames(self, indices: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Yields the images at these indices, uint8 [H,W,3] each."""
        for n in indices.tolist():
            yield load_image(self._files[n], str(self._files[n]))


def read_image(path: Path, size: Size | None) -> Video:
    """Reads an image file, or the first frame of an animation, as a video of one frame at time 0.

    Args:
        path: the file.
        size: see `read`.

    Raises:
        VideoError: see `load_image`.
    """
    image = Scaler(size, str(path)).frame(load_image(path, str(path)))
    return Video(
        torch.from_numpy(image[None]), torch.zeros(1, dtype=torch.float64), None, None, str(path), path.stat().st_size
    )


def load_image(source: Path | IO[bytes], name: str) -> NDArray[np.uint8]:
    """Reads an image, or the first frame of an animation, uint8 [H,W,3] in RGB.

    Applies the EXIF orientation, composites transparency over black, and converts grayscale and 16-bit images. The
    declared size is compared with `MAX_PIXELS` before memory is allocated. Floats must be in 0..1, integers of more
    than 8 bits in 0..65535.

    Args:
        source: a path, or a binary stream such as `io.BytesIO`.
        name: prefix of the error message.

    Raises:
        VideoError: the file is empty, not an image, truncated or too large.
    """
    image, _ = next(_images(source, name, pixels=True))
    assert image is not None
    return image


def _images(source: Path | IO[bytes], name: str, *, pixels: bool) -> Iterator[tuple[NDArray[np.uint8] | None, float]]:
    """Yields each image of a file (None if `pixels` is False) and its duration in seconds."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, Path) and source.stat().st_size == 0:
        raise VideoError(f"{name}: is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            # Sizes are checked below; Pillow only warns.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image_file = Image.open(source, formats=FORMATS)
        with image_file:
            check_pixels(*image_file.size, name)
            count = getattr(image_file, "n_frames", 1) if image_file.format in ("WEBP", "PNG", "TIFF") else 1
            # The default image of an animated PNG may not be one of its frames.
            first = 1 if count > 1 and image_file.info.get("default_image") else 0
            for n in range(first, count):
                image_file.seek(n)
                check_pixels(*image_file.size, name)
                if pixels or count > 1:
                    image_file.load()
                milliseconds = float(image_file.info.get("duration") or 0) if count > 1 else 0.0
                yield (_rgb(image_file, name) if pixels else None), milliseconds / 1000 or 1 / DEFAULT_FPS
    except VideoError:
        raise
    except Image.DecompressionBombError:
        raise VideoError(
            f"{name}: declares more than {MAX_PIXELS:,} pixels, the limit (a decompression bomb?)"
        ) from None
    except UnidentifiedImageError:
        raise VideoError(f"{name}: cannot be read as an image") from None
    except Exception as error:  # decoders raise various exceptions on damaged files
        message = " ".join(str(error).split()) or type(error).__name__
        raise VideoError(f"{name}: is cut short or damaged ({message})") from None


def _rgb(image_file: Image.Image, name: str) -> NDArray[np.uint8]:
    """Converts an image of any mode to uint8 [H,W,3]; floats are in 0..1, integers of more than 8 bits in 0..65535.

    Raises:
        VideoError: values are outside these ranges.
    """
    from PIL import Image, ImageOps

    image: Any = ImageOps.exif_transpose(image_file)
    if image.mode.startswith("I") or image.mode == "F":
        # The range of the type, not that of the values, is mapped to 0..255.
        values, largest = np.asarray(image, dtype=np.float64), 1.0 if image.mode == "F" else 65535.0
        if not (values.min() >= 0 and values.max() <= largest):
            kind = "float" if image.mode == "F" else "integer"
            raise VideoError(f"{name}: has {kind} values outside 0..{largest:g}, whose meaning is not known")
        image = Image.fromarray((values * (255 / largest)).round().astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.array(image.convert("RGB"))


def _natural_key(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in re.split(r"(\d+)", path.name)]
