"""A linear layer over tubelets: the patch embedding of transformers, and the smallest encoder."""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn

from fewtokens.tokenizers.parts import VideoEncoder


class Tubelet(VideoEncoder):
    """Maps the pixels of each tubelet linearly to a token. Tubelets do not overlap.

    Args:
        width: number of channels of a token.
        stride: frames, rows and columns of a tubelet. (1, 16, 16) are the patches of a ViT.
    """

    causal = True

    def __init__(self, width: int = 384, *, stride: Sequence[int] = (1, 16, 16)) -> None:
        super().__init__()
        if len(stride) != 3 or min(stride) < 1 or width < 1:
            raise ValueError(f"stride must be three counts and width at least 1, got {tuple(stride)} and {width}")
        self.width = width
        self.stride = (stride[0], stride[1], stride[2])
        self.project = nn.Linear(3 * stride[0] * stride[1] * stride[2], width)

    @property
    def dim(self) -> int:
        return self.width

    def latents(self, x: Tensor) -> Tensor:
        t, h, w = self.stride
        cells = rearrange(x, "b c (t p) (h q) (w r) -> b t h w (p q r c)", p=t, q=h, r=w)
        projected: Tensor = self.project(cells)
        return projected.movedim(-1, 1)

    def step(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        return self.latents(x), None
