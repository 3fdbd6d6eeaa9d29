"""RSP: learns a frame representation by stochastic prediction of a future frame (arXiv 2406.07398)."""

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
    """Config of RSP.

    Attributes:
        variables, values: number of categorical latents, and of values of each.
        kl_weight: weight of the KL divergence between posterior and prior.
        kl_balance: fraction of the divergence that updates the posterior; the rest updates the prior.
        free_nats: the divergence is clamped below at this value.
        noise: standard deviation of the noise added to the normalized target for the posterior. Default: 0.5, as in the
            released code and command.
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
            raise ValueError(
                "variables and values must be at least 1 and kl_balance in [0, 1], "
                f"got {self.variables}, {self.values} and {self.kl_balance}"
            )
        if min(self.kl_weight, self.free_nats, self.noise) < 0:
            raise ValueError(
                "kl_weight, free_nats and noise must be at least 0, "
                f"got {self.kl_weight}, {self.free_nats} and {self.noise}"
            )


class Rsp(Pretraining):
    """RSP: predicts the target from the source and a latent sampled from the posterior, plus MAE on the target.

    Path "rsp" predicts all patches from the source and the latent; path "mae" predicts the masked patches
    from the visible ones. In both, the queries are mask tokens only, including one for the class token, and the decoder
    is the same. Each path has a separate linear layer from encoder to decoder.
    """

    kind = "rsp"
    config_type: ClassVar[Any] = RspConfig

    def _add_modules(self) -> None:
        config = self.config
        C, latent = config.dim, config.variables * config.values
        self.prior = nn.Sequential(nn.Linear(C, 2 * C), nn.ReLU(), nn.Linear(2 * C, latent))
        self.posterior = nn.Sequential(nn.Linear(2 * C, 2 * C), nn.ReLU(), nn.Linear(2 * C, latent))
        self.embed_source = nn.Linear(C, config.decoder_dim)
        self.embed_latent = nn.Linear(latent, config.decoder_dim)

    def version_error(self, tensors: Mapping[str, Tensor]) -> str:
        if "prior.4.weight" not in tensors:
            return ""
        return (
            "saved by an earlier fewtokens, whose RSP had an additional layer in prior and posterior; its encoder can "
            "be loaded with fewtokens.load_encoder"
        )

    def predict(self, source: Tensor, target: Tensor, noise: Tensor) -> Prediction:
        config = self.config
        mask = random_mask(noise, config.mask_ratio)
        before = self._encode(source)
        after = self._encode(target + config.noise * torch.randn_like(target))
        shape = (-1, config.variables, config.values)
        prior = self.prior(before[:, 0]).float().view(shape)
        posterior = self.posterior(torch.cat([before[:, 0], after[:, 0]], -1)).float().view(shape)
        future = self._future(before, sample(posterior))
        slots = self.decoder.slots(self._encode(target, mask.visible), mask)
        masked = self._decode(self.decoder.queries(len(target)), slots)
        kl = balanced_divergence(posterior, prior, config.kl_balance, config.free_nats)
        paths = {"rsp": (future, None), "mae": (masked, mask.hidden)}
        return Prediction(paths, mask, {"kl": kl}, {"kl": config.kl_weight})

    def imagine(self, source: Tensor) -> Tensor:
        """Predicts a target from frames [B,3,H,W] and a latent sampled from the prior: pixels [B,N,p*p*3]."""
        before = self._encode(source)
        shape = (-1, self.config.variables, self.config.values)
        return self._future(before, sample(self.prior(before[:, 0]).float().view(shape)))

    def _future(self, before: Tensor, latent: Tensor) -> Tensor:
        memory = self.decoder.add_positions(self.embed_source(before))
        embedded = self.embed_latent(latent.flatten(1).to(self.embed_latent.weight.dtype))[:, None]
        return self._decode(self.decoder.queries(len(before)), torch.cat([embedded, memory], 1))


def sample(logits: Tensor) -> Tensor:
    """Samples a one-hot value of each variable [B,V,K], with straight-through gradients to the probabilities."""
    probs = logits.softmax(-1)
    index = torch.multinomial(probs.detach().flatten(0, 1), 1).view(probs.shape[:-1])
    return F.one_hot(index, probs.shape[-1]).to(probs.dtype) + probs - probs.detach()


def divergence(posterior: Tensor, prior: Tensor) -> Tensor:
    """KL(posterior || prior) in nats of logits [B,V,K], summed over variables, mean over the batch."""
    p, q = posterior.log_softmax(-1), prior.log_softmax(-1)
    return (p.exp() * (p - q)).sum((1, 2)).mean()


def balanced_divergence(posterior: Tensor, prior: Tensor, balance: float, free: float) -> Tensor:
    """KL divergence, of which `balance` updates the posterior and the rest the prior; at least `free` nats."""
    to_posterior = divergence(posterior, prior.detach()).clamp(min=free)
    to_prior = divergence(posterior.detach(), prior).clamp(min=free)
    return balance * to_posterior + (1 - balance) * to_prior
