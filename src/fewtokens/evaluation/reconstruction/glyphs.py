"""Rendered text and a reader for it, so that text in reconstructions can be measured without weights.

Not an OCR: the reader knows the font. It compares templates, so it reads only what `rendered_text` writes.
"""

from __future__ import annotations

import string
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.evaluation.reconstruction.tokbench import Box, Mark, Sample

ALPHABET = string.digits + string.ascii_uppercase


class GlyphReader:
    """Reads a line of Pillow's default font: the text whose rendering has the least squared error in the box.

    The box must be that of the line, as `rendered_text` gives it: its height determines the size of the font. Exact by
    dynamic programming over the columns of the box.

    Args:
        alphabet: characters that can be read.
    """

    def __init__(self, alphabet: str = ALPHABET) -> None:
        self.alphabet = alphabet

    def __call__(self, image: Tensor, box: Box) -> str:
        """Reads the text in a box (left, top, right, bottom) of an image [3,H,W] in 0..1."""
        left, top, right, bottom = map(round, box)
        line = image[:, top:bottom, left:right].float().mean(0).cpu()
        line = (line - line.min()) / (line.max() - line.min()).clamp(min=1e-6)
        if line.mean() > 0.5:  # text covers less than half of a line
            line = 1 - line
        glyphs = [_glyph(character, bottom - top) for character in self.alphabet]
        errors = [_errors(line, glyph) for glyph in glyphs]
        # The least error of a text that ends at each column, and its last character.
        width = line.shape[1]
        best = [0.0] + [float("inf")] * width
        last = [(0, "")] * (width + 1)
        for start in range(width):
            if best[start] == float("inf"):
                continue
            for character, glyph, error in zip(self.alphabet, glyphs, errors, strict=True):
                end = start + glyph.shape[1]
                if end <= width and (total := best[start] + error[start]) < best[end]:
                    best[end], last[end] = total, (start, character)
        # A box of another width ends at the last column that a text reaches.
        end = max(column for column in range(width + 1) if best[column] < float("inf"))
        text = ""
        while end > 0:
            end, character = last[end]
            text = character + text
        return text


def rendered_text(
    count: int, *, size: int = 256, frames: int = 1, length: int = 5, seed: int = 0, alphabet: str = ALPHABET
) -> list[Sample]:
    """Images of random words, dark or light on a smooth background, in lines of 9 to 20 pixels for a size of 256.

    Args:
        count: number of images.
        size: height and width in pixels, at least 64.
        frames: with more than one, the background changes over time and the text stays.
        length: characters of a word.
        seed: random seed.
        alphabet: characters of the words.

    Returns:
        Samples with a mark per word; relative sizes cover all bins of `TEXT_BINS` for an equal size.
    """
    generator = np.random.default_rng(seed)
    return [_page(generator, size, frames, length, alphabet) for _ in range(count)]


def _page(generator: np.random.Generator, size: int, frames: int, length: int, alphabet: str) -> Sample:
    coarse = torch.from_numpy(generator.uniform(size=(1, 3, max(2, frames // 4), 4, 4))).float()
    background = F.interpolate(coarse, size=(frames, size, size), mode="trilinear")[0].transpose(0, 1)
    dark = bool(generator.integers(2))
    background = 0.6 + 0.4 * background if dark else 0.4 * background
    image = background.contiguous()
    marks = []
    top = 2
    heights = [round(size / 256 * height) for height in (9, 10, 13, 15, 20)]
    while top + (height := int(generator.choice(heights))) < size - 2:
        word = "".join(generator.choice(list(alphabet), length))
        ink = torch.cat([_glyph(character, height) for character in word], 1)
        if ink.shape[1] + 4 < size:
            left = int(generator.integers(2, size - ink.shape[1] - 2))
            box = (left, top, left + ink.shape[1], top + height)
            area = image[:, :, top : top + height, left : left + ink.shape[1]]
            area.copy_(area * (1 - ink) + (0.0 if dark else 1.0) * ink)
            marks.append(Mark(box, word))
        top += height + 4
    return Sample(image, tuple(marks))


@lru_cache(maxsize=2000)
def _glyph(character: str, height: int) -> Tensor:
    """A character in a line of `height` pixels, ink 1, float32 [height,advance]."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=height / 1.25)
    ascent, descent = font.getmetrics()  # type: ignore[union-attr]
    width = max(1, round(font.getlength(character)))
    image = Image.new("L", (width, height))
    ImageDraw.Draw(image).text((0, (height - ascent - descent) / 2), character, fill=255, font=font)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)


def _errors(line: Tensor, glyph: Tensor) -> list[float]:
    """Squared error |x - g|² = |x|² - 2xg + |g|² of a glyph at each column where it fits in the line."""
    if glyph.shape[1] > line.shape[1]:
        return []
    windows = F.conv2d(line[None, None].square(), torch.ones_like(glyph)[None, None])
    product = F.conv2d(line[None, None], glyph[None, None])
    return (windows - 2 * product + glyph.square().sum()).flatten().tolist()
