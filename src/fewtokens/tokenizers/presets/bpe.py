"""Byte-pair encoding of the codes of an image tokenizer (arXiv 2410.02155)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.pairs import expand_pairs, fit_pairs, merge_pairs
from fewtokens.tokenizers.preset import Preset
from fewtokens.tokenizers.tokenizer import Layout, Tokenizer


class BpeTokenizer(Tokenizer):
    """A tokenizer of one code per cell, which merges codes after `fit_pairs`: encoded videos have fewer tokens.

    Merging is lossless, and not part of training. A merged code stands for a box of cells.

    Class attributes:
        merges: largest number of new codes.
        directions: the neighbors that may merge, see `fewtokens.tokenizers.pairs`.

    Raises:
        ValueError: the quantizer has several codes per token, or a method changes the number of tokens.
    """

    merges: ClassVar[int] = 1024
    directions: ClassVar[tuple[str, ...]] = ("right", "down")

    def __init__(self, *parts: Any, window: int | None = None) -> None:
        super().__init__(*parts, window=window)
        if len(super().codebook_sizes) != 1 or self.stores_assignment or not self.decoder.full_grid:
            raise ValueError(f"codes can be merged if there is one per cell of a grid, got {self.spec!r}")
        self.pairs: torch.Tensor
        # Rows of -1 are not in use, so that a saved tokenizer has a fixed shape.
        self.register_buffer("pairs", torch.full((self.merges, 3), -1))

    @property
    def _fitted(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        if self.pairs.is_meta:
            return np.zeros((0, 3), np.int64)
        pairs: np.ndarray[Any, np.dtype[np.int64]] = self.pairs.cpu().numpy()
        return pairs[pairs[:, 0] >= 0]

    @property
    def _size(self) -> int:
        """The number of codes of the quantizer."""
        return super().codebook_sizes[0]

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self._size + len(self._fitted),)

    def codes_by_book(self, tokens: Tokens) -> tuple[Tensor, tuple[int, ...]]:
        if not len(self._fitted):
            return super().codes_by_book(tokens)
        assert tokens.codes is not None
        return tokens.codes[tokens.mask], self.codebook_sizes

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer) -> BpeTokenizer:
        """Returns a tokenizer of the same parts, which are not copied, that can merge codes.

        Raises:
            ValueError: its codes cannot be merged, or it is a subclass with other steps than its parts.
        """
        if isinstance(tokenizer, cls):
            return tokenizer
        if type(tokenizer) is not Tokenizer:
            raise ValueError(f"codes of {tokenizer.title or tokenizer.spec} cannot be merged: it is not only its parts")
        merged = cls(tokenizer.encoder, tokenizer.methods, tokenizer.decoder, window=tokenizer.window)
        merged.title = "bpe"
        return merged.train(tokenizer.training)

    def fit_pairs(self, videos: Iterable[Any]) -> int:
        """Learns which codes to merge from videos that `encode` accepts; to be called after training.

        Returns:
            The number of new codes, at most `merges`.
        """
        return self.fit_codes(self.encode(video) for video in videos)

    @torch.no_grad()
    def fit_codes(
        self,
        encoded: Iterable[Tokens],
        *,
        merges: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> int:
        """Learns which codes to merge from encoded videos; earlier merges are undone and learned again.

        Args:
            encoded: results of `encode` or `read_encoded`.
            merges: largest number of new codes. Default, and at most: that of the class.
            progress: receives the number of new codes and of tokens after each merge.

        Returns:
            The number of new codes.

        Raises:
            ValueError: there are no videos, or merges is out of range.
        """
        merges = self.merges if merges is None else merges
        if not 1 <= merges <= self.merges:
            raise ValueError(f"merges must be in 1..{self.merges}, got {merges}")
        grids = []
        for video in encoded:
            tokens = self._restore(video)
            assert tokens.codes is not None
            grids += list(tokens.codes.reshape(tokens.B, *tokens.grid.shape).cpu().numpy())
        pairs = fit_pairs(grids, self._size, merges, self.directions, progress=progress)
        self.pairs.fill_(-1)
        self.pairs[: len(pairs)] = torch.from_numpy(pairs)
        return len(pairs)

    def layout(self, frames: int, height: int, width: int) -> Layout:
        layout = super().layout(frames, height, width)
        return layout if not len(self._fitted) else replace(layout, tokens=None, bits=None)

    def _recode(self, tokens: Tokens) -> Tokens:
        pairs = self._fitted
        if not len(pairs):
            return tokens
        assert tokens.codes is not None
        grids = tokens.require_full_grid("bpe").codes.reshape(tokens.B, *tokens.grid.shape).cpu().numpy()  # type: ignore[union-attr]
        merged = [merge_pairs(grid, pairs, self._size) for grid in grids]
        count = torch.tensor([len(video.ids) for video in merged], device=tokens.device)
        slots = int(count.max())
        dest = torch.from_numpy(np.stack([video.token.flatten() for video in merged])).to(tokens.device)
        codes = torch.zeros(tokens.B, slots, 1, dtype=torch.int64, device=tokens.device)
        for video, ids in zip(codes, merged, strict=True):
            video[: len(ids.ids), 0] = torch.from_numpy(ids.ids)
        return tokens.apply(Plan(count, slots, dest)).replace(codes=codes)

    def _restore(self, tokens: Tokens) -> Tokens:
        if tokens.codes is None or not len(self._fitted):
            return tokens
        pairs, shape = self._fitted, tokens.grid.shape
        grids = [
            expand_pairs(codes[mask, 0], shape, pairs, self._size)
            for codes, mask in zip(tokens.codes.cpu().numpy(), tokens.mask.cpu().numpy(), strict=True)
        ]
        codes = torch.from_numpy(np.stack(grids)).reshape(tokens.B, -1, 1).to(tokens.device)
        cells = Tokens.from_cells(tokens.features.new_zeros(tokens.B, codes.shape[1], 1), tokens.grid)
        return cells.replace(codes=codes, meta=tokens.meta)


_BLOCKS = (("full", 8),)

PRESET = Preset(
    kind=BpeTokenizer,
    spec=(
        f"tubelet_transformer(512, stride=(1, 16, 16), layers={_BLOCKS}, heads=8, channels=256) | "
        "vq(8192, code_dim=32) > "
        f"tubelet_transformer(width=512, stride=(1, 16, 16), layers={_BLOCKS}, heads=8)"
    ),
    clip=(1, 512, 512),
    tiny=(
        "tubelet_transformer(64, stride=(1, 8, 8), layers=(('full', 2),), heads=4) | vq(64, code_dim=8) > "
        "tubelet_transformer(width=64, stride=(1, 8, 8), layers=(('full', 2),), heads=4)"
    ),
    tiny_clip=(1, 64, 64),
    paper="From Pixels to Tokens: Byte-Pair Encoding on Quantized Visual Modalities, arXiv 2410.02155",
    license="Being-VL-0.5, MIT",
    differs=(
        "The published system merges the codes of an existing VQ-GAN with 8,192 codes on a grid of 32 x 32; the "
        "quantizer here has that size, between small transformers. The released code reads pair counts above the "
        "diagonal only, so that half of the pairs never merge, and is limited to that grid; here all ordered pairs "
        "count, on grids of any size, and tokens are boxes of cells, so that the codes alone determine the grid. "
        "Pairs are learned after training by `fewtokens train bpe` or fit_pairs; until then no codes are merged."
    ),
)
