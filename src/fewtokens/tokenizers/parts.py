"""The two ends of a tokenizer: `VideoEncoder` (frames to tokens) and `Decoder` (tokens to frames)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from fewtokens.core.encoder import Encoder
from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.spec import Spec
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.frames import to_unit

Stride = tuple[int, int, int]


class Strided:
    """The sizes that both ends of a tokenizer agree on.

    Attributes:
        stride: frames, rows and columns of pixels that a cell covers.
        first_frame: whether the first row of cells covers the first frame alone, as in causal video tokenizers, which
            accept 1 + k * stride[0] frames. If False, they accept k * stride[0] frames.
        causal: whether cells (of an encoder) or frames (of a decoder) are independent of later ones.
    """

    stride: Stride
    first_frame: bool = False
    causal: bool = False

    def padded(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Returns the smallest accepted number of frames, height and width that are not below the given ones."""
        t, y, x = self.stride
        first = int(self.first_frame)
        return first + -(-(frames - first) // t) * t, -(-height // y) * y, -(-width // x) * x

    def cells(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Returns T, H and W of the cells of a video of an accepted size."""
        t, y, x = self.stride
        first = int(self.first_frame)
        return first + (frames - first) // t, height // y, width // x

    def pixels(self, grid: Grid) -> tuple[int, int, int]:
        """Returns the number of frames, height and width of a grid of cells; the inverse of `cells`."""
        t, y, x = self.stride
        first = int(self.first_frame)
        return first + (grid.T - first) * t, grid.H * y, grid.W * x

    def first_frames(self, rows: int) -> Tensor:
        """Returns the index of the first frame of each row of cells, int64 [rows]; its time is that of the row."""
        first = int(self.first_frame)
        return ((torch.arange(rows) - first) * self.stride[0] + first).clamp(min=0)


class VideoEncoder(Strided, Spec, Encoder):
    """The base class of encoders of tokenizers: networks that map frames to one token per cell.

    A subclass defines `stride`, `dim` and `latents`; a causal one may define `step`, which processes a video in chunks.
    Frames must have a size that it accepts; `Tokenizer` pads them. Any other encoder of the library can be used by the
    part `frozen`.
    """

    learned: ClassVar[bool] = True

    @property
    def id(self) -> str:  # type: ignore[override]
        """The spec of the encoder, which tokenizers are built from."""
        return self.spec

    @abstractmethod
    def latents(self, x: Tensor) -> Tensor:
        """Encodes frames [B,3,T,H,W] in -1..1 to the features of all cells, [B,C,T',H',W']."""

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Encodes the next frames of a video; the concatenated results equal `latents` of the whole up to rounding.

        Args:
            x: [B,3,T,H,W] in -1..1. The first chunk has an accepted number of frames, later ones a multiple of the
                stride.
            state: the state that the previous call returned, or None at the start. Its size is bounded.

        Raises:
            ValueError: this encoder cannot process chunks.
        """
        raise ValueError(f"{self.name} cannot encode a video in chunks; it encodes windows of fixed length")

    @property
    def streams(self) -> bool:
        """Whether it can process a video in chunks."""
        return type(self).step is not VideoEncoder.step

    @final  # type: ignore[misc]
    def forward(
        self,
        frames: Tensor,
        times: Tensor | None = None,
        *,
        needs: Sequence[str] = (),
        pixel_methods: Sequence[Callable[..., Tokens]] = (),
        block_methods: Sequence[Method] = (),
    ) -> tuple[Tokens, dict[str, Tensor]]:
        """Encodes frames [B,T,3,H,W] (uint8, or float in 0..1); returns no cues."""
        if needs or pixel_methods or block_methods:
            raise ValueError(f"{self.name} provides no cues, and methods can act only after it")
        grid = self.grid(frames.shape[1], frames.shape[3], frames.shape[4], times)
        latents = self.latents(to_signed(frames.to(self.device)).to(self.dtype).transpose(1, 2))
        return Tokens.from_cells(latents.flatten(2).transpose(1, 2), grid), {}

    def grid(self, frames: int, height: int, width: int, times: Tensor | None = None) -> Grid:
        padded = self.padded(frames, height, width)
        if padded != (frames, height, width):
            raise ValueError(
                f"{self.name} accepts {self.accepted()}, got {frames} frames of {height}x{width}; the next accepted "
                f"size is {padded[0]} frames of {padded[1]}x{padded[2]}"
            )
        T, H, W = self.cells(frames, height, width)
        if times is not None:
            times = torch.as_tensor(times, dtype=torch.float64)[..., self.first_frames(T)]
        return Grid(T, H, W, times)

    def accepted(self) -> str:
        """Describes the accepted sizes, for messages."""
        t, y, x = self.stride
        count = "any number of" if t == 1 else f"1 + {t} k" if self.first_frame else f"{t} k"
        return f"{count} frames with a height that is a multiple of {y} and a width that is a multiple of {x}"


class Decoder(Strided, Spec, nn.Module, ABC):
    """The base class of decoders of tokenizers: networks that map tokens to frames.

    A subclass defines `stride`, `dim` and `forward`. It receives nothing but the tokens.

    Class attributes:
        full_grid: whether it needs the features of all cells, so that the assignment of cells to tokens is part of what
            is stored if a method reduces the tokens; otherwise it reads a sequence or a set of tokens.
        deterministic: whether the frames are determined by the tokens; False for diffusion decoders, which also take
            `seed`.

    Attributes:
        dim: number of channels C of the tokens.
    """

    full_grid: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    dim: int

    @abstractmethod
    def forward(self, tokens: Tokens) -> Tensor:
        """Decodes tokens to frames [B,T,3,H,W], about -1..1 (not clamped)."""

    def losses(self, tokens: Tokens, frames: Tensor) -> dict[str, Tensor] | None:
        """Returns the training losses of a decoder that is not trained by comparing its output with the frames.

        Args:
            tokens: the tokens.
            frames: the target [B,T,3,H,W] in -1..1.

        Returns:
            Scalar losses by name, to be summed; None for a decoder trained by reconstruction losses.
        """
        return None

    def step(self, tokens: Tokens, state: Any = None) -> tuple[Tensor, Any]:
        """Decodes the next tokens of a video; the concatenated frames equal those of the whole up to rounding.

        Args:
            tokens: the tokens of the next rows of cells in time.
            state: the state that the previous call returned, or None at the start. Its size is bounded.

        Raises:
            ValueError: this decoder cannot process chunks.
        """
        raise ValueError(f"{self.name} cannot decode a video in chunks; it decodes windows of fixed length")

    @property
    def streams(self) -> bool:
        """Whether it can process a video in chunks."""
        return type(self).step is not Decoder.step


class GridDecoder(Decoder):
    """A decoder that reads the features of all cells; a subclass defines `pixels_of`.

    Reduced tokens are unmerged first, so any method may stand between encoder and decoder.
    """

    full_grid = True

    @abstractmethod
    def pixels_of(self, latents: Tensor) -> Tensor:
        """Decodes features [B,C,T',H',W'] of all cells to frames [B,3,T,H,W], about -1..1."""

    @final  # type: ignore[misc]
    def forward(self, tokens: Tokens) -> Tensor:
        return self.pixels_of(tokens.unmerge().movedim(-1, 1)).transpose(1, 2)


def to_signed(frames: Tensor) -> Tensor:
    """Converts frames [B,T,3,H,W] (uint8, or float in 0..1) to float32 in -1..1.

    Raises:
        ValueError: values outside 0..1 in float frames, as of frames in 0..255 or -1..1.
    """
    unit = to_unit(frames)
    if frames.is_floating_point() and not torch.compiler.is_compiling():
        low, high = float(unit.detach().amin()), float(unit.detach().amax())
        if low < -1e-3 or high > 1 + 1e-3:
            raise ValueError(
                f"frames must be uint8, or float in 0..1, got values in {low:.3g}..{high:.3g}; "
                + ("divide by 255" if high > 2 else "rescale with (x + 1) / 2")
            )
    return unit * 2 - 1
