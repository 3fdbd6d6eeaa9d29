"""I2-World: all codes, alignment by pose, no history in the first frame, a smaller rest in a static scene."""

from __future__ import annotations

import math

import pytest
import torch

from fewtokens.tokenizers import create_tokenizer, get_preset
from fewtokens.tokenizers.blocks.ego import align


def build():
    return create_tokenizer("i2_world", tiny=True, seed=0)


def scene(frames: int = 3) -> torch.Tensor:
    """A static scene of two boxes and a ground, int64 [1,T,32,32,4]."""
    volume = torch.zeros(32, 32, 4, dtype=torch.long)
    volume[..., 0] = 1
    volume[4:14, 6:12, 1:3] = 2
    volume[20:28, 16:30, 1:4] = 3
    return volume.expand(1, frames, -1, -1, -1)


def test_published_tokens_and_bits():
    with torch.device("meta"):
        published = create_tokenizer("i2_world")
    layout = published.layout(*get_preset("i2_world").clip)
    assert layout.grid == (5, 50, 50)
    assert layout.bits == 9 * (5 * (12**2 + 25**2 + 50**2) + 4 * 50**2)


def test_all_codes_are_stored():
    """Each scale has its codes, the first frame none of the second stage, and every code matters."""
    tokenizer = build().eval()
    tokens = tokenizer.encode(scene())
    counts = (tokens.codes >= 0).sum(1)[0].tolist()
    assert counts == [3 * 4, 3 * 16, 3 * 64, 2 * 64]
    assert float(tokenizer.bits(tokens)[0]) == 6 * sum(counts)
    restored = tokenizer._with_features(tokens).features
    torch.testing.assert_close(restored, tokens.features, atol=1e-5, rtol=1e-4)
    for column in range(4):
        codes = tokens.codes.clone()
        codes[..., column] = torch.where(codes[..., column] >= 0, (codes[..., column] + 1) % 64, -1)
        assert not torch.allclose(tokenizer._with_features(tokens.replace(codes=codes)).features, restored)


def test_without_history_there_is_only_the_first_stage():
    tokenizer = build().eval()
    video, image = tokenizer.encode(scene()), tokenizer.encode(scene(1))
    assert bool((image.codes[..., 3] == -1).all())
    assert torch.equal(video.codes[:, :64], image.codes)
    torch.testing.assert_close(tokenizer.decode(video)[:, :1], tokenizer.decode(image))


def test_alignment_by_pose():
    features = torch.randn(2, 3, 5, 6)
    pose = torch.tensor([[3.0, -2.0, 0.7], [0.0, 0.0, 0.0]])
    still = torch.zeros(2, 3)
    assert torch.equal(align(features, still, still), features)
    torch.testing.assert_close(align(features, pose, pose), features, atol=1e-5, rtol=1e-5)
    # The vehicle moves by one row and two columns, so things move the other way.
    moved = align(features, still, torch.tensor([1.0, 2.0, 0.0]).expand(2, 3))
    assert torch.equal(moved[:, :, :-1, :-2], features.roll((-1, -2), (2, 3))[:, :, :-1, :-2])
    assert not moved[:, :, -1].any()
    square = torch.randn(1, 2, 5, 5)
    quarter = align(square, torch.zeros(1, 3), torch.tensor([[0.0, 0.0, math.pi / 2]]))
    torch.testing.assert_close(quarter, square.rot90(-1, (2, 3)), atol=1e-5, rtol=1e-5)


def test_the_history_has_the_frames_before():
    tokenizer = build()
    latents = torch.randn(1, 32, 3, 8, 8)
    history = tokenizer.history(latents).unflatten(2, (4, 32))
    assert torch.equal(history[0, 2, 0], latents[0, :, 1])
    assert torch.equal(history[0, 2, 1], latents[0, :, 0])
    assert not history[0, 0].any() and not history[0, 1, 1:].any()
    # Four voxels are a cell.
    poses = torch.tensor([[0.0, 0, 0], [4, 0, 0], [8, 0, 0]])[None]
    ahead = tokenizer.history(latents, poses).unflatten(2, (4, 32))
    assert torch.equal(ahead[0, 2, 0, :, :-1], latents[0, :, 1, 1:])
    assert torch.equal(ahead[0, 2, 1, :, :-2], latents[0, :, 0, 2:])


def test_history_lowers_the_rest_of_a_static_scene():
    """After a short training, latents of the second frame are closer to their tokens than those of the first."""
    torch.manual_seed(0)
    tokenizer = build().train()
    optimizer = torch.optim.Adam(tokenizer.parameters(), 1e-3)
    losses = []
    for _ in range(24):
        step = tokenizer(scene(2))
        loss = sum(step.losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    tokenizer.eval()
    with torch.no_grad():
        latents = tokenizer.encoder.latents(scene(2)).flatten(2).mT
        rest = (latents - tokenizer._encode(scene(2)).features).square().mean(-1).unflatten(1, (2, -1)).mean(2)[0]
    assert float(rest[1]) < 0.8 * float(rest[0])


def test_other_input_is_refused():
    tokenizer = build()
    with pytest.raises(ValueError, match="occupancy must be"):
        tokenizer.encode(torch.zeros(4, 3, 32, 32))
    with pytest.raises(ValueError, match=r"0\.\.3"):
        tokenizer.encode(scene() + 1)
    with pytest.raises(ValueError, match=r"occupancy accepts .* next accepted size is 3 frames of 32x32"):
        tokenizer(scene()[:, :, :31])
    with pytest.raises(ValueError, match="poses must be"):
        tokenizer.encode(scene(), poses=torch.zeros(2, 3))
