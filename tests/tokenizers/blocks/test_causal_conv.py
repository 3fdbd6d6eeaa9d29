"""Causal convolutions, normalizations and depth-to-space, against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fewtokens.tokenizers.blocks.causal_conv import CausalConv3d, DepthToSpace
from fewtokens.tokenizers.blocks.residual import ConvNorm, ResBlock


@pytest.mark.parametrize("fill", ["first", "zeros"])
def test_what_stands_before_the_first_frame(fill):
    conv = CausalConv3d(2, 3, (3, 1, 1), fill=fill)
    x = torch.randn(1, 2, 4, 2, 2)
    before = x[:, :, :1].expand(-1, -1, 2, -1, -1) if fill == "first" else torch.zeros(1, 2, 2, 2, 2)
    expected = F.conv3d(torch.cat([before, x], 2), conv.weight, conv.bias)
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 1, 1)])
@pytest.mark.parametrize("kernel", [(3, 1, 1), (3, 3, 3), (1, 3, 3)])
def test_with_gradients_it_is_the_same_convolution(kernel, stride):
    """Kernels run in different forms for training; values and gradients are those of conv3d."""
    conv = CausalConv3d(4, 3, kernel, stride=stride, causal=False)
    x = torch.randn(2, 4, 5, 6, 6).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    with torch.no_grad():
        without = conv(x)
    ours = conv(x)
    torch.testing.assert_close(ours, without)
    plain = F.conv3d(x, conv.weight, conv.bias, stride, padding=[k // 2 for k in kernel])
    torch.testing.assert_close(ours, plain)
    inputs = [x, conv.weight, conv.bias]
    for got, expected in zip(
        torch.autograd.grad(ours.square().sum(), inputs), torch.autograd.grad(plain.square().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("first_frame", "frames"), [(True, 1 + 4), (False, 4)])
def test_stride_in_time(first_frame, frames):
    """The first output sees the first frame alone, or the first two."""
    conv = CausalConv3d(1, 1, stride=(2, 2, 2), first_frame=first_frame)
    x = torch.randn(1, 1, frames, 4, 4)
    assert conv(x).shape == (1, 1, 2 + first_frame, 2, 2)
    changed = x.clone()
    changed[:, :, 1] = 0
    assert torch.equal(conv(x)[:, :, 0], conv(changed)[:, :, 0]) == first_frame


def test_without_causality_it_is_the_convolution_of_pytorch():
    conv = CausalConv3d(2, 3, causal=False)
    x = torch.randn(1, 2, 4, 6, 6)
    torch.testing.assert_close(conv(x), F.conv3d(x, conv.weight, conv.bias, padding=1))


def test_depth_to_space_places_channels_in_their_subcells():
    layer = DepthToSpace(1, 1, (2, 2, 2), kernel=(1, 1, 1))
    x = torch.randn(1, 1, 3, 1, 1)
    out = layer(x)
    assert out.shape == (1, 1, 5, 2, 2)
    channels = layer.conv(x)  # [1,8,3,1,1]; a channel is (frame, row, column) of the cell
    for t in range(5):
        cell, frame = divmod(t + 1, 2)
        assert torch.equal(out[0, 0, t].flatten(), channels[0, 4 * frame : 4 * frame + 4, cell, 0, 0])


@pytest.mark.parametrize(("kind", "axes"), [("channel", (1,)), ("frame", (1, 3, 4)), ("clip", (1, 2, 3, 4))])
def test_what_shares_statistics(kind, axes):
    norm = ConvNorm(6, kind, groups=1, act=False)
    x = torch.randn(2, 6, 3, 4, 4) * 5 + 2
    expected = (x - x.mean(axes, keepdim=True)) / (x.var(axes, unbiased=False, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("kind", ["channel", "frame", "clip"])
def test_only_statistics_over_the_clip_see_the_future(kind):
    """The negative control of the tests of causality."""
    block = ResBlock(4, 4, [(3, 3, 3)], norm=kind, groups=2)
    x = torch.randn(1, 4, 4, 4, 4)
    changed = x.clone()
    changed[:, :, -1] += 1
    assert torch.equal(block(x)[:, :, :-1], block(changed)[:, :, :-1]) == (kind != "clip")
