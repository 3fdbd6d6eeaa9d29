"""`SignalTokenizer`: tokenizers of occupancy, audio and points instead of videos."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.tokenizer import Reconstruction, Tokenizer


class SignalTokenizer(Tokenizer):
    """A tokenizer of another signal than video, with the same tokens, bits and files.

    Its encoder and decoder have the base classes of those of videos, but `latents` receives the signal, and the decoder
    returns it. Three numbers describe the size of a signal, where a video has frames, height and width:

        audio       samples, 1 and 1
        occupancy   frames, X and Y
        points      1, 1 and the number of points

    A subclass defines `source` and the methods below.
    """

    @abstractmethod
    def read(self, signal: Any) -> Tensor:
        """Checks a signal and returns it as a batch on the device.

        Raises:
            ValueError: it is not a signal of this kind.
        """

    @abstractmethod
    def size(self, signal: Tensor) -> tuple[int, int, int]:
        """The size of a signal, see above."""

    @abstractmethod
    def pad(self, signal: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Pads a signal at the end to a size that the encoder accepts."""

    @abstractmethod
    def finish(self, decoded: Tensor, size: tuple[int, int, int]) -> Tensor:
        """The result of `decode` from the output of the decoder: without padding, and in the form of the input."""

    @abstractmethod
    def signal_losses(self, signal: Tensor, tokens: Tokens) -> dict[str, Tensor]:
        """The losses of the decoded signal, by name, weighted."""

    @torch.no_grad()
    def encode(self, video: Any, times: Tensor | None = None) -> Tokens:
        """Encodes a signal; `meta["size"]` is its size before padding.

        Raises:
            ValueError: it is not a signal of this kind.
        """
        signal = self.read(video)
        size = self.size(signal)
        tokens = self._encode(self.pad(signal, self.encoder.padded(*size)))
        return tokens.replace(meta={**tokens.meta, "size": list(size), "tokenizer": self.spec}, aux={})

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Tensor:
        """Decodes tokens, of which codes are read, not features.

        Raises:
            ValueError: codes are missing or outside the codebook.
        """
        size = tokens.meta.get("size") or self.encoder.pixels(tokens.grid)
        return self.finish(self._decode(self._with_features(tokens)), (size[0], size[1], size[2]))

    def forward(self, frames: Tensor) -> Reconstruction:
        """Encodes and decodes a signal of an accepted size for training; all losses are in `losses`."""
        signal = self.read(frames)
        tokens = self._encode(signal)
        return Reconstruction(None, tokens, {**tokens.aux, **self.signal_losses(signal, tokens)})

    def _encode(self, frames: Tensor, times: Tensor | None = None) -> Tokens:
        return self._apply_methods(self._latents(frames))

    def _latents(self, signal: Tensor) -> Tensor:
        """The latents of a signal; classes, which are integers, are not converted to the dtype of the encoder."""
        return self.encoder.latents(signal.to(self.encoder.dtype) if signal.is_floating_point() else signal)

    def _apply_methods(self, latents: Tensor) -> Tokens:
        """The tokens of latents [B,C,T,H,W] after all methods."""
        tokens = Tokens.from_cells(latents.flatten(2).mT, Grid(*latents.shape[2:]))
        for method in self.methods:
            tokens = method(tokens)
        return tokens
