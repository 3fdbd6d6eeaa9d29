"""VideoStreaming: summaries of clips, and the selection by the question."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core.tokens import Tokens
from fewtokens.methods.memory.videostreaming import VideoStreaming
from tests.helpers.frames import angles, at_angles, cut, stream


def trained(**arguments: int) -> VideoStreaming:
    """A memory whose layers are not the identity."""
    torch.manual_seed(0)
    memory = VideoStreaming(dim=4, **arguments)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return memory.eval()


def summaries(memory: VideoStreaming, video: Tokens) -> torch.Tensor:
    return memory.read(memory.push(video)).features[0]


@torch.no_grad()
def test_the_question_selects_clips():
    """The golden of the specification: indicators at 0, 30, ..., 120 degrees and a question at 65 select 60 and 90."""
    memory = VideoStreaming(dim=2, clip=1, top=2)
    state = memory.push(at_angles(0, 30, 60, 90, 120))
    out = memory.read(state, text=at_angles(65).features)
    assert angles(out) == [60, 90]
    assert out.grid.times.tolist() == [2, 3]
    # More clips than there are: all, in the order of time.
    memory.top = 9
    assert angles(memory.read(state, text=at_angles(65).features)) == angles(memory.read(state)) == [0, 30, 60, 90, 120]


@torch.no_grad()
def test_a_question_finds_a_needle():
    video = stream(60, H=2, W=2, C=4)
    features = 0.1 * video.features + torch.tensor([1.0, 0, 0, 0])
    features[:, 4 * 32 : 4 * 35] = torch.tensor([0.0, 1, 0, 0])
    memory = VideoStreaming(dim=4, clip=3, tokens=2, top=1)
    state = memory.push(video.replace(features=features))
    out = memory.read(state, text=torch.tensor([[[0.0, 2, 0, 0]]]))
    assert out.N == 2
    first, last = out.meta["spans"][0][0]
    assert first <= 16.5 <= last


@torch.no_grad()
def test_without_training_a_summary_is_an_average():
    memory, video = VideoStreaming(dim=4, clip=3, tokens=4), stream(6, H=4, W=4)
    expected = video.features.unflatten(1, (2, 3, 2, 2, 2, 2))[0].mean((1, 3, 5)).flatten(0, 2)
    torch.testing.assert_close(summaries(memory, video), expected)


@torch.no_grad()
def test_a_summary_depends_on_earlier_clips_only():
    memory, video = trained(clip=3, tokens=2), stream(9, H=2, W=2)
    before = summaries(memory, video)
    for clip, changed in ((2, [False, False, True]), (0, [True, True, True])):
        features = video.features.clone()
        features[:, 12 * clip : 12 * clip + 12] *= -1
        after = summaries(memory, video.replace(features=features))
        assert ((after - before).unflatten(0, (3, 2)).abs().amax((1, 2)) > 1e-6).tolist() == changed


@torch.no_grad()
def test_a_question_does_not_change_the_state():
    memory, video = trained(clip=3, tokens=2, top=1), stream(12, H=2, W=2)
    state = memory.push(cut(video, 0, 7))
    memory.read(state, text=torch.ones(1, 2, 4))
    assert torch.equal(memory.read(memory.push(cut(video, 7, 12), state)).features, memory(video).features)


def test_gradients_reach_all_parameters():
    memory = trained(clip=3, tokens=2, cap=3)
    memory.read(memory.push(stream(20, H=2, W=2))).features.square().sum().backward()
    assert all(bool((p.grad != 0).any()) for p in memory.parameters())


def test_arguments():
    with pytest.raises(ValueError, match="top must be an integer of at least 1, got 0"):
        VideoStreaming(top=0)
    memory = VideoStreaming(dim=4)
    with pytest.raises(ValueError, match=r"requires text of shape \[1,L,4\], got \[1, 2, 3\]"):
        memory.read(memory.push(stream(1)), text=torch.ones(1, 2, 3))
    with pytest.raises(ValueError, match="set dim=4"):
        memory = VideoStreaming(dim=8)
        memory.read(memory.push(stream(1)))
