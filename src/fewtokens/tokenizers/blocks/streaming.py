"""Encoders and decoders of cells that process a video in chunks if they are causal."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.blocks.causal_conv import Cache
from fewtokens.tokenizers.parts import GridDecoder, VideoEncoder


class StreamingEncoder(VideoEncoder):
    """The base class of encoders whose layers take a cache, see `Cache`; a subclass defines `encode`."""

    @abstractmethod
    def encode(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """Encodes frames [B,3,T,H,W] in -1..1 to [B,C,T',H',W']: a whole video, or the next chunk."""

    def latents(self, x: Tensor) -> Tensor:
        return self.encode(x)

    def step(self, x: Tensor, state: Cache | None = None) -> tuple[Tensor, Cache]:
        if not self.streams:
            super().step(x, state)
        cache = dict(state or {})
        return self.encode(x, cache), cache

    @property
    def streams(self) -> bool:
        return self.causal


class StreamingDecoder(GridDecoder):
    """The base class of decoders whose layers take a cache, see `Cache`; a subclass defines `decode`."""

    @abstractmethod
    def decode(self, latents: Tensor, cache: Cache | None = None) -> Tensor:
        """Decodes cells [B,C,T',H',W'] to frames [B,3,T,H,W], about -1..1: a whole video, or the next chunk."""

    def pixels_of(self, latents: Tensor) -> Tensor:
        return self.decode(latents)

    def step(self, tokens: Tokens, state: Cache | None = None) -> tuple[Tensor, Cache]:
        if not self.streams:
            super().step(tokens, state)
        cache = dict(state or {})
        return self.decode(tokens.unmerge().movedim(-1, 1), cache).transpose(1, 2), cache

    @property
    def streams(self) -> bool:
        return self.causal
