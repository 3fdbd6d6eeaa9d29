"""What the encoder and decoder of VidTok agree on."""

from __future__ import annotations

from collections.abc import Sequence

from fewtokens.tokenizers.blocks.causal_conv import Three
from fewtokens.tokenizers.blocks.residual import ResBlock

SPACE: tuple[Three, ...] = ((1, 3, 3), (1, 3, 3))
TIME: tuple[Three, ...] = ((3, 1, 1), (3, 1, 1))
BOTH: tuple[Three, ...] = ((3, 3, 3), (3, 3, 3))


def temporal_steps(stride: Sequence[int], steps: int) -> tuple[int, ...]:
    """Returns which of the changes of resolution, in the order of execution, also change the number of frames.

    They are the last ones; if the stride is 2 frames, the second, as in the released models.

    Raises:
        ValueError: the stride is not a product of them.
    """
    t, y, x = (*stride, 0, 0)[:3]
    counts = {1: 0, 2: 1, 4: 2, 8: 3}
    if y != x or y != 2**steps or counts.get(t, steps + 1) > steps:
        raise ValueError(
            f"stride must be 1, 2, 4 or 8 frames and {2**steps} rows and columns with {steps + 1} levels, got "
            f"{tuple(stride)}"
        )
    return (1,) if t == 2 and steps > 1 else tuple(range(steps - counts[t], steps))


def level_blocks(dim: int, out: int, count: int, *, causal: bool) -> list[ResBlock]:
    """The residual blocks of a level: in space and in time in turn."""
    blocks = []
    for i in range(count):
        blocks += [
            ResBlock(dim if i == 0 else out, out, SPACE, causal=causal),
            ResBlock(out, out, TIME, causal=causal),
        ]
    return blocks
