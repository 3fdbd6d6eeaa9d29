"""Video-XL-Pro: groups of four frames."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.memory.video_xl_pro import VideoXLPro, scale_scores
from tests.helpers.frames import cut, stream


def trained(**arguments: int) -> VideoXLPro:
    """A memory whose frames are not averages."""
    torch.manual_seed(0)
    memory = VideoXLPro(dim=4, **arguments)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return memory.eval()


def frames(memory: VideoXLPro, video: Tokens) -> torch.Tensor:
    """What is read of a video, [M,H*W,C]."""
    return memory.read(memory.push(video)).features[0].unflatten(0, (-1, video.grid.cells_per_frame))


@torch.no_grad()
def test_without_training_a_group_is_averaged():
    video = stream(12, H=2, W=3)
    expected = video.features.unflatten(1, (3, 4, 6))[0].mean(1)
    torch.testing.assert_close(frames(VideoXLPro(dim=4), video), expected)


@torch.no_grad()
def test_equal_frames_give_equal_groups():
    """One group is as any other, and a group that is not full repeats its last frame."""
    video = stream(1, H=2, W=3)
    many = Tokens.from_cells(video.features.repeat(1, 11, 1), Grid(11, 2, 3))
    memory = trained()
    out = frames(memory, many)
    assert len(out) == 3
    torch.testing.assert_close(out, frames(memory, video).expand(3, -1, -1))
    repeated = stream(5, H=2, W=3)
    full = torch.cat([repeated.features, repeated.features[:, -6:].repeat(1, 3, 1)], 1)
    torch.testing.assert_close(frames(memory, repeated), frames(memory, Tokens.from_cells(full, Grid(8, 2, 3))))
    assert torch.equal(frames(memory, repeated), frames(memory, repeated))


@torch.no_grad()
def test_a_group_depends_on_all_its_frames_and_no_others():
    memory, video = trained(), stream(12, H=2, W=3)
    before = frames(memory, video)
    for t in range(12):
        features = video.features.clone()
        features[:, 6 * t : 6 * t + 6] *= -1
        changed = (frames(memory, video.replace(features=features)) - before).abs().amax((1, 2)) > 1e-6
        assert changed.tolist() == [group == t // 4 for group in range(3)]
    # Frames of a group are not exchangeable.
    swapped = torch.cat([video.features[:, 6:12], video.features[:, :6], video.features[:, 12:]], 1)
    assert not torch.allclose(frames(memory, video.replace(features=swapped))[0], before[0], atol=1e-4)


@torch.no_grad()
def test_a_convolution_pads_by_the_border():
    block = trained().blocks[0]
    with torch.no_grad():
        for layer in (block.space, block.time):
            for parameter in (layer.attention.out.weight, *layer.mlp[-1].parameters()):
                parameter.zero_()
    x = torch.randn(2, 4, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    index = [torch.arange(-1, n + 1).clamp(0, n - 1) for n in (4, 3, 5)]
    padded = x[:, index[0]][:, :, index[1]][:, :, :, index[2]]
    expected = block.convolution.bias.expand(2, 2, 3, 5, 4).clone()
    for dt in range(3):
        for dy in range(3):
            for dx in range(3):
                part = padded[:, dt : dt + 3 : 2, dy : dy + 3, dx : dx + 5]
                expected += F.linear(part, block.convolution.weight[:, :, dt, dy, dx])
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def test_scores_are_scaled():
    """The golden of the specification; equal scores are 0, and padding does not count."""
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.3, 7.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
    mask = torch.tensor([[True, True, True, True, False], [True] * 5])
    expected = torch.tensor([[0, 1, 0.5, 0.25, 0], [0, 0, 0, 0, 0]])
    torch.testing.assert_close(scale_scores(scores, mask), expected)


@torch.no_grad()
def test_a_question_selects_tokens_and_marks_them():
    memory, video = VideoXLPro(dim=4, share=0.3).eval(), stream(40, H=1, W=2)
    memory.question = torch.nn.Identity()
    text = torch.tensor([[[1.0, 0, 0, 0], [0, 1.0, 0, 0]]])
    state = memory.push(video)
    everything, out = memory.read(state), memory.read(state, text=text).check()
    score = everything.features[0, :, :2].mean(1)
    score = (score - score.min()) / (score.max() - score.min())
    kept = score.topk(6).indices.sort().values  # 0.3 of 20
    torch.testing.assert_close(out.features[0], (everything.features[0] + score[:, None])[kept])
    assert torch.equal(out.positions[0], everything.positions[0, kept])
    assert torch.equal(memory(video, text=text).features, out.features)
    # Every call selects the same tokens, and a share of 1000 tokens is exact.
    assert torch.equal(memory.read(state, text=text).features, out.features)
    for share, count in ((0.7, 700), (0.85, 850), (0.99, 990)):
        memory = VideoXLPro(dim=4, share=share)
        assert memory._select(stream(1000), text).count.tolist() == [count]


def test_gradients_reach_all_parameters():
    memory = trained(cap=2)
    memory.read(memory.push(stream(14, H=2, W=2)), text=torch.randn(1, 3, 4)).features.square().sum().backward()
    assert all(bool((p.grad != 0).any()) for p in memory.parameters())


@torch.no_grad()
def test_beyond_the_limit_neighbors_are_averaged():
    memory = VideoXLPro(2, dim=4)
    out = memory.read(memory.push(stream(24)))
    assert sorted(out.sizes[0].tolist()) in ([4, 20], [8, 16], [12, 12])
    assert memory.read(memory.push(cut(stream(24), 0, 7))).sizes[0].tolist() == [4, 3]


def test_arguments():
    with pytest.raises(ValueError, match="share must be above 0 and at most 1, got 0"):
        VideoXLPro(share=0.0)
    with pytest.raises(ValueError, match="set dim=4"):
        memory = VideoXLPro(dim=8)
        memory.read(memory.push(stream(1)))
