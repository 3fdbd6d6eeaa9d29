"""TDC: segments, numbers of tokens, and what the dynamic tokens depend on."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest
import torch

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.memory.tdc import TDC
from fewtokens.methods.ops.scene_tilling import scene_cuts
from tests.helpers.frames import at_angles, stream

# The golden of the specification: two cuts, so that segments start at 0, 3 and 6.
COSINES = (0.99, 0.95, 0.2, 0.97, 0.98, 0.5, 0.96, 0.99, 0.97, 0.98)


def trained(**arguments: int) -> TDC:
    """A memory whose dynamic tokens are not the averages."""
    torch.manual_seed(0)
    memory = TDC(dim=4, **arguments)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return memory.eval()


def starts(memory: TDC, video: Tokens) -> list[float]:
    return [first for first, _ in memory.read(memory.push(video)).meta["spans"][0]]


@torch.no_grad()
def test_segments():
    assert (scene_cuts(torch.tensor(COSINES), count=2) + 1).tolist() == [3, 6]
    # The same online, although a cut is only known two frames later.
    video = at_angles(*accumulate((math.degrees(math.acos(c)) for c in COSINES), initial=0.0))
    assert starts(TDC(dim=2, warm_up=2), video) == [0, 3, 6]
    # A static video has no cuts; short videos are compressed too.
    assert starts(TDC(dim=2, warm_up=2), at_angles(*[20] * 20)) == [0, 8, 16]


@pytest.mark.parametrize(("frames", "count"), [(8, 256), (11, 256 + 144 + 2 * 16), (224, 7168)])
@torch.no_grad()
def test_numbers_of_tokens(frames, count):
    video = Tokens.from_cells(torch.ones(1, frames * 144, 4), Grid(frames, 12, 12))
    memory = TDC(dim=4, num_layers=1)
    out = memory.read(memory.push(video)).check()
    assert count == out.N
    assert float(out.sizes.sum()) == pytest.approx(frames * 144)


@torch.no_grad()
def test_numbers_of_tokens_of_three_segments():
    """Segments of 3, 3 and 5 frames have 560 tokens."""
    video = at_angles(*accumulate((math.degrees(math.acos(c)) for c in COSINES), initial=0.0))
    cells = video.features.repeat_interleave(144, 1)
    memory = TDC(dim=2, num_layers=1, warm_up=2)
    assert memory.read(memory.push(Tokens.from_cells(cells, Grid(11, 12, 12)))).N == 560


@torch.no_grad()
def test_static_tokens_are_unchanged_and_dynamic_ones_start_as_averages():
    memory, video = TDC(dim=4, chunk=3, tokens=4), stream(3, H=4, W=4)
    out = memory.read(memory.push(video)).features[0]
    frames = video.features.unflatten(1, (3, 2, 2, 2, 2))[0]  # frame, row of the pool, row in it, column, column
    assert torch.equal(out[:16], video.features[0, :16])
    torch.testing.assert_close(out[16:], frames[1:].mean((2, 4)).flatten(0, 2))


@torch.no_grad()
def test_dynamic_tokens_depend_on_their_frame_and_the_static_one():
    memory, video = trained(chunk=4, tokens=2), stream(4, H=2, W=2)
    before = memory.read(memory.push(video)).features[0]
    for t, changed in ((0, [True] * 10), (2, [False] * 6 + [True] * 2 + [False] * 2)):
        features = video.features.clone()
        features[:, 4 * t : 4 * t + 4] = features[:, 4 * t : 4 * t + 4].flip(1) * 2
        after = memory.read(memory.push(video.replace(features=features))).features[0]
        assert ((after - before).abs().amax(1) > 1e-6).tolist() == changed


def test_gradients_reach_all_parameters():
    memory = trained(chunk=4, tokens=2, cap=3)
    memory.read(memory.push(stream(20, H=2, W=2))).features.square().sum().backward()
    assert all(bool((p.grad != 0).any()) for p in memory.parameters())


def test_arguments():
    with pytest.raises(ValueError, match="chunk must be an integer of at least 1, got 0"):
        TDC(chunk=0)
    with pytest.raises(ValueError, match="set dim=4"):
        TDC(dim=8).push(stream(1))
