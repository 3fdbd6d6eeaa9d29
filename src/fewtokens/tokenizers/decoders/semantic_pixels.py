"""Two decoders of a token: a transformer to features of an image encoder, convolutions to pixels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.blocks.conv_up import ConvUp
from fewtokens.tokenizers.blocks.transformer import VideoTransformer
from fewtokens.tokenizers.parts import GridDecoder


class SemanticPixels(GridDecoder):
    """Decodes the first channels of the tokens to features of an image encoder and the others to pixels.

    TokenFlow (arXiv 2412.03069). Positions of the transformer are rotary; the paper's are learned.

    Args:
        dim: number of channels of a token.
        semantic: number of first channels, of which `predict` makes features.
        stride: 1, and the height and width of a cell in pixels, 2^(number of `widths` - 1).
        widths, blocks: of the convolutions, see `ConvUp`.
        width, depth: channels and blocks of the transformer.
        targets: number of channels of the predicted features.
    """

    causal = True

    def __init__(
        self,
        dim: int = 40,
        *,
        semantic: int = 32,
        stride: Sequence[int] = (1, 16, 16),
        widths: Sequence[int] = (1024, 512, 512, 256, 256),
        blocks: int = 5,
        width: int = 768,
        depth: int = 3,
        targets: int = 768,
    ) -> None:
        super().__init__()
        side = 2 ** (len(widths) - 1)
        if tuple(stride) != (1, side, side):
            raise ValueError(f"stride must be (1, {side}, {side}) with {len(widths)} widths, got {tuple(stride)}")
        if not 1 <= semantic < dim:
            raise ValueError(f"semantic must be in 1..{dim - 1}, got {semantic}")
        self.dim, self.semantic, self.stride = dim, semantic, (1, side, side)
        self.widths, self.blocks, self.width, self.depth = tuple(widths), blocks, width, depth
        self.targets = targets
        self.to_pixels = ConvUp(dim - semantic, widths, blocks)
        self.embed = nn.Linear(semantic, width)
        self.transformer = VideoTransformer(width, (("space", depth),), max(1, width // 64))
        self.norm = nn.LayerNorm(width, 1e-6)
        self.head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, targets))

    def pixels_of(self, latents: Tensor) -> Tensor:
        images = self.to_pixels(latents[:, self.semantic :].transpose(1, 2).flatten(0, 1))
        return images.unflatten(0, (len(latents), -1)).transpose(1, 2)

    def step(self, tokens: Tokens, state: None = None) -> tuple[Tensor, None]:
        return self(tokens), None

    def predict(self, tokens: Tokens) -> Tensor:
        """Predicts features [B,T,H,W,targets] of an image encoder."""
        x = self.transformer(self.embed(tokens.unmerge()[..., : self.semantic]))
        features: Tensor = self.head(self.norm(x))
        return features
