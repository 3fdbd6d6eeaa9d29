"""TiTok and One-D-Piece: random weights in the released layout, next to a forward pass with the released names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fewtokens.tokenizers import Tokenizer, get_preset, load_tokenizer
from tests.tokenizers.released.weights import block, linear, norm, random, write

# Two heads of 64 channels; patches of 4 pixels in images of 8, four codes of 6 channels.
WIDTH, PATCH, SIDE, TOKENS, DIM, CODES = 128, 4, 2, 4, 6, 16
LEVELS, ENTRIES, HIDDEN = (32, 32, 64), 10, 8  # of the VQGAN, from the largest image to the smallest
NAMES = {
    "norm1": "ln_1.", "qkv": "attn.in_proj_", "out": "attn.out_proj.", "norm2": "ln_2.", "fc1": "mlp.c_fc.",
    "fc2": "mlp.c_proj.",
}  # fmt: skip


def config(**settings):
    vq = {"token_size": DIM, "num_latent_tokens": TOKENS, "use_l2_norm": True, **settings}
    kind = {"type": "one_d_piece"} if settings.get("finetune_decoder", True) else {}
    return {"experiment": {}, "model": {"vq_model": vq, **kind}, "dataset": {}}


def transformer(name):
    shapes = {}
    for i in range(2):
        shapes |= norm(f"{name}.{i}.ln_1", WIDTH) | norm(f"{name}.{i}.ln_2", WIDTH)
        shapes |= {f"{name}.{i}.attn.in_proj_weight": (3 * WIDTH, WIDTH), f"{name}.{i}.attn.in_proj_bias": (3 * WIDTH,)}
        shapes |= linear(f"{name}.{i}.attn.out_proj", WIDTH, WIDTH)
        shapes |= linear(f"{name}.{i}.mlp.c_fc", 4 * WIDTH, WIDTH) | linear(f"{name}.{i}.mlp.c_proj", WIDTH, 4 * WIDTH)
    return shapes


def residual(name, width, out):
    shapes = norm(f"{name}.norm1", width) | linear(f"{name}.conv1", out, width, 3, 3, bias=False)
    shapes |= norm(f"{name}.norm2", out) | linear(f"{name}.conv2", out, out, 3, 3, bias=False)
    return shapes | (linear(f"{name}.nin_shortcut", out, out, 1, 1, bias=False) if width != out else {})


def shapes(vqgan, channels=DIM):
    result = {"latent_tokens": (TOKENS, WIDTH), **linear("encoder.patch_embed", WIDTH, 3, PATCH, PATCH)}
    for part in ("encoder", "decoder"):
        result |= {
            f"{part}.class_embedding": (1, WIDTH),
            f"{part}.positional_embedding": (SIDE**2 + 1, WIDTH),
            f"{part}.latent_token_positional_embedding": (TOKENS, WIDTH),
            **norm(f"{part}.ln_pre", WIDTH), **norm(f"{part}.ln_post", WIDTH), **transformer(f"{part}.transformer"),
        }  # fmt: skip
    result |= linear("encoder.conv_out", channels, WIDTH, 1, 1) | linear("decoder.decoder_embed", WIDTH, DIM)
    result |= {"decoder.mask_token": (1, 1, WIDTH)}
    if channels == DIM:
        result |= {"quantize.embedding.weight": (CODES, DIM)}
    if not vqgan:
        return result | linear("decoder.ffn.0", 3 * PATCH**2, WIDTH, 1, 1) | linear("decoder.conv_out", 3, 3, 3, 3)
    result |= linear("decoder.ffn.0", 2 * WIDTH, WIDTH, 1, 1) | linear("decoder.ffn.2", ENTRIES, 2 * WIDTH, 1, 1)
    result |= {"pixel_quantize.embedding.weight": (ENTRIES, HIDDEN)}
    last = LEVELS[-1]
    result |= linear("pixel_decoder.conv_in", last, HIDDEN, 3, 3)
    result |= residual("pixel_decoder.mid.0", last, last) | residual("pixel_decoder.mid.1", last, last)
    for i, width in enumerate(LEVELS):
        before = LEVELS[min(i + 1, len(LEVELS) - 1)]
        result |= residual(f"pixel_decoder.up.{i}.block.0", before, width)
        result |= residual(f"pixel_decoder.up.{i}.block.1", width, width)
        result |= linear(f"pixel_decoder.up.{i}.upsample_conv", width, width, 3, 3) if i else {}
    return result | norm("pixel_decoder.norm_out", LEVELS[0]) | linear("pixel_decoder.conv_out", 3, LEVELS[0], 3, 3)


def layer_norm(x, w, name):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def run_transformer(x, w, part):
    x = layer_norm(x, w, f"{part}.ln_pre")
    for i in range(2):
        x = block(x, w, NAMES, 2, f"{part}.transformer.{i}")
    return x


def encode(images, w, mixed):
    """The channels of the latent tokens of images in 0..1, [B,N,C]."""
    x = F.conv2d(images, w["encoder.patch_embed.weight"], w["encoder.patch_embed.bias"], PATCH).flatten(2).mT
    first = w["encoder.class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([first, x], 1) + w["encoder.positional_embedding"]
    latents = w["latent_tokens"] + w["encoder.latent_token_positional_embedding"]
    x = run_transformer(torch.cat([x, latents.expand(len(x), -1, -1)], 1), w, "encoder")[:, -TOKENS:]
    x = layer_norm(x, w, "encoder.ln_post")
    # The release reads the memory of [N,C] as [C,N].
    x = x.reshape(len(x), WIDTH, TOKENS).mT if mixed else x
    return F.linear(x, w["encoder.conv_out.weight"][:, :, 0, 0], w["encoder.conv_out.bias"])


def decode(z, w, vqgan):
    """Images in 0..1 of the quantized channels [B,N,C] of the first tokens."""
    first = w["decoder.class_embedding"].expand(len(z), 1, -1)
    masks = torch.cat([first, w["decoder.mask_token"].expand(len(z), SIDE**2, -1)], 1)
    tokens = F.linear(z, w["decoder.decoder_embed.weight"], w["decoder.decoder_embed.bias"])
    tokens = tokens + w["decoder.latent_token_positional_embedding"][: z.shape[1]]
    x = run_transformer(torch.cat([masks + w["decoder.positional_embedding"], tokens], 1), w, "decoder")
    x = layer_norm(x[:, 1 : 1 + SIDE**2], w, "decoder.ln_post").mT.unflatten(2, (SIDE, SIDE))
    x = conv(x, w, "decoder.ffn.0")
    if not vqgan:
        x = x.unflatten(1, (PATCH, PATCH, 3)).permute(0, 3, 4, 1, 5, 2).flatten(4).flatten(2, 3)
        return conv(x, w, "decoder.conv_out")
    x = conv(x.tanh(), w, "decoder.ffn.2").softmax(1)
    x = conv(torch.einsum("bkhw,kc->bchw", x, w["pixel_quantize.embedding.weight"]), w, "pixel_decoder.conv_in")
    for i in range(2):
        x = run_residual(x, w, f"pixel_decoder.mid.{i}")
    for i in reversed(range(len(LEVELS))):
        for j in range(2):
            x = run_residual(x, w, f"pixel_decoder.up.{i}.block.{j}")
        if i:
            x = conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3), w, f"pixel_decoder.up.{i}.upsample_conv")
    return conv(act(x, w, "pixel_decoder.norm_out"), w, "pixel_decoder.conv_out")


def conv(x, w, name):
    weight = w[f"{name}.weight"]
    return F.conv2d(x, weight, w.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def act(x, w, name):
    return F.silu(F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], 1e-6))


def run_residual(x, w, name):
    h = conv(act(x, w, f"{name}.norm1"), w, f"{name}.conv1")
    h = conv(act(h, w, f"{name}.norm2"), w, f"{name}.conv2")
    return h + (conv(h, w, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in w else x)


def nearest(z, w):
    cosines = F.normalize(z, dim=-1) @ F.normalize(w["quantize.embedding.weight"], dim=-1).T
    return cosines.argmax(-1)


def images():
    return torch.rand(2, 1, 3, SIDE * PATCH, SIDE * PATCH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("vqgan", [True, False])
@torch.no_grad()
def test_codes_and_images(vqgan, tmp_path):
    weights = random(shapes(vqgan))
    settings = {} if vqgan else {"finetune_decoder": False, "is_legacy": False}
    tokenizer = load_tokenizer(write(tmp_path, config(**settings), weights), device="cpu")
    tokens = tokenizer.encode(images())
    codes = nearest(encode(images()[:, 0], weights, vqgan), weights)
    assert torch.equal(tokens.codes[..., 0], codes)
    assert len(codes.unique()) > 2
    z = F.normalize(weights["quantize.embedding.weight"], dim=-1)[codes]
    decoded = tokenizer._decode(tokenizer._with_features(tokens))[:, 0]
    torch.testing.assert_close((decoded + 1) / 2, decode(z, weights, vqgan), atol=2e-5, rtol=1e-4)
    assert decoded.std() > 0.1
    if vqgan:  # One-D-Piece: a prefix
        tokenizer.methods[-1].set_budget(2)
        tokens = tokenizer.encode(images())
        decoded = tokenizer._decode(tokenizer._with_features(tokens))[:, 0]
        torch.testing.assert_close((decoded + 1) / 2, decode(z[:, :2], weights, True), atol=2e-5, rtol=1e-4)
    # It is saved as ours and loaded again.
    assert Tokenizer.from_spec(tokenizer.spec, window=1).state_dict().keys() == tokenizer.state_dict().keys()


@torch.no_grad()
def test_continuous_tokens_are_the_mean(tmp_path):
    weights = random(shapes(False, 2 * DIM))
    settings = {"quantize_mode": "vae", "finetune_decoder": False, "is_legacy": False}
    tokenizer = load_tokenizer(write(tmp_path, config(**settings), weights), device="cpu")
    mean = encode(images()[:, 0], weights, False)[..., :DIM]
    torch.testing.assert_close(tokenizer.encode(images()).features, mean, atol=1e-5, rtol=1e-4)


def test_the_preset_is_the_released_network(tmp_path):
    """The spec of the loaded weights differs from that of the preset in sizes and the restart of entries only."""
    spec = load_tokenizer(write(tmp_path, config(), random(shapes(True))), device="cpu").spec
    parts = [part.split("(")[0].strip() for part in spec.replace(">", "|").split("|")]
    assert parts == [part.split("(")[0].strip() for part in get_preset("one_d_piece").spec.replace(">", "|").split("|")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("encoder.conv_out.bias"), "missing: encoder.conv_out.bias"),
        (lambda w: w.update({"decoder.text_guidance_proj.bias": torch.zeros(3)}), "unexpected: decoder.text_guidance"),
        (lambda w: w.update({"decoder.mask_token": torch.zeros(1, 1, 3)}), "of a different size: decoder.mask_token"),
        (lambda w: w.update({"encoder.class_embedding": torch.zeros(1, 3)}), "of a different size: encoder.class_emb"),
        (lambda w: w.pop("pixel_quantize.embedding.weight"), "no tensor pixel_quantize.embedding.weight with 2 axes"),
        (lambda w: w.pop("encoder.patch_embed.weight"), "no tensor encoder.patch_embed.weight with 4 axes"),
    ],
)
def test_wrong_weights_are_refused(change, message, tmp_path):
    weights = random(shapes(True))
    change(weights)
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(write(tmp_path, config(), weights), device="cpu")
    assert "\n" not in str(error.value)


def test_missing_and_pickled_weights_are_refused(tmp_path):
    write(tmp_path, config(), {})
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no model.safetensors"):
        load_tokenizer(tmp_path, device="cpu")
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="only pickled weights, which can run arbitrary code"):
        load_tokenizer(tmp_path, device="cpu")
    write(tmp_path, {"model": {"vq_model": {"use_l2_norm": "yes"}}}, {})
    with pytest.raises(ValueError, match=r"vq_model.*use_l2_norm"):
        load_tokenizer(tmp_path, device="cpu")
