"""Crops, scales, colors and the ranges of random parameters."""

from __future__ import annotations

import colorsys

import pytest
import torch

from fewtokens.data.transforms import Transform, rotate_hue, to_gray


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(2, 3, 40, 60), (1, 3, 60, 40), (3, 3, 9, 7), (1, 3, 1, 1), (2, 3, 33, 33)])
@pytest.mark.parametrize(
    "transform",
    [
        Transform(16), Transform(16, resize=20), Transform(16, scale=(0.9, 1.33)), Transform(16, area=(0.05, 1.0)),
        Transform(16, flip=1.0, color=1.0, gray=0.5),
    ],
)  # fmt: skip
def test_sizes_and_range(shape, transform):
    clip = torch.randint(256, shape, generator=generator()).byte()
    for seed in range(5):
        out = transform.training(clip, generator(seed))
        assert out.shape == (shape[0], 3, 16, 16)
        assert float(out.min()) >= 0
        assert float(out.max()) <= 1
    assert transform.view(clip).shape == (shape[0], 3, 16, 16)


def test_identity_without_random_changes():
    clip = torch.randint(256, (2, 3, 16, 16), generator=generator()).byte()
    assert torch.equal(Transform(16).training(clip, generator()), clip.float() / 255)
    assert torch.equal(Transform(16).view(clip), clip.float() / 255)
    mirrored = Transform(16, flip=1.0).training(clip, generator())
    assert torch.equal(mirrored, (clip.float() / 255).flip(-1))


def test_all_frames_get_the_same_transform():
    clip = torch.randint(256, (1, 3, 40, 60), generator=generator()).byte().expand(4, -1, -1, -1)
    out = Transform(16, scale=(0.9, 1.3), flip=0.5, color=1.0, gray=0.5).training(clip, generator(3))
    assert torch.equal(out[0], out[3])


def test_random_crops_cover_the_image():
    ramp = torch.arange(200).byte().expand(1, 3, 100, 200)
    starts = [float(Transform(100).training(ramp, generator(seed))[0, 0, 0, 0] * 255) for seed in range(40)]
    assert min(starts) < 15
    assert max(starts) > 85


def test_random_areas():
    """Random areas are in the requested range."""
    ramp = (torch.arange(100).float()[:, None] * 2.5).expand(100, 100)
    clip = torch.stack([ramp, ramp.T, ramp]).byte()[None]
    fractions = []
    for seed in range(200):
        out = Transform(32, area=(0.2, 0.6)).training(clip, generator(seed))[0] * 255 / 2.5
        rows = float(out[0, -1].mean() - out[0, 0].mean()) * 32 / 31
        columns = float(out[1, :, -1].mean() - out[1, :, 0].mean()) * 32 / 31
        fractions.append(rows * columns / 100**2)
    assert 0.17 < min(fractions) < 0.25
    assert 0.5 < max(fractions) < 0.64


def test_hue_rotates_colors_and_keeps_gray():
    gray = torch.full((1, 3, 2, 2), 0.4)
    torch.testing.assert_close(rotate_hue(gray, 0.3), gray, atol=2e-3, rtol=0)
    red = torch.tensor([0.8, 0.3, 0.3]).reshape(1, 3, 1, 1)
    rotated = rotate_hue(red, 1 / 3).flatten().tolist()
    hue, _, _ = colorsys.rgb_to_hls(*rotated)
    assert min(abs(hue - 1 / 3), abs(hue - 2 / 3)) < 0.1
    torch.testing.assert_close(to_gray(rotate_hue(red, 0.21)), to_gray(red), atol=2e-3, rtol=0)
    torch.testing.assert_close(rotate_hue(red, 1.0), red, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "resize"), ({"size": 32, "resize": 16}, "resize"), ({"area": (0.0, 1.0)}, "area"),
        ({"scale": (1.5, 1.0)}, "scale"), ({"flip": 2.0}, "flip"), ({"color": -1.0}, "color"),
    ],
)  # fmt: skip
def test_invalid_values(changes, message):
    with pytest.raises(ValueError, match=message):
        Transform(**changes)
