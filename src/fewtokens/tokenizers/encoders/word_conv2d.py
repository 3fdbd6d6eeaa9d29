"""A convolutional encoder of frames that also names a few words for the whole video."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.methods.quantizers.frozen_vq import load_vocabulary
from fewtokens.tokenizers.blocks.causal_conv import check_counts
from fewtokens.tokenizers.encoders.conv2d import Conv2d
from fewtokens.tokenizers.encoders.frozen import Frozen
from fewtokens.tokenizers.parts import VideoEncoder


class WordConv2d(VideoEncoder):
    """The encoder of V2L (arXiv 2403.07874): `conv2d` for the cells, and the words nearest to a frozen image encoder.

    Words are compared with the mean of the patch features of all frames, by cosine.

    Args:
        channels: of a token.
        width, mult, depth: of the convolutions, see `conv2d`.
        words: number of global words of a video.
        teacher: the image encoder, see the encoder `frozen`.
        table: path of a file of `save_vocabulary` with the features of the words of the quantizer in the space of the
            image encoder, in the same order, as the text encoder of CLIP gives; None for random features.
        size: number of words of a random table.
    """

    causal = True

    def __init__(
        self,
        channels: int = 768,
        *,
        width: int = 128,
        mult: Sequence[int] = (1, 2, 2, 4),
        depth: int = 2,
        words: int = 21,
        teacher: str = "random",
        table: str | None = None,
        size: int = 1024,
    ) -> None:
        super().__init__()
        check_counts(words=words, size=size)
        self.channels, self.width, self.mult, self.depth = channels, width, tuple(mult), depth
        self.words, self.teacher, self.table = words, teacher, table
        self.trunk = Conv2d(channels, width=width, mult=mult, depth=depth)
        self.stride = self.trunk.stride
        self.image = Frozen(teacher, stride=self.stride)
        if table is None:
            features = torch.randn(size, self.image.dim, generator=torch.Generator().manual_seed(0), device="cpu")
        else:
            features, _ = load_vocabulary(table)
        self.size = size if table is None else len(features)
        if words > self.size:
            raise ValueError(f"words must be at most {self.size}, those of the table, got {words}")
        if features.shape[1] != self.image.dim:
            raise ValueError(f"{table}: has {features.shape[1]} channels, but those of {teacher} are {self.image.dim}")
        self.features: Tensor
        # Not in the checkpoint: it follows from `table`.
        self.register_buffer("features", features, persistent=False)

    @property
    def dim(self) -> int:
        return self.channels

    def latents(self, x: Tensor) -> Tensor:
        return self.trunk.latents(x)

    def step(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        return self.latents(x), None

    @torch.no_grad()
    def global_words(self, x: Tensor) -> Tensor:
        """Returns the nearest words of videos [B,3,T,H,W] in -1..1, the nearest first, int64 [B,words]."""
        image = F.normalize(self.image.latents(x).mean((2, 3, 4)).float(), dim=-1)
        similarity = image @ F.normalize(self.features.float(), dim=-1).mT
        return similarity.topk(self.words, -1).indices
