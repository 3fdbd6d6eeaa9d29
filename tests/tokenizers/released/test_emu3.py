"""Emu3's tokenizer: ours loaded from folders of both formats, against the class of transformers."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from fewtokens.tokenizers import Tokenizer, load_tokenizer
from tests.tokenizers.streaming import check_decoder_causality, check_encoder_causality, millions, noise

CONFIG = {"codebook_size": 40, "base_channels": 32, "channel_multiplier": [1, 2], "hidden_size": 64,
          "num_res_blocks": 1, "attn_resolutions": [1]}  # fmt: skip
# Names of transformers -> those of the authors.
NAMES = (
    (r"\.(down|up)_block\.", "."),
    (r"\.middle_block\.attn_norm\.", ".mid.attn_1.norm."), (r"\.middle_block\.", ".mid."),
    (r"\.attn_norms\.(\d)\.", r".attn.\1.norm."), (r"\.([qkv])_proj\.", r".\1."), (r"\.out_proj\.", ".proj_out."),
)  # fmt: skip


@pytest.fixture(scope="module")
def theirs():
    """The class of transformers, with weights and statistics that are not those of the initialization."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(0)
    model = transformers.Emu3VQVAE(transformers.Emu3VQVAEConfig(**CONFIG)).eval()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value += torch.rand_like(value) if "running" in name else 0.05 * torch.randn_like(value)
    model.quantize.embedding.weight.data.normal_()
    return model


def of_authors(model):
    """Config and tensors as the authors publish them."""
    config = {"model_type": "Emu3VisionVQ", "architectures": ["Emu3VisionVQModel"], "codebook_size": 40,
              "embed_dim": 4, "z_channels": 4, "double_z": False, "in_channels": 3, "out_channels": 3, "ch": 32,
              "temporal_downsample_factor": 4, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [1],
              "dropout": 0.0}  # fmt: skip
    tensors = {}
    for name, value in model.state_dict().items():
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        # They project by 1x1 convolutions.
        tensors[name] = value[..., None, None] if re.search(r"\.(q|k|v|proj_out)\.weight$", name) else value
    published = {"encoder.mid.attn_1.proj_out.weight", "decoder.up.1.attn.0.norm.conv_y.weight",
                 "decoder.mid.attn_1.norm.norm_layer.bias", "encoder.down.0.downsample.conv.weight"}  # fmt: skip
    assert published <= tensors.keys()
    return config, tensors


def write(folder, config, tensors):
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")


@pytest.mark.parametrize("layout", ["transformers", "authors"])
@torch.no_grad()
def test_it_computes_what_transformers_does(theirs, layout, tmp_path):
    if layout == "transformers":
        theirs.save_pretrained(tmp_path)
    else:
        write(tmp_path, *of_authors(theirs))
    ours = load_tokenizer(tmp_path, device="cpu")
    frames = (noise(8, 8, 12).transpose(1, 2) + 1) / 2
    codes = torch.stack(theirs.encode(2 * frames - 1, torch.tensor([[8, 12]])).image_tokens)
    tokens = ours.encode(frames)
    assert len(codes.unique()) > 5
    assert torch.equal(tokens.codes[..., 0], codes.flatten(1))
    torch.testing.assert_close(ours.decoder(tokens), theirs.decode(codes), atol=1e-4, rtol=1e-4)
    # An image is repeated to 4 frames, of which the first is decoded.
    image = frames[:, 0]
    codes = torch.stack(theirs.encode(2 * image - 1, torch.tensor([[8, 12]])).image_tokens)
    tokens = ours.encode(image[0])
    assert torch.equal(tokens.codes[..., 0], codes.flatten(1))
    torch.testing.assert_close(ours.decode(tokens)[:, 0], ((theirs.decode(codes) + 1) / 2).clamp(0, 1))
    # It can be saved in our format, without the folder that it came from.
    again = load_tokenizer(ours.save_pretrained(tmp_path / "ours"), device="cpu")
    assert again.fingerprint() == ours.fingerprint()


def test_what_does_not_fit(theirs, tmp_path):
    config, tensors = of_authors(theirs)
    name = "encoder.mid.attn_1.q.weight"
    for wrong, message in (
        ({k: v for k, v in tensors.items() if k != name}, r"missing: encoder\.middle_block\.attn_1\.q_proj\.weight"),
        (tensors | {"decoder.extra": torch.zeros(1)}, r"unexpected: decoder\.extra"),
        (tensors | {name: torch.zeros(3, 3)}, r"different size: encoder\.middle_block\.attn_1\.q_proj\.weight"),
    ):
        write(tmp_path, config, wrong)
        with pytest.raises(ValueError, match=message):
            load_tokenizer(tmp_path, device="cpu")
    for setting, message in (
        ({"z_channels": 8}, "latent_channels must be 4, got 8"),
        ({"ch": 20}, "width must be a multiple of 32"),
        ({"ch": "32"}, "base_channels must be"),
        ({"attn_resolutions": [0]}, "attention must be levels with the channels of the last"),
        ({"temporal_downsample_factor": 3}, "frames must be a power of 2"),
    ):
        write(tmp_path, config | setting, tensors)
        with pytest.raises(ValueError, match=message):
            load_tokenizer(tmp_path, device="cpu")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="only pickled weights"):
        load_tokenizer(tmp_path, device="cpu")


def test_parameters_causality_and_gradients():
    """Those of the published size, counted in the authors' code without the codebook; cells of later frames."""
    pytest.importorskip("transformers")
    with torch.device("meta"):
        tokenizer = Tokenizer.from_spec("emu3() > emu3()")
    assert round(millions(tokenizer), 3) == 270.609
    torch.manual_seed(0)
    small = "width=32, mult=(1, 1), depth=1, attention=(1,)"
    tokenizer = Tokenizer.from_spec(f"emu3(4, {small}) | fsq > emu3({small})").eval()
    check_encoder_causality(tokenizer, frames=8, size=8)
    check_decoder_causality(tokenizer, rows=2, cells=2)
    tokenizer.train()(torch.rand(1, 4, 3, 8, 8)).frames.square().sum().backward()
    assert all(parameter.grad is not None for parameter in tokenizer.encoder.parameters())
