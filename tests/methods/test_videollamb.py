"""VideoLLaMB: scenes, and memory that flows forward only."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from fewtokens.core.grid import Grid
from fewtokens.core.memory import MemoryState
from fewtokens.core.tokens import Tokens
from fewtokens.methods.memory.videollamb import VideoLLaMB


def scenes(*codes: int, length: int = 12, noise: float = 0.05) -> Tokens:
    """A video with scenes of unit codes, two tokens a frame."""
    generator = torch.Generator().manual_seed(0)
    code = F.normalize(torch.randn(10, 1, 16, generator=generator), dim=-1)[list(codes)].repeat_interleave(length, 0)
    features = code + noise * torch.randn(len(code), 2, 16, generator=generator)
    return Tokens.from_cells(features.flatten(0, 1)[None], Grid(len(code), 1, 2))


def trained(**arguments: int) -> VideoLLaMB:
    """A memory whose layers are not the identity."""
    torch.manual_seed(0)
    memory = VideoLLaMB(dim=16, memory=3, **arguments)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return memory.eval()


def states(memory: VideoLLaMB, video: Tokens) -> list[MemoryState]:
    state, parts = None, []
    for t in range(video.grid.T):
        state = memory.push(Tokens.from_cells(video.features[:, 2 * t : 2 * t + 2], Grid(1, 1, 2)), state)
        parts.append(state.clone())
    return parts


@torch.no_grad()
def test_scenes_end_after_the_similarity_rises_again():
    memory = VideoLLaMB(dim=16, memory=3)
    out = memory.read(memory.push(scenes(0, 1, 2, 3, 4)))
    spans = [first for first, _ in out.meta["spans"][0]]
    # The first 16 depths only fill the statistics, so scenes 0 and 1 are one; the scene after it begins 2 frames late.
    starts = [b for a, b in pairwise(spans) if b % 12 in (1, 2, 3) and b - a <= 8]
    assert any(abs(start - 26) <= 1 for start in starts)
    # Without training the frames are unchanged.
    features = scenes(0, 1, 2, 3, 4).features[0].unflatten(0, (60, 2))
    held = features[[int(second) for second in spans]].flatten(0, 1)
    torch.testing.assert_close(out.features[0], held)


@torch.no_grad()
def test_memory_flows_forward_only():
    memory = trained()
    first, second = states(memory, scenes(0, 1, 2, 3, 4, 5)), states(memory, scenes(0, 1, 2, 3, 4, 6))
    written = [int(state.slots.mask.sum()) for state in first]
    assert written[59] > 0
    assert torch.equal(first[59].slots.features, second[59].slots.features)
    # Another order of the first scenes changes what is read of a later one.
    swapped = states(memory, scenes(1, 0, 2, 3, 4, 5))
    assert not torch.allclose(
        memory.read(first[-1]).features[0, -2:], memory.read(swapped[-1]).features[0, -2:], atol=1e-4
    )


def averaging(**arguments: int) -> VideoLLaMB:
    """A memory whose tokens are the average of their scene, added to the memory before."""
    memory = VideoLLaMB(dim=16, memory=2, **arguments)
    (layer,) = memory.layers
    with torch.no_grad():
        memory.initial.zero_()
        layer.attention.query.weight.zero_()
        for linear in (layer.attention.value, layer.attention.out):
            linear.weight.copy_(torch.eye(16))
    return memory.eval()


@torch.no_grad()
def test_a_question_selects_scenes():
    video = scenes(0, 1, 2, 3, 4, 5)
    memory = averaging(top=1)
    state = memory.push(video)
    for code in (2, 3, 4):
        out = memory.read(state, text=video.features[:, 24 * code + 12 : 24 * code + 13]).check()
        seconds = out.grid.times.tolist()
        assert 1 < len(seconds) <= 8
        # A cut is known up to 3 frames late.
        assert 12 * code <= min(seconds) and max(seconds) <= 12 * code + 15
    everything = memory.read(state)
    memory.top = 99
    again = memory.read(state, text=video.features[:, :1])
    assert torch.equal(again.features, everything.features)
    memory.top = 1
    assert torch.equal(
        memory(video, text=video.features[:, 60:61]).features.sum(),
        memory.read(state, text=video.features[:, 60:61]).features.sum(),
    )


def test_gradients_reach_all_parameters():
    memory = trained()
    memory.read(memory.push(scenes(0, 1, 2, 3, 4, 5))).features.square().sum().backward()
    assert all(bool((p.grad != 0).any()) for p in memory.parameters())


def test_arguments():
    with pytest.raises(ValueError, match="top must be an integer of at least 1, got 0"):
        VideoLLaMB(top=0)
    with pytest.raises(ValueError, match="frames must be an integer of at least 1, got 0"):
        VideoLLaMB(frames=0)
    with pytest.raises(ValueError, match="16"):
        VideoLLaMB(dim=8).push(scenes(0))


@pytest.mark.parametrize("cap", [2, 4, 16])
def test_averaged_slots_belong_to_a_scene(cap):
    """Also if their mean second is not within any: a question is always answered from some slot, and each by one."""
    memory = VideoLLaMB(cap, dim=16, frames=4, memory=2, top=1).eval()
    every = VideoLLaMB(cap, dim=16, frames=4, memory=2, top=50).eval()
    state, question = None, torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(3))
    video = scenes(*[0, 1, 2, 3, 4] * 3, length=8)
    with torch.no_grad():
        for t in range(video.grid.T):
            state = memory.push(Tokens.from_cells(video.features[:, 2 * t : 2 * t + 2], Grid(1, 1, 2)), state)
            read = memory.read(state, text=question).check()
            assert int(read.count) > 0
            assert torch.equal(every.read(state, text=question).features, memory.read(state).features)
