"""A pretrained image encoder as the encoder of a tokenizer, with several of its layers read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from fewtokens.core.plain import conform
from fewtokens.encoders.config import ViTConfig, make_vit_config
from fewtokens.encoders.frames import IMAGENET_MEAN, IMAGENET_STD, normalize
from fewtokens.encoders.load import load_encoder
from fewtokens.encoders.vit import ViT
from fewtokens.encoders.vit_encoder import VitEncoder
from fewtokens.tokenizers.blocks.fixed import Fixed
from fewtokens.tokenizers.blocks.pooling import resize
from fewtokens.tokenizers.blocks.saved_networks import saved_config
from fewtokens.tokenizers.parts import VideoEncoder

_DINOV2 = {"patch_size": 14, "image_size": (518, 518), "layer_scale": True}
_SIGLIP = {
    "dim": 1152, "depth": 27, "num_heads": 16, "mlp_dim": 4304, "class_token": False, "activation": "gelu_pytorch_tanh",
}  # fmt: skip
_CLIP = {"patch_size": 14, "activation": "quick_gelu", "norm_first": True, "patch_bias": False}
_VIT_L = {"dim": 1024, "depth": 24, "num_heads": 16}

# Networks that can be built on the meta device, to count parameters, without their weights.
KNOWN: dict[str, ViTConfig] = {
    "OpenGVLab/InternViT-300M-448px": ViTConfig(
        patch_size=14,
        image_size=(448, 448),
        layer_scale=True,
        norm_last=False,
        **_VIT_L,  # type: ignore[arg-type]
    ),
    "facebook/dinov2-small": ViTConfig(**_DINOV2),  # type: ignore[arg-type]
    "facebook/dinov2-base": ViTConfig(dim=768, num_heads=12, **_DINOV2),  # type: ignore[arg-type]
    "facebook/dinov2-large": ViTConfig(**_VIT_L, **_DINOV2),  # type: ignore[arg-type]
    "facebook/dinov2-with-registers-large": ViTConfig(num_registers=4, antialias=True, **_VIT_L, **_DINOV2),  # type: ignore[arg-type]
    "facebook/vit-mae-large": ViTConfig(**_VIT_L),  # type: ignore[arg-type]
    "openai/clip-vit-base-patch16": ViTConfig(
        dim=768, num_heads=12, norm_first=True, norm_last=False, patch_bias=False, activation="quick_gelu", eps=1e-5
    ),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": ViTConfig(
        dim=1280, depth=32, num_heads=16, patch_size=14, norm_first=True, patch_bias=False
    ),
    "openai/clip-vit-large-patch14": ViTConfig(**_CLIP, **_VIT_L),  # type: ignore[arg-type]
    "google/siglip-so400m-patch14-384": ViTConfig(patch_size=14, image_size=(384, 384), **_SIGLIP),  # type: ignore[arg-type]
    "google/siglip2-so400m-patch14-384": ViTConfig(patch_size=14, image_size=(384, 384), **_SIGLIP),  # type: ignore[arg-type]
    "google/siglip2-so400m-patch16-256": ViTConfig(patch_size=16, image_size=(256, 256), **_SIGLIP),  # type: ignore[arg-type]
}


class Frozen(VideoEncoder):
    """Runs a pretrained ViT on each frame and concatenates the patch features of some of its layers in channels.

    Weights and config are part of the tokenizer: they are saved with it, so that it is loaded without the folder or hub
    id. The weights are not trained unless `trainable`.

    Args:
        network: a ViT, DINOv2, CLIP, SigLIP or MAE that `load_encoder` accepts, by folder or hub id; or "random", a
            small ViT with random weights, of which the last four arguments set seed, channels, blocks and patch size.
            On the meta device, the hub ids in `KNOWN` are built without weights, to count parameters.
        layers: each k > 0 reads the features after k blocks, and -1 those after the last block and the last norm.
        stride: 1, and the height and width of a cell in pixels. Frames are resized so that a cell is a patch.
            Default: the patch size, without resizing.
        trainable: whether the network is trained.
        seed, width, depth, patch: of the random network.

    Raises:
        ValueError: no such encoder, an encoder that is not a ViT, or a layer that it does not have.
    """

    causal = True

    def __init__(
        self,
        network: str = "random",
        *,
        layers: Sequence[int] = (-1,),
        stride: Sequence[int] | None = None,
        trainable: bool = False,
        seed: int = 0,
        width: int = 32,
        depth: int = 4,
        patch: int = 8,
    ) -> None:
        super().__init__()
        vit, self.mean, self.std = _load(network, seed, width, depth, patch)
        config = vit.config
        stride = (1, config.patch_size, config.patch_size) if stride is None else stride
        if len(stride) != 3 or stride[0] != 1 or min(stride) < 1:
            raise ValueError(f"stride must be 1 frame and the height and width of a cell, got {tuple(stride)}")
        if not layers or not all(layer == -1 or 1 <= layer <= config.depth for layer in layers):
            raise ValueError(f"layers must be -1 or in 1..{config.depth}, the blocks of {network}, got {tuple(layers)}")
        self.network, self.layers, self.stride = network, tuple(layers), (1, stride[1], stride[2])
        self.trainable, self.seed = trainable, seed
        self.network_config = None if network == "random" else _config_of(config, self.mean, self.std)
        self.width, self.depth, self.patch = config.dim, config.depth, config.patch_size
        if trainable:
            # Parts that are not read would get no gradient.
            last = config.depth if -1 in layers else max(layers)
            vit.blocks = vit.blocks[:last]
            vit.norm_last = vit.norm_last if -1 in layers else nn.Identity()
        self.vit: nn.Module = vit if trainable else Fixed(vit)

    @property
    def dim(self) -> int:
        return self.width * len(self.layers)

    @property
    def model(self) -> ViT:
        """The ViT."""
        model = self.vit.network if isinstance(self.vit, Fixed) else self.vit
        assert isinstance(model, ViT)
        return model

    def latents(self, x: Tensor) -> Tensor:
        return torch.cat(self.read(x, self.layers), 1)

    def step(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        return self.latents(x), None

    def read(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Returns the patch features [B,C,T,H',W'] of some layers of frames [B,3,T,H,W] in -1..1."""
        B, _, T, height, width = x.shape
        H, W = height // self.stride[1], width // self.stride[2]
        images = x.transpose(1, 2).flatten(0, 1).add(1).div(2)
        size = (H * self.patch, W * self.patch)
        if size != (height, width):
            images = resize(images, size)
        rows = hidden_layers(self.model, normalize(images, self.mean, self.std), layers)
        return [row.reshape(B, T, H, W, -1).movedim(-1, 1) for row in rows]


class _Saved(TypedDict):
    config: dict[str, Any]
    mean: list[float]
    std: list[float]


def _config_of(config: ViTConfig, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    return {"config": asdict(config), "mean": list(mean), "std": list(std)}


def hidden_layers(vit: ViT, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """Returns the patch features [F,H'*W',C] of some layers of a ViT; blocks after the last of these do not run.

    Args:
        vit: the network.
        images: normalized, [F,3,H,W].
        layers: see `Frozen`.
    """
    x = vit.embed(images).flatten(1, 2)
    N = x.shape[1]
    prefix = vit.prefix(len(x))
    x = vit.norm_first(x if prefix is None else torch.cat([prefix.to(x.dtype), x], 1))
    last = len(vit.blocks) if -1 in layers else max(layers)
    found = {}
    for number, block in enumerate(vit.blocks[:last], 1):
        x = block(x)
        found[number] = x[:, -N:]
    if -1 in layers:
        found[-1] = vit.norm_last(x)[:, -N:]
    return [found[layer] for layer in layers]


def _load(network: str, seed: int, width: int, depth: int, patch: int) -> tuple[ViT, Sequence[float], Sequence[float]]:
    """The ViT with the mean and std of its pixels."""
    if network == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            side = 4 * patch
            config = ViTConfig(
                dim=width, depth=depth, num_heads=max(1, width // 16), patch_size=patch, image_size=(side, side)
            )
            return ViT(config), IMAGENET_MEAN, IMAGENET_STD
    if (saved := saved_config(network)) is not None:
        where = f"saved config of {network}"
        conform(saved, _Saved, where)
        return ViT(make_vit_config(saved["config"], where)), tuple(saved["mean"]), tuple(saved["std"])
    if network in KNOWN and torch.get_default_device().type == "meta":
        return ViT(KNOWN[network]), IMAGENET_MEAN, IMAGENET_STD
    encoder = load_encoder(network, device="cpu")
    if not isinstance(encoder, VitEncoder):
        raise ValueError(f"{network}: not a ViT whose layers can be read; use a ViT, DINOv2, CLIP, SigLIP or MAE")
    return encoder.vit, encoder.mean, encoder.std
