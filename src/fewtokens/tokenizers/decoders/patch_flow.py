"""Patch-wise diffusion: each patch of pixels is sampled by an MLP that the features of its cell modulate."""

from __future__ import annotations

import math
from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn

from fewtokens.core.tokens import Tokens
from fewtokens.encoders.config import ViTConfig
from fewtokens.encoders.transformer import Block
from fewtokens.networks.masking import sincos_positions
from fewtokens.tokenizers.blocks.flow import Diffusion, seeded_noise
from fewtokens.tokenizers.blocks.modulation import LevelEmbedding, ModulatedMlp, ModulatedOutput, heads_of
from fewtokens.tokenizers.parts import Decoder


class PatchFlow(Decoder):
    """Widens the features of each cell, mixes the cells of a frame by transformer blocks, and samples its pixels.

    The decoder of UniFlow (arXiv 2510.10575); the sampling network is the diffusion head of MAR (arXiv 2406.11838), an
    MLP over the noised pixels of one tubelet. Without transformer blocks, tubelets are independent. Frames always are.
    An untrained network predicts 0.

    The loss is that of rectified flow with a level per tubelet. UniFlow counts levels from noise to data, which is the
    same path.

    Args:
        dim: channels of a token.
        stride: frames, rows and columns of a tubelet.
        width: channels of the blocks and of the MLP; a multiple of 64, the channels of an attention head, or less.
        depth: residual blocks of the MLP.
        blocks: transformer blocks before it.
        target: what the network predicts: "v" as in UniFlow, "eps", or "x", which is far better with few steps if the
            tokens determine the pixels.
        steps: sampling steps. UniFlow decodes with 1.
    """

    deterministic = False
    causal = True

    def __init__(
        self,
        dim: int = 64,
        *,
        stride: Sequence[int] = (1, 14, 14),
        width: int = 1024,
        depth: int = 12,
        blocks: int = 6,
        target: str = "v",
        steps: int = 1,
    ) -> None:
        super().__init__()
        if len(stride) != 3 or min(stride) < 1:
            raise ValueError(f"stride must be three counts, got {tuple(stride)}")
        if min(dim, width, depth, steps) < 1 or blocks < 0 or width % 4:
            raise ValueError(
                f"dim, width, depth and steps must be at least 1, width a multiple of 4 and blocks at least 0, got "
                f"{dim}, {width}, {depth}, {steps} and {blocks}"
            )
        self.dim, self.stride = dim, (stride[0], stride[1], stride[2])
        self.width, self.depth, self.blocks, self.target, self.steps = width, depth, blocks, target, steps
        self.diffusion = Diffusion.from_names("flow", target)
        pixels = 3 * math.prod(stride)
        self.widen = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))
        config = ViTConfig(dim=width, num_heads=heads_of(width))
        self.mixing = nn.ModuleList(Block(config) for _ in range(blocks))
        self.condition = nn.Linear(width, width)
        self.level = LevelEmbedding(width)
        self.embed = nn.Linear(pixels, width)
        self.layers = nn.ModuleList(ModulatedMlp(width) for _ in range(depth))
        self.output = ModulatedOutput(width, pixels)

    def conditions(self, tokens: Tokens) -> Tensor:
        """Returns the conditions of all cells, [B,T,H*W,width]."""
        cells = self.widen(tokens.unmerge())
        B, T, H, W, _ = cells.shape
        positions = sincos_positions(H, W, self.width).flatten(0, 1).to(cells)
        x = cells.reshape(B * T, H * W, -1) + positions
        for block in self.mixing:
            x = block(x)
        conditions: Tensor = self.condition(x + positions)
        return conditions.unflatten(0, (B, T))

    def predict(self, z: Tensor, s: Tensor, conditions: Tensor) -> Tensor:
        """Predicts the target of noised tubelets [B,T,H*W,pixels] at levels [B,T,H*W]."""
        y = self.level(s) + conditions
        x = self.embed(z)
        for layer in self.layers:
            x = layer(x, y)
        predicted: Tensor = self.output(x, y)
        return predicted

    def losses(self, tokens: Tokens, frames: Tensor) -> dict[str, Tensor]:
        conditions = self.conditions(tokens)
        t, h, w = self.stride
        x = rearrange(frames, "b (t p) c (h q) (w r) -> b t (h w) (p q r c)", p=t, q=h, r=w).to(conditions.dtype)
        s = self.diffusion.random_levels(x.shape[:-1], x.device)
        return {"diffusion": self.diffusion.loss(lambda z, s: self.predict(z, s, conditions), x, s)}

    def forward(self, tokens: Tokens, *, seed: int = 0, steps: int | None = None) -> Tensor:
        """Samples frames.

        Args:
            tokens: the tokens.
            seed: random seed of the noise, which is the same for each video of the batch.
            steps: sampling steps. Default: those of the constructor.
        """
        return self._sample(tokens, seed, self.steps if steps is None else steps, start=0)

    def step(self, tokens: Tokens, state: int | None = None) -> tuple[Tensor, int]:
        """Samples the next frames, with seed 0; the state is the number of earlier rows of cells."""
        start = state or 0
        return self._sample(tokens, 0, self.steps, start), start + tokens.grid.T

    def _sample(self, tokens: Tokens, seed: int, steps: int, start: int) -> Tensor:
        conditions = self.conditions(tokens)
        T, H, W = tokens.grid.shape
        t, h, w = self.stride
        shape = (T, H * W, 3 * t * h * w)
        noise = seeded_noise(shape, seed, start=start * math.prod(shape[1:]), device=tokens.device)
        z = self.diffusion.sample(
            lambda z, s: self.predict(z, s[:, None, None].expand(z.shape[:-1]), conditions),
            noise.to(conditions.dtype).expand(tokens.B, -1, -1, -1),
            steps,
        )
        return rearrange(z, "b t (h w) (p q r c) -> b (t p) c (h q) (w r)", h=H, p=t, q=h, r=w)
