"""The two halves of a frozen autoencoder: diffusers' by folder or hub id, or a fixed transform without weights."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core import files
from fewtokens.core.hub import from_hub
from fewtokens.core.plain import conform
from fewtokens.tokenizers.blocks.fixed import Fixed
from fewtokens.tokenizers.blocks.saved_networks import saved_config
from fewtokens.tokenizers.parts import Stride

# Autoencoders of videos in diffusers: frames and pixels of a latent. All accept 1 + k * t frames.
_VIDEO = {
    "AutoencoderKLWan": (4, 8),
    "AutoencoderKLCogVideoX": (4, 8),
    "AutoencoderKLHunyuanVideo": (4, 8),
    "AutoencoderKLCosmos": (8, 8),
    "AutoencoderKLMagvit": (4, 8),
    "AutoencoderKLMochi": (6, 8),
    "AutoencoderKLLTXVideo": (8, 32),
}
_IMAGE = ("AutoencoderKL", "AutoencoderDC")
# The classes of diffusers that can be loaded.
AUTOENCODERS = (*_IMAGE, *_VIDEO)

# Autoencoders that can be built on the meta device, to count parameters, without their weights.
KNOWN: dict[str, dict[str, Any]] = {
    "EPFL-VILAB/flextok_vae_c16": {
        "_class_name": "AutoencoderKL", "block_out_channels": (128, 256, 512, 512), "latent_channels": 16,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
    },
    "stabilityai/sd-vae-ft-mse": {
        "_class_name": "AutoencoderKL", "block_out_channels": (128, 256, 512, 512), "latent_channels": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
    },
    "xwen99/mar-vae-kl16": {
        "_class_name": "AutoencoderKL", "block_out_channels": (128, 128, 256, 256, 512), "latent_channels": 16,
        "down_block_types": ("DownEncoderBlock2D",) * 5, "up_block_types": ("UpDecoderBlock2D",) * 5,
        "layers_per_block": 2,
    },
    "black-forest-labs/FLUX.1-schnell": {
        "_class_name": "AutoencoderKL", "block_out_channels": (128, 256, 512, 512), "latent_channels": 16,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2, "use_quant_conv": False, "use_post_quant_conv": False,
        "scaling_factor": 0.3611, "shift_factor": 0.1159,
    },
    "mit-han-lab/dc-ae-f32c32-in-1.0-diffusers": {
        "_class_name": "AutoencoderDC", "latent_channels": 32, "scaling_factor": 0.3189,
        "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        "encoder_layers_per_block": (0, 4, 8, 2, 2, 2), "decoder_layers_per_block": (0, 5, 10, 2, 2, 2),
        "encoder_qkv_multiscales": ((),) * 6, "decoder_qkv_multiscales": ((),) * 6,
        "decoder_norm_types": ("batch_norm",) * 3 + ("rms_norm",) * 3, "decoder_act_fns": ("relu",) * 3 + ("silu",) * 3,
    },
}  # fmt: skip


class Half(nn.Module):
    """The encoder or the decoder of an autoencoder that is not trained.

    Args:
        network: a folder or hub id of diffusers (`AutoencoderKL`, `AutoencoderDC`, or one of Wan, CogVideoX,
            HunyuanVideo, Cosmos, EasyAnimate, Mochi and LTX), also the folder `vae` in it; or "dct", see `Dct`. On the
            meta device, the hub ids in `KNOWN` are built without weights. A saved tokenizer contains the weights of its
            half, and is loaded without this folder or hub id.
        part: "encoder" or "decoder".
        patch, channels: of "dct".

    Attributes:
        stride, first_frame: see `fewtokens.tokenizers.parts.Strided`.
        channels: number of channels of a latent.

    Raises:
        ValueError: diffusers is not installed, no such folder, or another class of network.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: str, part: str, *, patch: int = 8, channels: int = 12) -> None:
        super().__init__()
        model, config, kind = _load(network, patch, channels)
        config = dict(model.config) if hasattr(model, "config") else config  # with the defaults of the class
        self.channels, self.stride, self.first_frame = _sizes(config, kind)
        # The other half is not kept in memory.
        others = ("decoder", "post_quant_conv") if part == "encoder" else ("encoder", "quant_conv")
        for name in others:
            if getattr(model, name, None) is not None:
                setattr(model, name, None)
        self.fixed = Fixed(model)
        self.is_video = kind in _VIDEO
        saved = saved_config(network)
        mean, std = _normalization(model, config, self.channels) if saved is None else (saved["mean"], saved["std"])
        self.register_buffer("mean", torch.as_tensor(mean).float().reshape(-1, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.as_tensor(std).float().reshape(-1, 1, 1, 1), persistent=False)

        self.network, self._config, self._kind = network, config, kind

    @property
    def network_config(self) -> dict[str, Any] | None:
        """See `fewtokens.tokenizers.blocks.saved_networks`."""
        if self.network == "dct":
            return None
        config = {name: value for name, value in self._config.items() if not name.startswith("_")}
        return {
            "class": self._kind, "config": config, "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
        }  # fmt: skip

    def encode(self, x: Tensor) -> Tensor:
        """Encodes frames [B,3,T,H,W] in -1..1 to latents [B,C,T',H',W'], the mean of their distribution, normalized."""
        images = x if self.is_video else x.transpose(1, 2).flatten(0, 1)
        network: Any = self.fixed.network
        found = network.encode(images)
        z: Tensor = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latent
        return ((z if self.is_video else z.unflatten(0, (len(x), -1)).transpose(1, 2)) - self.mean) / self.std

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse of `encode`."""
        z = latents * self.std + self.mean
        z = z if self.is_video else z.transpose(1, 2).flatten(0, 1)
        network: Any = self.fixed.network
        x: Tensor = network.decode(z).sample
        return x if self.is_video else x.unflatten(0, (len(latents), -1)).transpose(1, 2)


def grouped_stride(half: Half, groups: int) -> Stride:
    """Returns the stride of tokens if the channels of a latent are divided into tokens, in successive rows.

    Raises:
        ValueError: they, or the rows of pixels, cannot be divided equally.
    """
    t, y, x = half.stride
    if groups < 1 or half.channels % groups or y % groups:
        raise ValueError(f"groups must divide the {half.channels} channels and {y} rows of a latent, got {groups}")
    return t, y // groups, x


class Dct(nn.Module):
    """The lowest discrete cosine coefficients of each patch and channel of color: a small autoencoder of fixed weights.

    The coefficients are those of the orthonormal transform, divided by the side of the patch, so the first are the
    means of the three colors; channels are ordered by frequency, then color.

    Args:
        patch: side of a patch in pixels.
        channels: 3 k^2 for the k * k lowest frequencies, k <= patch.
    """

    def __init__(self, patch: int, channels: int) -> None:
        super().__init__()
        k = math.isqrt(channels // 3)
        if channels != 3 * k * k or not 1 <= k <= patch:
            raise ValueError(f"channels of dct must be 3 k^2 with k in 1..{patch}, the patch size, got {channels}")
        place, wave = torch.arange(patch) + 0.5, torch.arange(k)
        rows = torch.cos(torch.pi * wave[:, None] * place / patch) * (2 / patch) ** 0.5  # [k,patch]
        rows[0] /= 2**0.5
        basis = torch.einsum("ip,jq->ijpq", rows, rows).reshape(k * k, patch, patch)
        weight = torch.einsum("cd,kpq->kcdpq", torch.eye(3), basis).reshape(channels, 3, patch, patch)
        self.encoder = nn.Conv2d(3, channels, patch, patch, bias=False)
        self.decoder = _Inverse(channels, patch)
        with torch.no_grad():
            self.encoder.weight.copy_(weight / patch)
            self.decoder.conv1.weight.copy_((weight * patch).flatten(1).T[..., None, None])

    def encode(self, x: Tensor) -> SimpleNamespace:
        """Returns the coefficients [F,C,H',W'] of images [F,3,H,W], as `latent`."""
        return SimpleNamespace(latent=self.encoder(x))

    def decode(self, z: Tensor) -> SimpleNamespace:
        """Returns the images of coefficients, as `sample`."""
        return SimpleNamespace(sample=self.decoder(z))


class _Inverse(nn.Module):
    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        self.conv1, self.patch = nn.Conv2d(channels, 3 * patch * patch, 1, bias=False), patch

    def forward(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv1(z), self.patch)


class Lora(nn.Module):
    """A frozen convolution and a trained one of low rank, which is zero at the start (arXiv 2106.09685)."""

    def __init__(self, base: nn.Conv2d, rank: int) -> None:
        super().__init__()
        self.base = base
        shape: dict[str, Any] = {"kernel_size": base.kernel_size, "stride": base.stride, "padding": base.padding}
        self.down = nn.Conv2d(base.in_channels, rank, bias=False, **shape)
        self.up = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        adapted: Tensor = self.base(x) + self.up(self.down(x))
        return adapted


def add_lora(network: nn.Module, rank: int) -> None:
    """Adds a `Lora` to the convolutions conv1 and conv2 of all residual blocks, as CODA does.

    Raises:
        ValueError: there are none of images, as in autoencoders of videos.
    """
    blocks = [
        (module, name)
        for module in network.modules()
        for name in ("conv1", "conv2")
        if isinstance(getattr(module, name, None), nn.Conv2d)
    ]
    if not blocks:
        raise ValueError(
            "lora requires residual blocks with convolutions of images, which this autoencoder does not have"
        )
    for module, name in blocks:
        setattr(module, name, Lora(getattr(module, name), rank))


def _load(network: str, patch: int, channels: int) -> tuple[Any, dict[str, Any], str]:
    """The network, its config and the name of its class."""
    if network == "dct":
        side = math.isqrt(channels // 3)
        # Amplitudes of natural images fall with the frequency.
        std = [0.4 * (1 + i + j) ** -1.5 for i in range(side) for j in range(side) for _ in range(3)]
        return Dct(patch, channels), {"patch": patch, "latent_channels": channels, "latents_std": std}, "Dct"
    if (saved := saved_config(network)) is not None:
        conform(saved, _Saved, f"saved config of {network}")
        config, kind = saved["config"], _checked_class(network, saved["class"])
        try:
            return getattr(_diffusers(network), kind).from_config(config), config, kind
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{network}: diffusers cannot build it ({' '.join(str(error).split())[:200]})") from None
    if network in KNOWN and torch.get_default_device().type == "meta":
        config = dict(KNOWN[network])
        kind = config.pop("_class_name")
        return getattr(_diffusers(network), kind)(**config), config, kind
    weights = ("vae/*.safetensors", "diffusion_pytorch_model*.safetensors")
    folder = (
        Path(network) if Path(network).is_dir() else from_hub(network, ("config.json", "vae/config.json", *weights))
    )
    folder = folder / "vae" if (folder / "vae" / "config.json").is_file() else folder
    if not (folder / "config.json").is_file():
        raise ValueError(f"{network}: no config.json; an autoencoder must be a folder in the format of diffusers")
    config = files.read_json(folder / "config.json")
    kind = _checked_class(network, str(config.get("_class_name")))
    try:
        model = getattr(_diffusers(network), kind).from_pretrained(folder, use_safetensors=True)
    except (OSError, RuntimeError, TypeError, KeyError) as error:
        raise ValueError(f"{network}: diffusers cannot load it ({' '.join(str(error).split())[:200]})") from None
    return model, config, kind


_Saved = TypedDict("_Saved", {"class": str, "config": dict[str, Any], "mean": list[float], "std": list[float]})


def _checked_class(network: str, kind: str) -> str:
    if kind not in AUTOENCODERS:
        raise ValueError(f"{network}: a {kind[:60]}; supported autoencoders are {', '.join(AUTOENCODERS)}")
    return kind


def _normalization(model: Any, config: dict[str, Any], channels: int) -> tuple[Any, Any]:
    """Mean and standard deviation of the channels of a latent."""
    buffers = dict(model.named_buffers(recurse=False))
    if "latents_mean" in buffers:  # LTX
        return buffers["latents_mean"], buffers["latents_std"]
    mean = config.get("latents_mean") or [config.get("shift_factor") or 0.0] * channels
    std = config.get("latents_std") or [1 / (config.get("scaling_factor") or 1.0)] * channels
    return mean, std


def _diffusers(network: str) -> Any:
    try:
        import diffusers
    except ImportError:
        raise ValueError(f"{network}: requires diffusers; install it with pip install diffusers") from None
    return diffusers


def _sizes(config: dict[str, Any], kind: str) -> tuple[int, Stride, bool]:
    """Channels, stride and first-frame rule of a class of networks."""
    channels = int(config.get("latent_channels") or config.get("z_dim") or 0)
    if kind in _VIDEO:
        t, side = _VIDEO[kind]
        t, side = config.get("scale_factor_temporal") or t, config.get("scale_factor_spatial") or side
        return channels, (int(t), int(side), int(side)), True
    if kind == "Dct":
        return channels, (1, config["patch"], config["patch"]), False
    side = 2 ** (len(config["block_out_channels" if kind == "AutoencoderKL" else "encoder_block_out_channels"]) - 1)
    return channels, (1, side, side), False
