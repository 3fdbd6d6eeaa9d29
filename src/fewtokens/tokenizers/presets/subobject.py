"""Subobject tokenization: one vector per segment of an image, with the label map as side information."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.inputs import to_frames
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.blocks.segments import assign, superpixels
from fewtokens.tokenizers.decoders.segments import Segments as SegmentsDecoder
from fewtokens.tokenizers.encoders.segments import Segments
from fewtokens.tokenizers.parts import to_signed
from fewtokens.tokenizers.preset import Preset
from fewtokens.tokenizers.tokenizer import Layout, Tokenizer


class Subobject(Tokenizer):
    """A tokenizer of segments: one token per label and frame, in the order of frames and labels.

        tokens = tokenizer.encode(image, labels=labels)  # such as those of SAM
        tokens = tokenizer.encode(image)                 # labels by `segmenter`

    The label map is stored as the assignment of pixels to tokens, which gives boxes and shapes; `bits` counts it by
    formula, log2(tokens + 1) bits per pixel.

    Attributes:
        segmenter: from frames [B,T,3,H,W] in 0..1 to labels, integers [B,T,H,W]; `superpixels` by default.
    """

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        if not isinstance(self.encoder, Segments) or not isinstance(self.decoder, SegmentsDecoder):
            raise ValueError(f"the encoder and decoder must be segments, got {self.spec!r}")
        side = self.encoder.side
        self.segmenter: Callable[[Tensor], Tensor] = lambda frames: superpixels(frames, side)

    @property
    def stores_assignment(self) -> bool:
        return True

    def layout(self, frames: int, height: int, width: int) -> Layout:
        return replace(super().layout(frames, height, width), tokens=None, bits=None)

    @torch.no_grad()
    def encode(self, video: Any, times: Tensor | None = None, labels: Tensor | None = None) -> Tokens:
        """Encodes images or videos; see `Tokenizer.encode`.

        Args:
            video: the frames.
            times: seconds of each frame.
            labels: integers [B,T,H,W], the segment of each pixel; any values. [T,H,W] or [H,W] for one video or image.
                Default: those of `segmenter`.

        Raises:
            ValueError: the labels do not fit the frames.
        """
        if labels is None:
            return super().encode(video, times)
        frames, times = to_frames(video, times)
        tokens = self._encode(frames, times, labels[(None,) * max(0, 4 - labels.ndim)])
        size = [frames.shape[1], *frames.shape[3:]]
        return tokens.replace(meta={**tokens.meta, "size": size, "tokenizer": self.spec}, aux={})

    def _encode(self, frames: Tensor, times: Tensor | None = None, labels: Tensor | None = None) -> Tokens:
        x = to_signed(frames.to(self.device))
        labels = self.segmenter((x + 1) / 2) if labels is None else labels
        shape = [*frames.shape[:2], *frames.shape[3:]]
        if list(labels.shape) != shape or labels.is_floating_point() or labels.is_complex():
            raise ValueError(f"labels must be integers {shape}, got {labels.dtype} {list(labels.shape)}")
        encoder = self.encoder
        assert isinstance(encoder, Segments)
        grid = encoder.grid(shape[1], shape[2], shape[3], times)
        assignment, count = assign(labels.to(self.device))
        N = int(count.max())
        cells = Tokens.from_cells(x.new_zeros(len(x), grid.cells, 1), grid)
        tokens = cells.apply(Plan(count, N, assignment))
        vectors = encoder.vectors(x.to(encoder.dtype).transpose(1, 2), assignment, N)
        tokens = tokens.replace(features=vectors.masked_fill(~tokens.mask[..., None], 0))
        for method in self.methods:
            tokens = method(tokens)
        return tokens


PRESET = Preset(
    spec="segments > segments",
    clip=(1, 224, 224),
    tiny="segments(32, width=32, depth=2, heads=4, side=8) > segments(width=32, depth=2)",
    tiny_clip=(1, 32, 32),
    kind=Subobject,
    paper="Subobject-level Image Tokenization, arXiv 2402.14327",
    license="non-commercial; only the segmenter is published",
    differs=(
        "Sizes of the network are not published and are ours. Pixels of a segment are related through its summary, at "
        "linear cost, instead of by full attention; the decoder computes all pixels of a segment at once from their "
        "coordinates instead of one after another. The shape is not decoded from the vector: the label map is side "
        "information and is counted. Labels are given, such as those of SAM, or superpixels by local k-means; the "
        "paper's segmenters need weights."
    ),
)
