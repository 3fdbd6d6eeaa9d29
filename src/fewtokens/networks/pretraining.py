"""Networks for self-supervised pre-training of image encoders on videos: Token Bottleneck and related methods.

    mae       masked autoencoder (arXiv 2111.06377): predicts masked patches of a frame from visible ones
    siam_mae  SiamMAE (arXiv 2305.14344): predicts a later frame from a few of its patches and all of an earlier frame
    crop_mae  CropMAE (arXiv 2403.17823): the same network on two crops of one frame
    tobo      Token Bottleneck: predicts a later frame from a few of its patches and *one token* of an earlier frame
    rsp       RSP (arXiv 2406.07398), in `fewtokens.networks.rsp`

Each has an `encoder` (a ViT with fixed positions, kept after pre-training) and a `decoder`. `fewtokens.load_encoder`
loads a saved folder as an encoder; its class token, the bottleneck, is first in `Tokens.prefix`.

The code of SiamMAE was never released. Its decoder block here is the same pre-norm block as in the other networks, as
in the auxiliary path of Token Bottleneck. The reimplementation in CropMAE uses a post-norm block with the MLP (always
2048 hidden channels) in the middle, dropout of 0.1, and no positions for the source in the decoder. Encoders of CropMAE
checkpoints can therefore be loaded, decoders cannot.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewtokens.core.shapes import shape_repr
from fewtokens.encoders.config import ViTConfig
from fewtokens.encoders.frames import IMAGENET_MEAN, IMAGENET_STD, normalize, to_unit
from fewtokens.encoders.vit import ViT
from fewtokens.networks.base import Model
from fewtokens.networks.masking import (
    DISTANCES,
    Mask,
    encode,
    initialize,
    pixel_loss,
    pixel_targets,
    random_mask,
    set_sincos_positions,
)
from fewtokens.networks.pair_decoder import PairDecoder

BOTTLENECK_POSITIONS = ("zero", "learned")


@dataclass(frozen=True)
class PretrainingConfig(ViTConfig):
    """Config of the encoder and the settings shared by all objectives.

    Attributes:
        image_size: height and width of the frames in pixels, multiples of the patch size.
        mask_ratio: fraction of the patches of the target to mask, in (0, 1).
        decoder_dim, decoder_depth, decoder_num_heads: of the decoder, which is discarded after pre-training.
        distance: "mse" of normalized pixels (as in the published code) or "cosine" (as in the paper of Token
            Bottleneck). Default: "mse".
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
            raise ValueError(f"image_size must be multiples of patch_size {self.patch_size}, got {self.image_size}")
        if not self.class_token:
            raise ValueError("pre-training requires class_token=True")
        if not 0 < self.mask_ratio < 1 or self.patches < 2:
            raise ValueError(
                f"mask_ratio must be in (0, 1) with at least two patches, got {self.mask_ratio} of {self.patches}"
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
        """Number of blocks of encoder and decoder."""
        return self.depth + self.decoder_depth

    @property
    def patches(self) -> int:
        """Number of patches of a frame."""
        return math.prod(self.grid)


@dataclass(frozen=True)
class SiamMaeConfig(PretrainingConfig):
    """Config of SiamMAE, which masks 95% of the patches."""

    mask_ratio: float = 0.95


@dataclass(frozen=True)
class CropMaeConfig(PretrainingConfig):
    """Config of CropMAE, which masks 98.5% of the patches: two of 196 stay visible."""

    mask_ratio: float = 0.985


@dataclass(frozen=True)
class ToBoConfig(PretrainingConfig):
    """Config of Token Bottleneck.

    Attributes:
        auxiliary_weight: weight of the auxiliary SiamMAE path (1 in the code; one sentence in the appendix of the
            paper). 0 removes it and all cross-attention.
        bottleneck_tokens: number of tokens that encode the source: the class token and learned registers.
        bottleneck_position: "zero" (as in the code, where it replaces the class token, which has no position) or
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
            choices = ", ".join(BOTTLENECK_POSITIONS)
            raise ValueError(f"bottleneck_position must be one of {choices}, got {self.bottleneck_position!r}")
        if self.num_registers not in (0, self.bottleneck_tokens - 1):
            raise ValueError(
                "num_registers must be bottleneck_tokens - 1: the class token is the first bottleneck token"
            )
        object.__setattr__(self, "num_registers", self.bottleneck_tokens - 1)


@dataclass(frozen=True, eq=False)
class Prediction:
    """Prediction of the target frame.

    Attributes:
        paths: for each path, normalized pixels [B,N,patch*patch*3] and the patches in the loss (bool [B,N], None for
            all).
        mask: mask of the target.
        extra: additional losses by name.
        weights: weight of each loss in the sum. Default: 1.
    """

    paths: Mapping[str, tuple[Tensor, Tensor | None]]
    mask: Mask
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)

    __repr__ = shape_repr


class Pretraining(Model, ABC):
    """Base class of pre-training networks: an encoder, a decoder and a loss.

    Args:
        config: hyperparameters of the network.
    """

    config_type: ClassVar[Any] = PretrainingConfig
    frames: ClassVar[int] = 2  # per sample: source and target, or one
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
        self._add_modules()
        with torch.no_grad():
            initialize(self)
            set_sincos_positions(self.encoder)

    def _add_modules(self) -> None:
        """Adds the modules of a subclass."""

    @abstractmethod
    def predict(self, source: Tensor, target: Tensor, noise: Tensor) -> Prediction:
        """Predicts the target from normalized frames [B,3,H,W] and the noise [B,N] that selects the masked patches."""

    def split(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Splits frames [B,F,3,H,W] into normalized source and target [B,3,H,W], which are equal if F is 1.

        Raises:
            ValueError: the number or size of frames differs from the network's.
        """
        if frames.ndim != 5 or frames.shape[1] != self.frames or tuple(frames.shape[3:]) != self.config.image_size:
            height, width = self.config.image_size
            raise ValueError(
                f"frames of this {self.kind} must be [B,{self.frames},3,{height},{width}], got {list(frames.shape)}"
            )
        x = normalize(to_unit(frames), IMAGENET_MEAN, IMAGENET_STD)
        return x[:, 0], x[:, -1]

    def forward(self, frames: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Computes the losses.

        Args:
            frames: source, then target, [B,F,3,H,W], uint8 or float in 0..1.
            noise: float [B,N]; the patches of the target with the lowest noise stay visible.

        Returns:
            "loss" and the terms of its weighted sum by name; float32 scalars.

        Raises:
            ValueError: frames of another shape.
        """
        source, target = self.split(frames)
        prediction = self.predict(source, target, noise)
        pixels = pixel_targets(target, self.config.patch_size)
        losses = {
            name: pixel_loss(predicted, pixels, patches, self.config.distance)
            for name, (predicted, patches) in prediction.paths.items()
        } | dict(prediction.extra)
        total = torch.stack([prediction.weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()
        return {"loss": total, **losses}

    def _encode(self, frames: Tensor, visible: Tensor | None = None) -> Tensor:
        return encode(self.encoder, frames, visible, recompute=self.checkpointing and self.training)

    def _decode(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        return self.decoder(x, memory, recompute=self.checkpointing and self.training)


class Mae(Pretraining):
    """Masked autoencoder: predicts masked patches of one frame from visible ones with self-attention only."""

    kind, frames, cross = "mae", 1, False

    def predict(self, source: Tensor, target: Tensor, noise: Tensor) -> Prediction:
        mask = random_mask(noise, self.config.mask_ratio)
        slots = self.decoder.slots(self._encode(target, mask.visible), mask)
        return Prediction({"mae": (self._decode(slots), mask.hidden)}, mask)


class SiamMae(Pretraining):
    """SiamMAE: masked patches of the target cross-attend to all patches of the source."""

    kind = "siam_mae"
    config_type: ClassVar[Any] = SiamMaeConfig

    def predict(self, source: Tensor, target: Tensor, noise: Tensor) -> Prediction:
        mask = random_mask(noise, self.config.mask_ratio)
        slots = self.decoder.slots(self._encode(target, mask.visible), mask)
        predicted = self._decode(slots, self.decoder.memory(self._encode(source)))
        return Prediction({"siam": (predicted, mask.hidden)}, mask)


class CropMae(SiamMae):
    """CropMAE: the network of SiamMAE; the source is a crop of a frame and the target a crop of the source."""

    kind = "crop_mae"
    config_type: ClassVar[Any] = CropMaeConfig


class ToBo(Pretraining):
    """Token Bottleneck: squeezes the source into one token and expands it to the target, given a few target patches.

    It has two paths through the same decoder blocks. "tobo": the class token of the source replaces that of the target,
    followed by the patches of the target; self-attention and MLP only, so the patches of the source are not available.
    "siam": the SiamMAE path, which cross-attends to all of the source. Except for cross-attention, both run as one
    batch.
    """

    kind = "tobo"
    config_type: ClassVar[Any] = ToBoConfig

    def _add_modules(self) -> None:
        if self.config.bottleneck_position == "learned":
            tokens, dim = self.config.bottleneck_tokens, self.config.decoder_dim
            self.bottleneck_positions = nn.Parameter(torch.zeros(1, tokens, dim))

    def predict(self, source: Tensor, target: Tensor, noise: Tensor) -> Prediction:
        mask = random_mask(noise, self.config.mask_ratio)
        return self.expand(self._encode(source), self._encode(target, mask.visible), mask)

    def expand(self, source: Tensor, hints: Tensor, mask: Mask) -> Prediction:
        """Predicts the target from the encoded source [B,P+N,C] and the encoded visible patches [B,P+K,C]."""
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
