"""A diffusion transformer that reads tokens as additional items of its sequence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fewtokens.core.tokens import Tokens
from fewtokens.networks.masking import sincos_positions
from fewtokens.tokenizers.blocks.autoencoder import Half
from fewtokens.tokenizers.blocks.flow import Diffusion, ProjectedGuidance, guide, seeded_noise
from fewtokens.tokenizers.blocks.modulation import LevelEmbedding, ModulatedBlock, ModulatedOutput, heads_of
from fewtokens.tokenizers.blocks.repa import Repa
from fewtokens.tokenizers.parts import Decoder

# Path and target of an objective.
OBJECTIVES = {"flow": ("flow", "v"), "x": ("flow", "x"), "ddpm": ("linear", "eps")}


class Dit(Decoder):
    """Samples all patches of a clip by a transformer over noised patches and tokens, modulated by the noise level.

    The decoder of Semanticist (arXiv 2503.08685) and FlexTok (2502.13967), with the blocks of DiT (2212.09748). The
    patches are of pixels, or of the latents of a frozen autoencoder. Tokens are ordered slots: a slot without a token,
    such as after `tail_drop`, has a learned null vector, and in training all slots of a video have it with a
    probability of 0.1, for guidance. An untrained network predicts 0.

    Differs from both: fixed sine-cosine positions of slots and of patches in time, row and column; the noise level
    modulates slots and patches by the same layers (separate ones in FlexTok); Semanticist drops all slots only before
    nested dropout begins, and predicts variances too.

    Args:
        dim: channels of a token.
        stride: frames, rows and columns of a cell of the encoder, from which the size of the clip follows.
        size: channels and number of blocks. A head has 64 channels.
        slots: largest number of tokens.
        patch: rows and columns of pixels, or of latents, of a patch.
        network: autoencoder whose latents are sampled, see the encoder `latents`; "dct" is one without weights. None
            for pixels.
        objective: "flow", the velocity of rectified flow; "x", the data on the same path; or "ddpm", the noise on the
            path of DDPM with 1,000 levels.
        steps: sampling steps.

    Attributes:
        guidance: scale of classifier-free guidance in `forward`; 1 is none. Default: 1.
        alignment: a training loss that compares features of patches after a third of the blocks with those of a
            teacher, see `align`; None for none.
    """

    full_grid = False
    deterministic = False

    def __init__(
        self,
        dim: int = 16,
        *,
        stride: Sequence[int] = (1, 16, 16),
        size: Sequence[int] = (1024, 24),
        slots: int = 256,
        patch: int = 2,
        network: str | None = None,
        objective: str = "flow",
        steps: int = 25,
    ) -> None:
        super().__init__()
        if len(stride) != 3 or min(stride) < 1:
            raise ValueError(f"stride must be three counts, got {tuple(stride)}")
        if len(size) != 2 or min(*size, dim, slots, patch, steps) < 1 or size[0] % 4:
            raise ValueError(
                f"size must be channels, a multiple of 4, and a number of blocks; dim, slots, patch and steps at least "
                f"1; got {tuple(size)}, {dim}, {slots}, {patch} and {steps}"
            )
        if objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}")
        self.dim, self.stride, self.size = dim, (stride[0], stride[1], stride[2]), tuple(size)
        self.slots, self.patch, self.network = slots, patch, network
        self.objective, self.steps, self.guidance = objective, steps, 1.0
        self.diffusion = Diffusion.from_names(*OBJECTIVES[objective])
        self.alignment: Repa | None = None
        encoder, decoder = (None, None) if network is None else (Half(network, part) for part in ("encoder", "decoder"))
        self.encoder, self.decoder = encoder, decoder
        self.first_frame = encoder is not None and encoder.first_frame
        cell = (1, 1, 1) if encoder is None else encoder.stride
        if stride[0] % cell[0]:
            raise ValueError(f"stride must be a multiple of {cell[0]} frames, those of a latent, got {tuple(stride)}")
        # Rows and columns of pixels of a patch.
        self.unit = cell[1] * patch, cell[2] * patch
        width, depth = size
        items = (3 if encoder is None else encoder.channels) * patch * patch
        self.null = nn.Parameter(0.02 * torch.randn(slots, dim))
        self.embed_slots, self.embed, self.level = nn.Linear(dim, width), nn.Linear(items, width), LevelEmbedding(width)
        self.blocks = nn.ModuleList(ModulatedBlock(width, heads_of(width)) for _ in range(depth))
        self.output = ModulatedOutput(width, items)

    def align(self, network: str) -> None:
        """Adds the loss `Repa` with a teacher that is not trained.

        Args:
            network: the teacher, see the encoder `frozen`. If pixels or "dct" are sampled, which need no weights, the
                teacher is a small random network instead.
        """
        if self.network in (None, "dct"):
            self.alignment = Repa(self.size[0], "random", hidden=64, cell=8)
        else:
            self.alignment = Repa(self.size[0], network)

    def conditions(self, tokens: Tokens) -> Tensor:
        """Returns the tokens in their slots, [B,slots,dim].

        Raises:
            ValueError: there are more tokens than slots.
        """
        if self.slots < tokens.N:
            raise ValueError(f"dit has {self.slots} slots, got {tokens.N} tokens")
        features, missing = tokens.features.to(self.null.dtype), self.slots - tokens.N
        filled = F.pad(tokens.mask, (0, missing))[..., None]
        return torch.where(filled, F.pad(features, (0, 0, 0, missing)), self.null)

    def predict(self, z: Tensor, s: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts the target of noised patches [B,T,H,W,items] at levels [B].

        Returns:
            The prediction, and the features of patches after a third of the blocks, [B,T,H,W,C].
        """
        T, H, W = z.shape[1:4]
        width = self.size[0]
        places = sincos_positions(H, W, width).flatten(0, 1).to(z)
        times, order = (sincos_positions(n, 1, width).flatten(0, 1).to(z) for n in (T, self.slots))
        # Slots and, but for images, times are counted on the axis of rows.
        x = self.embed(z.flatten(2, 3)) + places + (times[:, None] if T > 1 else 0)
        x = torch.cat([x.flatten(1, 2), self.embed_slots(slots) + order], 1)
        y, hidden = self.level(s)[:, None], x
        for number, block in enumerate(self.blocks, 1):
            x = block(x, y)
            if number == max(1, len(self.blocks) // 3):
                hidden = x
        x, hidden = (part[:, : T * H * W].unflatten(1, (T, H, W)) for part in (x, hidden))
        return self.output(x, y[:, None, None]), hidden

    def losses(self, tokens: Tokens, frames: Tensor) -> dict[str, Tensor]:
        slots = self.conditions(tokens)
        if self.training:
            dropped = torch.rand(len(slots), 1, 1, device=slots.device) < 0.1
            slots = torch.where(dropped, self.null, slots)
        x = self._to_patches(frames).to(slots.dtype)
        s = self.diffusion.random_levels(x.shape[:1], x.device)
        hidden = x

        def network(z: Tensor, s: Tensor) -> Tensor:
            nonlocal hidden
            prediction, hidden = self.predict(z, s, slots)
            return prediction

        losses = {"diffusion": self.diffusion.loss(network, x, s)}
        if self.alignment is not None:
            losses["alignment"] = self.alignment(hidden, frames)
        return losses

    def forward(
        self,
        tokens: Tokens,
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        projected: bool = False,
    ) -> Tensor:
        """Samples frames.

        Args:
            tokens: the tokens.
            seed: random seed of the noise, which is the same for each video of the batch.
            steps: sampling steps. Default: those of the constructor.
            guidance: scale of guidance; 1 for none. Default: the attribute.
            projected: adaptive projected guidance, as in FlexTok, instead of classifier-free guidance.
        """
        slots = self.conditions(tokens)
        scale = self.guidance if guidance is None else guidance
        combine = ProjectedGuidance(scale) if projected else lambda c, u: guide(c, u, scale)

        def network(z: Tensor, s: Tensor) -> Tensor:
            conditional = self.predict(z, s, slots)[0]
            if scale == 1:
                return conditional
            return combine(conditional, self.predict(z, s, self.null.expand_as(slots))[0])

        frames, height, width = self.pixels(tokens.grid)
        shape = self._patches_of(frames, height, width)
        noise = seeded_noise(shape, seed, device=slots.device).to(slots.dtype).expand(len(slots), -1, -1, -1, -1)
        z = self.diffusion.sample(network, noise, self.steps if steps is None else steps)
        x = rearrange(z, "b t h w (p q c) -> b c t (h p) (w q)", p=self.patch, q=self.patch)
        x = x if self.decoder is None else self.decoder.decode(x)
        return x.transpose(1, 2)[..., :height, :width]

    def _to_patches(self, frames: Tensor) -> Tensor:
        """The patches of frames [B,T,3,height,width], whose last row and column are repeated to whole patches."""
        down, right = (-side % unit for side, unit in zip(frames.shape[-2:], self.unit, strict=True))
        x = F.pad(frames, (0, right, 0, down, 0, 0), mode="replicate").transpose(1, 2)
        if self.encoder is not None:
            with torch.no_grad():
                x = self.encoder.encode(x)
        return rearrange(x, "b c t (h p) (w q) -> b t h w (p q c)", p=self.patch, q=self.patch)

    def _patches_of(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """The shape of the patches of a clip: T, H, W and channels."""
        first, t = int(self.first_frame), 1 if self.encoder is None else self.encoder.stride[0]
        T = first + (frames - first) // t
        return T, -(-height // self.unit[0]), -(-width // self.unit[1]), self.output.project.out_features
