"""FSQ: the rounding of each channel, all codes, groups."""

from __future__ import annotations

import math

import pytest
import torch
from vector_quantize_pytorch import FSQ

from fewtokens.methods.quantizers.fsq import Fsq


def rounded(z: torch.Tensor, levels: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and codes by the formula of the paper, one channel at a time."""
    values, code, basis = [], torch.zeros(z.shape[:-1], dtype=torch.int64), 1
    for x, level in zip(z.double().unbind(-1), levels, strict=True):
        half = (level - 1) * (1 + 1e-3) / 2
        offset = 0.5 if level % 2 == 0 else 0.0
        q = (half * torch.tanh(x + math.atanh(offset / half)) - offset).round()
        values.append(q / (level // 2))
        code, basis = code + (q.long() + level // 2) * basis, basis * level
    return torch.stack(values, -1), code


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (8, 8, 8, 5, 5, 5), (3, 4)])
def test_values_and_codes_are_those_of_the_paper(levels):
    torch.manual_seed(0)
    z = torch.randn(2, 50, len(levels)) * 2
    features, codes, losses = Fsq(levels, dim=len(levels)).quantize(z)
    values, code = rounded(z, levels)
    torch.testing.assert_close(features, values.float())
    assert torch.equal(codes[..., 0], code)
    assert losses == {}


def test_every_code_survives_a_round_trip():
    method = Fsq((8, 5, 5, 5), dim=4)
    codes = torch.arange(1000).reshape(1, -1, 1)
    # The input of the bounding function that gives each value.
    half = torch.tensor([7.0, 4, 4, 4]) * (1 + 1e-3) / 2
    offset = torch.tensor([0.5, 0, 0, 0])
    level = method.lookup(codes) * torch.tensor([4.0, 2, 2, 2])
    z = torch.atanh((level + offset) / half) - torch.atanh(offset / half)
    assert torch.equal(method.quantize(z).codes, codes)


@pytest.mark.parametrize("levels", [(8,) * 9, (8,) * 10])
def test_codes_above_24_bits_are_exact(levels):
    """Sums in float32 are rounded above 2**24."""
    method = Fsq(levels, dim=len(levels))
    x = 2 * torch.randn(1, 4000, len(levels), generator=torch.Generator().manual_seed(0))
    assert torch.equal(method.quantize(x).features, method.scalars.quantize(x))


def test_published_codebooks():
    assert Fsq((8, 8, 8, 5, 5, 5)).codebook_sizes == (64_000,)
    assert Fsq((8,) * 6).bits == 18
    assert Fsq((8,) * 8).codebook_sizes == (8**8,)


def test_one_group_is_the_base_bit_for_bit():
    torch.manual_seed(0)
    z = torch.randn(1, 30, 4)
    features, codes, _ = Fsq((8, 5, 5, 5), dim=4, groups=1).quantize(z)
    expected, index = FSQ([8, 5, 5, 5])(z)
    assert torch.equal(features, expected)
    assert torch.equal(codes[..., 0], index.long())


def test_a_group_changes_only_its_channels():
    method = Fsq((5, 4), dim=6, groups=3)
    codes = torch.randint(20, (1, 30, 3))
    other = codes.clone()
    other[..., 1] = (other[..., 1] + 7) % 20
    changed = (method.lookup(codes) != method.lookup(other)).any(1)[0]
    assert changed.tolist() == [False, False, True, True, False, False]


def test_groups_split_the_channels():
    torch.manual_seed(0)
    one, two = Fsq((5, 4), dim=2), Fsq((5, 4), dim=4, groups=2)
    z = torch.randn(1, 30, 4)
    codes = two.quantize(z).codes
    for group, part in enumerate(z.split(2, -1)):
        assert torch.equal(codes[..., group], one.quantize(part).codes[..., 0])
    assert two.bits == 2 * one.bits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": (2, 8)}, "at least 3"),
        ({"levels": ()}, "at least 3"),
        ({"levels": (16,) * 8}, "use groups"),
        ({"groups": 0}, "groups"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Fsq(**arguments)
