"""OmniTokenizer: random weights in a checkpoint of the released layout, next to a forward pass with its names."""

from __future__ import annotations

import argparse

import pytest
import torch
import torch.nn.functional as F

from fewtokens.tokenizers import load_tokenizer
from tests.tokenizers.released.weights import linear, norm, random

# Tubelets of 2 x 2 x 2 pixels; two heads; blocks "tw" and "t" of the encoder, "t" and "t" of the decoder.
WIDTH, HEADS, T, P, DIM, CODES, WINDOW = 16, 2, 2, 2, 4, 12, 2
STACKS = {"encoder.enc_spatial": "tw", "encoder.enc_temporal": "t", "decoder.dec_temporal": "t",
          "decoder.dec_spatial": "t"}  # fmt: skip


def shapes(channels=DIM):
    result = linear("pre_vq_conv.1", channels, WIDTH) | linear("post_vq_conv.1", WIDTH, DIM)
    for name, count in (("_first_frame", 3 * P**2), ("", 3 * P**2 * T)):
        result |= norm(f"encoder.to_patch_emb{name}.1", count) | norm(f"encoder.to_patch_emb{name}.3", WIDTH)
        result |= linear(f"encoder.to_patch_emb{name}.2", WIDTH, count)
        result |= linear(f"decoder.to_pixels{name}.0", count, WIDTH)
    for stack, kinds in STACKS.items():
        result |= {f"{stack}_transformer.norm_out.gamma": (WIDTH,)}
        for i, kind in enumerate(kinds):
            name, hidden = f"{stack}_transformer.layers.{i}", 8 * WIDTH // 3
            result |= norm(f"{name}.3.0", WIDTH) | linear(f"{name}.3.1", 2 * hidden, WIDTH, bias=False)
            result |= linear(f"{name}.3.4", WIDTH, hidden, bias=False) | {f"{name}.1.norm.gamma": (WIDTH,)}
            if kind == "w":
                result |= {f"{name}.1.relative_position_bias_table": ((2 * WINDOW - 1) ** 2, HEADS)}
                result |= linear(f"{name}.1.qkv", 3 * WIDTH, WIDTH, bias=False) | linear(f"{name}.1.proj", WIDTH, WIDTH)
                continue
            result |= linear(f"{name}.0.dsconv", WIDTH, 1, 3, 3, 3) | {f"{name}.1.context_norm.gamma": (WIDTH,)}
            result |= linear(f"{name}.1.to_q", WIDTH, WIDTH, bias=False)
            result |= linear(f"{name}.1.to_kv", 2 * WIDTH, WIDTH, bias=False)
            result |= linear(f"{name}.1.to_out", WIDTH, WIDTH, bias=False)
            result |= {f"{name}.1.q_scale": (WIDTH // HEADS,), f"{name}.1.k_scale": (WIDTH // HEADS,)}
    return result


def weights(channels=DIM):
    w = random(shapes(channels))
    for name, value in w.items():
        if name.endswith(("gamma", "q_scale", "k_scale")):
            value += 1
    entries = 0.8 * F.normalize(torch.randn(CODES, DIM, generator=torch.Generator().manual_seed(2)), dim=-1)
    w |= {"codebook.embeddings": entries, "codebook.z_avg": 3 * entries, "codebook.N": torch.full((CODES,), 3.0),
          "codebook.codebook_usage": torch.zeros(CODES)}  # fmt: skip
    # Not read: constants, and networks of the losses.
    w["encoder.enc_spatial_transformer.norm_out.beta"] = torch.zeros(WIDTH)
    w["encoder.enc_temporal_transformer.layers.0.1.spatial_rel_pos_bias.net.2.bias"] = torch.zeros(HEADS)
    return w | {"image_discriminator.model0.0.weight": torch.zeros(2), "perceptual_model.lin0.weight": torch.zeros(2)}


def write(path, w):
    settings = argparse.Namespace(n_codes=CODES, l2_code=True)
    torch.save({"state_dict": w, "hyper_parameters": settings, "pytorch-lightning_version": "1.5.4"}, path)
    return path


def attention(x, w, name, is_space):
    """Of rows of tokens [R,N,C]: one row is a frame, or a place over time."""
    N, dim = x.shape[1], WIDTH // HEADS
    h = F.layer_norm(x, [WIDTH], w[f"{name}.norm.gamma"])
    q, (k, v) = h @ w[f"{name}.to_q.weight"].T, (x @ w[f"{name}.to_kv.weight"].T).chunk(2, -1)
    q, k, v = (part.unflatten(2, (HEADS, dim)).transpose(1, 2) for part in (q, k, v))
    hidden = torch.ones(N, N, dtype=torch.bool).triu(1)
    if is_space:
        side, cell = round(N**0.5), torch.arange(N)
        rates = 10_000.0 ** (-torch.arange(0, dim, 4) / dim)
        angles = torch.stack([(cell % side)[:, None] * rates, (cell // side)[:, None] * rates], -1).flatten(1)
        turn = torch.polar(torch.ones_like(angles), angles)
        q, k = (
            torch.view_as_real(torch.view_as_complex(part.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)
            for part in (q, k)
        )
        hidden = torch.zeros(N, N, dtype=torch.bool)
    q, k = (F.normalize(part, dim=-1) * w[f"{name}.{letter}_scale"] for part, letter in ((q, "q"), (k, "k")))
    mixed = (8 * q @ k.mT).masked_fill(hidden, -torch.inf).softmax(-1) @ v
    return mixed.transpose(1, 2).flatten(2) @ w[f"{name}.to_out.weight"].T


def window_attention(x, w, name):
    """Of frames [F,H,W,C]."""
    out = torch.empty_like(x)
    h = F.layer_norm(x, [WIDTH], w[f"{name}.norm.gamma"])
    cells = [(row, column) for row in range(WINDOW) for column in range(WINDOW)]
    index = [[(a - c + WINDOW - 1) * (2 * WINDOW - 1) + b - d + WINDOW - 1 for c, d in cells] for a, b in cells]
    bias = w[f"{name}.relative_position_bias_table"][torch.tensor(index)].movedim(-1, 0)
    for i in range(0, x.shape[1], WINDOW):
        for j in range(0, x.shape[2], WINDOW):
            part = h[:, i : i + WINDOW, j : j + WINDOW].flatten(1, 2) @ w[f"{name}.qkv.weight"].T
            q, k, v = (each.unflatten(2, (HEADS, -1)).transpose(1, 2) for each in part.chunk(3, -1))
            mixed = ((q @ k.mT / q.shape[-1] ** 0.5 + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)
            mixed = F.linear(mixed, w[f"{name}.proj.weight"], w[f"{name}.proj.bias"])
            out[:, i : i + WINDOW, j : j + WINDOW] = mixed.unflatten(1, (WINDOW, WINDOW))
    return out


def run(x, w, stack):
    """The blocks of a stack on the features of all cells, [B,T,H,W,C]."""
    B, frames, H, W, _ = x.shape
    is_space = "spatial" in stack
    rows = x.flatten(0, 1).flatten(1, 2) if is_space else x.permute(0, 2, 3, 1, 4).flatten(0, 2)
    for i, kind in enumerate(STACKS[stack]):
        name = f"{stack}_transformer.layers.{i}"
        if kind == "w":
            rows = rows + window_attention(rows.unflatten(1, (H, W)), w, f"{name}.1").flatten(1, 2)
        else:
            # Over time, the released code reads the memory of [H,W,T] as [T,H,W].
            video = F.pad(rows.reshape(B, frames, H, W, WIDTH).movedim(-1, 1), (1, 1, 1, 1, 2, 0))
            video = F.conv3d(video, w[f"{name}.0.dsconv.weight"], w[f"{name}.0.dsconv.bias"], groups=WIDTH)
            rows = rows + video.movedim(1, -1).reshape(rows.shape)
            rows = rows + attention(rows, w, f"{name}.1", is_space)
        h = F.layer_norm(rows, [WIDTH], w[f"{name}.3.0.weight"], w[f"{name}.3.0.bias"])
        value, gate = (h @ w[f"{name}.3.1.weight"].T).chunk(2, -1)
        rows = rows + (F.gelu(gate) * value) @ w[f"{name}.3.4.weight"].T
    rows = F.layer_norm(rows, [WIDTH], w[f"{stack}_transformer.norm_out.gamma"])
    return rows.reshape(B, frames, H, W, -1) if is_space else rows.reshape(B, H, W, frames, -1).permute(0, 3, 1, 2, 4)


def embed(x, w, name, t):
    """Cells of frames [B,T,3,H,W] in -0.5..0.5, with channels of a tubelet first."""
    B, frames, _, H, W = x.shape
    x = x.reshape(B, frames // t, t, 3, H // P, P, W // P, P).permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(4)
    for part in "123":
        weight, bias = w[f"{name}.{part}.weight"], w[f"{name}.{part}.bias"]
        x = F.linear(x, weight, bias) if part == "2" else F.layer_norm(x, x.shape[-1:], weight, bias)
    return x


def pixels(x, w, name, t):
    x = F.linear(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"]).unflatten(-1, (3, t, P, P))
    return x.permute(0, 1, 5, 4, 2, 6, 3, 7).flatten(1, 2).flatten(3, 4).flatten(4, 5)


def encode(frames, w):
    """The channels of the tokens of frames [B,T,3,H,W] in 0..1, [B,T',H',W',C]."""
    x = [embed(frames[:, :1] - 0.5, w, "encoder.to_patch_emb_first_frame", 1)]
    if frames.shape[1] > 1:
        x.append(embed(frames[:, 1:] - 0.5, w, "encoder.to_patch_emb", T))
    x = run(run(torch.cat(x, 1), w, "encoder.enc_spatial"), w, "encoder.enc_temporal")
    return F.linear(x, w["pre_vq_conv.1.weight"], w["pre_vq_conv.1.bias"])


def decode(z, w):
    """Frames in 0..1."""
    x = F.linear(z, w["post_vq_conv.1.weight"], w["post_vq_conv.1.bias"])
    x = run(run(x, w, "decoder.dec_temporal"), w, "decoder.dec_spatial")
    parts = [pixels(x[:, :1], w, "decoder.to_pixels_first_frame", 1)]
    if x.shape[1] > 1:
        parts.append(pixels(x[:, 1:], w, "decoder.to_pixels", T))
    return torch.cat(parts, 1) + 0.5


def clip(frames):
    return torch.rand(2, frames, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("frames", [1, 5])
@torch.no_grad()
def test_codes_and_videos(frames, tmp_path):
    w = weights()
    tokenizer = load_tokenizer(write(tmp_path / "omni.ckpt", w), device="cpu")
    assert tokenizer.window == 17
    tokens = tokenizer.encode(clip(frames))
    z = F.normalize(encode(clip(frames), w), dim=-1)
    codes = torch.cdist(z.flatten(1, 3), w["codebook.embeddings"]).argmin(-1)
    assert torch.equal(tokens.codes[..., 0], codes)
    assert len(codes.unique()) > 4
    decoded = tokenizer._decode(tokenizer._with_features(tokens))
    expected = decode(w["codebook.embeddings"][codes].view(*z.shape), w)
    torch.testing.assert_close((decoded + 1) / 2, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_continuous_tokens_are_the_mean(tmp_path):
    w = weights(2 * DIM)
    write(tmp_path / "vae.ckpt", w)
    tokenizer = load_tokenizer(tmp_path, device="cpu")
    tokens = tokenizer.encode(clip(3))
    mean = encode(clip(3), w)[..., :DIM]
    torch.testing.assert_close(tokens.features, mean.flatten(1, 3), atol=1e-5, rtol=1e-4)
    decoded = tokenizer._decode(tokenizer._with_features(tokens))
    torch.testing.assert_close((decoded + 1) / 2, decode(mean, w), atol=1e-5, rtol=1e-4)


RELATIVE = "encoder.enc_spatial_transformer.layers.0.1.spatial_rel_pos_bias.net.2.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("decoder.to_pixels.0.bias"), "missing: decoder.to_pixels.0.bias"),
        (lambda w: w.update({RELATIVE: torch.zeros(HEADS)}), f"unexpected: {RELATIVE}"),
        (lambda w: w.update({"codebook.N": torch.zeros(3)}), "of a different size: codebook.N"),
        (lambda w: w.update({"pre_vq_conv.1.weight": torch.zeros(3, WIDTH)}), "must have 4 or 8 channels, got 3"),
        (lambda w: w.pop("codebook.embeddings"), "no tensor codebook.embeddings with 2 axes"),
    ],
)
def test_wrong_weights_are_refused(change, message, tmp_path):
    w = weights()
    change(w)
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(write(tmp_path / "omni.ckpt", w), device="cpu")
    assert "\n" not in str(error.value)


class Code:
    def __reduce__(self):
        return (print, ("run",))


def test_code_is_refused(tmp_path, capsys):
    torch.save({"state_dict": weights(), "hyper_parameters": Code()}, tmp_path / "omni.ckpt")
    with pytest.raises(ValueError, match="contains more than tensors; loading it could run arbitrary code"):
        load_tokenizer(tmp_path, device="cpu")
    assert not capsys.readouterr().out
