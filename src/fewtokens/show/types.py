"""The input of figures and pages: a clip, and the results of several methods on it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Result:
    """One method on one clip.

    Attributes:
        name: of the method; the label on sheets and pages.
        spec: the spec string that ran.
        tokens: the tokens that remain, B=1.
        frames: rebuilt from the tokens, uint8 [T,3,H,W]; None if the features are not pixels.
        numbers: columns of the table by key; sheets also show "tokens", "retention" and "psnr_db".
    """

    name: str
    spec: str
    tokens: Tokens
    frames: Tensor | None
    numbers: dict[str, float | int | str]

    __repr__ = shape_repr

    def facts(self, separator: str = "   ") -> str:
        """Tokens, retention and PSNR in one line; those missing in `numbers` are skipped."""
        parts = []
        if "tokens" in self.numbers:
            parts.append(f"{self.numbers['tokens']} tokens")
        if "retention" in self.numbers:
            parts.append(f"{100 * float(self.numbers['retention']):.1f} %")
        if "psnr_db" in self.numbers:
            parts.append(f"{float(self.numbers['psnr_db']):.1f} dB")
        return separator.join(parts)


@dataclass(frozen=True, eq=False)
class Clip:
    """A video and the results of several methods on it.

    Attributes:
        name: shown as the title.
        frames: uint8 [T,3,H,W].
        times: seconds [T], or None.
        results: in the order in which they are shown.
    """

    name: str
    frames: Tensor
    times: Tensor | None
    results: list[Result]

    __repr__ = shape_repr

    @property
    def cells(self) -> int:
        """Cells of the encoder's grid over the whole clip; 0 without results."""
        return self.results[0].tokens.grid.cells if self.results else 0

    def caption(self, frame: int) -> str:
        """The time of a frame, or its index."""
        return f"frame {frame}" if self.times is None else f"{float(self.times[frame]):.2f} s"

    def describe(self) -> str:
        """Frames, their size and the cells of the clip in one line."""
        T, _, height, width = self.frames.shape
        size = f"{T} frames of {width} x {height} pixels"
        return f"{size}, {self.cells:,} cells" if self.cells else size
