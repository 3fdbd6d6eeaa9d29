"""A trained tokenizer as an encoder: the tokens that its decoder reads, for methods, probes and language models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.batch import collate, concatenate
from fewtokens.core.encoder import Encoder
from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.weights import fingerprint
from fewtokens.tokenizers.load import load_tokenizer
from fewtokens.tokenizers.tokenizer import Tokenizer, pad


class TokenizerEncoder(Encoder):
    """Encodes videos with a tokenizer: features after its quantizer, with codes.

    Videos of any size are padded at the end, at the bottom and on the right. One that is longer than the window of the
    tokenizer is encoded window by window. `decode` is available if the decoder reads a grid of cells.

    Args:
        tokenizer: the tokenizer, on its device, in its dtype.
        name: id in saved files.
        batch: frames in one forward pass, but at least one video.
        fingerprint: SHA-256 of the weight files, or None.
    """

    cues = ()

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        name: str = "tokenizer (unnamed)",
        batch: int = 32,
        fingerprint: str | None = None,
    ) -> None:
        super().__init__()
        self.id, self.tokenizer, self.batch, self.fingerprint = name, tokenizer, batch, fingerprint
        if tokenizer.decoder.full_grid:
            self.decode = self._decode
        self.train(tokenizer.training)

    def save_pretrained(self, folder: str | Path) -> Path:
        return self.tokenizer.save_pretrained(folder)

    @property
    def dim(self) -> int:
        return self.tokenizer.decoder.dim

    def grid(self, frames: int, height: int, width: int, times: Tensor | None = None) -> Grid:
        encoder = self.tokenizer.encoder
        length, *size = encoder.padded(self._window(frames), height, width)
        rows, H, W = encoder.cells(length, *size)
        windows = -(-frames // length)
        if times is not None:
            times = torch.as_tensor(times, dtype=torch.float64)
            if times.shape[-1] != frames:
                raise ValueError(f"times must have one value per frame ({frames}), got {times.shape[-1]}")
            index = torch.arange(windows)[:, None] * length + encoder.first_frames(rows)
            times = times[..., index.flatten().clamp(max=frames - 1)]
        return Grid(windows * rows, H, W, times)

    def _window(self, frames: int) -> int:
        window = self.tokenizer.window
        return frames if window is None else min(frames, window)

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
            raise ValueError(f"{self.id} is a tokenizer: methods can act only after it, and it provides no cues")
        B, T, _, height, width = frames.shape
        window = self._window(T)
        size = self.tokenizer.encoder.padded(window, height, width)
        windows = pad(frames.to(self.device), (-(-T // window) * window, height, width)).unflatten(1, (-1, window))
        parts = []
        for number in range(windows.shape[1]):
            videos = []
            for group in windows[:, number].split(max(1, self.batch // window)):
                tokens = self.tokenizer._encode(pad(group, size))
                videos.append(tokens.replace(aux={}, meta={}))
                if self.progress is not None:
                    done = sum(part.B for part in videos)
                    self.progress(min(B * T, (number * B + done) * window), B * T)
            parts.append(collate(videos))
        tokens = parts[0] if len(parts) == 1 else concatenate(parts)
        return tokens.replace(grid=self.grid(T, height, width, times)), {}

    def _decode(self, features: Tensor | Tokens, size: tuple[int, int] | None = None) -> Tensor:
        """Decodes features [B,T,H,W,C] of all cells, or `Tokens`, to frames [B,T',3,height,width] in 0..1.

        Args:
            features: the features. Of several windows, each is decoded separately.
            size: height and width to crop to. Default: the padded size.
        """
        cells = features.unmerge() if isinstance(features, Tokens) else features
        rows = cells.shape[1]
        if self.tokenizer.window is not None:
            encoder = self.tokenizer.encoder
            rows = min(rows, encoder.cells(self.tokenizer.window, *encoder.stride[1:])[0])
        decoded = [
            self.tokenizer.decoder(Tokens.from_cells(part.to(self.device, self.dtype))) for part in cells.split(rows, 1)
        ]
        frames: Tensor = ((torch.cat(decoded, 1).float() + 1) / 2).clamp(0, 1)
        return frames if size is None else frames[..., : size[0], : size[1]]


def load_tokenizer_encoder(
    folder: Path, *, name: str, batch: int, device: torch.device, dtype: torch.dtype
) -> TokenizerEncoder:
    """Loads a folder of a tokenizer as an encoder."""
    tokenizer: Any = load_tokenizer(folder, device=device).to(dtype)
    return TokenizerEncoder(tokenizer, name=name, batch=batch, fingerprint=fingerprint(folder))
