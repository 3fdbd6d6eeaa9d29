"""A transformer over the tokens of all cells, then pixels of tubelets: the decoder of ViT tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.blocks.transformer import TubeletPixels, VideoTransformer, checked_stride, make_norm
from fewtokens.tokenizers.parts import GridDecoder


class TubeletTransformer(GridDecoder):
    """Projects the tokens of all cells to `width`, applies transformer blocks and a norm, and maps cells to pixels.

    The mirror of the encoder of the same name.

    Args:
        dim: channels of a token.
        width: channels of the transformer.
        stride: frames, rows and columns of a tubelet.
        layers: kind and number of blocks, in their order: "full", "block_causal", "space", "window8" and "time".
        heads: attention heads; must divide `width`.
        positions: "rotary", "rotary4", or T, H and W of the grid of learned embeddings, which are resized to others.
        style: "vit" (LayerNorm, GELU), "llama" (RMSNorm, SwiGLU), or "bsq": as "vit", with a LayerNorm in front of the
            blocks too, and 4 * `width` hidden channels and tanh in front of the pixels, as in BSQ-ViT.
        first_frame: whether the first row of cells is the first frame alone.
    """

    def __init__(
        self,
        dim: int = 384,
        *,
        width: int = 384,
        stride: Sequence[int] = (1, 16, 16),
        layers: Sequence[tuple[str, int]] = (("full", 12),),
        heads: int = 6,
        positions: str | Sequence[int] = "rotary",
        style: str = "vit",
        first_frame: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.width, self.layers, self.heads = dim, width, layers, heads
        self.positions, self.style = positions, style
        self.stride, self.first_frame = checked_stride(stride, first_frame), first_frame
        self.embed = nn.Linear(dim, width)
        self.transformer = VideoTransformer(width, layers, heads, positions=positions, style=style)
        self.norm = make_norm(width, style)
        self.hidden = nn.Sequential(nn.Linear(width, 4 * width), nn.Tanh()) if style == "bsq" else nn.Identity()
        self.pixels_of_cells = TubeletPixels(4 * width if style == "bsq" else width, self.stride, first_frame)
        self.causal = self.transformer.causal

    @property
    def streams(self) -> bool:
        return self.causal

    def pixels_of(self, latents: Tensor) -> Tensor:
        decoded = self.transformer(self.embed(latents.movedim(1, -1)))
        return self.pixels_of_cells(self.hidden(self.norm(decoded)))

    def step(self, tokens: Tokens, state: Any = None) -> tuple[Tensor, Any]:
        if not self.causal:
            return super().step(tokens, state)
        start = state is None
        decoded, state = self.transformer.step(self.embed(tokens.unmerge()), state)
        return self.pixels_of_cells(self.hidden(self.norm(decoded)), start=start).transpose(1, 2), state
