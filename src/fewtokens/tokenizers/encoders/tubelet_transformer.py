"""A transformer over tubelets: the encoder of ViT tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fewtokens.tokenizers.blocks.transformer import TubeletEmbedding, VideoTransformer, checked_stride, make_norm
from fewtokens.tokenizers.parts import VideoEncoder


class TubeletTransformer(VideoEncoder):
    """Embeds the pixels of each tubelet linearly, applies transformer blocks and a norm, and projects to `channels`.

    The encoder of ViViT (arXiv 2103.15691) and of the tokenizers after it: C-ViViT (2210.02399), OmniTokenizer
    (2406.09399), BSQ-ViT (2406.07548) and ViTok (2501.09755) differ in the kinds of attention. It is causal, and can
    encode chunks, if no layer is "full". The state of chunks then has the keys and values of all earlier frames in
    layers with attention in time, so it grows with the video; use windows for long ones.

    Args:
        width: channels of the transformer.
        stride: frames, rows and columns of a tubelet.
        channels: channels of a token. Default: None, `width` without a projection.
        layers: kind and number of blocks, in their order, see `fewtokens.tokenizers.blocks.transformer`: "full",
            "block_causal", "space", "window8" and "time".
        heads: attention heads; must divide `width`.
        positions: "rotary", "rotary4", or T, H and W of the grid of learned embeddings, which are resized to others.
        style: "vit" (LayerNorm, GELU), "llama" (RMSNorm, SwiGLU), or "bsq": as "vit", with a LayerNorm in front of the
            blocks too, and an embedding without bias, as in BSQ-ViT.
        first_frame: whether the first frame has cells without other frames, from a separate embedding.
    """

    def __init__(
        self,
        width: int = 384,
        *,
        stride: Sequence[int] = (1, 16, 16),
        channels: int | None = None,
        layers: Sequence[tuple[str, int]] = (("full", 12),),
        heads: int = 6,
        positions: str | Sequence[int] = "rotary",
        style: str = "vit",
        first_frame: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.channels, self.layers, self.heads = width, channels, layers, heads
        self.positions, self.style = positions, style
        self.stride, self.first_frame = checked_stride(stride, first_frame), first_frame
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        self.embed = TubeletEmbedding(width, self.stride, first_frame, bias=style != "bsq")
        self.transformer = VideoTransformer(width, layers, heads, positions=positions, style=style)
        self.norm = make_norm(width, style)
        self.project = nn.Identity() if channels is None else nn.Linear(width, channels)
        self.causal = self.transformer.causal

    @property
    def dim(self) -> int:
        return self.channels or self.width

    @property
    def streams(self) -> bool:
        return self.causal

    def latents(self, x: Tensor) -> Tensor:
        return self._finish(self.transformer(self.embed(x)))

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        if not self.causal:
            return super().step(x, state)
        encoded, state = self.transformer.step(self.embed(x, start=state is None), state)
        return self._finish(encoded), state

    def _finish(self, x: Tensor) -> Tensor:
        projected: Tensor = self.project(self.norm(x))
        return projected.movedim(-1, 1)
