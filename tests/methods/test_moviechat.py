"""MovieChat: worked examples of the paper's rule, of the published code's, and of ours."""

from __future__ import annotations

import pytest

from fewtokens.methods.memory.moviechat import MovieChat
from tests.helpers.frames import angles, at_angles, stream


@pytest.mark.parametrize(
    ("variant", "expected", "sizes", "norm"),
    [
        ("paper", [2.0, 51.0], [2, 2], 0.99939),
        ("weighted", [2.0, 51.0], [2, 2], 0.99939),
        # The published code merges the least similar pair: 4 and 50, then 0 and their mean.
        ("code", [12.931, 52.0], [3, 1], 0.9338),
    ],
)
def test_the_buffer(variant, expected, sizes, norm):
    out = MovieChat(8, short=4, variant=variant)(at_angles(0, 4, 50, 52))
    assert angles(out) == expected
    assert out.sizes[0].tolist() == sizes
    assert float(out.features[0, 0].norm()) == pytest.approx(norm, abs=1e-4)


def test_the_long_memory_has_a_cap():
    out = MovieChat(3, short=1, slots=1)(at_angles(0, 4, 50, 52, 90, 91))
    assert angles(out) == [2, 51, 90.5]
    assert out.sizes[0].tolist() == [2, 2, 2]
    assert out.positions[0, :, 0].tolist() == [0.5, 2.5, 4.5]
    assert MovieChat().read(MovieChat().push(stream(18 * 40 + 5))).count.tolist() == [64 + 5]


def test_a_weighted_mean_is_that_of_all_frames():
    tokens = stream(18)
    out = MovieChat(1, slots=1)(tokens)
    assert out.features[0, 0].tolist() == pytest.approx(tokens.features[0].mean(0).tolist(), abs=1e-6)
    plain = MovieChat(1, slots=1, variant="paper")(tokens)
    assert plain.features[0, 0].tolist() != pytest.approx(tokens.features[0].mean(0).tolist(), abs=1e-3)


def test_arguments():
    with pytest.raises(ValueError, match=r"slots must be in 1\.\.short=4, got 5"):
        MovieChat(short=4, slots=5)
    with pytest.raises(ValueError, match="variant must be 'weighted', 'paper' or 'code', got 'official'"):
        MovieChat(variant="official")
