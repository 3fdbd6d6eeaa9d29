"""The number of tokens to merge in each block of an encoder."""

from __future__ import annotations

from collections.abc import Sequence


def schedule(r: int | tuple[int, float] | Sequence[int], depth: int) -> list[int]:
    """The number of tokens to remove in each of `depth` blocks (ToMe, arXiv 2210.09461, appendix).

    (8, -1) over 12 blocks gives 16,14,13,11,10,8,7,5,4,2,1,0: the line is rounded down, so its sum (91) may be below
    that of the constant schedule (96).

    Args:
        r: an integer; (integer, inflection in [-1,1]) for a linear schedule from r*(1-inflection) to r*(1+inflection);
            or one integer per block, zeros after the end.
        depth: number of blocks.

    Raises:
        ValueError: none of these.
    """
    problem = f"r must be an integer, (integer, inflection in [-1, 1]) or a list of integers, at least 0, got {r!r}"
    if isinstance(r, int):
        r = (r, 0.0)
    if isinstance(r, tuple) and len(r) == 2:
        if r[0] < 0 or not -1 <= r[1] <= 1:
            raise ValueError(problem)
        first = int(r[0] * (1 - r[1]))
        last = 2 * r[0] - first
        step = (last - first) / max(1, depth - 1)
        return [int(first + step * layer) for layer in range(depth)]
    if not isinstance(r, Sequence) or any(not isinstance(n, int) or n < 0 for n in r):
        raise ValueError(problem)
    return [*r, *[0] * depth][:depth]


def num_to_remove(count: int, target: int, layer: int, depth: int, *, spec: str) -> int:
    """The number of tokens to remove in this block so that `target` of `count` remain after the last block.

    Tokens are removed evenly over the blocks; more if the following blocks, each of which at most halves the count,
    would not reach the target.

    Raises:
        ValueError: the remaining blocks cannot reach it; the message starts with `spec`.
    """
    blocks = depth - layer
    if target << blocks < count:
        raise ValueError(f"{spec} cannot be reached in {depth} blocks (each at most halves the count); increase keep")
    evenly = -(-(count - target) // blocks)
    return max(0, evenly, count - (target << (blocks - 1)))
