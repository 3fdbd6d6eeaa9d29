"""The decoder of TiTok: a transformer over tokens and one mask token per patch, then pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fewtokens.core.tokens import Tokens
from fewtokens.methods.learned.learned_queries import QueryBlock
from fewtokens.methods.ops.resample import check_counts
from fewtokens.tokenizers.blocks.maskgit_decoder import MaskGitDecoder
from fewtokens.tokenizers.blocks.transformer import LearnedPositions, TubeletPixels
from fewtokens.tokenizers.parts import Decoder


class Titok(Decoder):
    """Applies a transformer to tokens, a class token and mask tokens of all patches, and maps patches to pixels.

    The decoder of TiTok (arXiv 2406.07550) and One-D-Piece (arXiv 2501.10064), with the parameters of their code.
    Missing tokens are left out, so a prefix decodes, as in One-D-Piece. With `vqgan`, a patch predicts the codes of the
    VQGAN of MaskGIT: the mean of its entries, weighted by the softmax, is decoded by convolutions. Without, a patch
    predicts its pixels linearly, and a 3x3 convolution of the image follows, as in the later tokenizers of the authors.

    Frames are decoded separately, as images.

    Args:
        dim: channels of a token.
        width: channels of the transformer.
        patch: height and width of a patch in pixels.
        grid: rows and columns of patches of the learned positions, which are resized to others.
        num_tokens: largest number of tokens.
        num_layers: number of blocks, pre-norm with 4 * `width` hidden channels.
        heads: largest number of attention heads that divides `width` is used, up to this.
        vqgan: number and channels of the entries of the codebook, and channels of the levels of `MaskGitDecoder`. TiTok
            has ((1024, 256), (512, 256, 256, 128, 128)). Default: None, pixels without a VQGAN.
    """

    full_grid = False

    def __init__(
        self,
        dim: int = 12,
        *,
        width: int = 768,
        patch: int = 16,
        grid: Sequence[int] = (16, 16),
        num_tokens: int = 256,
        num_layers: int = 12,
        heads: int = 12,
        vqgan: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        check_counts(width=width, patch=patch, num_tokens=num_tokens, num_layers=num_layers, heads=heads)
        if vqgan is not None and (len(vqgan) != 2 or len(vqgan[0]) != 2 or 2 ** (len(vqgan[1]) - 1) != patch):
            raise ValueError(
                f"vqgan must be the size and channels of a codebook and the channels of levels whose number n fits the "
                f"patch, 2^(n - 1) = {patch}, got {vqgan}"
            )
        self.dim, self.width, self.patch, self.grid = dim, width, patch, tuple(grid)
        self.num_tokens, self.num_layers, self.heads, self.vqgan = num_tokens, num_layers, heads, vqgan
        self.stride = (1, patch, patch)
        self.embed = nn.Linear(dim, width)
        self.order = nn.Parameter(width**-0.5 * torch.randn(num_tokens, width))
        self.class_token = nn.Parameter(width**-0.5 * torch.randn(width))
        # The embedding of the frame is the mask token.
        self.masks = LearnedPositions(width, (1, *grid))
        self.norm_first = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(QueryBlock(width, heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.to_pixels = _VqganPixels(width, *vqgan) if vqgan is not None else _LinearPixels(width, patch)

    def forward(self, tokens: Tokens) -> Tensor:
        if self.num_tokens < tokens.N:
            raise ValueError(f"{self.name} was built for {self.num_tokens} tokens, got {tokens.N}; set num_tokens")
        T, H, W = tokens.grid.shape
        x = self.norm_first(self.embed(tokens.features) + self.order[: tokens.N])
        queries = torch.cat([self.class_token[None], self.masks(T, H, W).flatten(0, 2)])
        queries = self.norm_first(queries).expand(tokens.B, -1, -1)
        for block in self.blocks:
            x, queries = block(x, queries, tokens.mask, ordered=False)
        cells = self.norm(queries[:, 1:]).unflatten(1, (T, H, W))
        images: Tensor = self.to_pixels(cells.flatten(0, 1).movedim(-1, 1))
        return images.unflatten(0, (tokens.B, T))


class _VqganPixels(nn.Module):
    """Predicts codes of a VQGAN and decodes the mean of their entries; [F,C,H,W] to [F,3,H*p,W*p]."""

    def __init__(self, width: int, codebook: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        size, dim = codebook
        self.predict = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.Tanh(), nn.Conv2d(2 * width, size, 1))
        self.entries = nn.Parameter(torch.randn(size, dim) * dim**-0.5)
        self.decoder = MaskGitDecoder(dim, widths)

    def forward(self, x: Tensor) -> Tensor:
        mean = torch.einsum("fkhw,kd->fdhw", self.predict(x).softmax(1), self.entries)
        images: Tensor = self.decoder(mean)
        return images


class _LinearPixels(nn.Module):
    """Predicts the pixels of each patch and filters the image; [F,C,H,W] to [F,3,H*p,W*p]."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.predict = TubeletPixels(width, (1, patch, patch), first_frame=False)
        self.filter = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        images: Tensor = self.filter(self.predict(x.movedim(1, -1)[:, None])[:, :, 0])
        return images
