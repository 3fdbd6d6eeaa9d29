"""A linear layer over tubelets: the patch embedding of transformers, and the smallest encoder."""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn

from fewtokens.tokenizers.blocks.sines import sines_of_cells
from fewtokens.tokenizers.blocks.transformer import LearnedPositions
from fewtokens.tokenizers.parts import VideoEncoder


class Tubelet(VideoEncoder):
    """Maps the pixels of each tubelet linearly to a token. Tubelets do not overlap.

    Args:
        width: number of channels of a token.
        stride: frames, rows and columns of a tubelet. (1, 16, 16) are the patches of a ViT.
        positions: what is added to a token: "sine", fixed sines and cosines of time, row and column, as in LARP (arXiv
            2410.21264); or T, H and W of the grid of learned embeddings, which are resized to others, followed by a
            LayerNorm, as in TiTok (arXiv 2406.07550). Default: None, nothing.
    """

    causal = True

    def __init__(
        self,
        width: int = 384,
        *,
        stride: Sequence[int] = (1, 16, 16),
        positions: str | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if len(stride) != 3 or min(stride) < 1 or width < 1:
            raise ValueError(f"stride must be three counts and width at least 1, got {tuple(stride)} and {width}")
        if isinstance(positions, str) and (positions != "sine" or width % 4):
            raise ValueError(
                f"positions must be sine, with a width that is a multiple of 4, or T, H and W of a grid, got "
                f"{positions!r} and {width}"
            )
        self.width, self.positions = width, positions
        self.stride = (stride[0], stride[1], stride[2])
        self.project = nn.Linear(3 * stride[0] * stride[1] * stride[2], width)
        grid = None if isinstance(positions, str) else positions
        self.places = None if grid is None else LearnedPositions(width, grid)
        self.norm = None if grid is None else nn.LayerNorm(width)

    @property
    def dim(self) -> int:
        return self.width

    def latents(self, x: Tensor) -> Tensor:
        return self.step(x)[0]

    def step(self, x: Tensor, state: int | None = None) -> tuple[Tensor, int]:
        start = state or 0
        t, h, w = self.stride
        cells = rearrange(x, "b c (t p) (h q) (w r) -> b t h w (p q r c)", p=t, q=h, r=w)
        tokens: Tensor = self.project(cells)
        T, H, W = tokens.shape[1:4]
        if self.places is not None and self.norm is not None:
            tokens = self.norm(tokens + self.places(T, H, W, start))
        elif self.positions is not None:
            tokens = tokens + sines_of_cells(T, H, W, self.width, start, device=x.device).to(tokens.dtype)
        return tokens.movedim(-1, 1), start + T
