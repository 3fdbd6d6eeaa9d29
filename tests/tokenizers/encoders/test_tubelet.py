"""Linear tubelets with positions: formulas, chunks, other grids, errors."""

from __future__ import annotations

import math

import pytest
import torch

from fewtokens.tokenizers.registry import build_part


def build(arguments: str):
    torch.manual_seed(0)
    return build_part("encoders", f"tubelet(8, stride=(2, 4, 4){arguments})")


def frames(T: int, H: int, W: int):
    return torch.rand(1, 3, T, H, W, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_sines():
    """Of time in all channels, and of column and row in half of them each: sines first, then cosines."""
    plain, positioned = build(""), build(", positions='sine'")
    added = (positioned.latents(frames(4, 8, 12)) - plain.latents(frames(4, 8, 12)))[0, :, 1, 1, 2]

    def sine(position: int, dim: int):
        rates = [10_000 ** (-i / (dim // 2)) for i in range(dim // 2)]
        return torch.tensor([math.sin(position * r) for r in rates] + [math.cos(position * r) for r in rates])

    torch.testing.assert_close(added, sine(1, 8) + torch.cat([sine(2, 4), sine(1, 4)]))


@torch.no_grad()
def test_learned_positions_are_added_normalized_and_resized():
    plain, positioned = build(""), build(", positions=(2, 2, 3)")
    x = plain.latents(frames(4, 8, 12)).movedim(1, -1)
    x = x + positioned.places.places + positioned.places.frames[:, None, None]
    expected = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(positioned.latents(frames(4, 8, 12)).movedim(1, -1), expected)
    assert positioned.latents(frames(6, 16, 16)).shape == (1, 8, 3, 4, 4)


@pytest.mark.parametrize("positions", ["'sine'", "(2, 2, 3)", "None"])
@torch.no_grad()
def test_chunks_equal_the_whole(positions):
    encoder, x = build(f", positions={positions}"), frames(8, 8, 12)
    first, state = encoder.step(x[:, :, :2])
    rest, _ = encoder.step(x[:, :, 2:], state)
    torch.testing.assert_close(torch.cat([first, rest], 2), encoder.latents(x))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tubelet(8, positions='rotary')", "positions must be sine, with a width that is a multiple of 4"),
        ("tubelet(6, positions='sine')", "positions must be sine, with a width that is a multiple of 4"),
        ("tubelet(8, positions=(2, 2))", "positions must be T, H and W of a grid"),
    ],
)
def test_errors(spec, message):
    with pytest.raises(ValueError, match=message):
        build_part("encoders", spec)
