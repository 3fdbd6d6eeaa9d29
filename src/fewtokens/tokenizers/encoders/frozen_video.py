"""A frozen image encoder on some frames of a clip, mixed in time and pooled to few cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.tokenizers.blocks.modulation import heads_of
from fewtokens.tokenizers.blocks.pooling import resize
from fewtokens.tokenizers.blocks.transformer import VideoTransformer, checked_stride
from fewtokens.tokenizers.encoders.frozen import Frozen
from fewtokens.tokenizers.parts import VideoEncoder


class FrozenVideo(VideoEncoder):
    """Encodes the middle frame of each cell by a frozen image encoder, and mixes the features by trained layers.

    The encoder of Divot (arXiv 2412.04432) up to its resampler: a transformer over the frames at each place adds to the
    features, which are then averaged over regions, normalized, and mixed by a transformer over all cells. At the start,
    the first transformer adds 0.

    Differs: in the first transformer, frames attend to earlier ones only; positions are rotary.

    Args:
        network: the image encoder, see the encoder `frozen`.
        stride: frames, rows and columns of a cell.
        patches: patches of the image encoder along a side of a cell, to which frames are resized. Divot pools 16 x 16
            patches to 5 x 5 cells.
        width, depth: channels and blocks of the transformer over frames.
        hidden, layers: channels and blocks of the transformer over cells; a token has `hidden` channels.
    """

    def __init__(
        self,
        network: str = "random",
        *,
        stride: Sequence[int] = (3, 48, 48),
        patches: float = 3.2,
        width: int = 768,
        depth: int = 6,
        hidden: int = 1024,
        layers: int = 4,
    ) -> None:
        super().__init__()
        if patches <= 0:
            raise ValueError(f"patches must be above 0, got {patches}")
        self.network, self.patches = network, patches
        self.stride = checked_stride(stride, False)
        self.width, self.depth, self.hidden, self.layers = width, depth, hidden, layers
        self.images = Frozen(network)
        dim = self.images.dim
        self.narrow, self.widen = nn.Linear(dim, width), nn.Linear(width, dim)
        self.over_frames = VideoTransformer(width, (("time", depth),), heads_of(width))
        self.norm, self.project = nn.LayerNorm(dim), nn.Linear(dim, hidden)
        self.over_cells = VideoTransformer(hidden, (("full", layers),), heads_of(hidden))
        nn.init.zeros_(self.widen.weight)
        nn.init.zeros_(self.widen.bias)

    @property
    def dim(self) -> int:
        return self.hidden

    def latents(self, x: Tensor) -> Tensor:
        T, H, W = self.cells(*x.shape[2:])
        frames = x[:, :, self.stride[0] // 2 :: self.stride[0]]
        size = [max(1, round(side * self.patches)) * self.images.patch for side in (H, W)]
        images = resize(frames.transpose(1, 2).flatten(0, 1), size)
        features = self.images.latents(images.unflatten(0, (len(x), T)).transpose(1, 2)).movedim(1, -1)
        features = features + self.widen(self.over_frames(self.narrow(features)))
        cells = F.adaptive_avg_pool2d(features.flatten(0, 1).movedim(-1, 1), (H, W)).movedim(1, -1)
        mixed: Tensor = self.over_cells(self.project(self.norm(cells)).unflatten(0, (len(x), T)))
        return mixed.movedim(-1, 1)
