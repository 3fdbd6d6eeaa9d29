"""LARP: random weights in the released layout, next to a forward pass with the released names."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from fewtokens.tokenizers import load_tokenizer
from fewtokens.tokenizers.presets.larp import Larp
from tests.tokenizers.released.weights import block, linear, norm, random, write

# Encoder and decoder have different widths; 2 x 2 x 2 tubelets of 2 x 4 x 4 pixels.
WIDE, WIDTH, HEADS, STRIDE, QUERIES, DIM, CODES = 24, 16, 2, (2, 4, 4), 5, 4, 11
NAMES = {"norm1": "norm1.", "qkv": "attn.qkv.", "out": "attn.proj.", "norm2": "norm2.", "fc1": "mlp.fc1.",
         "fc2": "mlp.fc2."}  # fmt: skip
CONFIG = {
    "bottleneck": {"name": "bottleneck", "args": {"bottleneck_dim": DIM, "norm": "none", "regularizer": {
        "name": "vq", "args": {"codebook_size": CODES, "l2_normalized": True, "stochastic": True}}}},
    "prior_model": {"name": "gptc-S"}, "frame_num": 4, "input_size": 8, "encoder_num_heads": HEADS,
    "decoder_num_heads": HEADS,
}  # fmt: skip


def shapes(prior=True):
    result = {"encoder_latent_query_embed": (QUERIES, WIDE), "decoder_patch_query_token_type_embed": (1, 1, WIDTH)}
    result |= linear("x_embedder.proj", WIDE, 3, *STRIDE) | {"bottleneck.regularizer.embedding.weight": (CODES, DIM)}
    result |= linear("bottleneck.in_linear", DIM, WIDE) | linear("bottleneck.out_linear", WIDTH, DIM)
    for part, width in (("encoder", WIDE), ("decoder", WIDTH)):
        for name in (f"{part}.blocks.{i}" for i in range(2)):
            result |= norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width)
            result |= linear(f"{name}.attn.qkv", 3 * width, width, bias=False) | linear(
                f"{name}.attn.proj", width, width
            )
            result |= linear(f"{name}.mlp.fc1", 4 * width, width) | linear(f"{name}.mlp.fc2", width, 4 * width)
    result |= norm("final_layer.norm_final", WIDTH) | linear("final_layer.linear", 3 * math.prod(STRIDE), WIDTH)
    if prior:
        small = WIDTH // 2
        result |= linear("prior_model.input_proj", small, DIM) | {"prior_model.pos_emb": (1, QUERIES, small)}
        for name in (f"prior_model.blocks.{i}" for i in range(2)):
            result |= norm(f"{name}.ln1", small) | norm(f"{name}.ln2", small)
            for layer in ("key", "query", "value", "proj"):
                result |= linear(f"{name}.attn.{layer}", small, small)
            result |= linear(f"{name}.mlp.0", 4 * small, small) | linear(f"{name}.mlp.2", small, 4 * small)
        result |= norm("prior_model.ln_f", small) | linear("prior_model.head", DIM, small)
    return result


def sine(position, dim):
    rates = [10_000 ** (-i / (dim // 2)) for i in range(dim // 2)]
    return [math.sin(position * rate) for rate in rates] + [math.cos(position * rate) for rate in rates]


def cells(dim):
    """The positions of 2 x 2 x 2 tubelets: of time, plus those of column and row in half of the channels each."""
    rows = [
        torch.tensor(sine(t, dim)) + torch.tensor(sine(x, dim // 2) + sine(y, dim // 2))
        for t in range(2)
        for y in range(2)
        for x in range(2)
    ]
    return torch.stack(rows)[None]


def weights(prior=True):
    order = torch.tensor([sine(n, WIDTH) for n in range(QUERIES)])[None]
    fixed = {"encoder_patch_pe": cells(WIDE), "decoder_patch_query_embed": cells(WIDTH), "decoder_latent_pe": order}
    return random(shapes(prior)) | fixed


def layer(x, w, name):
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def encode(frames, w):
    """The channels of the codes of videos [B,T,3,H,W] in 0..1, [B,N,C]."""
    x = F.conv3d(frames.transpose(1, 2), w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], STRIDE)
    x = x.flatten(2).mT + w["encoder_patch_pe"]
    x = torch.cat([x, w["encoder_latent_query_embed"].expand(len(x), -1, -1)], 1)
    for i in range(2):
        x = block(x, w, NAMES, HEADS, f"encoder.blocks.{i}")
    return layer(x[:, -QUERIES:], w, "bottleneck.in_linear")


def decode(codes, w):
    """Videos [B,3,T,H,W] in 0..1."""
    z = F.normalize(w["bottleneck.regularizer.embedding.weight"], dim=-1)[codes]
    z = layer(z, w, "bottleneck.out_linear") + w["decoder_latent_pe"]
    queries = (w["decoder_patch_query_embed"] + w["decoder_patch_query_token_type_embed"]).expand(len(z), -1, -1)
    x = torch.cat([z, queries], 1)
    for i in range(2):
        x = block(x, w, NAMES, HEADS, f"decoder.blocks.{i}")
    x = F.layer_norm(
        x[:, QUERIES:], [WIDTH], w["final_layer.norm_final.weight"], w["final_layer.norm_final.bias"], 1e-6
    )
    x = layer(x, w, "final_layer.linear").reshape(-1, 2, 2, 2, *STRIDE, 3)
    return x.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(-1, 3, 4, 8, 8)


def run_prior(z, w):
    """The predictions of the entries after each of z [B,N,C]."""
    x = layer(z, w, "prior_model.input_proj") + w["prior_model.pos_emb"][:, : z.shape[1]]
    hidden = torch.ones(z.shape[1], z.shape[1], dtype=torch.bool).triu(1)
    for name in (f"prior_model.blocks.{i}" for i in range(2)):
        h = F.layer_norm(x, x.shape[-1:], w[f"{name}.ln1.weight"], w[f"{name}.ln1.bias"])
        q, k, v = (
            layer(h, w, f"{name}.attn.{part}").unflatten(2, (4, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        logits = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(hidden, -torch.inf)
        x = x + layer((logits.softmax(-1) @ v).transpose(1, 2).flatten(2), w, f"{name}.attn.proj")
        h = F.layer_norm(x, x.shape[-1:], w[f"{name}.ln2.weight"], w[f"{name}.ln2.bias"])
        x = x + layer(F.gelu(layer(h, w, f"{name}.mlp.0")), w, f"{name}.mlp.2")
    x = F.layer_norm(x, x.shape[-1:], w["prior_model.ln_f.weight"], w["prior_model.ln_f.bias"])
    return layer(x, w, "prior_model.head")


def clip():
    return torch.rand(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("prior", [True, False])
@torch.no_grad()
def test_codes_and_videos(prior, tmp_path):
    w = weights(prior)
    tokenizer = load_tokenizer(write(tmp_path, CONFIG, w), device="cpu")
    assert isinstance(tokenizer, Larp) == prior
    tokens = tokenizer.encode(clip())
    table = F.normalize(w["bottleneck.regularizer.embedding.weight"], dim=-1)
    codes = (F.normalize(encode(clip(), w), dim=-1) @ table.T).argmax(-1)
    assert torch.equal(tokens.codes[..., 0], codes)
    assert len(codes.unique()) > 2
    decoded = tokenizer._decode(tokenizer._with_features(tokens)).transpose(1, 2)
    torch.testing.assert_close((decoded + 1) / 2, decode(codes, w), atol=1e-5, rtol=1e-4)
    if prior:
        z = table[codes]
        torch.testing.assert_close(tokenizer.prior(z), run_prior(z[:, :-1], w), atol=1e-5, rtol=1e-4)
        again = load_tokenizer(tokenizer.save_pretrained(tmp_path / "ours"), device="cpu")
        assert isinstance(again, Larp)
        assert torch.equal(again.encode(clip()).codes, tokens.codes)
        assert again.fingerprint() == tokenizer.fingerprint()


def test_embeddings_of_types_are_added(tmp_path):
    """Adding the embedding of a type equals adding it to the tensor that it is summed with."""
    w = weights(False)
    kind = {"encoder_patch_token_type_embed": WIDE, "encoder_latent_query_token_type_embed": WIDE,
            "decoder_latent_token_type_embed": WIDTH}  # fmt: skip
    kind = {name: torch.randn(1, 1, width) for name, width in kind.items()}
    first = load_tokenizer(write(tmp_path, CONFIG, w | kind), device="cpu")
    w["x_embedder.proj.bias"] += kind["encoder_patch_token_type_embed"].flatten()
    w["encoder_latent_query_embed"] += kind["encoder_latent_query_token_type_embed"][0]
    w["bottleneck.out_linear.bias"] += kind["decoder_latent_token_type_embed"].flatten()
    second = load_tokenizer(write(tmp_path, CONFIG, w), device="cpu")
    for own, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("decoder.blocks.1.norm2.bias"), "missing: decoder.blocks.1.norm2.bias"),
        (lambda w: w.update({"encoder_h_embed": torch.zeros(3)}), "unexpected: encoder_h_embed"),
        (lambda w: w.update({"x_embedder.proj.bias": torch.zeros(3)}), "of a different size: x_embedder.proj.bias"),
        (lambda w: w.update({"encoder_patch_pe": torch.zeros(1, 8, WIDE)}), "encoder_patch_pe must be sines"),
        (lambda w: w.pop("decoder_latent_pe"), "no tensor decoder_latent_pe with 3 axes"),
    ],
)
def test_wrong_weights_are_refused(change, message, tmp_path):
    w = weights(False)
    change(w)
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(write(tmp_path, CONFIG, w), device="cpu")
    assert "\n" not in str(error.value)


def test_other_networks_are_refused(tmp_path):
    config = copy.deepcopy(CONFIG)
    config["bottleneck"]["args"]["norm"] = "ln_d"
    with pytest.raises(ValueError, match="a norm of the bottleneck cannot be loaded, got 'ln_d'"):
        load_tokenizer(write(tmp_path, config, weights(False)), device="cpu")
    config["bottleneck"]["args"]["regularizer"] = {"name": "skl", "args": {}}
    with pytest.raises(ValueError, match="must be entries of a normalized codebook"):
        load_tokenizer(write(tmp_path, config, weights(False)), device="cpu")
    config["frame_num"] = "16"
    with pytest.raises(ValueError, match="frame_num"):
        load_tokenizer(write(tmp_path, config, weights(False)), device="cpu")
    write(tmp_path, CONFIG, weights(False))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no model.safetensors"):
        load_tokenizer(tmp_path, device="cpu")
