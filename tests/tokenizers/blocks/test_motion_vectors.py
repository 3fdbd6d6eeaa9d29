"""Motion vectors: signs, scale, the shift of a pan, pooling without a preferred direction, and warping."""

from __future__ import annotations

import pytest
import torch

from fewtokens.tokenizers.blocks.motion_vectors import (
    codec_vectors,
    denormalize,
    match_blocks,
    normalize,
    pool_vectors,
    warp,
    warp_in_turn,
)
from fewtokens.video import synthetic


def pan(right: int, down: int, frames: int = 3, size: int = 64) -> torch.Tensor:
    """A smooth texture on a torus whose content moves by whole pixels, [1,T,3,H,W] in 0..1."""
    noise = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(noise, size, mode="bicubic").clamp(0, 1)[0]
    return torch.stack([image.roll((down * t, right * t), (-2, -1)) for t in range(frames)])[None]


def test_normalize_and_back():
    vectors = torch.randn(2, 3, 2, 4, 5)
    scaled = normalize(vectors, 320, 576)
    torch.testing.assert_close(denormalize(scaled, 320, 576), vectors, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(scaled[:, :, 0], vectors[:, :, 0] / 576 / 0.0993703)
    torch.testing.assert_close(scaled[:, :, 1], vectors[:, :, 1] / 320 / 0.1130276)


def test_pooling_is_symmetric_in_sign():
    vectors = torch.randn(2, 2, 8, 12)
    assert torch.equal(pool_vectors(-vectors, 4), -pool_vectors(vectors, 4))
    half = torch.zeros(2, 4, 4)
    half[0, :, :2] = -3
    assert pool_vectors(half, 4)[0].item() == -3


@pytest.mark.parametrize(("right", "down"), [(3, 0), (-3, 2), (0, -7)])
def test_vectors_point_to_the_source(right, down):
    """Blocks that do not touch the edge, from which new content comes."""
    frames = pan(right, down)
    inner = match_blocks(frames)[..., 1:-1, 1:-1]
    assert torch.equal(inner, torch.tensor([-right, -down])[:, None, None].expand_as(inner).float())
    codec = codec_vectors(frames)[..., 1:-1, 1:-1]
    assert float((codec - inner).abs().mean()) < 0.3


def test_a_still_video_has_no_motion():
    still = pan(0, 0)
    assert not match_blocks(still).any()
    assert not codec_vectors(still).any()
    assert match_blocks(torch.zeros(1, 2, 3, 32, 32)).abs().max() == 0
    assert match_blocks(still[:, :1]).shape == (1, 0, 2, 4, 4)


def test_warping():
    image = pan(0, 0)[:, 0]
    assert torch.allclose(warp(image, torch.zeros(1, 2, 4, 4)), image, atol=1e-6)
    shift = torch.tensor([-3.0, 2.0])[:, None, None].expand(1, 2, 4, 4)
    moved = warp(image, shift)
    torch.testing.assert_close(moved[..., :-2, 3:], image[..., 2:, :-3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moved[..., :-2, 0], image[..., 2:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("vectors_of", [match_blocks, codec_vectors])
def test_warping_is_better_than_repeating_the_keyframe(vectors_of):
    frames = synthetic("pan", frames=6, size=(64, 64)).frames[None].float() / 255
    warped = warp_in_turn(frames[:, 0], vectors_of(frames))
    error, still = ((value - frames)[:, 1:].square().mean((2, 3, 4)) for value in (warped, frames[:, :1]))
    assert bool((error < still).all())
