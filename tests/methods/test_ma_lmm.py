"""MA-LMM: places of a frame merge at their own seconds."""

from __future__ import annotations

import math

import pytest
import torch

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.memory.ma_lmm import MALMM
from tests.helpers.frames import angles, stream


def columns(*degrees: tuple[float, ...]) -> Tokens:
    """A video whose frames are a row of places; each place has a unit vector at its angle in each frame."""
    angle = torch.tensor(degrees).T * math.pi / 180
    return Tokens.from_cells(torch.stack([angle.cos(), angle.sin()], 2)[None], Grid(len(angle), 1, len(degrees)))


@torch.no_grad()
def test_each_place_merges_its_own_neighbors():
    """The golden of the specification, which equals the published code."""
    memory = MALMM(3)
    video = columns((0, 2, 50, 90), (0, 40, 41, 90))
    out = memory.read(memory.push(video)).check()
    assert out.sizes[0].unflatten(0, (3, 2)).T.tolist() == [[2, 1, 1], [1, 2, 1]]
    expected = torch.tensor([[1, 50, 90], [0, 40.5, 90]])
    torch.testing.assert_close(torch.tensor(angles(out)).view(3, 2).T, expected, rtol=0, atol=2e-3)
    # Means over the places, and the seconds between them.
    assert out.grid.times.tolist() == [0.25, 1.75, 3]
    assert out.meta["spans"] == [[[0, 1], [1, 2], [3, 3]]]
    seconds = out.grid.times
    frame = out.positions[0, :, 0].double()
    left = frame.floor().long()
    own = torch.lerp(seconds[left], seconds[frame.ceil().long()], frame.frac())
    # A second before the first slot, or after the last, is moved to it.
    assert own.view(3, 2).T.tolist() == [pytest.approx([0.5, 2, 3]), pytest.approx([0.25, 1.5, 3])]


@torch.no_grad()
def test_on_the_video_each_cell_has_the_slot_of_its_place():
    memory, video = MALMM(3), columns((0, 2, 50, 90), (0, 40, 41, 90))
    out = memory(video).check()
    slots = out.assignment[0].view(4, 2) // 2
    assert slots.T.tolist() == [[0, 0, 1, 2], [0, 1, 1, 2]]
    assert (out.assignment[0].view(4, 2) % 2).tolist() == [[0, 1]] * 4
    assert out.positions[0, :, 0].view(3, 2).T.tolist() == [[0.5, 2, 3], [0, 1.5, 3]]
    assert out.meta["forgotten"] == [0]


@torch.no_grad()
def test_equal_places_merge_as_frames():
    """With the same features at all places, the result is that of merging whole frames, weighted."""
    video = stream(40, H=2, W=2)
    same = video.replace(features=video.features[:, ::4].repeat_interleave(4, 1))
    out = MALMM(5)(same)
    alone = MALMM(5)(stream(1).replace(features=video.features[:, ::4], **alone_grid(video)))
    torch.testing.assert_close(out.features[:, ::4], alone.features)
    assert out.sizes[:, ::4].tolist() == alone.sizes.tolist()


def alone_grid(video: Tokens) -> dict[str, object]:
    one = Tokens.from_cells(video.features[:, ::4], Grid(video.grid.T, 1, 1, video.grid.times))
    return {name: getattr(one, name) for name in ("positions", "sizes", "mask", "assignment", "grid")}


@torch.no_grad()
def test_a_moving_corner_is_held_while_the_rest_is_one_token():
    """Only the first of four places changes; its slots are its changes, those of the others are long."""
    video = stream(30, H=2, W=2)
    still = video.features[:, :4].repeat(1, 30, 1)
    still[:, ::4] = torch.eye(4)[torch.arange(30) // 10][None]
    out = MALMM(3)(video.replace(features=still))
    assert out.sizes[0].view(3, 4)[:, 0].tolist() == [10, 10, 10]
    torch.testing.assert_close(out.features[0].view(3, 4, 4)[:, 0], torch.eye(4)[:3])


def test_gradients_pass_the_averages():
    video = stream(9, H=1, W=2)
    video.features.requires_grad_()
    memory = MALMM(2)
    memory.read(memory.push(video)).features.sum().backward()
    assert bool((video.features.grad > 0).all())
