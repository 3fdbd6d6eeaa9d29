"""I2-World: occupancy grids, coded by scale within a frame and then relative to earlier frames."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.quantizers.multi_scale_vq import MultiScaleVq
from fewtokens.methods.quantizers.vq import Vq
from fewtokens.tokenizers.blocks.ego import align
from fewtokens.tokenizers.encoders.occupancy import Occupancy
from fewtokens.tokenizers.preset import Preset
from fewtokens.tokenizers.signals import SignalTokenizer
from fewtokens.tokenizers.tokenizer import Reconstruction

# Earlier frames that the second stage reads, and the weight and exponent of the focal loss.
_HISTORY, _FOCAL, _GAMMA = 4, 10.0, 2.0


class I2World(SignalTokenizer):
    """Encodes occupancy: volumes of classes, int64 [B,T,X,Y,Z], with poses of the vehicle.

    The first stage codes each frame by scale. The second one codes what is left of a frame together with the latents of
    up to four earlier ones, aligned by pose; its code is the last of each token, -1 in the first frame, which has no
    history. The decoder needs no history.
    """

    source = "occupancy"

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        quantizer = self.quantizer
        if not isinstance(quantizer, MultiScaleVq):
            raise ValueError(f"I2-World requires the quantizer multi_scale_vq, got {self.pipeline.spec!r}")
        dim = self.encoder.dim
        self.fuse = nn.Conv2d(_HISTORY * dim, dim, 1)
        # The codebook follows moving means.
        self.between = Vq(quantizer.size, dim=dim, code_dim=dim, cosine=False, commitment=0.0)
        self.smooth = nn.Conv2d(dim, dim, 1)
        # At first, the second stage is vector quantization of the rest.
        nn.init.dirac_(self.smooth.weight)
        for values in (self.smooth.bias, self.fuse.weight, self.fuse.bias):
            assert values is not None
            nn.init.zeros_(values)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (*super().codebook_sizes, *self.between.codebook_sizes)

    def _planned_bits(self, grid: Grid, tokens: int) -> float:
        later = (grid.T - 1) * grid.cells_per_frame
        return super()._planned_bits(grid, tokens) + later * math.log2(self.between.size)

    def read(self, signal: Any) -> Tensor:
        encoder = self._encoder
        volumes = signal[None] if isinstance(signal, Tensor) and signal.ndim == 4 else signal
        if not isinstance(volumes, Tensor) or volumes.ndim != 5 or volumes.shape[-1] != encoder.levels:
            shape = list(volumes.shape) if isinstance(volumes, Tensor) else type(volumes).__name__
            raise ValueError(f"occupancy must be classes [B,T,X,Y,{encoder.levels}], got {shape}")
        if volumes.is_floating_point() or not 0 <= int(volumes.min()) <= int(volumes.max()) < encoder.classes:
            raise ValueError(f"classes of voxels must be whole numbers in 0..{encoder.classes - 1}")
        return volumes.to(self.device).long()

    def size(self, signal: Tensor) -> tuple[int, int, int]:
        return signal.shape[1], signal.shape[2], signal.shape[3]

    def pad(self, signal: Tensor, size: tuple[int, int, int]) -> Tensor:
        down, right = size[1] - signal.shape[2], size[2] - signal.shape[3]
        wide = F.pad(signal.float().movedim(-1, 2).flatten(0, 1), (0, right, 0, down), mode="replicate")
        return wide.unflatten(0, signal.shape[:2]).movedim(2, -1).long()

    def finish(self, decoded: Tensor, size: tuple[int, int, int]) -> Tensor:
        """The most probable classes, int64 [B,T,X,Y,Z]."""
        return decoded[:, : size[0], : size[1], : size[2]].argmax(-1)

    @torch.no_grad()
    def encode(self, video: Any, times: Tensor | None = None, *, poses: Tensor | None = None) -> Tokens:
        """Encodes volumes.

        Args:
            video: classes, int64 [B,T,X,Y,Z] or [T,X,Y,Z].
            times: not used.
            poses: [B,T,3] of the vehicle: x and y in voxels and the angle from x to y in radians, of which only
                differences matter. Default: it does not move.

        Raises:
            ValueError: other volumes or poses.
        """
        self._poses = poses
        try:
            return super().encode(video, times)
        finally:
            self._poses = None

    def forward(self, frames: Tensor, poses: Tensor | None = None) -> Reconstruction:
        """Encodes and decodes volumes for training; see `encode`."""
        self._poses = poses
        try:
            return super().forward(frames)
        finally:
            self._poses = None

    _poses: Tensor | None = None

    @property
    def _encoder(self) -> Occupancy:
        assert isinstance(self.encoder, Occupancy)
        return self.encoder

    def history(self, latents: Tensor, poses: Tensor | None = None) -> Tensor:
        """The latents of the four frames before each frame, aligned with it, [B,T,4*C,H,W]; 0 before the first.

        Args:
            latents: [B,C,T,H,W].
            poses: see `encode`.

        Raises:
            ValueError: poses of another shape.
        """
        B, _, T = latents.shape[:3]
        poses = torch.zeros(B, T, 3) if poses is None else poses
        if poses.shape != (B, T, 3):
            raise ValueError(f"poses must be [{B},{T},3], got {list(poses.shape)}")
        # In float32, in which places are exact.
        poses = poses.to(latents.device, torch.float32)
        cells = poses / poses.new_tensor([*self.encoder.stride[1:], 1])
        frames = latents.float().transpose(1, 2)
        parts = []
        for back in range(1, _HISTORY + 1):
            before = T - min(back, T)
            aligned = align(
                frames[:, :before].flatten(0, 1), cells[:, :before].flatten(0, 1), cells[:, T - before :].flatten(0, 1)
            )
            parts.append(F.pad(aligned.unflatten(0, (B, before)), (0, 0) * 3 + (T - before, 0)))
        return torch.cat(parts, 2).to(latents.dtype)

    def _encode(self, frames: Tensor, times: Tensor | None = None) -> Tokens:
        self.encoder.grid(*self.size(frames))
        latents = self._latents(frames)
        tokens = self._apply_methods(latents)
        assert tokens.codes is not None
        z = latents.flatten(2).mT
        fused = self.fuse(self.history(latents, self._poses).flatten(0, 1)).unflatten(0, (len(frames), -1))
        with_history = tokens.frame > 0
        rest = z - tokens.features + fused.movedim(2, -1).flatten(1, 3)
        if tokens.grid.T == 1:
            codes = torch.full_like(tokens.codes[..., :1], -1)
            return tokens.replace(codes=torch.cat([tokens.codes, codes], -1))
        quantized = self.between.quantize(rest, with_history)
        codes = quantized.codes.masked_fill(~with_history[..., None], -1)
        detail = self._detail(quantized.features, codes, tokens.grid)
        codes = torch.cat([tokens.codes, codes], -1)
        aux = tokens.aux
        if self.training:
            left = (z - tokens.features).detach() - detail
            aux = {**aux, "between": left[with_history].square().mean()}
        return tokens.replace(features=tokens.features + detail, codes=codes, aux=aux)

    def _detail(self, features: Tensor, codes: Tensor, grid: Grid) -> Tensor:
        """What the second stage adds to tokens [B,N,C]: convolved entries; 0 without a code."""
        images = features.to(self.encoder.dtype).unflatten(1, (-1, grid.H, grid.W)).flatten(0, 1).movedim(-1, 1)
        detail: Tensor = self.smooth(images).movedim(1, -1).reshape(features.shape)
        return detail.masked_fill(codes < 0, 0)

    def _with_features(self, tokens: Tokens) -> Tokens:
        codes = tokens.codes
        if codes is None or codes.shape[-1] != len(self.codebook_sizes):
            raise ValueError(f"I2-World has {len(self.codebook_sizes)} codes per token")
        first = super()._with_features(tokens.replace(codes=codes[..., :-1]))
        last = codes[..., -1:].to(self.device)
        if bool((last >= self.between.size).any()):
            raise ValueError(f"codes must be below {self.codebook_sizes}, the sizes of the codebooks")
        detail = self._detail(self.between.lookup(last.clamp(min=0)), last, tokens.grid)
        return first.replace(features=first.features + detail, codes=codes.to(self.device))

    def signal_losses(self, signal: Tensor, tokens: Tokens) -> dict[str, Tensor]:
        logs = self._decode(tokens).log_softmax(-1).take_along_dim(signal[..., None], -1)[..., 0]
        return {"focal": _FOCAL * ((1 - logs.exp()) ** _GAMMA * -logs).mean()}


PRESET = Preset(
    spec="occupancy | multi_scale_vq((12, 25, 50), size=512, code_dim=128, convolutions=3) > occupancy",
    clip=(5, 200, 200),
    tiny=(
        "occupancy(4, levels=4, embed=4, width=32, blocks=1) "
        "| multi_scale_vq((2, 4, 8), size=64, code_dim=32, convolutions=3) "
        "> occupancy(classes=4, levels=4, embed=4, blocks=1)"
    ),
    tiny_clip=(3, 32, 32),
    kind=I2World,
    recipe={"lr": 5e-4},
    paper="I2-World: Intra-Inter Tokenization for Efficient Dynamic 4D Scene Forecasting, arXiv 2507.09144",
    license="no license file",
    figures={"reconstruction": "mIoU 81.1, IoU 68.1", "forecasting": "mIoU 38.4, IoU 49.2"},
    differs=(
        "All codes are returned, of every scale and of the stage between frames, so that tokens can be stored and "
        "decoded; the published code returns those of the last scale only. Entries are smoothed by 3x3 convolutions in "
        "the first stage. The codebook between frames follows moving means; the second stage has the loss of what it "
        "leaves of a latent, while the published losses do not mention it. A token of the first frame has no code of "
        "that stage. The convolutions are residual blocks at three resolutions; their number is ours."
    ),
)
