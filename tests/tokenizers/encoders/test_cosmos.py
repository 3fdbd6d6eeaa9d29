"""Our Cosmos against that of diffusers with the same weights, and the preset of the discrete model."""

from __future__ import annotations

import pytest
import torch

from fewtokens.tokenizers import create_tokenizer, get_preset
from tests.tokenizers.streaming import check_decoder_causality, check_encoder_causality, millions, noise


def in_our_order(names: list[str]) -> list[str]:
    """Their middle block lists attention before the residual blocks."""
    block, attention = "mid_block.resnets.{}", ["mid_block.attentions", "mid_block.temp_attentions"]
    order = [block.format(0), *attention, block.format(1)]
    middle = [name for part in order for name in names if part in name]
    first = next(i for i, name in enumerate(names) if "mid_block" in name)
    return names[:first] + middle + [name for name in names[first:] if "mid_block" not in name]


@pytest.mark.parametrize("stride", [(4, 8, 8), (8, 8, 8), (8, 16, 16)])
@torch.no_grad()
def test_it_computes_what_diffusers_does(stride):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 16, 16, 16),
        decode_block_out_channels=(16, 16, 16, 16),
        num_layers=1,
        temporal_compression_ratio=stride[0],
        spatial_compression_ratio=stride[1],
    ).eval()
    for parameter in theirs.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    parts = f"width=8, mult=(2, 2, 2), depth=1, inner=4, stride={stride}"
    ours = create_tokenizer(f"cosmos(4, {parts}) > cosmos({parts})").eval()
    state = theirs.state_dict()
    for part, names in (
        (ours.encoder, [name for name in state if name.startswith(("encoder", "quant_conv"))]),
        (ours.decoder, [name for name in state if name.startswith(("decoder", "post_quant_conv"))]),
    ):
        names = in_our_order(sorted(names, key=lambda name: name.startswith("quant") - name.startswith("post")))
        part.load_state_dict(dict(zip(part.state_dict(), [state[name] for name in names], strict=True)))
    # In float64, since values of up to 10 differ by more than 1e-5 with the order of summation alone.
    ours, theirs, x = ours.double(), theirs.double(), noise(9, 32, 48).double()
    latents = ours.encoder.latents(x)
    torch.testing.assert_close(latents, theirs.encode(x).latent_dist.mode(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.decoder.pixels_of(latents), theirs.decode(latents).sample, atol=1e-5, rtol=1e-5)


def test_published_numbers():
    preset = get_preset("cosmos_dv4x8x8")
    with torch.device("meta"):
        tokenizer = create_tokenizer("cosmos_dv4x8x8")
    layout = tokenizer.layout(*preset.clip)
    assert layout.tokens == preset.tokens == 5 * 32 * 32
    assert layout.bits == pytest.approx(5120 * 15.966, rel=1e-4)
    # 101 M is the count of VidTok's authors; diffusers has 104.67 M for the continuous model.
    assert millions(tokenizer) == pytest.approx(104.67, abs=0.01)
    assert millions(tokenizer) == pytest.approx(preset.parameters, rel=0.04)


def test_it_is_causal():
    torch.manual_seed(0)
    tokenizer = create_tokenizer("cosmos_dv4x8x8", tiny=True).eval()
    check_encoder_causality(tokenizer)
    check_decoder_causality(tokenizer)


def test_other_strides_are_refused():
    for stride in ((2, 8, 8), (4, 8, 16), (16, 8, 8)):
        with pytest.raises(ValueError, match="stride must be frames, rows and columns of 4, 8, 16"):
            create_tokenizer(f"cosmos(6, stride={stride}) > cosmos(stride={stride})")
