"""Losses of tokenizers: pixels, perceptual features, Gram matrices, adversarial."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fewtokens.core.encoder import Encoder
from fewtokens.encoders.load import load_encoder
from fewtokens.evaluation.reconstruction.lpips import Lpips

PIXEL_LOSSES = ("l1", "l2", "charbonnier", "logit_laplace")


def pixel_loss(kind: str, decoded: Tensor, target: Tensor) -> Tensor:
    """Returns the mean reconstruction loss of pixels.

    Args:
        kind: "l1", "l2", "charbonnier" (sqrt(d^2 + 1e-6), the smooth L1 of ViTok), or "logit_laplace" (the negative
            log-likelihood of DALL-E's tokenizer, arXiv 2102.12092, with a scale of 0.1 and pixels mapped to
            0.1..0.9).
        decoded, target: of the same shape, in about -1..1.
    """
    if kind == "l1":
        return F.l1_loss(decoded, target)
    if kind == "l2":
        return F.mse_loss(decoded, target)
    if kind == "charbonnier":
        return ((decoded - target).square() + 1e-6).sqrt().mean()
    if kind == "logit_laplace":
        # The decoded value is the location in logits; in 0.1..0.9 the logit is finite.
        mapped = 0.8 * (target + 1) / 2 + 0.1
        spread = 0.1
        density = -(mapped.logit() - 2 * decoded).abs() / spread - (2 * spread * mapped * (1 - mapped)).log()
        return -density.mean()
    raise ValueError(f"pixel must be one of {', '.join(PIXEL_LOSSES)}, got {kind!r}")


class Perceptual(nn.Module):
    """Distances of deep features of two videos, frame by frame, by a frozen network.

    Args:
        weights: "BACKBONE,HEADS", the two files of LPIPS with VGG-16 (`Lpips.load`), or any encoder that `load_encoder`
            accepts, such as a folder of DINOv2: then 1 - cosine of its features.

    Raises:
        ValueError: the weights are missing or do not fit.
    """

    def __init__(self, weights: str) -> None:
        super().__init__()
        backbone, separator, heads = weights.partition(",")
        self.network: nn.Module = (
            Lpips.load(backbone, heads, "vgg") if separator else load_encoder(weights, device="cpu")
        )
        self.network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Perceptual:
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, decoded: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mean distance, and the mean squared difference of the Gram matrices of the features.

        Args:
            decoded, target: [B,T,3,H,W] in about -1..1.
        """
        self.network.to(target.device)
        pair = [(x + 1) / 2 for x in (decoded.clamp(-1, 1), target)]
        if isinstance(self.network, Lpips):
            images = [x.flatten(0, 1) for x in pair]
            stages = [self.network.stages(x) for x in images]
            grams = [
                (gram(a.flatten(2).mT) - gram(b.flatten(2).mT)).square().mean() for a, b in zip(*stages, strict=True)
            ]
            return self.network.distance(*stages).mean(), torch.stack(grams).sum()
        a, b = (self._features(x) for x in pair)
        return 1 - F.cosine_similarity(a, b, dim=-1).mean(), (gram(a) - gram(b)).square().mean()

    def _features(self, frames: Tensor) -> Tensor:
        """The features [B*T,N,C] of frames in 0..1."""
        assert isinstance(self.network, Encoder)
        tokens, _ = self.network(frames)
        return tokens.features.unflatten(1, (frames.shape[1], -1)).flatten(0, 1).float()


def gram(features: Tensor) -> Tensor:
    """The Gram matrix of channels of features [n,N,C], divided by N: [n,C,C] (AToken, arXiv 2509.14476)."""
    return features.transpose(1, 2) @ features / features.shape[1]


class Discriminator(nn.Module):
    """A PatchGAN on single frames (arXiv 1611.07004), with hinge loss, LeCAM and an adaptive weight.

    The norms are per sample, so that no running statistics enter. LeCAM (arXiv 2104.03310) pulls the outputs on real
    and decoded frames toward moving means of each other.

    Args:
        width: channels of the first layer; published tokenizers use 64.
        depth: number of strided layers.
    """

    mean_real: Tensor
    mean_decoded: Tensor

    def __init__(self, width: int = 64, *, depth: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        channels = width
        for index in range(1, depth + 1):
            out = width * min(2**index, 8)
            layers += [
                nn.Conv2d(channels, out, 4, stride=2 if index < depth else 1, padding=1, bias=False),
                nn.GroupNorm(1, out),
                nn.LeakyReLU(0.2),
            ]
            channels = out
        layers.append(nn.Conv2d(channels, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        self.register_buffer("mean_real", torch.zeros(()))
        self.register_buffer("mean_decoded", torch.zeros(()))

    def forward(self, frames: Tensor) -> Tensor:
        """Maps frames [B,T,3,H,W] in -1..1 to one value per overlapping patch; high for real ones."""
        logits: Tensor = self.layers(frames.flatten(0, 1))
        return logits

    def generator_loss(self, decoded: Tensor) -> Tensor:
        """The non-saturating loss of the decoder; the discriminator gets no gradient from it."""
        frozen = {name: value.detach() for name, value in self.named_parameters()}
        return F.softplus(-functional_call(self, frozen, (decoded,))).mean()

    def own_loss(self, decoded: Tensor, target: Tensor, lecam: float = 0.0, decay: float = 0.999) -> Tensor:
        """The hinge loss of the discriminator, with LeCAM of weight `lecam`; the decoder gets no gradient from it."""
        real, fake = self(target), self(decoded.detach())
        loss = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
        with torch.no_grad():
            self.mean_real.lerp_(real.mean().to(self.mean_real), 1 - decay)
            self.mean_decoded.lerp_(fake.mean().to(self.mean_decoded), 1 - decay)
        pull = F.relu(real - self.mean_decoded).square().mean() + F.relu(self.mean_real - fake).square().mean()
        return loss + lecam * pull


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: Tensor, limit: float = 1e4) -> Tensor:
    """The weight that gives both losses equal gradients at the last layer of the decoder (VQGAN, arXiv 2012.09841).

    Args:
        reconstruction, adversarial: scalar losses that depend on `last`.
        last: the weight of the last layer.
        limit: maximum.
    """
    a, b = (_gradient_norm(loss, last) for loss in (reconstruction, adversarial))
    return (a / (b + 1e-4)).clamp(max=limit).detach()


def _gradient_norm(loss: Tensor, last: Tensor) -> Tensor:
    """In float16, gradients of a mean over all pixels are below the smallest number, and scaled ones may overflow."""
    norm = torch.full((), torch.inf)
    for scale in (2.0**16, 2.0**8, 1.0):
        (gradient,) = torch.autograd.grad(scale * loss, last, retain_graph=True)
        norm = gradient.float().norm() / scale
        if norm.isfinite():
            break
    return norm
