"""`tail_drop`: the first tokens, their codes, and the number that training samples."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core.tokens import Tokens
from fewtokens.methods.pruning.tail_drop import TailDrop
from tests.helpers.clips import clip


def with_codes(**options) -> Tokens:
    tokens = clip(T=3, H=2, W=4, **options)
    codes = torch.arange(tokens.N)[:, None].expand(tokens.B, -1, 2).clone()
    codes[:, 1::2, 1] = -1
    return tokens.replace(codes=codes.masked_fill(~tokens.mask[..., None], 0))


def test_it_keeps_the_first_tokens_with_their_codes():
    tokens = with_codes()
    out = TailDrop(5).eval()(tokens)
    assert torch.equal(out.features, tokens.features[:, :5])
    assert torch.equal(out.codes, tokens.codes[:, :5])
    assert out.assignment[0].tolist() == [0, 1, 2, 3, 4] + [-1] * 19


def test_it_keeps_the_first_tokens_of_each_frame():
    tokens = with_codes(lengths=[3, 2])
    out = TailDrop("3/frame").eval()(tokens)
    index = [0, 1, 2, 8, 9, 10, 16, 17, 18]
    assert out.count.tolist() == [9, 6]
    assert torch.equal(out.codes[0], tokens.codes[0, index])
    assert torch.equal(out.features[1, :6], tokens.features[1, index[:6]])


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        # Of 6 tokens: n is not a power of two.
        ("uniform", [1 / 6] * 6),
        ("power_of_two", [1 / 4, 1 / 4, 0, 1 / 4, 0, 1 / 4]),
        ("uniform_power_of_two", [1 / 6, 1 / 6, 0, 2 / 6, 0, 2 / 6]),
        ("halving", [1 / 8, 1 / 8, 1 / 4, 0, 0, 1 / 2]),
        ("zipf", [k**-0.5 / sum(j**-0.5 for j in range(1, 7)) for k in range(1, 7)]),
    ],
)
def test_distributions(distribution, expected):
    method = TailDrop(distribution=distribution, share="video").train()
    torch.testing.assert_close(method.probabilities(6), torch.tensor(expected, dtype=torch.float64))
    torch.manual_seed(0)
    counts = method(clip(T=1, H=2, W=3, C=1, B=4000)).count
    frequencies = torch.bincount(counts, minlength=7)[1:] / 4000
    torch.testing.assert_close(frequencies, torch.tensor(expected), atol=0.03, rtol=0)
    assert method.probabilities(1).tolist() == [1.0]


@pytest.mark.parametrize("distribution", ["power_of_two", "uniform_power_of_two", "halving"])
def test_powers_of_two(distribution):
    probabilities = TailDrop(distribution=distribution).probabilities(16)
    expected = {
        "power_of_two": {1: 0.2, 2: 0.2, 4: 0.2, 8: 0.2, 16: 0.2},
        "uniform_power_of_two": {1: 1 / 16, 2: 1 / 16, 4: 2 / 16, 8: 4 / 16, 16: 8 / 16},
        "halving": {1: 1 / 16, 2: 1 / 16, 4: 1 / 8, 8: 1 / 4, 16: 1 / 2},
    }[distribution]
    found = {k: p for k, p in enumerate(probabilities.tolist(), 1) if p}
    assert found == pytest.approx(expected)


def test_what_has_the_same_number():
    tokens = clip(T=3, H=4, W=8, C=2, B=8)
    for share, in_video, in_batch in (("batch", 1, 1), ("video", 1, 2), ("frame", 2, 2)):
        torch.manual_seed(1)
        out = TailDrop("4/frame", share=share).train()(tokens)
        frames = [out.frame[b, : int(out.count[b])].bincount(minlength=3) for b in range(8)]
        assert all(int(frame.min()) >= 1 for frame in frames)
        assert (max(len(set(frame.tolist())) for frame in frames) > 1) == (in_video > 1)
        assert (len({tuple(frame.tolist()) for frame in frames}) > 1) == (in_batch > 1)
        for b, frame in enumerate(frames):
            # The first ones of each frame.
            cells = [cell for t in range(3) for cell in range(t * 32, t * 32 + int(frame[t]))]
            assert out.cell[b, : int(out.count[b])].tolist() == cells


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"distribution": "normal"}, "distribution must be one of uniform, power_of_two"),
        ({"share": "token"}, "share must be batch, video or frame"),
        ({"share": "frame"}, "requires a count per frame"),
        ({"keep": 0}, "keep must be"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TailDrop(**arguments)
