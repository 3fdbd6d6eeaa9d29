"""Autoencoders of diffusers with random weights, from a folder in the released layout."""

from __future__ import annotations

import json

import pytest
import torch

from fewtokens.tokenizers import load_tokenizer
from tests.tokenizers.streaming import noise

KINDS = {
    "AutoencoderKLWan": (4, {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1,
                             "latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [2.0, 2.0, 2.0, 2.0]}),
    "AutoencoderKLMagvit": (4, {"block_out_channels": [8, 8, 8, 8], "latent_channels": 4, "layers_per_block": 1,
                                "norm_num_groups": 2}),
    "AutoencoderKLMochi": (6, {"encoder_block_out_channels": [32, 32, 32, 32], "latent_channels": 12,
                               "decoder_block_out_channels": [32, 32, 32, 32], "layers_per_block": [1, 1, 1, 1, 1]}),
    "AutoencoderKLLTXVideo": (8, {"latent_channels": 8, "block_out_channels": [8, 8, 8, 8],
                                  "decoder_block_out_channels": [8, 8, 8, 8], "layers_per_block": [1, 1, 1, 1, 1],
                                  "decoder_layers_per_block": [1, 1, 1, 1, 1]}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_any_number_of_frames(kind, tmp_path):
    """Their classes drop frames or fail if the number is not accepted; ours pads and crops."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    stride, config = KINDS[kind]
    model = getattr(diffusers, kind)(**config).eval()
    model.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path, device="cpu")
    assert tokenizer.encoder.stride[0] == stride
    side = tokenizer.encoder.stride[1]
    whole = noise(1 + stride, 2 * side, 2 * side)
    frames = (whole.transpose(1, 2)[:, :-1] + 1) / 2
    tokens = tokenizer.encode(frames)
    assert tokens.grid.shape == (2, 2, 2)
    assert tokenizer.decode(tokens).shape == frames.shape
    # Normalized latents of an accepted number of frames are those of the class.
    mean = getattr(model, "latents_mean", None)
    mean = model.config.get("latents_mean") if mean is None else mean
    std = getattr(model, "latents_std", None)
    std = model.config.get("latents_std") if std is None else std
    expected = model.encode(whole).latent_dist.mode()
    if mean is None:
        expected = expected * model.config.scaling_factor
    else:
        shape = (1, -1, 1, 1, 1)
        expected = (expected - torch.as_tensor(mean).view(shape)) / torch.as_tensor(std).view(shape)
    torch.testing.assert_close(tokenizer.encoder.latents(whole), expected, atol=1e-5, rtol=1e-5)


def test_other_classes_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match="UNet2DModel cannot be loaded as a tokenizer; these can: AutoencoderVidTok"):
        load_tokenizer(tmp_path, device="cpu")
