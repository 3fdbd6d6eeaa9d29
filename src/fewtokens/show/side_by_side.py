"""Original, reconstruction and error side by side, as a video or as rows of a few frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fewtokens.evaluation.reconstruction.metrics import psnr
from fewtokens.show.canvas import INK, PAPER, SOFT, font, spread, thumbnail, wrap
from fewtokens.show.overlay import ERROR_GAIN, error_map, overlay_parts
from fewtokens.show.strips import draw_strips
from fewtokens.show.types import Clip
from fewtokens.video import write
from fewtokens.video.sound import Sound

LABELS = ("original", "reconstruction", f"error x {ERROR_GAIN}")
# Frames of a .png.
_MOST = 6
_NARROW = 256
_MARGIN, _GAP, _LABEL, _TEXT = 12, 8, 17, 15


def rows_of(originals: Tensor, decoded: Tensor) -> list[tuple[str, Tensor]]:
    """Returns original, reconstruction and amplified error with labels, for `draw_strips`; all uint8 [n,3,H,W]."""
    return list(zip(LABELS, (originals, decoded, error_map(originals, decoded)), strict=True))


class Panels:
    """Draws images of one size in a row, with a label above each and text below, frame by frame.

    Images narrower than 256 pixels are enlarged by a whole factor, without interpolation.

    Args:
        labels: one for each image.
        size: height and width of an image, in pixels.
        caption: text below, the same for all frames.
    """

    def __init__(self, labels: Sequence[str], size: tuple[int, int], caption: str = "") -> None:
        scale = max(1, -(-_NARROW // size[1]))
        self.size = (size[0] * scale, size[1] * scale)
        self.left = [_MARGIN + number * (self.size[1] + _GAP) for number in range(len(labels))]
        width = self.left[-1] + self.size[1] + _MARGIN
        lines = wrap(caption, width - 2 * _MARGIN, _TEXT)
        self.top = _MARGIN + _LABEL + 10
        below = self.top + self.size[0] + 8
        self.note = (_MARGIN, below + len(lines) * (_TEXT + 6))
        # Codecs accept only even sizes.
        height = self.note[1] + _TEXT + _MARGIN
        self.sheet = Image.new("RGB", (width + width % 2, height + height % 2), PAPER)
        pen = ImageDraw.Draw(self.sheet)
        for x, label in zip(self.left, labels, strict=True):
            pen.text((x, _MARGIN), label, fill=INK, font=font(_LABEL))
        for number, line in enumerate(lines):
            pen.text((_MARGIN, below + number * (_TEXT + 6)), line, fill=SOFT, font=font(_TEXT))

    def draw(self, images: Sequence[Tensor], note: str = "") -> Tensor:
        """Draws images uint8 [3,H,W] and a line of text for this frame; returns uint8 [3,height,width]."""
        sheet = self.sheet.copy()
        for x, image in zip(self.left, images, strict=True):
            sheet.paste(thumbnail(image, self.size, Image.Resampling.NEAREST), (x, self.top))
        ImageDraw.Draw(sheet).text(self.note, note, fill=SOFT, font=font(_TEXT))
        return torch.from_numpy(np.array(sheet)).permute(2, 0, 1)


def write_columns(path: str | Path, clip: Clip, *, fps: float, sound: Sound | None = None) -> Path:
    """Writes the frames of a clip and, next to them, the regions of the tokens of each result, as .mp4 or .gif.

    Args:
        path: of the video.
        clip: with at least one result.
        fps: frames per second.
        sound: of an .mp4, see `fewtokens.video.write`.
    """
    labels = ["input", *(result.name for result in clip.results)]
    facts = "; ".join(f"{result.name}: {result.facts(', ')}" for result in clip.results)
    panels = Panels(labels, (clip.frames.shape[-2], clip.frames.shape[-1]), f"{clip.describe()}. {facts}.")

    def drawn() -> Iterator[Tensor]:
        regions = zip(*(overlay_parts(clip.frames, result.tokens) for result in clip.results), strict=True)
        columns = (images for part in regions for images in zip(*part, strict=True))
        for number, images in enumerate(columns):
            yield panels.draw([clip.frames[number], *images], clip.caption(number))[None]

    return write(path, drawn(), fps, sound=sound)


def write_side_by_side(
    path: str | Path, pairs: Iterable[tuple[Tensor, Tensor]], *, length: int, fps: float, caption: str = ""
) -> float:
    """Writes original, reconstruction and absolute error, amplified 4 times, side by side.

    Args:
        path: .png (six frames, evenly spread), or a video: .mp4, .mov, .mkv, .webm or .gif. A video is written as the
            pairs come.
        pairs: original and reconstruction of each frame, uint8 [3,H,W].
        length: number of pairs.
        fps: frames per second of a video.
        caption: text below the images.

    Returns:
        The mean over the frames of the PSNR, in dB.

    Raises:
        ValueError: the suffix is not supported, or a pair has two sizes.
    """
    scores: list[float] = []

    def scored() -> Iterator[tuple[Tensor, Tensor]]:
        for original, decoded in pairs:
            scores.append(float(psnr(original[None, None].float() / 255, decoded[None, None].float() / 255)))
            yield original, decoded

    if Path(path).suffix.lower() == ".png":
        indices = spread(length, _MOST)
        chosen = [pair for number, pair in enumerate(scored()) if number in indices]
        originals, decoded = (torch.stack(images) for images in zip(*chosen, strict=True))
        rows = rows_of(originals, decoded)
        mean = sum(scores) / len(scores)
        shown = "" if length == 1 else f"Frames {', '.join(str(index + 1) for index in indices)} of {length}. "
        draw_strips(
            list(rows), path, title="Original and reconstruction", caption=f"{caption} {shown}PSNR {mean:.2f} dB.",
            side=max(128, min(256, originals.shape[-2])),
        )  # fmt: skip
        return mean

    def drawn() -> Iterator[Tensor]:
        panels = None
        for number, (original, decoded) in enumerate(scored()):
            panels = panels or Panels(LABELS, (original.shape[-2], original.shape[-1]), caption)
            images = [row[0] for _, row in rows_of(original[None], decoded[None])]
            yield panels.draw(images, f"frame {number + 1} of {length}, PSNR {scores[-1]:.2f} dB")[None]

    write(path, drawn(), fps)
    return sum(scores) / len(scores)
