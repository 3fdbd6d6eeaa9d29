"""Entropy coding of codes: how many bits they really need, and an arithmetic coder that reaches this number."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

# The adaptive prior counts after blocks: each is as long as everything before it, within these limits.
_FIRST, _LONGEST = 16, 4096
# Count that every value has at the start (Krichevsky and Trofimov).
_START = 0.5


def entropy_bits(codes: Tensor, mask: Tensor | None = None) -> float:
    """Returns the bits of codes under their own frequencies, the sum over codebooks of n times the entropy.

    This is a lower bound for coders that treat codes as independent; the table of frequencies is not counted, so for
    few codes it is far too low.

    Args:
        codes: int64 [...,Q]; -1 is no code.
        mask: bool [...], False for padding. None for no padding.
    """
    rows = codes.flatten(0, -2) if mask is None else codes[mask]
    total = 0.0
    for column in rows.unbind(-1):
        counts = torch.unique(column[column >= 0], return_counts=True)[1].double()
        total -= float((counts * (counts / counts.sum()).log2()).sum())
    return total


def compress(codes: ArrayLike, size: int, probabilities: ArrayLike | None = None) -> bytes:
    """Compresses codes with an arithmetic coder (a range coder of `constriction`).

    Args:
        codes: integers [n] in 0..size-1.
        size: number of values of a code, at most 2**20.
        probabilities: the prior: [size] for all codes, or [n,size] for each; need not sum to 1. Default: frequencies of
            the codes so far, updated after blocks of up to 4,096 codes.

    Returns:
        The bytes, a multiple of 4; within 1 % of `cross_entropy_bits` plus 64 bits, if no probability is below 1e-6.

    Raises:
        ValueError: codes or probabilities are out of range, or constriction is not installed.
    """
    array, coder = _check_codes(codes, size), _library()
    encoder = coder.stream.queue.RangeEncoder()
    for start, end, prior in _priors(array, size, probabilities):
        if size == 1:  # needs no bits, and the coder has no such model
            continue
        if prior.ndim == 1:
            encoder.encode(array[start:end], coder.stream.model.Categorical(prior, perfect=False))
        else:
            encoder.encode(array[start:end], coder.stream.model.Categorical(perfect=False), prior)
    data: bytes = encoder.get_compressed().astype("<u4").tobytes()
    return data


def decompress(data: bytes, count: int, size: int, probabilities: ArrayLike | None = None) -> NDArray[np.int32]:
    """Returns the codes that `compress` compressed, int32 [count].

    Args:
        data: the bytes.
        count, size, probabilities: as for `compress`; other values return other codes, not an error.

    Raises:
        ValueError: the data are not a multiple of 4 bytes, or constriction is not installed.
    """
    if len(data) % 4:
        raise ValueError(f"compressed codes must be a multiple of 4 bytes, got {len(data)}")
    coder, codes = _library(), np.zeros(count, np.int32)
    decoder = coder.stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))
    for start, end, prior in _priors(codes, size, probabilities):
        if size == 1:
            continue
        if prior.ndim == 1:
            codes[start:end] = decoder.decode(coder.stream.model.Categorical(prior, perfect=False), end - start)
        else:
            codes[start:end] = decoder.decode(coder.stream.model.Categorical(perfect=False), prior)
    return codes


def cross_entropy_bits(codes: ArrayLike, size: int, probabilities: ArrayLike | None = None) -> float:
    """Returns the bits of codes under a prior, the sum of -log2 of their probabilities; arguments as for `compress`."""
    array, bits = _check_codes(codes, size), 0.0
    for start, end, prior in _priors(array, size, probabilities):
        part = array[start:end]
        chosen = prior[part] if prior.ndim == 1 else np.take_along_axis(prior, part[:, None], 1)[:, 0]
        with np.errstate(divide="ignore"):
            bits -= float(np.log2(chosen / prior.sum(-1)).sum())
    return bits


def _priors(
    codes: NDArray[np.int32], size: int, probabilities: ArrayLike | None
) -> Iterator[tuple[int, int, NDArray[np.float64]]]:
    """Yields blocks as (start, end, prior); `codes` before `start` are read, and may be filled in meanwhile."""
    if not 1 <= size <= 1 << 20:
        raise ValueError(f"size must be in 1..{1 << 20}, got {size}")
    n = len(codes)
    if probabilities is not None:
        given = np.asarray(probabilities, np.float64)
        if given.shape not in ((size,), (n, size)):
            raise ValueError(f"probabilities must be [{size}] or [{n},{size}], got {list(given.shape)}")
        if not (np.isfinite(given).all() and (given >= 0).all() and (given.sum(-1) > 0).all()):
            raise ValueError("probabilities must be finite, not negative, and not all zero")
        for start in range(0, n, _LONGEST):
            end = min(start + _LONGEST, n)
            yield start, end, given if given.ndim == 1 else given[start:end]
        return
    counts, start = np.full(size, _START), 0
    while start < n:
        end = min(start + min(max(start, _FIRST), _LONGEST), n)
        yield start, end, counts
        counts += np.bincount(codes[start:end], minlength=size)
        start = end


def _check_codes(codes: ArrayLike, size: int) -> NDArray[np.int32]:
    array = np.asarray(codes)
    if array.ndim != 1 or (array.size and (array.min() < 0 or array.max() >= size)):
        raise ValueError(f"codes must be [n] in 0..{size - 1}, got {list(array.shape)}; leave out those of -1")
    return array.astype(np.int32)


def _library() -> ModuleType:
    try:
        import constriction
    except ImportError:
        raise ValueError(
            "arithmetic coding requires constriction; install it with pip install 'fewtokens[tokenizers]'"
        ) from None
    library: Any = constriction
    assert isinstance(library, ModuleType)
    return library
