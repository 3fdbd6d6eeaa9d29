"""Codebooks that are trained by gradient: the search for the nearest entry, attention to entries, losses, restarts."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

Measure = Literal["euclidean", "cosine", "dot"]

# No table of distances has more entries than this (64 MiB in float32).
_MAX_DISTANCES = 1 << 24
# Calls between restarts; the largest part of a codebook that restarts, and the noise of its new entries, as in ReVQ.
_CALLS, _RATIO, _NOISE = 50, 0.2, 0.1
# Weight of the distance of entries to vectors, and weight and temperature of the entropies, as in CODA.
_COMMITMENT, _ENTROPY, _TEMPERATURE = 0.05, 0.05, 0.01


def nearest(x: Tensor, table: Tensor, measure: Measure = "euclidean") -> Tensor:
    """The index of the nearest row of a table for each row of x, in float32; the first of equal ones.

    Args:
        x: [...,D]; with several tables, [G,...,D].
        table: [K,D], or [G,K,D] for a table per group.
        measure: "euclidean" for the smallest distance, "cosine" for the largest cosine, "dot" for the largest product.

    Returns:
        int64 [...] or [G,...].
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        rows, table = x.float().reshape(*table.shape[:-2], -1, table.shape[-1]), table.float()
        if measure == "cosine":
            table = F.normalize(table, dim=-1)
        # The norm of a row of x does not change which entry is nearest.
        half = table.square().sum(-1)[..., None, :] / 2 if measure == "euclidean" else 0
        blocks = rows.split(max(1, _MAX_DISTANCES // table[..., 0].numel()), -2)
        index = torch.cat([(block @ table.mT - half).argmax(-1) for block in blocks], -1)
    return index.reshape(x.shape[:-1])


def sample_entries(x: Tensor, table: Tensor, temperature: float) -> Tensor:
    """Samples a row of a table [K,D] for each row of x [...,D] from the softmax of their products over the temperature.

    Returns:
        The index, int64 [...].
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        blocks = x.float().reshape(-1, x.shape[-1]).split(max(1, _MAX_DISTANCES // len(table)))
        index = [((block @ table.float().T) / temperature).softmax(-1).multinomial(1)[:, 0] for block in blocks]
    return torch.cat(index).reshape(x.shape[:-1])


def take(table: Tensor, codes: Tensor) -> Tensor:
    """The rows of a table [K,D] at codes [...], float32 [...,D]; 0 for the code -1."""
    return F.embedding(codes.clamp(min=0), table).float().masked_fill(codes[..., None] < 0, 0)


def book_losses(x: Tensor, entry: Tensor, commitment: float) -> dict[str, Tensor]:
    """The losses of VQ-VAE (arXiv 1711.00937): entries follow the vectors, and vectors commit to their entries.

    Args:
        x: [n,D], the vectors.
        entry: [n,D], their entries.
        commitment: weight of the second loss.
    """
    return {
        "codebook": (entry - x.detach()).square().mean(),
        "commitment": commitment * (entry.detach() - x).square().mean(),
    }


def entropies(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The mean entropy of distributions and the entropy of their mean, in nats, from logits [n,K]."""
    logs = logits.log_softmax(-1)
    mean = logs.exp().mean(0)
    # An unused entry has no entropy, but the gradient of log 0 is not finite.
    return -(logs.exp() * logs).sum(-1).mean(), -(mean * mean.clamp(min=1e-30).log()).sum()


class Codebook(nn.Module):
    """Entries that are trained by gradient; those that no token chooses restart.

    Every 50th training call, the entries that no token chose since the last restart, but at most a fifth of all, move
    to the most used ones plus noise with a standard deviation of 0.1 (ReVQ, arXiv 2507.10547).

    Args:
        size: the number K of entries.
        dim: the number D of channels of an entry.
        groups: the number G of codebooks; None for one, whose table is [K,D].
        measure: how entries are compared, see `nearest`.
    """

    def __init__(self, size: int, dim: int, *, groups: int | None = None, measure: Measure = "euclidean") -> None:
        super().__init__()
        self.measure: Measure = measure
        # About the scale of a linear layer of features with variance 1: larger entries would enlarge the rest.
        self.table = nn.Parameter(0.5 * torch.randn(*([] if groups is None else [groups]), size, dim))
        self.count: Tensor
        self.register_buffer("count", torch.zeros(self.table.shape[:-1]), persistent=False)
        self.calls = 0

    def codes(self, x: Tensor) -> Tensor:
        """The codes of x [...,D] or [G,...,D], int64 [...] or [G,...]."""
        return nearest(x, self.table, self.measure)

    def entries(self, codes: Tensor) -> Tensor:
        """The entries of codes [...] or [G,...], float32 [...,D]; 0 for the code -1."""
        return take(self.table.flatten(0, -2), self._rows(codes))

    def record(self, codes: Tensor) -> None:
        """Counts codes of a training call; -1 is not counted."""
        rows = self._rows(codes).flatten()
        self.count.view(-1).index_add_(0, rows.clamp(min=0), (rows >= 0).to(self.count.dtype))

    @torch.no_grad()
    def restart(self) -> None:
        """Begins a training call; every 50th restarts unused entries."""
        self.calls += 1
        if self.calls % _CALLS:
            return
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(self.count)  # each process has counted its own part of the batches
        size = self.table.shape[-2]
        number = max(1, int(_RATIO * size))
        order = self.count.argsort(dim=-1, descending=True, stable=True)
        count = self.count.gather(-1, order)
        # The least used entry moves to the most used one, and so on.
        unused, dead = order[..., -number:].flip(-1), count[..., -number:].flip(-1) == 0
        source = torch.arange(number, device=order.device) % (count > 0).sum(-1, keepdim=True).clamp(min=1)
        # All processes of a distributed run have the same counts and sample the same noise.
        noise = torch.randn(*unused.shape, self.table.shape[-1], generator=torch.Generator().manual_seed(self.calls))
        table = self.table.float()
        moved = _rows_at(table, order.gather(-1, source)) + _NOISE * noise.to(table.device)
        moved = torch.where(dead[..., None], moved, _rows_at(table, unused))
        self.table.copy_(table.scatter(-2, unused[..., None].expand_as(moved), moved))
        self.count.zero_()

    def _rows(self, codes: Tensor) -> Tensor:
        """The rows at codes in the tables of all groups, concatenated; -1 for -1."""
        if self.table.ndim == 2:
            return codes
        first = torch.arange(len(self.table), device=codes.device) * self.table.shape[1]
        return (codes + first.reshape(-1, *[1] * (codes.ndim - 1))).masked_fill(codes < 0, -1)


def _rows_at(table: Tensor, index: Tensor) -> Tensor:
    """The rows [...,n,D] of tables [...,K,D] at an index [...,n]."""
    return table.gather(-2, index[..., None].expand(*index.shape, table.shape[-1]))


class AttentionBook(nn.Module):
    """A codebook that tokens attend to: the code is the entry with the most attention, and its value is the result.

    The quantizer of CODA (arXiv 2503.17760): queries of the tokens and keys of the entries are normalized (RMSNorm).
    Queries and keys have the gradient of the attention to all entries, so every entry is trained and none dies; the
    value that is chosen has the gradient of the result.

    Args:
        size: the number K of entries.
        dim: the number D of channels of an entry.
        query_dim: channels of queries and keys. Default: 32.
    """

    def __init__(self, size: int, dim: int, *, query_dim: int = 32) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(size, dim))
        self.query, self.key, self.value = nn.Linear(dim, query_dim), nn.Linear(dim, query_dim), nn.Linear(dim, dim)
        self.query_norm, self.key_norm = nn.RMSNorm(query_dim, eps=1e-5), nn.RMSNorm(query_dim, eps=1e-5)

    def codes(self, x: Tensor) -> Tensor:
        """The codes of x [...,D], int64 [...]."""
        return nearest(self._normed(self.query_norm, self.query, x), self._keys(), "dot")

    def entries(self, codes: Tensor) -> Tensor:
        """The values of codes [...], float32 [...,D]; 0 for the code -1."""
        return take(self._values(), codes)

    def attend(self, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The values of codes with the gradient of the attention.

        Args:
            x: [...,D].
            codes: int64 [...], from `codes`.

        Returns:
            float32 [...,D], bit-identical to `entries`, and the logits of the attention, float32 [...,K].
        """
        with torch.autocast(x.device.type, enabled=False):
            queries = self._normed(self.query_norm, self.query, x)
            logits = queries @ self._keys().T / math.sqrt(self.key.out_features)
            attention, values = logits.softmax(-1), self._values()
            # Zero, with the gradient of the attention to all values.
            gradient = (attention - attention.detach()) @ values.detach()
        return take(values, codes) + gradient, logits

    def losses(self, x: Tensor, quantized: Tensor, codes: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """The losses of vectors x [n,D], from the results of `attend`: distances, and the entropy of the attention."""
        entry = self.entries(codes)
        sample, batch = entropies(logits / _TEMPERATURE)
        return {
            "attention": (quantized - x).square().mean(),
            "commitment": (entry.detach() - x).square().mean(),
            "codebook": _COMMITMENT * (entry - x.detach()).square().mean(),
            "entropy": _ENTROPY * (sample - batch),
        }

    def _keys(self) -> Tensor:
        return self._normed(self.key_norm, self.key, self.table)

    def _values(self) -> Tensor:
        with torch.autocast(self.table.device.type, enabled=False):
            values: Tensor = self.value(self.table)
        return values.float()

    def _normed(self, norm: nn.RMSNorm, layer: nn.Linear, x: Tensor) -> Tensor:
        """Queries or keys, in float32 also under autocast, in which codes would differ."""
        with torch.autocast(x.device.type, enabled=False):
            normed: Tensor = norm(layer(x.to(self.table.dtype)))
        return normed.float()
