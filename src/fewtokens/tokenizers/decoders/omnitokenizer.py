"""The decoder of OmniTokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fewtokens.tokenizers.blocks.omni_transformer import OmniTransformer
from fewtokens.tokenizers.blocks.transformer import TubeletPixels, checked_stride
from fewtokens.tokenizers.parts import GridDecoder


class Omnitokenizer(GridDecoder):
    """Projects the tokens of all cells, applies blocks over time and then in space, and maps cells to pixels.

    OmniTokenizer (arXiv 2406.09399), with the parameters of its code; see the encoder of the same name.

    Args:
        dim: channels of a token.
        width: channels of the transformer.
        stride: frames, rows and columns of a tubelet; the first frame has separate cells.
        layers: kind and number of blocks, see `OmniTransformer`.
        heads: attention heads, of a multiple of 4 channels.
        scrambled: whether blocks over time are those of the released code, which mix frames; then it is not causal.
    """

    first_frame = True

    def __init__(
        self,
        dim: int = 8,
        *,
        width: int = 512,
        stride: Sequence[int] = (4, 8, 8),
        layers: Sequence[tuple[str, int]] = (("time", 4), ("space", 4)),
        heads: int = 8,
        scrambled: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.width, self.layers = dim, width, layers
        self.heads, self.scrambled, self.causal = heads, scrambled, not scrambled
        self.stride = checked_stride(stride, True)
        self.embed = nn.Linear(dim, width)
        self.transformer = OmniTransformer(width, layers, heads, scrambled=scrambled)
        self.pixels_of_cells = TubeletPixels(width, self.stride, first_frame=True)

    def pixels_of(self, latents: Tensor) -> Tensor:
        frames: Tensor = self.pixels_of_cells(self.transformer(self.embed(latents.movedim(1, -1))))
        return frames
