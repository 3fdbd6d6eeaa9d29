"""A causal U-Net that samples frames by diffusion, with the latents as maps of its levels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.blocks.causal_conv import Cache, check_counts
from fewtokens.tokenizers.blocks.causal_unet import STRIDE, Maps, Unet
from fewtokens.tokenizers.blocks.flow import Diffusion, VariancePreserving, seeded_noise
from fewtokens.tokenizers.parts import Decoder

State = tuple[int, Cache, list[Cache]]


class CausalUnet(Decoder):
    """Samples frames by a U-Net of causal convolutions, which predicts the clean frames from noised ones.

    The decoder of CDT (arXiv 2503.03708): a context network turns the latents into maps of four sizes, which the first
    levels of the U-Net read by concatenation. The path is the cosine schedule with 8,192 levels. With one step, the
    default, it is D(0.8 e, z) for the U-Net D at the highest level and noise e. In chunks, each convolution keeps its
    last frames for each sampling step.

    Differs: only the last convolution is zero at the start, so that an untrained network predicts 0; the published code
    creates all of them zero, which has no gradient.

    Args:
        dim: channels of a token.
        width: channels of the first level of the U-Net; the others have 2 to 6 times as many.
        context: channels of the first level of the context network; the others have 2, 3 and 4 times as many.
        steps: sampling steps.
        noise: standard deviation of the initial noise.
    """

    stride = STRIDE
    first_frame = True
    causal = True
    deterministic = False

    def __init__(
        self, dim: int = 16, *, width: int = 64, context: int = 128, steps: int = 1, noise: float = 0.8
    ) -> None:
        super().__init__()
        check_counts(dim=dim, width=width, context=context, steps=steps)
        if noise < 0:
            raise ValueError(f"noise must be at least 0, got {noise}")
        self.dim, self.width, self.context, self.steps, self.noise = dim, width, context, steps, noise
        self.diffusion = Diffusion(VariancePreserving.cosine(), "x")
        self.maps = Maps(dim, context)
        self.unet = Unet(width, Maps.dims(context))

    def denoise(self, tokens: Tokens, z: Tensor, s: Tensor) -> Tensor:
        """Predicts frames [B,T,3,H,W] from noised ones at levels [B]."""
        maps = self.maps(tokens.unmerge().movedim(-1, 1))
        return self.unet(z.transpose(1, 2), s, maps).transpose(1, 2)

    def denoise_random(self, tokens: Tokens, frames: Tensor) -> Tensor:
        """Predicts frames from themselves with noise of a random level per video, as in training."""
        s = self.diffusion.random_levels(frames.shape[:1], frames.device)
        return self.denoise(tokens, self.diffusion.noised(frames, torch.randn_like(frames), s), s)

    def losses(self, tokens: Tokens, frames: Tensor) -> dict[str, Tensor]:
        return {"diffusion": (self.denoise_random(tokens, frames) - frames).square().mean()}

    def forward(self, tokens: Tokens, *, seed: int = 0, steps: int | None = None) -> Tensor:
        """Samples frames.

        Args:
            tokens: the tokens.
            seed: random seed of the noise, which is the same for each video of the batch.
            steps: sampling steps. Default: those of the constructor.
        """
        return self._sample(tokens, seed, self.steps if steps is None else steps)[0]

    def step(self, tokens: Tokens, state: State | None = None) -> tuple[Tensor, Any]:
        """Samples the next frames, with seed 0."""
        return self._sample(tokens, 0, self.steps, state or (0, {}, [{} for _ in range(self.steps)]))

    def _sample(self, tokens: Tokens, seed: int, steps: int, state: State | None = None) -> tuple[Tensor, State | None]:
        latents = tokens.unmerge().movedim(-1, 1)
        start, cache, caches = (0, None, []) if state is None else (state[0], dict(state[1]), list(map(dict, state[2])))
        maps = self.maps(latents, cache)
        frames, height, width = maps[0].shape[2:]
        shape = (frames, 3, height, width)
        noise = self.noise * seeded_noise(shape, seed, start=start * math.prod(shape[1:]), device=latents.device)
        remaining = iter(caches)

        def network(z: Tensor, s: Tensor) -> Tensor:
            return self.unet(z, s, maps, next(remaining, None))

        z = self.diffusion.sample(network, noise.to(latents).transpose(0, 1).expand(tokens.B, -1, -1, -1, -1), steps)
        return z.transpose(1, 2), None if cache is None else (start + frames, cache, caches)
