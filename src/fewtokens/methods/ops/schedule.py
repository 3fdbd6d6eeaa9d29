"""How many tokens merge in each block of an encoder."""

from __future__ import annotations

from collections.abc import Sequence


def schedule(r: int | tuple[int, float] | Sequence[int], depth: int) -> list[int]:
    """Tokens to take away in each of `depth` blocks (ToMe, arXiv 2210.09461, appendix).

    (8, -1) over 12 blocks gives 16,14,13,11,10,8,7,5,4,2,1,0: the line is cut to whole numbers, so its sum
    (91) may be below that of the constant schedule (96).

    Args:
        r: a count; (count, inflection in [-1,1]) for a linear schedule from r*(1-inflection) to r*(1+inflection); or
            one count for each block, zeros after the end.

    Raises:
        ValueError: none of these.
    """
    problem = f"r must be a count, (count, inflection in [-1,1]) or a list of counts, got {r!r}"
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


def merges_to(count: int, target: int, layer: int, depth: int, *, spec: str) -> int:
    """Tokens to take away in this block so that `target` of `count` are left after the last, evenly over the blocks.

    More at once where the blocks that follow, each halving at most, would not reach the target.

    Raises:
        ValueError: the blocks that are left cannot reach it; `spec` begins the message.
    """
    blocks = depth - layer
    if target << blocks < count:
        raise ValueError(f"{spec} cannot be reached in {depth} blocks, each halves at most; keep more")
    evenly = -(-(count - target) // blocks)
    return max(0, evenly, count - (target << (blocks - 1)))
