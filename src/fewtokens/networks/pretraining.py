"""Networks that learn an image encoder from videos without labels: ToBo and its relatives on the same parts.

    mae       Masked autoencoder (arXiv 2111.06377): one frame, its hidden patches from the visible ones
    siam_mae  SiamMAE (arXiv 2305.14344): a later frame from a few of its patches and all of an earlier one
    crop_mae  CropMAE (arXiv 2403.17823): the same network on two crops of one frame
    tobo      Token Bottleneck: a later frame from a few of its patches and *one token* of an earlier one
    rsp       RSP (arXiv 2406.07398), in `fewtokens.networks.rsp`

Each is an `encoder` (a ViT with fixed positions, which is what remains) and a `decoder`. A saved folder is an encoder
for `fewtokens.load_encoder`; its class token, the bottleneck, comes first in `Tokens.prefix`.

SiamMAE's own code was never released. The block of its decoder is here the pre-norm one of all the others, as in Token
Bottleneck's auxiliary path; the re-implementation that came with CropMAE takes a post-norm one with the MLP (always of
2048 hidden channels) in the middle and dropout of 0.1, and gives the source no positions in the decoder. So encoders of
CropMAE's checkpoints fit, their decoders do not.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewtokens.core.shapes import by_shape
from fewtokens.encoders.config import ViTConfig
from fewtokens.encoders.frames import IMAGENET_MEAN, IMAGENET_STD, normalize, to_unit
from fewtokens.encoders.vit import ViT
from fewtokens.networks.base import Model
from fewtokens.networks.masking import (
    DISTANCES,
    Mask,
    encode,
    fix_positions,
    initialize,
    pixel_loss,
    pixel_targets,
    random_mask,
)
from fewtokens.networks.pair_decoder import PairDecoder

BOTTLENECK_POSITIONS = ("zero", "learned")


@dataclass(frozen=True)
class PretrainingConfig(ViTConfig):
    """The encoder's config, and what all objectives add.

    Attributes:
        image_size: height and width of the frames, in pixels, multiples of the patch.
        mask_ratio: share of the target's patches that is hidden, in (0, 1).
        decoder_dim, decoder_depth, decoder_num_heads: of the decoder, which is thrown away afterwards.
        distance: "mse" of normalized pixels (the published codes; the default), or "cosine" (what the paper of Token
            Bottleneck names).
    """

    mask_ratio: float = 0.75
    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_num_heads: int = 16
    distance: str = "mse"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("decoder_dim", "decoder_depth", "decoder_num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if any(side % self.patch_size for side in self.image_size):
            raise ValueError(f"frames of {self.image_size} pixels are not whole patches of {self.patch_size}")
        if not self.class_token:
            raise ValueError("pre-training needs the class token")
        if not 0 < self.mask_ratio < 1 or self.patches < 2:
            raise ValueError(
                f"mask_ratio must be in (0, 1), of two patches at least; got {self.mask_ratio} of {self.patches}"
            )
        if self.distance not in DISTANCES:
            raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got {self.distance!r}")
        for name, dim, heads in (
            ("dim", self.dim, self.num_heads), ("decoder_dim", self.decoder_dim, self.decoder_num_heads)
        ):  # fmt: skip
            if dim % heads or dim % 4:
                raise ValueError(f"{name} {dim} must be a multiple of 4 and of its {heads} heads")

    @property
    def blocks(self) -> int:
        """Blocks of encoder and decoder."""
        return self.depth + self.decoder_depth

    @property
    def patches(self) -> int:
        """Patches of a frame."""
        return math.prod(self.grid)


@dataclass(frozen=True)
class SiamMaeConfig(PretrainingConfig):
    """SiamMAE hides 95 %."""

    mask_ratio: float = 0.95


@dataclass(frozen=True)
class CropMaeConfig(PretrainingConfig):
    """CropMAE hides 98.5 %: two patches of 196 are seen."""

    mask_ratio: float = 0.985


@dataclass(frozen=True)
class ToBoConfig(PretrainingConfig):
    """Token Bottleneck's.

    Attributes:
        auxiliary_weight: of the SiamMAE path beside the bottleneck's (1 in the code, one sentence in the paper's
            appendix); 0 leaves it and all cross-attention out.
        bottleneck_tokens: through which the source goes: the class token, and learned registers beside it.
        bottleneck_position: "zero" (the code: it stands in the place of the class token, which has none) or
            "learned".
    """

    mask_ratio: float = 0.9
    auxiliary_weight: float = 1.0
    bottleneck_tokens: int = 1
    bottleneck_position: str = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.auxiliary_weight < 0 or self.bottleneck_tokens < 1:
            raise ValueError(
                "auxiliary_weight must be at least 0 and bottleneck_tokens at least 1, "
                f"got {self.auxiliary_weight} and {self.bottleneck_tokens}"
            )
        if self.bottleneck_position not in BOTTLENECK_POSITIONS:
            known = ", ".join(BOTTLENECK_POSITIONS)
            raise ValueError(f"bottleneck_position must be one of {known}, got {self.bottleneck_position!r}")
        if self.num_registers not in (0, self.bottleneck_tokens - 1):
            raise ValueError("num_registers follows from bottleneck_tokens: the class token is the first of them")
        object.__setattr__(self, "num_registers", self.bottleneck_tokens - 1)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says of the target frame.

    Attributes:
        paths: by name, normalized pixels [B,N,patch*patch*3] and the patches that count (bool [B,N], None = all).
        mask: of the target.
        extra: losses beside those of the paths, by name.
        weights: in the sum of all losses; 1 where not said.
    """

    paths: Mapping[str, tuple[Tensor, Tensor | None]]
    mask: Mask
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)

    __repr__ = by_shape


class Pretraining(Model, ABC):
    """An encoder, a decoder, and a loss.

    Args:
        config: of the network.
    """

    config_type: ClassVar[Any] = PretrainingConfig
    frames: ClassVar[int] = 2  # of a sample: source and target, or one
    cross: ClassVar[bool] = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.checkpointing = False
        self.encoder = ViT(config.encoder(), proportional="none")
        self.decoder = PairDecoder(
            config.dim,
            grid=config.grid[1:],
            patch_size=config.patch_size,
            dim=config.decoder_dim,
            depth=config.decoder_depth,
            num_heads=config.decoder_num_heads,
            cross=self.cross and getattr(config, "auxiliary_weight", 1) > 0,
        )
        self._parts()
        with torch.no_grad():
            initialize(self)
            fix_positions(self.encoder)

    def _parts(self) -> None:
        """What a network has beside encoder and decoder."""

    @abstractmethod
    def predict(self, source: Tensor, target: Tensor, noise: Tensor) -> Prediction:
        """From normalized frames [B,3,H,W] and the noise [B,N] that hides patches."""

    def split(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized source and target [B,3,H,W] out of frames [B,F,3,H,W]; the same where F is 1.

        Raises:
            ValueError: another number of frames, or another size than the network's.
        """
        if frames.ndim != 5 or frames.shape[1] != self.frames or tuple(frames.shape[3:]) != self.config.image_size:
            height, width = self.config.image_size
            raise ValueError(
                f"a {self.kind} of this size takes [B,{self.frames},3,{height},{width}], got {list(frames.shape)}"
            )
        x = normalize(to_unit(frames), IMAGENET_MEAN, IMAGENET_STD)
        return x[:, 0], x[:, -1]

    def forward(self, frames: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """The losses.

        Args:
            frames: [B,F,3,H,W], uint8 or float in 0..1: source, then target.
            noise: [B,N], float; the patches of the target with the least noise are seen.

        Returns:
            "loss", and what it is the weighted sum of by name; scalars, float32.

        Raises:
            ValueError: frames of another shape.
        """
        source, target = self.split(frames)
        said = self.predict(source, target, noise)
        wanted = pixel_targets(target, self.config.patch_size)
        losses = {
            name: pixel_loss(predicted, wanted, counts, self.config.distance)
            for name, (predicted, counts) in said.paths.items()
        } | dict(said.extra)
        whole = torch.stack([said.weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()
        return {"loss": whole, **losses}

    def _encode(self, frames: Tensor, visible: Tensor | None = None) -> Tensor:
        return encode(self.encoder, frames, visible, recompute=self.checkpointing and self.training)

    def _decode(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        return self.decoder(x, memory, recompute=self.checkpointing and self.training)


class Mae(Pretraining):
    """One frame: hidden patches from visible ones, by self-attention alone."""

    kind, frames, cross = "mae", 1, False

    def predict(self, source: Tensor, target: Tensor, noise: Tensor) -> Prediction:
        mask = random_mask(noise, self.config.mask_ratio)
        slots = self.decoder.slots(self._encode(target, mask.visible), mask)
        return Prediction({"mae": (self._decode(slots), mask.hidden)}, mask)


class SiamMae(Pretraining):
    """The target's hidden patches look at all of the source."""

    kind = "siam_mae"
    config_type: ClassVar[Any] = SiamMaeConfig

    def predict(self, source: Tensor, target: Tensor, noise: Tensor) -> Prediction:
        mask = random_mask(noise, self.config.mask_ratio)
        slots = self.decoder.slots(self._encode(target, mask.visible), mask)
        predicted = self._decode(slots, self.decoder.memory(self._encode(source)))
        return Prediction({"siam": (predicted, mask.hidden)}, mask)


class CropMae(SiamMae):
    """SiamMAE's network; its source is a crop of one frame and its target a crop of that."""

    kind = "crop_mae"
    config_type: ClassVar[Any] = CropMaeConfig


class ToBo(Pretraining):
    """Token Bottleneck: squeeze the source into one token, expand the target from it and a few hints.

    Two paths through the same decoder blocks. "tobo": the source's class token in the place of the target's, then the
    target's patches; self-attention and MLP alone, so that the source's patches are never seen. "siam": the SiamMAE
    path, which looks at all of the source by cross-attention. Both are one batch for all but the cross-attention.
    """

    kind = "tobo"
    config_type: ClassVar[Any] = ToBoConfig

    def _parts(self) -> None:
        if self.config.bottleneck_position == "learned":
            tokens, dim = self.config.bottleneck_tokens, self.config.decoder_dim
            self.bottleneck_positions = nn.Parameter(torch.zeros(1, tokens, dim))

    def predict(self, source: Tensor, target: Tensor, noise: Tensor) -> Prediction:
        mask = random_mask(noise, self.config.mask_ratio)
        return self.expand(self._encode(source), self._encode(target, mask.visible), mask)

    def expand(self, source: Tensor, hints: Tensor, mask: Mask) -> Prediction:
        """From the encoded source [B,P+N,C] and the encoded hints [B,P+K,C]."""
        tokens, weight = self.config.bottleneck_tokens, self.config.auxiliary_weight
        slots = self.decoder.slots(hints, mask)
        memory = self.decoder.memory(source)
        bottleneck = memory[:, :tokens]
        if self.config.bottleneck_position == "learned":
            bottleneck = bottleneck + self.bottleneck_positions
        squeezed = torch.cat([bottleneck, slots[:, tokens:]], 1)
        if not weight:
            return Prediction({"tobo": (self._decode(squeezed), mask.hidden)}, mask)
        tobo, siam = self._decode(torch.cat([squeezed, slots]), memory).chunk(2)
        return Prediction({"tobo": (tobo, mask.hidden), "siam": (siam, mask.hidden)}, mask, weights={"siam": weight})
