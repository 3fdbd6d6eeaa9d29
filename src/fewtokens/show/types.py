"""What is shown."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewtokens.core.shapes import by_shape
from fewtokens.core.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Result:
    """One method on one clip.

    Attributes:
        name: of the method.
        spec: the spec string that ran.
        tokens: what came out, B=1.
        frames: what the tokens give back, uint8 [T,3,H,W], or None where features are not pixels.
        numbers: columns of the table by name; "tokens", "retention" and "psnr_db" are shown on the sheet too.
    """

    name: str
    spec: str
    tokens: Tokens
    frames: Tensor | None
    numbers: dict[str, float | int | str]

    __repr__ = by_shape


@dataclass(frozen=True, eq=False)
class Clip:
    """A video and what several methods made of it.

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

    __repr__ = by_shape

    def caption(self, frame: int) -> str:
        """The time of a frame, or its number."""
        return f"frame {frame}" if self.times is None else f"{float(self.times[frame]):.2f} s"
