"""MARC: events, the choice by the question, the mean of an event, and the published share."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.merging.marc import Marc

LENGTHS = (5, 3, 6, 4)


def scenes(noise: float = 0.02) -> Tokens:
    """Four scenes; scene s has the code s, and each cell its own number in the last channel."""
    generator = torch.Generator().manual_seed(0)
    scene = torch.tensor([s for s, length in enumerate(LENGTHS) for _ in range(length)])
    x = torch.nn.functional.one_hot(scene, 6).float()[:, None].repeat(1, 6, 1)
    x += noise * torch.randn(x.shape, generator=generator)
    x[..., 5] = torch.arange(6) / 10
    return Tokens.from_cells(x.flatten(0, 1)[None], Grid(len(scene), 2, 3))


@pytest.mark.parametrize("asked", range(4))
def test_the_event_of_the_question_is_one_frame(asked):
    tokens = scenes()
    text = torch.nn.functional.one_hot(torch.tensor([[asked]]), 6).float()
    out = Marc(1)(tokens, text=text).check()
    start = sum(LENGTHS[:asked])
    expected = tokens.features[0].reshape(-1, 6, 6)[start : start + LENGTHS[asked]].mean(0)
    assert out.count.tolist() == [6] and out.sizes.unique().tolist() == [LENGTHS[asked]]
    torch.testing.assert_close(out.features[0], expected)
    assert out.positions[0, :, 0].tolist() == pytest.approx([start + (LENGTHS[asked] - 1) / 2] * 6)


def test_the_best_events_in_the_order_of_time():
    tokens = scenes()
    text = torch.tensor([[[0.5, 0.0, 0.2, 1.0, 0.0, 0.0]]])
    out = Marc(2)(tokens, text=text)
    assert out.features[0].reshape(2, 6, 6)[:, 0, :4].argmax(1).tolist() == [0, 3]
    everything = Marc(9)(tokens, text=text)
    assert everything.N == 4 * 6 and bool((everything.assignment >= 0).all())


def test_the_typical_event():
    out = Marc(1, by="typical")(scenes())
    assert out.features[0, 0, :4].argmax() == 2  # the longest


def test_a_video_without_cuts_is_one_event():
    for T in (1, 2, 7):
        out = Marc(3, by="typical")(Tokens.from_cells(torch.ones(1, T, 2, 2, 3)))
        assert out.N == 4 and out.sizes.tolist() == [[T] * 4]


def test_the_published_share():
    """Three events of 64 frames are 4.69 % of the tokens; 4.71 % are published."""
    x = torch.eye(4)[torch.arange(64) // 16].repeat_interleave(9, 0)[None]
    out = Marc()(Tokens.from_cells(x, Grid(64, 3, 3)), text=torch.ones(1, 1, 4))
    assert pytest.approx(0.0471, abs=5e-4) == out.N / (64 * 9)


def test_invalid_arguments():
    for arguments, message in [({"events": 0}, "events"), ({"events": True}, "events"), ({"by": "x"}, "by")]:
        with pytest.raises(ValueError, match=message):
            Marc(**arguments)
