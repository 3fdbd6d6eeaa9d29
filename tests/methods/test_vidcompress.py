"""VidCompress: compressed clips, the cache of earlier ones, and the question."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core.tokens import Tokens
from fewtokens.methods.memory.vidcompress import VidCompress
from tests.helpers.frames import cut, stream


def trained(**arguments: int) -> VidCompress:
    """A memory whose layers are not the identity."""
    torch.manual_seed(0)
    memory = VidCompress(dim=4, **arguments)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return memory.eval()


def features(memory: VidCompress, video: Tokens, **cues: torch.Tensor) -> torch.Tensor:
    """The tokens of each frame, [T,S,C]."""
    return memory.read(memory.push(video), **cues).features[0].unflatten(0, (video.grid.T, -1))


@torch.no_grad()
def test_without_training_frames_are_averaged():
    video = stream(5, H=8, W=8)
    expected = video.features.unflatten(1, (5, 2, 4, 2, 4))[0].mean((2, 4)).flatten(1, 2)
    memory = VidCompress(dim=4, clip=3, tokens=4)
    torch.testing.assert_close(features(memory, video), expected)
    torch.testing.assert_close(features(memory, video, text=torch.ones(1, 2, 4)), expected)


@torch.no_grad()
def test_without_a_cache_a_clip_is_as_the_first():
    memory, video = trained(clip=3, tokens=4), stream(5, H=4, W=4)
    rest = cut(video, 3, 5)
    alone = features(memory, rest)
    assert not torch.allclose(features(memory, video)[3:], alone, atol=1e-4)
    state = memory.push(cut(video, 0, 3))
    state.stats["history_info"].zero_()
    after = memory.read(memory.push(rest, state)).features[0].unflatten(0, (5, 4))[3:]
    torch.testing.assert_close(after, alone)


@torch.no_grad()
def test_a_clip_depends_on_earlier_clips_only():
    memory, video = trained(clip=3, tokens=4), stream(9, H=4, W=4)
    before = features(memory, video)
    for clip in range(3):
        x = video.features.clone()
        x[:, 48 * clip : 48 * clip + 48] *= -1
        changed = (features(memory, video.replace(features=x)) - before).abs().amax((1, 2)) > 1e-6
        assert changed.tolist() == [t // 3 >= clip for t in range(9)]


@torch.no_grad()
def test_the_cache_is_halved():
    memory, video = trained(clip=1, tokens=1), stream(40)
    state = memory.push(video)
    history = memory._history(state)
    assert (history.seconds[0, :, 0][history.mask[0]] * 2).tolist() == list(range(0, 40, 4))


@torch.no_grad()
def test_a_question_changes_only_what_is_read():
    memory, video = trained(clip=3, tokens=2), stream(8, H=2, W=2)
    state = memory.push(video)
    plain = memory.read(state).features
    one, two = (memory.read(state, text=text).features for text in stream(6, B=2).features.split(1))
    assert not torch.allclose(one, two, atol=1e-4)
    assert not torch.allclose(one, plain, atol=1e-4)
    assert one.shape == two.shape == plain.shape
    assert torch.equal(memory.read(state).features, plain)


def test_gradients_reach_all_parameters():
    memory = trained(clip=3, tokens=2, cap=5)
    state = memory.push(stream(20, H=2, W=2))
    memory.read(state, text=torch.randn(1, 3, 4)).features.square().sum().backward()
    assert all(bool((p.grad != 0).any()) for p in memory.parameters())


def test_arguments():
    with pytest.raises(ValueError, match="tokens must be an integer of at least 1, got 0"):
        VidCompress(tokens=0)
    memory = VidCompress(dim=4)
    with pytest.raises(ValueError, match=r"requires text of shape \[1,L,4\], got \[1, 0, 4\]"):
        memory.read(memory.push(stream(1)), text=torch.ones(1, 0, 4))
