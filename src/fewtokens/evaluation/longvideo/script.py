"""Videos of hours as scripts: scenes with codes, and a few frames that occur once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import Tokens

# Noise is generated in blocks of this many frames, each from a seed, so that any part of a video can be generated.
BLOCK = 1000


@dataclass(frozen=True, eq=False)
class Script:
    """What happens in a video at 1 frame per second.

    Attributes:
        starts: int64 [n], the second at which each scene begins; the first is 0.
        scenes: int64 [n], the code of each scene; neighbors differ.
        needles: int64 [k], seconds of frames that occur once; needle i has the code `num_scenes + i`.
        codes: float32 [num_scenes+k,C] of length 1.
        seconds: length of the video.
        noise: norm of the noise of a frame, relative to its code.
        seed: seed of the noise.
    """

    starts: Tensor
    scenes: Tensor
    needles: Tensor
    codes: Tensor
    seconds: int
    noise: float
    seed: int

    __repr__ = shape_repr

    @property
    def num_scenes(self) -> int:
        """The number of codes of scenes."""
        return len(self.codes) - len(self.needles)

    @property
    def ends(self) -> Tensor:
        """The second after the last one of each scene, int64 [n]."""
        return F.pad(self.starts[1:], (0, 1), value=self.seconds)

    @staticmethod
    def sample(
        seconds: int,
        *,
        seed: int = 0,
        num_scenes: int = 32,
        num_needles: int = 8,
        mean: float = 90,
        shortest: float = 5,
        noise: float = 0.6,
        dim: int = 64,
    ) -> Script:
        """Samples a script.

        Args:
            seconds: length of the video, at least 1.
            seed: random seed.
            num_scenes: number of codes of scenes.
            num_needles: number of frames that occur once.
            mean, shortest: scenes last `shortest` seconds and longer, `mean` on average, with an exponential tail.
            noise: norm of the noise of a frame.
            dim: number C of channels.
        """
        generator = torch.Generator().manual_seed(seed)
        count = int(seconds / shortest) + 1
        lengths = shortest - (mean - shortest) * torch.rand(count, generator=generator).clamp(min=1e-12).log()
        ends = lengths.round().long().cumsum(0)
        count = int((ends < seconds).sum()) + 1
        # A step of at least 1 through the codes never repeats the last one.
        steps = torch.randint(1, num_scenes, (count,), generator=generator)
        codes = F.normalize(torch.randn(num_scenes + num_needles, dim, generator=generator), dim=1)
        needles = torch.randperm(seconds, generator=generator)[:num_needles].sort().values
        return Script(
            F.pad(ends[: count - 1], (1, 0)), steps.cumsum(0) % num_scenes, needles, codes, seconds, noise, seed
        )

    def code(self, seconds: Tensor) -> Tensor:
        """Returns the code of the scene at each second, int64; a needle does not change it."""
        return self.scenes[torch.searchsorted(self.starts, seconds, right=True) - 1]

    def until(self, seconds: int) -> Script:
        """Returns the script of the first seconds, for questions in the middle of a video; noise is the same."""
        kept = int((self.needles < seconds).sum())
        count = int((self.starts < seconds).sum())
        return replace(
            self,
            starts=self.starts[:count],
            scenes=self.scenes[:count],
            needles=self.needles[:kept],
            codes=self.codes[: self.num_scenes + kept],
            seconds=seconds,
        )

    def shown(self, start: int, stop: int) -> Tensor:
        """Returns the code of each frame of the seconds start..stop-1, int64, that of a needle included."""
        code = self.code(torch.arange(start, stop))
        for index, needle in enumerate(self.needles.tolist()):
            if start <= needle < stop:
                code[needle - start] = self.num_scenes + index
        return code

    def frames(self, start: int, stop: int) -> Tensor:
        """Returns the frames of the seconds start..stop-1, float32 [stop-start,C]; the same for any parts."""
        parts = []
        for block in range(start // BLOCK, (stop - 1) // BLOCK + 1):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + block)
            noise = torch.randn(BLOCK, self.codes.shape[1], generator=generator)
            parts.append(noise[max(start - block * BLOCK, 0) : stop - block * BLOCK])
        return self.codes[self.shown(start, stop)] + torch.cat(parts) * (self.noise / self.codes.shape[1] ** 0.5)


def stream(scripts: list[Script], chunk: int = BLOCK) -> Iterator[Tokens]:
    """Yields videos of the same length as a batch, chunk by chunk, with one token per frame."""
    for start in range(0, scripts[0].seconds, chunk):
        stop = min(start + chunk, scripts[0].seconds)
        features = torch.stack([script.frames(start, stop) for script in scripts])
        yield Tokens.from_cells(features, Grid(stop - start, 1, 1, torch.arange(start, stop)))
