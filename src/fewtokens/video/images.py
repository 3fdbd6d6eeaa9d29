"""Image files: one picture, all pictures of an animation, or a folder of them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewtokens.video.decode import USUAL_FPS
from fewtokens.video.scale import Scaler
from fewtokens.video.select import MOST_PIXELS, Size, check_pixels
from fewtokens.video.types import Video, VideoError

if TYPE_CHECKING:
    from PIL import Image

# What an image file may hold, whatever it is called. Pillow knows formats that start other programs (EPS).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# GIF is read as a video.
_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"])


def is_image(path: Path) -> bool:
    """Whether the name ends like that of an image file."""
    return path.suffix.lower() in _SUFFIXES


class Animation:
    """An image file: one picture, or those of an animated WebP or PNG, or the pages of a TIFF.

    Pictures keep the times that the file gives them; pages, and pictures without a duration, are shown 25 a second.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.source_size: int | None = path.stat().st_size
        self._path = path
        shown = [seconds for _, seconds in _pictures(path, self.name, pixels=False)]
        self.times: NDArray[np.float64] = np.cumsum([0.0, *shown[:-1]])
        self.duration: float | None = None
        self.fps: float | None = None
        if len(shown) > 1:
            self.duration = float(self.times[-1] + shown[-1])
            self.fps = len(shown) / self.duration

    def scaler(self, size: Size | None) -> Scaler:
        return Scaler(size, self.name)

    def parts(self, numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return [numbers]

    def pictures(self, numbers: NDArray[np.int64], scaler: Scaler) -> Iterator[Tensor]:
        """Those with these numbers, rising, uint8 [3,H,W] each."""
        left = iter(numbers.tolist())
        target = next(left, None)
        for n, (picture, _) in enumerate(_pictures(self._path, self.name, pixels=True)):
            if n == target:
                assert picture is not None
                yield scaler.array(picture)
                target = next(left, None)
            if target is None:
                return


class Folder:
    """The images of a folder in natural order (2 before 10), 25 a second, all of the first one's size.

    Of an animated image it takes the first picture.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.source_size: int | None = None
        files = [file for file in path.iterdir() if is_image(file) and file.name[0] != "." and file.is_file()]
        if not files:
            raise VideoError(
                f"{path}: a folder without images ({', '.join(sorted(_SUFFIXES))}); for videos give the files "
                "themselves"
            )
        self._files = sorted(files, key=_natural)
        self.times: NDArray[np.float64] = np.arange(len(files)) / USUAL_FPS
        self.duration: float | None = len(files) / USUAL_FPS
        self.fps: float | None = USUAL_FPS

    def scaler(self, size: Size | None) -> Scaler:
        return Scaler(size, self.name)

    def parts(self, numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return [numbers]

    def pictures(self, numbers: NDArray[np.int64], scaler: Scaler) -> Iterator[Tensor]:
        """Those with these numbers, uint8 [3,H,W] each."""
        for n in numbers.tolist():
            yield scaler.array(load_picture(self._files[n], str(self._files[n])))


def read_image(path: Path, size: Size | None) -> Video:
    """The first picture of a file, at time 0; see `load_picture`."""
    picture = Scaler(size, str(path)).array(load_picture(path, str(path)))
    return Video(picture[None], torch.zeros(1, dtype=torch.float64), None, None, str(path), path.stat().st_size)


def load_picture(source: Path | IO[bytes], name: str) -> NDArray[np.uint8]:
    """The first picture of an image file, or of its bytes from elsewhere (`io.BytesIO`), uint8 [H,W,3].

    Turned and mirrored as its EXIF says, transparency over black, 16 bits and gray made 8 and RGB. What the file
    declares is held against `MOST_PIXELS` before memory is taken for it.

    Args:
        source: of what.
        name: what to call it in an error.

    Raises:
        VideoError: empty, not an image, cut, too large; one line that begins with `name`.
    """
    picture, _ = next(_pictures(source, name, pixels=True))
    assert picture is not None
    return picture


def _pictures(source: Path | IO[bytes], name: str, *, pixels: bool) -> Iterator[tuple[NDArray[np.uint8] | None, float]]:
    """All pictures of an image file, each with the seconds for which it is shown; None for those not asked for."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, Path) and source.stat().st_size == 0:
        raise VideoError(f"{name}: is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            # What is checked below: Pillow warns of sizes that it reads all the same.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(source, formats=FORMATS)
        with opened:
            check_pixels(*opened.size, name)
            count = getattr(opened, "n_frames", 1) if opened.format in ("WEBP", "PNG", "TIFF") else 1
            # The still picture of an animated PNG, for programs that know no animation, may be none of its frames.
            first = 1 if count > 1 and opened.info.get("default_image") else 0
            for n in range(first, count):
                opened.seek(n)
                check_pixels(*opened.size, name)
                if pixels or count > 1:
                    opened.load()
                milliseconds = float(opened.info.get("duration") or 0) if count > 1 else 0.0
                yield (_rgb(opened) if pixels else None), milliseconds / 1000 or 1 / USUAL_FPS
    except VideoError:
        raise
    except Image.DecompressionBombError:
        raise VideoError(
            f"{name}: declares more than {MOST_PIXELS:,} pixels (a decompression bomb?); it is not read"
        ) from None
    except UnidentifiedImageError:
        raise VideoError(f"{name}: not an image that can be read") from None
    except Exception as error:  # whatever a decoder may say of a damaged file
        said = " ".join(str(error).split()) or type(error).__name__
        raise VideoError(f"{name}: is cut short or damaged ({said})") from None


def _rgb(opened: Image.Image) -> NDArray[np.uint8]:
    """uint8 [H,W,3]."""
    from PIL import Image, ImageOps

    image: Any = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I") or image.mode == "F":
        # 16 bits and more: the range of the type, not of the picture, becomes 0..255.
        values = np.asarray(image, dtype=np.float64) / (1 if image.mode == "F" else 257)
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.array(image.convert("RGB"))


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in re.split(r"(\d+)", path.name)]
