"""Fréchet distances between the features of originals and of reconstructions: rFID, rFVD, and one without weights.

The published networks are not part of this package. Without their files the measures raise `MissingWeights`; they are
never skipped silently, and a measure with other features never has their name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.files import check_fit
from fewtokens.evaluation.reconstruction.inception import InceptionV3
from fewtokens.evaluation.reconstruction.protocol import Protocol
from fewtokens.evaluation.reconstruction.weights import (
    MissingWeights,
    check_file,
    hash_file,
    hash_weights,
    read_weights,
)

# Features [n,D] of videos [B,T,3,H,W] in 0..1, on the device of the videos.
Features = Callable[[Tensor], Tensor]
# (originals, reconstructions), each [B,T,3,H,W] in 0..1.
Pairs = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Distance:
    """A Fréchet distance and how it was measured.

    Attributes:
        name: "rfvd", "rfid" or "frechet_random3d".
        value: 0 or more; lower is better.
        protocol: of the clips, with the extractor.
        samples: feature vectors of each side: clips or frames.
        dim: of a feature vector.
        shrinkage: of the covariances, 0 if none.
    """

    name: str
    value: float
    protocol: Protocol
    samples: int
    dim: int
    shrinkage: float


def frechet_distance(a: Tensor, b: Tensor, *, shrinkage: float | None = None) -> float:
    """Fréchet distance of two Gaussians fitted to features: |m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^½).

    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium" (arXiv
    1706.08500). In float64, by the eigenvalues of S1^½ S2 S1^½, which is symmetric.

    Args:
        a, b: [n,D] and [m,D].
        shrinkage: weight s in 0..1 of a multiple of the identity in the covariances, (1-s) S + s tr(S)/D I. Required
            with fewer than D samples, where a covariance has no full rank and the distance depends on the number of
            samples. Default: None, no shrinkage.

    Raises:
        ValueError: shapes do not fit, fewer than two samples, fewer samples than dimensions without `shrinkage`, or
            values that are not finite.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features must be [n,D] and [m,D], got {list(a.shape)} and {list(b.shape)}")
    n, dim = min(len(a), len(b)), a.shape[1]
    if n < 2:
        raise ValueError(f"a Fréchet distance needs at least 2 samples, got {n}")
    if n < dim and shrinkage is None:
        raise ValueError(
            f"{n} samples do not determine a covariance of {dim} dimensions: use more samples, or set shrinkage, which "
            "makes the distance comparable only at the same number of samples"
        )
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage must be in 0..1, got {shrinkage}")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("features have values that are not finite")
    a, b = a.double(), b.double()
    first, second = (_covariance(x, shrinkage or 0.0) for x in (a, b))
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + first.trace() + second.trace() - 2 * product
    return max(0.0, float(distance))


def frechet_random3d(
    pairs: Pairs, protocol: Protocol, *, dim: int = 32, seed: int = 0, shrinkage: float | None = None
) -> Distance:
    """Fréchet distance of features of a random 3-D convolutional network, which needs no weights.

    Comparable only with itself, at equal `dim`, `seed` and protocol. It is not an FVD: it orders distortions of one
    clip set, but not by what a network trained on actions sees.

    Args:
        pairs: batches of (originals, reconstructions), each [B,T,3,H,W] in 0..1.
        protocol: of the clips.
        dim: of the features; at least as many clips are needed, or `shrinkage`.
        seed: random seed of the network.
        shrinkage: as for `frechet_distance`.

    Raises:
        ValueError: as for `frechet_distance`, or the clips are not those of the protocol.
    """
    network = Random3D(dim, seed)
    protocol = replace(protocol, extractor=f"random3d(dim={dim}, seed={seed})", extractor_hash=hash_weights(network))
    return _distance("frechet_random3d", lambda x: network.to(x.device)(x), pairs, protocol, shrinkage)


def rfvd(
    pairs: Pairs, protocol: Protocol, weights: str | Path | None = None, *, shrinkage: float | None = None
) -> Distance:
    """Fréchet video distance of reconstructions: features of I3D trained on Kinetics-400.

    Unterthiner et al., "Towards Accurate Generative Models of Video" (arXiv 1812.01717), with the network and input of
    StyleGAN-V (arXiv 2112.14683): frames resized to 224x224 (bilinear, no antialiasing), in -1..1, 400 logits.

    Args:
        pairs: batches of (originals, reconstructions), each [B,T,3,H,W] in 0..1; at least 9 frames, the published
            protocols have 16.
        protocol: of the clips.
        weights: TorchScript file of I3D, `i3d_torchscript.pt` of StyleGAN-V.
        shrinkage: as for `frechet_distance`. Without it, at least 400 clips are needed.

    Raises:
        MissingWeights: `weights` is None or not a TorchScript file.
        ValueError: as for `frechet_distance`, fewer than 9 frames, or the clips are not those of the protocol.
    """
    description = "the TorchScript file of I3D by StyleGAN-V, i3d_torchscript.pt, passed as weights"
    path = check_file("rfvd", weights, description)
    network = _torchscript(path)
    if network is None:
        raise MissingWeights(f"rfvd requires {description}: {path} is not a TorchScript file")
    if protocol.frames < 9:
        raise ValueError(f"I3D pools over 9 frames or more, the protocol has {protocol.frames}")

    def features(videos: Tensor) -> Tensor:
        B, T = videos.shape[:2]
        x = F.interpolate(videos.flatten(0, 1), size=(224, 224), mode="bilinear") * 2 - 1
        x = x.reshape(B, T, 3, 224, 224).transpose(1, 2)
        logits: Tensor = network.to(x.device)(x, rescale=False, resize=False, return_features=True)
        return logits

    return _distance("rfvd", features, pairs, _with_extractor(protocol, "i3d", path), shrinkage)


def rfid(
    pairs: Pairs, protocol: Protocol, weights: str | Path | None = None, *, shrinkage: float | None = None
) -> Distance:
    """Fréchet Inception distance of the frames of reconstructions (arXiv 1706.08500).

    Args:
        pairs: batches of (originals, reconstructions), each [B,T,3,H,W] in 0..1. Each frame is a sample, rounded to
            8 bits; the network resizes it to 299x299.
        protocol: of the clips.
        weights: the Inception network of 2015: `weights-inception-2015-12-05-6726825d.pth` of torch-fidelity, or a
            TorchScript file that is called with uint8 images and `return_features=True` (`inception-2015-12-05.pt` of
            StyleGAN2-ADA and later).
        shrinkage: as for `frechet_distance`. Without it, at least 2048 frames are needed.

    Raises:
        MissingWeights: `weights` is None or the file of another network.
        ValueError: as for `frechet_distance`, or the clips are not those of the protocol.
    """
    description = "Inception of 2015, as TorchScript or as the state dict of torch-fidelity, passed as weights"
    path = check_file("rfid", weights, description)
    network, options = _inception(path, description)

    def features(videos: Tensor) -> Tensor:
        pooled: Tensor = network.to(videos.device)((videos.flatten(0, 1) * 255).round().byte(), **options)
        return pooled

    return _distance("rfid", features, pairs, _with_extractor(protocol, "inception-2015-12-05", path), shrinkage)


class Random3D(nn.Module):
    """Features [B,D] of videos [B,T,3,H,W] in 0..1 by three random 3-D convolutions with stride, seeded.

    A feature is the mean over the last layer of the response to brightness, texture and motion of one filter.
    """

    def __init__(self, dim: int = 32, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        widths = (3, 16, 32, dim)
        self.kernels = nn.ParameterList(
            nn.Parameter(
                torch.randn(out, inputs, 3, 3, 3, generator=generator) * (2 / (27 * inputs)) ** 0.5, requires_grad=False
            )
            for inputs, out in pairwise(widths)
        )

    @torch.no_grad()
    def forward(self, videos: Tensor) -> Tensor:
        x = videos.transpose(1, 2) * 2 - 1
        for kernel in self.kernels:
            x = F.relu(F.conv3d(x, kernel, stride=(1, 2, 2), padding=1))
        return x.mean((2, 3, 4))


def _distance(name: str, features: Features, pairs: Pairs, protocol: Protocol, shrinkage: float | None) -> Distance:
    collected: tuple[list[Tensor], list[Tensor]] = ([], [])
    clips = 0
    for pair in pairs:
        for videos, into in zip(pair, collected, strict=True):
            with torch.no_grad():
                into.append(features(protocol.select(videos).float().clamp(0, 1)).double().cpu())
        clips += len(pair[0])
    protocol.check_count(clips)
    a, b = (torch.cat(each) for each in collected)
    value = frechet_distance(a, b, shrinkage=shrinkage)
    return Distance(name, value, protocol, samples=len(a), dim=a.shape[1], shrinkage=shrinkage or 0.0)


def _covariance(x: Tensor, shrinkage: float) -> Tensor:
    covariance = x.T.cov()
    identity = torch.eye(len(covariance), dtype=x.dtype, device=x.device)
    return (1 - shrinkage) * covariance + shrinkage * covariance.trace() / len(covariance) * identity


def _torchscript(path: Path) -> Any:
    """The network of a TorchScript file, or None if it is another file."""
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError:
        return None


def _inception(path: Path, description: str) -> tuple[Any, dict[str, bool]]:
    """The network of a TorchScript file or a state dict, and the options with which it returns features."""
    script = _torchscript(path)
    if script is not None:
        return script, {"return_features": True}
    state = read_weights("rfid", path, description)
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    network = InceptionV3()
    try:
        check_fit(network.state_dict(), state, f"{path}: is not Inception v3 of FID")
    except ValueError as error:
        raise MissingWeights(f"rfid requires {description}; {error}") from None
    network.load_state_dict(state)
    return network.eval(), {}


def _with_extractor(protocol: Protocol, name: str, weights: Path) -> Protocol:
    return replace(protocol, extractor=name, extractor_hash=hash_file(weights))
