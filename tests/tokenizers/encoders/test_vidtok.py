"""Our VidTok against that of diffusers, with the same random weights."""

from __future__ import annotations

import pytest
import torch

from fewtokens.tokenizers import Tokenizer, create_tokenizer, load_tokenizer
from fewtokens.tokenizers.released.vidtok import vidtok_spec, vidtok_tensors
from tests.tokenizers.streaming import check_encoder_causality, check_encoder_chunks, millions, noise, random_cells

TINY = {
    "ch": 8,
    "ch_mult": [1, 2, 2, 2],
    "num_res_blocks": 1,
    "z_channels": 3,
    "codebook_size": 512,
    "regularizer": "fsq",
    "double_z": False,
}


def build(**config):
    """Their model and ours with its weights, which are not those of the initialization."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderVidTok(**TINY | config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    ours = Tokenizer.from_spec(vidtok_spec(dict(theirs.config), "config.json")).eval()
    ours.load_state_dict(vidtok_tensors(ours, theirs.state_dict(), "model"))
    return theirs, ours


@pytest.mark.parametrize(
    "config",
    [{}, {"tempo_ds": [1], "tempo_us": [2]}, {"is_causal": False}, {"ch_mult": [1, 2, 2, 2, 2]},
     {"ch_mult": [1, 2, 2]}],
)  # fmt: skip
@torch.no_grad()
def test_it_computes_what_diffusers_does(config):
    theirs, ours = build(**config)
    stride = ours.encoder.stride
    frames = 9 if ours.encoder.causal else 16
    x = noise(frames, 2 * stride[1], 2 * stride[1])
    # Their `forward` repeats the first frame in front; `encode` does not.
    front = x[:, :, :1].expand(-1, -1, stride[0] - 1, -1, -1) if ours.encoder.causal else x[:, :, :0]
    z, indices = theirs.encode(torch.cat([front, x], 2))
    tokens = ours.encode((x.transpose(1, 2) + 1) / 2)
    torch.testing.assert_close(ours.encoder.latents(x), theirs.encoder(torch.cat([front, x], 2)), atol=1e-5, rtol=1e-5)
    assert torch.equal(tokens.codes[..., 0], indices.flatten(1))
    torch.testing.assert_close(ours.decoder(tokens).transpose(1, 2), theirs.decode(z), atol=1e-5, rtol=1e-5)


def test_a_folder_of_diffusers(tmp_path):
    """Weights of another shape, missing ones, and levels that no released model has are refused."""
    theirs, ours = build()
    theirs.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path, device="cpu")
    assert loaded.spec == ours.spec
    frames = (noise(6, 20, 24).transpose(1, 2) + 1) / 2
    tokens = loaded.encode(frames)
    assert torch.equal(tokens.codes, ours.encode(frames).codes)
    assert loaded.decode(tokens).shape == frames.shape
    with pytest.raises(ValueError, match=r"missing or unexpected: decoder\.conv_in\.bias"):
        vidtok_tensors(ours, {k: v for k, v in theirs.state_dict().items() if k != "decoder.conv_in.conv.bias"}, "x")
    with pytest.raises(ValueError, match=r"of a different size: encoder\.conv_in\.weight"):
        vidtok_tensors(ours, theirs.state_dict() | {"encoder.conv_in.conv.weight": torch.zeros(3)}, "model")
    with pytest.raises(ValueError, match=r"tempo_us must be \[1, 2\] with 4 levels, got \[2, 3\]"):
        vidtok_spec(dict(theirs.config) | {"tempo_us": [2, 3]}, "config.json")


@pytest.mark.parametrize(
    ("parts", "published"),
    [("", 157), ("stride=(2, 8, 8)", 149), ("stride=(4, 16, 16), mult=(1, 2, 4, 4, 4)", 199)],
)
def test_parameters(parts, published):
    """Those of the encoder and decoder of the released models 488, 288 and 41616, in millions."""
    with torch.device("meta"):
        tokenizer = create_tokenizer(f"vidtok(6, {parts}) | fsq((8, 8, 8, 8, 8, 8)) > vidtok({parts})")
    assert round(millions(tokenizer)) == published


class TestTiny:
    def build(self, parts="width=8, mult=(1, 2, 2, 2), depth=1"):
        torch.manual_seed(0)
        return create_tokenizer(f"vidtok(6, {parts}) | fsq((8, 8, 8, 8, 8, 8)) > vidtok({parts})").eval()

    def test_the_encoder_is_causal(self):
        check_encoder_causality(self.build())
        check_encoder_chunks(self.build())

    def test_the_decoder_looks_one_row_of_cells_ahead(self):
        decoder = self.build().decoder
        tokens = random_cells(6, 4, 2)
        changed = tokens.replace(features=torch.cat([tokens.features[:, :-4], torch.randn(1, 4, 6)], 1))
        with torch.no_grad():
            before, after = decoder(tokens), decoder(changed)
        assert torch.equal(before[:, :5], after[:, :5])
        assert not torch.equal(before[:, 8], after[:, 8])
        assert not decoder.causal and not decoder.streams

    def test_other_strides_are_refused(self):
        with pytest.raises(ValueError, match="stride must be 1, 2, 4 or 8 frames and 8 rows and columns"):
            self.build("stride=(4, 16, 16)")
