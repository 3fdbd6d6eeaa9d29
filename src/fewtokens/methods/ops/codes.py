"""Parts that quantizers share: the library of codebooks, projections, straight-through values, entropies, usage."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def library() -> ModuleType:
    """Imports vector-quantize-pytorch.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import vector_quantize_pytorch
    except ImportError:
        raise ValueError(
            "this quantizer requires vector-quantize-pytorch; install it with pip install 'fewtokens[tokenizers]'"
        ) from None
    return vector_quantize_pytorch


def projection(dim: int, out: int) -> nn.Module:
    """A linear layer, or none if it would not change the number of channels."""
    return nn.Identity() if dim == out else nn.Linear(dim, out)


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """Applies a `projection` in the dtype of its weights; returns float32."""
    dtype = next((weight.dtype for weight in layer.parameters()), torch.float32)
    projected: Tensor = layer(x.to(dtype))
    return projected.float()


def real_rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """The rows [n,D] of x [B,N,D] that are not padding."""
    return x.flatten(0, 1) if mask is None else x[mask]


def straight_through(value: Tensor, differentiable: Tensor) -> Tensor:
    """Returns `value` with the gradient of `differentiable`, bit for bit: x + (value - x) would round."""
    return value.detach() + (differentiable - differentiable.detach())


class Usage(NamedTuple):
    """How many entries of the codebooks are used, see `usage`.

    Attributes:
        share: float64 [Q], the fraction of the entries that occur, in [0, 1].
        perplexity: float64 [Q], exp of the entropy of the codes in nats: the number of entries that, used equally
            often, would have this entropy; 0 if there are no codes.
    """

    share: Tensor
    perplexity: Tensor


def usage(codes: Tensor, sizes: Sequence[int], mask: Tensor | None = None) -> Usage:
    """Measures how many entries of each codebook are used: a book of which few are has collapsed.

    Args:
        codes: int64 [B,N,Q]; -1, no code, is not counted.
        sizes: the size of each of the Q codebooks, `Quantizer.codebook_sizes`.
        mask: bool [B,N], False for padding. None for no padding.
    """
    real = real_rows(codes, mask)
    counts = [level[level >= 0].unique(return_counts=True)[1].double() for level in real.unbind(1)]
    shares = [len(count) / size for count, size in zip(counts, sizes, strict=True)]
    entropies = [-(count / count.sum() * (count / count.sum()).log()).sum() for count in counts]
    perplexities = [entropy.exp() if len(count) else entropy for count, entropy in zip(counts, entropies, strict=True)]
    return Usage(torch.tensor(shares, dtype=torch.float64, device=codes.device), torch.stack(perplexities))


def check_bits(num_bits: int, group: int) -> None:
    """Raises ValueError if a code has too many bits, or a group for `bit_entropies`."""
    if not 1 <= num_bits <= 62:
        raise ValueError(f"num_bits must be in 1..62, got {num_bits}")
    if not 1 <= group <= 16:
        raise ValueError(f"group must be in 1..16 bits, got {group}")


def signs_to_codes(signs: Tensor) -> Tensor:
    """The codes of bits [B,N,K], one for each token, int64 [B,N,1]; the first bit counts 1."""
    return ((signs > 0).long() << torch.arange(signs.shape[-1], device=signs.device)).sum(-1, keepdim=True)


def codes_to_signs(codes: Tensor, num_bits: int) -> Tensor:
    """The inverse of `signs_to_codes`: +1 and -1, float32 [B,N,K]; 0 for the code -1."""
    signs = ((codes >> torch.arange(num_bits, device=codes.device)) & 1).float() * 2 - 1
    return signs.masked_fill(codes < 0, 0)


def bit_entropies(logits: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """The two entropies of the codes of independent bits, in nats.

    Args:
        logits: [n,K], the log odds of each bit.
        group: bits of a group, whose joint distribution is averaged over the n samples; K for the exact entropy.

    Returns:
        The mean entropy of a sample, which is exact, and the sum over groups of the entropy of the mean distribution:
        an upper bound of the entropy of the mean code, which would take 2^K probabilities for each sample.
    """
    on, off = F.logsigmoid(logits), F.logsigmoid(-logits)
    sample = -(on.exp() * on + off.exp() * off).sum(1).mean()
    batch = logits.new_zeros(())
    for yes, no in zip(on.split(group, 1), off.split(group, 1), strict=True):
        bits = yes.shape[1]
        table = (torch.arange(2**bits, device=logits.device)[:, None] >> torch.arange(bits, device=logits.device)) & 1
        joint = (yes @ table.T.to(yes.dtype) + no @ (1 - table.T).to(no.dtype)).exp().mean(0)
        # An unused code has no entropy, but the gradient of log 0 is not finite.
        batch = batch - (joint * joint.clamp(min=1e-30).log()).sum()
    return sample, batch


def orthogonality(entry: Tensor) -> Tensor:
    """The mean squared cosine between the entries of different codebooks, the penalty of FQGAN (arXiv 2411.16681).

    1 for equal entries, 0 for orthogonal ones, and 1/D in expectation for random ones.

    Args:
        entry: [n,G,D], the entries of each token in at least two codebooks.
    """
    x = F.normalize(entry, dim=-1)
    first, second = torch.triu_indices(x.shape[1], x.shape[1], 1, device=x.device)
    return (x[:, first] * x[:, second]).sum(-1).square().mean()


def check_codebook(size: int, code_dim: int, decay: float = 0.99, restart: float = 0.0) -> None:
    """Raises ValueError if an argument of a learned codebook is out of range."""
    if size < 2:
        raise ValueError(f"size must be at least 2 entries, got {size}")
    if code_dim < 1:
        raise ValueError(f"code_dim must be at least 1, got {code_dim}")
    if not 0 < decay < 1:
        raise ValueError(f"decay must be in (0, 1), got {decay}")
    if restart < 0:
        raise ValueError(f"restart must be at least 0, got {restart}")


def entries(codebook: nn.Module, codes: Tensor) -> Tensor:
    """The entries of a codebook of the library at codes [...], float32 [...,D]; 0 for the code -1."""
    found: Tensor = codebook.get_output_from_indices(codes.clamp(min=0))  # type: ignore[operator]
    return found.float().masked_fill(codes[..., None] < 0, 0)


def quantize_with(
    codebook: nn.Module, x: Tensor, mask: Tensor | None, training: bool
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Quantizes x [B,N,D] with a module of the library; returns float32 features and codes, and the loss in training.

    Its own projections are not used: with a mask, its loss compares channels before and after them. Padding, where the
    mask [B,N] is False, does not move a codebook.
    """
    quantized, codes, loss = codebook(x, mask=mask)
    losses = {"commitment": loss.sum()} if training else {}
    # Outside training the library passes no gradient.
    return straight_through(quantized.float(), x), codes.long(), losses
