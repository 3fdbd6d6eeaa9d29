"""A linear layer from each token to the pixels of its tubelet: the smallest decoder."""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.parts import GridDecoder


class Tubelet(GridDecoder):
    """Maps the token of each cell linearly to the pixels of its tubelet.

    Args:
        dim: number of channels of a token.
        stride: frames, rows and columns of a tubelet.
    """

    causal = True

    def __init__(self, dim: int = 384, *, stride: Sequence[int] = (1, 16, 16)) -> None:
        super().__init__()
        if len(stride) != 3 or min(stride) < 1 or dim < 1:
            raise ValueError(f"stride must be three counts and dim at least 1, got {tuple(stride)} and {dim}")
        self.dim = dim
        self.stride = (stride[0], stride[1], stride[2])
        self.project = nn.Linear(dim, 3 * stride[0] * stride[1] * stride[2])

    def pixels_of(self, latents: Tensor) -> Tensor:
        t, h, w = self.stride
        return rearrange(
            self.project(latents.movedim(1, -1)), "b t h w (p q r c) -> b c (t p) (h q) (w r)", p=t, q=h, r=w
        )

    def step(self, tokens: Tokens, state: None = None) -> tuple[Tensor, None]:
        return self(tokens), None
