"""Scripts as pictures: places with moving shapes, rendered part by part, and the mean features of each place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.shapes import shape_repr
from fewtokens.data.scenes import COLORS, SHAPES, Actor, Background, render
from fewtokens.evaluation.longvideo.script import Script

# A camera that moves goes from one end of the place to the other in this many seconds, then back.
SWEEP = 16
# Looks of a place: a shape and a color.
LOOKS = len(SHAPES) * len(COLORS)
# Visits from which the features of a place are averaged; no script has them.
_EXAMPLES = 2**31
# Share of an isotropic covariance in that of `Prototypes`.
SHRINKAGE = 0.1


@dataclass(frozen=True)
class Pictures:
    """A script at 1 frame per second as frames, generated when they are read.

    A code is a place: a texture and two shapes. Every visit differs: where the shapes are and how they move, whether
    the camera is still or moves, and two smaller shapes of any look, the distractors. Visits begin and end with cuts; a
    needle is a single frame of a place that is not shown otherwise.

    Attributes:
        script: what happens; at most 48 codes.
        size: side of a frame in pixels, at least 32.
    """

    script: Script
    size: int = 56

    def __post_init__(self) -> None:
        if len(self.script.codes) > LOOKS:
            raise ValueError(f"pictures have up to {LOOKS} codes, got {len(self.script.codes)}")

    def frames(self, start: int, stop: int) -> Tensor:
        """Returns the frames of the seconds start..stop-1, uint8 [stop-start,3,size,size]; the same for any parts."""
        script, parts = self.script, []
        first = int(torch.searchsorted(script.starts, start, right=True)) - 1
        for visit in range(first, len(script.starts)):
            begin, end = int(script.starts[visit]), int(script.ends[visit])
            if begin >= stop:
                break
            low, high = max(start, begin) - begin, min(stop, end) - begin
            parts.append(visit_frames(int(script.scenes[visit]), (script.seed, visit), low, high, self.size))
        frames = torch.cat(parts)
        for index, needle in enumerate(script.needles.tolist()):
            if start <= needle < stop:
                code = script.num_scenes + index
                frames[needle - start] = visit_frames(code, (script.seed, _EXAMPLES + index), 0, 1, self.size)[0]
        return frames


def visit_frames(code: int, seed: tuple[int, int], start: int, stop: int, size: int) -> Tensor:
    """Returns the seconds start..stop-1 of a visit, uint8 [stop-start,3,size,size].

    Args:
        code: the place.
        seed: random seed of the visit.
        start, stop: seconds from the beginning of the visit.
        size: side of a frame in pixels.
    """
    place, visit = np.random.default_rng([code]), np.random.default_rng(seed)
    second = int(place.integers(1, LOOKS))
    texture = int(place.integers(1 << 30))
    looks = [(code, 0.42), ((code + second) % LOOKS, 0.3)]
    looks = [(int(visit.integers(LOOKS)), float(visit.uniform(0.14, 0.2))) for _ in range(2)] + looks[::-1]
    phase, speed = visit.random((len(looks), 2)), visit.uniform(-0.06, 0.06, (len(looks), 2))
    pan = visit.uniform(-0.35, 0.35, 2) * float(visit.integers(2))
    parts = []
    for sweep in range(start // SWEEP, (stop - 1) // SWEEP + 1):
        seconds = np.arange(sweep * SWEEP, (sweep + 1) * SWEEP)
        actors = []
        for n, (look, side) in enumerate(looks):
            # Back and forth between the borders of the frame.
            wave = np.abs((phase[n] + seconds[:, None] * speed[n]) % 2 - 1)
            path = side / 2 + wave * (1 - side)
            name, color = SHAPES[look // len(COLORS)], list(COLORS)[look % len(COLORS)]
            actors.append(Actor(name, color, side, path, np.ones(SWEEP, bool)))
        drift = pan * (-1) ** sweep
        background = Background("texture", (float(drift[0]), float(drift[1])), texture)
        frames = render(actors, background, SWEEP, size, "test")
        parts.append(frames[max(start - sweep * SWEEP, 0) : stop - sweep * SWEEP])
    return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class Prototypes:
    """What each place looks like to an encoder, in a space in which visits to the same place differ little.

    Attributes:
        codes: float32 [n,C] of length 1, one for each place.
        mean: [C], the mean over places.
        whitening: [C,C], the inverse root of the covariance of frames of the same place (linear discriminant analysis).
    """

    codes: Tensor
    mean: Tensor
    whitening: Tensor

    __repr__ = shape_repr

    @staticmethod
    def fit(encode: Callable[[Tensor], Tensor], codes: int, size: int = 56, visits: int = 12) -> Prototypes:
        """Learns from visits that occur in no script, two frames of each.

        Args:
            encode: maps frames uint8 [n,3,size,size] to one vector each, float32 [n,C].
            codes: number of places.
            size: side of a frame in pixels.
            visits: number of visits to each.
        """
        seeds = [(_EXAMPLES, visit) for visit in range(visits)]
        shown = [
            torch.cat([visit_frames(code, seed, 0, SWEEP, size)[:: SWEEP // 2] for seed in seeds])
            for code in range(codes)
        ]
        features = torch.stack([encode(frames).float() for frames in shown])
        place = features.mean(1)
        mean = place.mean(0)
        within = (features - place[:, None]).flatten(0, 1)
        covariance = within.T @ within / len(within)
        # Fewer frames than channels do not determine it.
        isotropic = covariance.trace() / len(covariance) * torch.eye(len(covariance))
        values, vectors = torch.linalg.eigh(torch.lerp(covariance, isotropic, SHRINKAGE))
        whitening = vectors * values.rsqrt() @ vectors.T
        return Prototypes(F.normalize((place - mean) @ whitening, dim=1), mean, whitening)

    def project(self, features: Tensor) -> Tensor:
        """Maps mean tokens [n,C] to the space of `codes`; linear but for a shift, so that averages stay averages."""
        return (features - self.mean) @ self.whitening

    def script(self, script: Script) -> Script:
        """Returns a script with these codes, for the questions."""
        return replace(script, codes=self.codes[: len(script.codes)])
