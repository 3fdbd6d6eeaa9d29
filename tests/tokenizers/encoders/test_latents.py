"""Latents of frozen autoencoders, encoder and decoder: against diffusers, LoRA, rectifier, refusals."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from fewtokens.tokenizers import Tokenizer, load_tokenizer
from fewtokens.tokenizers.decoders.latents import Latents as LatentsDecoder
from fewtokens.tokenizers.encoders.latents import Latents as LatentsEncoder


def frames(*size: int) -> torch.Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_cosine_coefficients_are_those_of_scipy():
    fft = pytest.importorskip("scipy.fft")
    x = frames(2, 3, 2, 16, 24)
    z = LatentsEncoder(patch=8, channels=27).latents(x)
    assert z.shape == (2, 27, 2, 2, 3)
    patch = x[1, :, 1, 8:16, 16:24]
    expected = torch.tensor(fft.dctn(patch.numpy(), axes=(1, 2), norm="ortho"))[:, :3, :3] / 8
    order = torch.arange(3)
    scale = 0.4 * (1 + order[:, None] + order) ** -1.5
    assert torch.allclose(z[1, :, 1, 1, 2], (expected / scale).permute(1, 2, 0).flatten(), atol=1e-5)


def test_all_cosine_coefficients_restore_the_frames():
    x = frames(2, 3, 2, 8, 12)
    restored = LatentsDecoder(patch=4, dim=48).pixels_of(LatentsEncoder(patch=4, channels=48).latents(x))
    assert torch.allclose(restored, x, atol=1e-5)


def save_small(diffusers, folder, kind: str):
    torch.manual_seed(0)
    if kind == "AutoencoderKL":
        model = diffusers.AutoencoderKL(
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, scaling_factor=0.3, shift_factor=0.1,
        )  # fmt: skip
    elif kind == "AutoencoderDC":
        sizes = {f"{part}_block_types": ("ResBlock", "EfficientViTBlock") for part in ("encoder", "decoder")}
        sizes |= {f"{part}_block_out_channels": (8, 32) for part in ("encoder", "decoder")}
        sizes |= {f"{part}_layers_per_block": (1, 1) for part in ("encoder", "decoder")}
        sizes |= {f"{part}_qkv_multiscales": ((), (5,)) for part in ("encoder", "decoder")}
        model = diffusers.AutoencoderDC(latent_channels=4, attention_head_dim=8, scaling_factor=0.5, **sizes)
    else:
        model = diffusers.AutoencoderKLWan(
            base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
            latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0],
        )  # fmt: skip
    model.eval().save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderDC", "AutoencoderKLWan"])
def test_networks_of_diffusers(tmp_path, kind):
    diffusers = pytest.importorskip("diffusers")
    model = save_small(diffusers, tmp_path / "vae", kind)
    video = kind == "AutoencoderKLWan"
    if video:
        with pytest.raises(ValueError, match="convolutions of images"):
            LatentsDecoder(str(tmp_path), dim=4, lora=2)
    decoder = LatentsDecoder(str(tmp_path), dim=4, lora=0 if video else 2, rectifier=8)
    encoder = LatentsEncoder(str(tmp_path))
    assert encoder.dim == decoder.dim == 4
    assert encoder.stride == decoder.stride == ((4, 8, 8) if video else (1, 2, 2))
    x = frames(1, 3, 5, 16, 24)
    with torch.no_grad():
        z = encoder.latents(x)
        images = x if video else x[0].transpose(0, 1)
        found = model.encode(images)
        raw = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latent
        mean, std = {"AutoencoderKL": (0.1, 1 / 0.3), "AutoencoderDC": (0.0, 2.0)}.get(
            kind, (torch.tensor([0.1, 0.2, 0.3, 0.4]).view(4, 1, 1, 1), torch.arange(1.0, 5).view(4, 1, 1, 1))
        )
        expected = (raw - mean) / std
        assert torch.allclose(z, expected if video else expected.transpose(0, 1)[None], atol=1e-5)
        decoded = model.decode(raw).sample
        ours = decoder.pixels_of(z)
    # LoRA and rectifier start as the identity.
    assert torch.allclose(ours, decoded if video else decoded.transpose(0, 1)[None], atol=1e-4)
    assert not hasattr(encoder.coder.fixed.network.decoder, "parameters")
    tokenizer = Tokenizer(encoder, [], decoder)
    saved = tokenizer.save_pretrained(tmp_path / "saved")
    shutil.rmtree(tmp_path / "vae")
    again = load_tokenizer(saved, device="cpu")
    with torch.no_grad():
        assert torch.equal(again.encoder.latents(x), z) and torch.equal(again.decoder.pixels_of(z), ours)


@pytest.mark.parametrize("adapted", ["lora=2", "rectifier=8, blocks=1"])
def test_the_autoencoder_stays_as_it_is_and_the_rest_is_trained(adapted):
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_spec(f"latents(channels=12) | fsq((5, 5, 5)) > latents({adapted})").train()
    clip = frames(2, 1, 3, 32, 32).add(1).div(2)
    frozen = {
        k: v.clone()
        for k, v in tokenizer.state_dict().items()
        if k.endswith(("conv1.weight", "base.weight", "network.encoder.weight"))
    }
    plain = LatentsDecoder()
    start = tokenizer(clip)
    assert torch.equal(start.frames, plain(start.tokens))
    optimizer = torch.optim.Adam([p for p in tokenizer.parameters() if p.requires_grad], 1e-2)
    errors = []
    for _ in range(30):
        optimizer.zero_grad()
        step = tokenizer(clip)
        loss = (step.frames - (2 * clip - 1)).square().mean()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    assert errors[-1] < errors[0]
    assert frozen
    assert all(torch.equal(tokenizer.state_dict()[k], v) for k, v in frozen.items())
    assert not torch.equal(tokenizer(clip).frames, plain(tokenizer(clip).tokens))


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="channels of dct must be 3 k"):
        LatentsEncoder(channels=10)
    with pytest.raises(ValueError, match="no such folder"):
        LatentsEncoder("./missing")
    with pytest.raises(ValueError, match="format of diffusers"):
        LatentsEncoder(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "VQModel"}))
    with pytest.raises(ValueError, match="supported autoencoders are AutoencoderKL"):
        LatentsEncoder(str(tmp_path))
    with pytest.raises(ValueError, match="reads 27 channels"):
        Tokenizer.from_spec("latents > latents(dim=27)")


def test_without_diffusers_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(ValueError, match="requires diffusers"):
        LatentsEncoder(str(tmp_path))


@pytest.mark.parametrize(
    ("network", "stride", "channels", "millions"),
    [
        ("black-forest-labs/FLUX.1-schnell", 8, 16, 83.8),
        ("mit-han-lab/dc-ae-f32c32-in-1.0-diffusers", 32, 32, 323.4),
    ],
)
def test_published_sizes_of_known_networks(network, stride, channels, millions):
    pytest.importorskip("diffusers")
    with torch.device("meta"):
        parts = [LatentsEncoder(network), LatentsDecoder(network, dim=channels)]
    assert all(part.stride == (1, stride, stride) and part.dim == channels for part in parts)
    assert sum(p.numel() for part in parts for p in part.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)
