"""RSP: a representation of the current frame from which a future one can be drawn (arXiv 2406.07398)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.networks.masking import random_mask
from fewtokens.networks.pretraining import Prediction, Pretraining, PretrainingConfig


@dataclass(frozen=True)
class RspConfig(PretrainingConfig):
    """RSP's.

    Attributes:
        variables, values: categorical latents and the values of each.
        kl_weight: of the divergence between posterior and prior.
        kl_balance: share of it that moves the posterior towards the prior; the rest moves the prior.
        free_nats: below which the divergence costs nothing.
        noise: standard deviation of what is added to the target (after normalization) that the posterior sees; 0.5 is
            the default of the released code, which its command leaves.
    """

    variables: int = 32
    values: int = 32
    kl_weight: float = 0.01
    kl_balance: float = 0.2
    free_nats: float = 0.1
    noise: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.variables, self.values) < 1 or not 0 <= self.kl_balance <= 1:
            raise ValueError("variables and values must be at least 1, kl_balance in [0, 1]")
        if min(self.kl_weight, self.free_nats, self.noise) < 0:
            raise ValueError("kl_weight, free_nats and noise must be at least 0")


class Rsp(Pretraining):
    """The whole target from the source and a latent, the latent drawn by who knows the target; and MAE on the target.

    "rsp" is the target from the posterior's latent, all patches; "mae" its hidden patches from the visible ones. In
    both the queries are mask tokens alone, one in the place of the class token too, and the decoder is the same. Each
    of the two has a linear layer of its own from the encoder to the decoder.
    """

    kind = "rsp"
    config_type: ClassVar[Any] = RspConfig

    def _parts(self) -> None:
        config = self.config
        C, latent = config.dim, config.variables * config.values
        self.prior = nn.Sequential(nn.Linear(C, 2 * C), nn.ReLU(), nn.Linear(2 * C, latent))
        self.posterior = nn.Sequential(nn.Linear(2 * C, 2 * C), nn.ReLU(), nn.Linear(2 * C, latent))
        self.embed_source = nn.Linear(C, config.decoder_dim)
        self.embed_latent = nn.Linear(latent, config.decoder_dim)

    def outdated(self, tensors: Mapping[str, Tensor]) -> str:
        if "prior.4.weight" not in tensors:
            return ""
        return (
            "saved by an earlier fewtokens, whose RSP had a layer more in prior and posterior than the published one; "
            "fewtokens.load_encoder still loads its encoder"
        )

    def predict(self, source: Tensor, target: Tensor, noise: Tensor) -> Prediction:
        config = self.config
        mask = random_mask(noise, config.mask_ratio)
        before = self._encode(source)
        after = self._encode(target + config.noise * torch.randn_like(target))
        shape = (-1, config.variables, config.values)
        prior = self.prior(before[:, 0]).float().view(shape)
        posterior = self.posterior(torch.cat([before[:, 0], after[:, 0]], -1)).float().view(shape)
        future = self._future(before, draw(posterior))
        slots = self.decoder.slots(self._encode(target, mask.visible), mask)
        masked = self._decode(self.decoder.queries(len(target)), slots)
        kl = balanced_divergence(posterior, prior, config.kl_balance, config.free_nats)
        paths = {"rsp": (future, None), "mae": (masked, mask.hidden)}
        return Prediction(paths, mask, {"kl": kl}, {"kl": config.kl_weight})

    def imagine(self, source: Tensor) -> Tensor:
        """A target drawn from the prior alone: normalized frames [B,3,H,W] to normalized pixels [B,N,p*p*3]."""
        before = self._encode(source)
        shape = (-1, self.config.variables, self.config.values)
        return self._future(before, draw(self.prior(before[:, 0]).float().view(shape)))

    def _future(self, before: Tensor, latent: Tensor) -> Tensor:
        memory = self.decoder.placed(self.embed_source(before))
        drawn = self.embed_latent(latent.flatten(1).to(self.embed_latent.weight.dtype))[:, None]
        return self._decode(self.decoder.queries(len(before)), torch.cat([drawn, memory], 1))


def draw(logits: Tensor) -> Tensor:
    """One value of each variable [B,V,K], one-hot; gradients go to the probabilities (straight through)."""
    chances = logits.softmax(-1)
    picked = torch.multinomial(chances.detach().flatten(0, 1), 1).view(chances.shape[:-1])
    return F.one_hot(picked, chances.shape[-1]).to(chances.dtype) + chances - chances.detach()


def divergence(posterior: Tensor, prior: Tensor) -> Tensor:
    """KL(posterior || prior) in nats, of logits [B,V,K]: the sum over the variables, the mean over the batch."""
    p, q = posterior.log_softmax(-1), prior.log_softmax(-1)
    return (p.exp() * (p - q)).sum((1, 2)).mean()


def balanced_divergence(posterior: Tensor, prior: Tensor, balance: float, free: float) -> Tensor:
    """The divergence, moving the posterior by a share `balance` and the prior by the rest; at least `free` nats."""
    to_posterior = divergence(posterior, prior.detach()).clamp(min=free)
    to_prior = divergence(posterior.detach(), prior).clamp(min=free)
    return balance * to_posterior + (1 - balance) * to_prior
