"""Diffusion and flow: paths from data to noise, what a network predicts, time sampling, sampling and guidance.

One convention: `s` is the noise level, 0 for data x and 1 for noise e, and a noised sample is z = a(s) x + b(s) e.

    diffusion = Diffusion(RectifiedFlow(), "v")
    loss = diffusion.loss(network, x, sigmoid_normal(len(x)))        # network(z, s) predicts v
    x = diffusion.sample(network, seeded_noise(x.shape, seed=0), steps=25)

Levels have any shape that is a prefix of that of the data, such as one per sample, [B], or one per frame, [B,T].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.methods.ops.seeded import uniform_hash

Target = Literal["v", "x", "eps"]
Network = Callable[[Tensor, Tensor], Tensor]


class Path(ABC):
    """A path from data to noise."""

    @abstractmethod
    def coefficients(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Returns a(s) and b(s), the shares of data and noise, in the dtype of s."""

    @abstractmethod
    def rates(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the shares of data and noise in the velocity v; with those of z they have determinant 1."""

    @abstractmethod
    def levels(self, steps: int) -> list[float]:
        """Returns the levels at which a sampler with this number of steps evaluates the network, falling from noise."""


class RectifiedFlow(Path):
    """The straight line z = (1 - s) x + s e with velocity v = e - x (arXiv 2209.03003).

    A sampler evaluates the levels N/N, ..., 1/N. The scheduler of diffusers has other levels by default, which end at
    0.001.
    """

    def coefficients(self, s: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - s, s

    def rates(self, s: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(s), torch.ones_like(s)

    def levels(self, steps: int) -> list[float]:
        return [step / steps for step in range(steps, 0, -1)]


class VariancePreserving(Path):
    """The path of DDPM: a^2 + b^2 = 1 over K discrete levels; v = a e - b x (arXiv 2202.00512).

    The level of index t in 0..K-1 is s = t / K, so the lowest level has a little noise and the highest a little data. A
    sampler with N steps evaluates N indices that are equally spaced from K-1 to 0, or K-1 if N is 1, and ends in the
    data.

    Args:
        signal: a^2 of each index, float64 [K], in (0, 1) and falling.
    """

    def __init__(self, signal: Tensor) -> None:
        self.signal = signal

    @classmethod
    def cosine(cls, count: int = 8192, *, offset: float = 0.008) -> VariancePreserving:
        """The cosine schedule (arXiv 2102.09672) with `count` levels; no step has a variance above 0.999."""
        t = torch.arange(count + 1, dtype=torch.float64, device="cpu") / count
        share = ((t + offset) / (1 + offset) * math.pi / 2).cos() ** 2
        return cls((share[1:] / share[:-1]).clamp(min=1e-3).cumprod(0))

    @classmethod
    def linear(cls, count: int = 1000) -> VariancePreserving:
        """The schedule of DDPM (arXiv 2006.11239): variances of steps from 1e-4 to 0.02, times 1000 / count."""
        scale = 1000 / count
        variances = torch.linspace(1e-4 * scale, 0.02 * scale, count, dtype=torch.float64, device="cpu")
        return cls((1 - variances).cumprod(0))

    def coefficients(self, s: Tensor) -> tuple[Tensor, Tensor]:
        count = len(self.signal)
        index = (s * count).round().long().clamp(0, count - 1)
        signal = self.signal.to(s.device)[index]
        return signal.sqrt().to(s.dtype), (1 - signal).sqrt().to(s.dtype)

    def rates(self, s: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.coefficients(s)
        return -b, a

    def levels(self, steps: int) -> list[float]:
        count = len(self.signal)
        if steps > count:
            raise ValueError(f"the path has {count} levels, got {steps} steps")
        return [(count - 1 if steps == 1 else (count - 1) * i // (steps - 1)) / count for i in range(steps)][::-1]


PATHS: dict[str, Callable[[], Path]] = {
    "flow": RectifiedFlow,
    "cosine": VariancePreserving.cosine,
    "linear": VariancePreserving.linear,
}


@dataclass(frozen=True)
class Diffusion:
    """A path and what a network predicts on it.

    Attributes:
        path: the path.
        target: "v", the velocity; "x", the data; or "eps", the noise.
    """

    path: Path
    target: Target = "v"

    @staticmethod
    def from_names(path: str, target: str) -> Diffusion:
        """Builds it from the name of a path, a key of `PATHS`, and of a target.

        Raises:
            ValueError: there is no path or target of this name.
        """
        if path not in PATHS:
            raise ValueError(f"path must be one of {', '.join(PATHS)}, got {path!r}")
        if target not in get_args(Target):
            raise ValueError(f"target must be one of {', '.join(get_args(Target))}, got {target!r}")
        return Diffusion(PATHS[path](), target)  # type: ignore[arg-type]

    def noised(self, x: Tensor, noise: Tensor, s: Tensor) -> Tensor:
        """Returns z = a x + b e at the levels s."""
        a, b = self.path.coefficients(expand(s, x))
        return a * x + b * noise

    def targets(self, x: Tensor, noise: Tensor, s: Tensor) -> Tensor:
        """Returns what the network should predict at the levels s."""
        if self.target == "x":
            return x
        if self.target == "eps":
            return noise
        da, db = self.path.rates(expand(s, x))
        return da * x + db * noise

    def split(self, z: Tensor, prediction: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the estimates of data and noise that a prediction means."""
        level = expand(s, z)
        a, b = self.path.coefficients(level)
        if self.target == "x":
            return prediction, (z - a * prediction) / b
        if self.target == "eps":
            return (z - b * prediction) / a, prediction
        da, db = self.path.rates(level)
        return db * z - b * prediction, a * prediction - da * z

    def step(self, z: Tensor, prediction: Tensor, s: Tensor, lower: Tensor | None) -> Tensor:
        """Moves z from the levels s to lower ones without new noise; None for the data.

        This is the step of DDIM with eta 0 (arXiv 2010.02502); on the rectified flow it is the Euler step
        z - (s - lower) v. Computed in float32 at least.
        """
        dtype = torch.promote_types(z.dtype, torch.float32)
        x, noise = self.split(z.to(dtype), prediction.to(dtype), s.to(dtype))
        return x if lower is None else self.noised(x, noise, lower.to(dtype))

    def loss(self, network: Network, x: Tensor, s: Tensor, noise: Tensor | None = None) -> Tensor:
        """The mean squared error of a network's prediction.

        Args:
            network: maps z and s to a prediction of the shape of z.
            x: the data.
            s: levels, of a shape that is a prefix of that of x.
            noise: of the shape of x; sampled by default.
        """
        noise = torch.randn_like(x) if noise is None else noise
        prediction = network(self.noised(x, noise, s).to(x.dtype), s)
        return (prediction.float() - self.targets(x, noise, s).float()).square().mean()

    def sample(self, network: Network, noise: Tensor, steps: int) -> Tensor:
        """Samples data from noise with a fixed number of steps.

        Args:
            network: maps z and the levels [B] to a prediction of the shape of z.
            noise: [B,...], z at the highest level.
            steps: number of evaluations, at least 1.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        levels = self.path.levels(steps)
        z = noise
        for level, lower in zip(levels, [*levels[1:], None], strict=True):
            s = torch.full((len(z),), level, device=z.device)
            below = None if lower is None else torch.full_like(s, lower)
            z = self.step(z, network(z, s), s, below).to(noise.dtype)
        return z

    def random_levels(self, shape: Sequence[int], device: torch.device | str | None = None) -> Tensor:
        """Samples the levels of a training step: `sigmoid_normal` on the rectified flow, else all equally.

        If the data are predicted, levels of the flow are uniform: `sigmoid_normal` is rarely near pure noise, the only
        level that a sampler with one step evaluates.
        """
        if isinstance(self.path, VariancePreserving):
            count = len(self.path.signal)
            return torch.randint(count, tuple(shape), device=device) / count
        if self.target == "x":
            return 1 - torch.rand(tuple(shape), device=device)
        return sigmoid_normal(*shape, device=device)


def expand(s: Tensor, x: Tensor) -> Tensor:
    """Appends axes to levels, so that they multiply data whose leading axes they have."""
    return s.reshape(s.shape + (1,) * (x.ndim - s.ndim))


def sigmoid_normal(*shape: int, stratified: bool = False, device: torch.device | str | None = None) -> Tensor:
    """Samples levels sigmoid(n) for a standard normal n (arXiv 2403.03206).

    Args:
        shape: shape of the result.
        stratified: whether to take each of n equal quantiles once, in random order, for less variance of the loss.
        device: device of the result.
    """
    if not stratified:
        return torch.randn(shape, device=device).sigmoid()
    count = math.prod(shape)
    quantile = (torch.randperm(count, device=device) + torch.rand(count, device=device, dtype=torch.float64)) / count
    return torch.special.ndtri(quantile.clamp(1e-12, 1 - 1e-12)).sigmoid().float().reshape(shape)


def seeded_noise(
    shape: Sequence[int], seed: int, *, start: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """Standard normal noise that depends only on the seed and the position, float32.

    Not on the batch, the device or the length: noise of the first rows is that of a shorter tensor, so that videos can
    be decoded in chunks.

    Args:
        shape: shape of the result.
        seed: random seed.
        start: position of the first value, for the noise of a later chunk.
        device: device of the result.
    """
    uniform = uniform_hash(seed, math.prod(shape), device, start=start).double()
    # The hash has 24 bits; the middle of each interval is never 0 or 1.
    return torch.special.ndtri(uniform + 2.0**-25).float().reshape(tuple(shape))


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598): u + scale (c - u), so 1 is the conditional prediction.

    Papers with c + g (c - u) or u + (1 + g) (c - u) count from 0: g = scale - 1.
    """
    return conditional if scale == 1 else unconditional + scale * (conditional - unconditional)


class ProjectedGuidance:
    """Adaptive projected guidance (arXiv 2410.02416): only the difference that is orthogonal to the prediction acts.

    The difference c - u has a (usually negative) momentum over the steps, and its norm is limited. Norms are of whole
    samples, in float64. An instance is for one call of a sampler.

    Args:
        scale: guidance scale; 1 is the conditional prediction.
        momentum: share of the sum of previous differences.
        limit: largest norm of a difference.
    """

    def __init__(self, scale: float, *, momentum: float = -0.5, limit: float = 2.5) -> None:
        self.scale, self.momentum, self.limit = scale, momentum, limit
        self.running: Tensor | float = 0.0

    def __call__(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """Guides the predictions [B,...] of a step."""
        c = conditional.double().flatten(1)
        self.running = c - unconditional.double().flatten(1) + self.momentum * self.running
        difference = self.running * (self.limit / self.running.norm(dim=1, keepdim=True).clamp(min=self.limit))
        unit = F.normalize(c, dim=1)
        orthogonal = difference - (difference * unit).sum(1, keepdim=True) * unit
        return conditional + ((self.scale - 1) * orthogonal).reshape(conditional.shape).to(conditional.dtype)
