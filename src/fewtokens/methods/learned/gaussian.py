"""A Gaussian bottleneck: each token becomes a sample of a normal distribution with few channels."""

from __future__ import annotations

from typing import Any

import torch

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method, load_weights
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.codes import project, projection, real_rows
from fewtokens.methods.ops.per_frame import check_dim

# Range of the log-variance, as in latent diffusion and diffusers.
_LOG_VARIANCE = (-30.0, 20.0)


class Gaussian(Method):
    """Replaces each token with a sample of its normal distribution, the bottleneck of variational autoencoders.

    VAE (arXiv 1312.6114). The first half of the predicted channels is the mean, the second the logarithm of the
    variance, which is limited to -30..20 (as in diffusers). In training the token is a sample, otherwise the mean.
    The loss is the KL divergence to a standard normal distribution, summed over channels and averaged over real
    tokens, in nats per token. All tokens are kept, and there are no codes.

    Args:
        channels: channels of the new tokens. None for as many as before.
        dim: channels of the tokens; a linear layer leads to mean and log-variance. No layer if it is 2 * channels, as
            in a network that ends in both.
        sample: whether tokens are samples outside training too. Default: False.
        kl: weight of the loss. Default: 1e-6.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    paper = "Auto-Encoding Variational Bayes, arXiv 1312.6114"
    license = "written from the paper"
    cost = "O(N C D) for D channels"

    def __init__(
        self,
        channels: int | None = None,
        *,
        dim: int = 384,
        sample: bool = False,
        kl: float = 1e-6,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        self.channels, self.dim, self.sample, self.kl, self.checkpoint = channels, dim, sample, kl, checkpoint
        self.project = projection(dim, 2 * (channels or dim))
        load_weights(self, checkpoint)

    @property
    def out_dim(self) -> int:
        """The number of channels of the new tokens."""
        return self.channels or self.dim

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        check_dim(self.name, tokens.C, self.dim)
        mean, log_variance = project(self.project, tokens.features).chunk(2, -1)
        log_variance = log_variance.clamp(*_LOG_VARIANCE)
        features, aux = mean, tokens.aux
        if self.training or self.sample:
            features = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        if self.training:
            divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1, keepdim=True) / 2
            aux = {**aux, f"{self.name}.kl": self.kl * real_rows(divergence, tokens.mask).mean()}
        features = features.to(tokens.features.dtype).masked_fill(~tokens.mask[..., None], 0)
        return tokens.replace(features=features, codes=None, aux=aux)

    def decide(self, tokens: Tokens, **cues: Any) -> Plan:
        return Plan.identity(tokens)

    def planned_count(self, grid: Grid) -> int:
        return grid.cells

    @property
    def causal(self) -> bool:
        return True

    def step(self, tokens: Tokens, state: Any = None, **cues: Any) -> tuple[Tokens, Any]:
        return self(tokens, **cues), None
