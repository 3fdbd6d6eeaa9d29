"""LPIPS: the distance of two images in the features of a classification network, with given weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.files import check_fit
from fewtokens.evaluation.reconstruction.weights import MissingWeights, read_weights

Network = Literal["alex", "vgg"]


def _alexnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


def _vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers += [nn.MaxPool2d(2)] if layers else []
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)


# Constructor, layers after which features are compared, their channels, smallest image.
_NETWORKS = {
    "alex": (_alexnet, (1, 4, 7, 9, 11), (64, 192, 384, 256, 256), 32),
    "vgg": (_vgg16, (3, 8, 15, 22, 29), (64, 128, 256, 512, 512), 16),
}


class Lpips(nn.Module):
    """Learned perceptual distance of images, 0 if equal.

    Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (arXiv 1801.03924), version
    0.1: features of five layers, normalized over channels, squared differences weighted per channel, mean over pixels.
    The layers are named as those of torchvision, so that its files fit. No gradient flows to the weights; it does flow
    to the images, so this is also a loss. The weights are random until `load` reads them.

    Args:
        network: "alex", which papers report, or "vgg", the usual loss.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Network = "alex") -> None:
        super().__init__()
        if network not in _NETWORKS:
            raise ValueError(f"network must be one of {', '.join(_NETWORKS)}, got {network!r}")
        build, self.layers, channels, self.smallest = _NETWORKS[network]
        self.features = build()
        self.heads = nn.ParameterList(torch.full((width,), 1 / width) for width in channels)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)

    @classmethod
    def load(cls, backbone: str | Path | None, heads: str | Path | None, network: Network = "alex") -> Lpips:
        """Reads the weights, which are not part of this package.

        Args:
            backbone: state dict of torchvision's AlexNet (`alexnet-owt-7be5be79.pth`) or VGG-16
                (`vgg16-397923af.pth`), .pth or .safetensors.
            heads: the weights of the channels, `lpips/weights/v0.1/alex.pth` or `vgg.pth` of the package lpips.
            network: "alex" or "vgg".

        Raises:
            MissingWeights: a file is None, missing, damaged or of another network.
            ValueError: another network.
        """
        model = cls(network)
        description = f"the weights of torchvision's {network}, passed as backbone"
        tensors = read_weights("LPIPS", backbone, description)
        features = {name.removeprefix("features."): x for name, x in tensors.items() if name.startswith("features.")}
        description = f"weights/v0.1/{network}.pth of the package lpips, passed as heads"
        stored = read_weights("LPIPS", heads, description)
        linear = {str(n): stored[key].flatten() for n in range(5) if (key := f"lin{n}.model.1.weight") in stored}
        for module, state, path in ((model.features, features, backbone), (model.heads, linear, heads)):
            try:
                check_fit(module.state_dict(), state, f"{path}: is not of the network {network}")
            except ValueError as error:
                raise MissingWeights(str(error)) from None
            module.load_state_dict(state)
        return model.eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances [n] of images [n,3,H,W] in 0..1.

        Raises:
            ValueError: shapes differ, or images are below 32 pixels ("alex") or 16 ("vgg").
        """
        if x.shape != y.shape or x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"images must be [n,3,H,W] of equal shape, got {list(x.shape)} and {list(y.shape)}")
        if min(x.shape[-2:]) < self.smallest:
            raise ValueError(f"LPIPS requires images of at least {self.smallest} pixels, got {x.shape[3]}x{x.shape[2]}")
        return self.distance(self.stages(x), self.stages(y))

    def stages(self, x: Tensor) -> list[Tensor]:
        """The features of the five layers, [n,C,h,w] each, of images [n,3,H,W] in 0..1."""
        x = (x - self.mean) / self.std
        features = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.layers:
                features.append(x)
        return features

    def distance(self, x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
        """Distances [n] of the features of two images."""
        total = x[0].new_zeros(len(x[0]))
        for a, b, weight in zip(x, y, self.heads, strict=True):
            difference = F.normalize(a, dim=1, eps=1e-10) - F.normalize(b, dim=1, eps=1e-10)
            total = total + (difference.square() * weight[:, None, None]).sum(1).mean((1, 2))
        return total


def lpips(original: Tensor, reconstruction: Tensor, model: Lpips) -> Tensor:
    """LPIPS, the mean over frames, of videos [B,T,3,H,W] in 0..1 (clamped); [B], lower is better."""
    x, y = (video.flatten(0, 1).clamp(0, 1) for video in (original, reconstruction))
    with torch.no_grad():
        return model(x, y).reshape(original.shape[:2]).double().mean(1)
