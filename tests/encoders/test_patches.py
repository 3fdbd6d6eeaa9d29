"""Patches as features: encoding and decoding are exact at any size."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange

from fewtokens.core.pipeline import Pipeline
from fewtokens.encoders import Patches, load_encoder
from fewtokens.encoders.frames import patchify


@pytest.mark.parametrize(("patch", "tubelet"), [(4, 1), (8, 2), (2, 3)])
def test_round_trip(patch, tubelet):
    frames = torch.rand(2, 6, 3, 16, 24)
    encoder = Patches(patch, tubelet_size=tubelet)
    tokens, _ = encoder(frames)
    assert encoder.dim == tokens.C
    assert tokens.grid.shape == (6 // tubelet, 16 // patch, 24 // patch)
    torch.testing.assert_close(encoder.decode(tokens.unmerge()), frames, rtol=1e-5, atol=1e-5)


def test_a_cell_contains_its_pixels():
    frames = torch.rand(1, 4, 3, 8, 8)
    tokens, cues = Patches(4, tubelet_size=2)(frames, needs=("pixels",))
    cell = (1 * 2 + 0) * 2 + 1  # second tubelet, first row, second column
    expected = frames[0, 2:4, :, 0:4, 4:8].permute(0, 2, 3, 1).reshape(2, 48)
    assert torch.equal(cues["pixels"][0, cell], expected)
    torch.testing.assert_close(tokens.positions[0, cell], torch.tensor([1.0, 0, 1]))


def test_odd_sizes_are_scaled_to_the_nearest_multiple():
    tokens, _ = Patches(8, tubelet_size=2)(torch.rand(1, 5, 3, 21, 35), torch.arange(5.0))
    assert tokens.grid.shape == (3, 3, 4)
    assert tokens.grid.times.tolist() == [0, 2, 4]
    assert Patches(16)(torch.rand(1, 1, 3, 3, 3))[0].N == 1


def test_bytes_and_floats():
    video = torch.randint(0, 256, (1, 2, 3, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(Patches()(video)[0].features, Patches()(video.float() / 255)[0].features)
    for wrong in (video.int(), torch.rand(1, 2, 1, 16, 16), torch.rand(3, 16)):
        with pytest.raises((ValueError, IndexError)):
            Patches()(wrong)
    with pytest.raises(ValueError, match=r"times must have one value per frame \(3\), got 2"):
        Patches()(torch.rand(1, 3, 3, 16, 16), torch.arange(2))


def test_half_precision():
    frames = torch.rand(1, 2, 3, 8, 8)
    encoder = load_encoder("patches", patch_size=4, dtype="float16")
    tokens, _ = encoder(frames)
    assert tokens.features.dtype == torch.float16
    torch.testing.assert_close(encoder.decode(tokens.unmerge()), frames, rtol=1e-2, atol=1e-2)


def test_a_pipeline_through_a_folder(tmp_path):
    pipeline = Pipeline("rlt | kmeans(4)", load_encoder("patches", patch_size=4))
    again = Pipeline.from_pretrained(pipeline.save_pretrained(tmp_path), device="cpu")
    frames = torch.rand(1, 3, 3, 16, 16)
    assert torch.equal(again(frames).features, pipeline(frames).features)


def test_decode_accepts_tokens_and_a_size():
    encoder, frames = Patches(16), torch.rand(1, 2, 3, 30, 53)
    tokens, _ = encoder(frames)
    assert torch.equal(encoder.decode(tokens), encoder.decode(tokens.unmerge()))
    assert encoder.decode(tokens).shape == (1, 2, 3, 32, 48)
    assert encoder.decode(tokens, size=(30, 53)).shape == frames.shape


@pytest.mark.parametrize("tubelet", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_patchify_reorders_pixels_and_is_differentiable(tubelet, dtype):
    frames = torch.rand(2, 4, 3, 6, 9).to(dtype)
    expected = rearrange(frames, "b (t p) c (h q) (w r) -> b (t h w) p (q r c)", p=tubelet, q=3, r=3)
    assert torch.equal(patchify(frames, tubelet, 3), expected)
    leaf = frames.requires_grad_()
    pixels = patchify(leaf, tubelet, 3)
    assert torch.equal(pixels, expected)
    pixels.sum().backward()
    assert torch.equal(leaf.grad, torch.ones_like(leaf))
