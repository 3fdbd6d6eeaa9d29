"""Pre-training networks: sizes, information flow, losses, and the resulting encoder."""

from __future__ import annotations

import argparse
import math
import random
import re
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from fewtokens import networks as models
from fewtokens.encoders import load_encoder
from fewtokens.encoders.released import load_released
from fewtokens.networks.inflate import initialize_from, matching_config
from fewtokens.networks.masking import pixel_loss, pixel_targets, random_mask, sincos_positions
from fewtokens.networks.pretrained import PRETRAINING, load_pretraining, save_encoder
from fewtokens.networks.pretraining import Pretraining, ToBo, ToBoConfig
from fewtokens.networks.rsp import balanced_divergence
from fewtokens.networks.rsp import sample as sample_latent
from fewtokens.networks.vit import VisionConfig, VisionTransformer
from fewtokens.train.pretraining_presets import make_pretraining

TINY = {"dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "image_size": (32, 40)}
TINY |= {"decoder_dim": 16, "decoder_depth": 2, "decoder_num_heads": 2}


def network(kind: str = "tobo", **changes) -> Pretraining:
    torch.manual_seed(1)
    return PRETRAINING[kind](PRETRAINING[kind].config_type(**(TINY | changes)))


def sample(model: Pretraining, batch: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, model.frames, 3, *model.config.image_size)
    frames = torch.randint(256, shape, generator=generator).byte()
    return frames, torch.rand(batch, model.config.patches, generator=generator)


def trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("size", "encoder", "whole", "decoder"),
    [("s", 21_590_016, 21_665_664, 34_233_088), ("b", 85_647_360, 85_798_656, 34_429_696)],
)
def test_parameters_are_those_of_the_paper(size, encoder, whole, decoder):
    dim, depth, num_heads = models.SIZES[size]
    with torch.device("meta"):
        model = ToBo(ToBoConfig(dim=dim, depth=depth, num_heads=num_heads))
    assert trainable(model.encoder) == encoder
    assert sum(p.numel() for p in model.encoder.parameters()) == whole
    assert trainable(model.decoder) == decoder
    assert trainable(model) == encoder + decoder
    assert trainable(model.decoder.blocks[0]) == 4_205_056


@pytest.mark.parametrize(("ratio", "visible"), [(0.9, 19), (0.95, 9), (0.75, 49), (0.5, 98), (0.985, 2)])
def test_number_of_visible_patches(ratio, visible):
    noise = torch.rand(3, 196)
    mask = random_mask(noise, ratio)
    assert mask.visible.shape == (3, visible)
    assert mask.hidden.sum(1).tolist() == [196 - visible] * 3
    assert not mask.hidden.gather(1, mask.visible).any()
    assert noise.gather(1, mask.visible).amax(1).lt(noise.masked_fill(~mask.hidden, 2).amin(1)).all()


def test_the_source_is_visible_only_through_the_bottleneck():
    model = network().eval()
    frames, noise = sample(model)
    source, target = model.split(frames)
    mask = random_mask(noise, 0.9)
    whole, hints = model._encode(source), model._encode(target, mask.visible)
    before = model.expand(whole, hints, mask).paths
    patches, token = whole.clone(), whole.clone()
    patches[:, 1:] += torch.randn_like(patches[:, 1:])
    token[:, 0] += 1
    changed = model.expand(patches, hints, mask).paths
    assert torch.equal(changed["tobo"][0], before["tobo"][0])
    assert not torch.allclose(changed["siam"][0], before["siam"][0])
    assert not torch.allclose(model.expand(token, hints, mask).paths["tobo"][0], before["tobo"][0])
    # The class token of the target is discarded on this path.
    own = hints.clone()
    own[:, 0] += 1
    assert torch.equal(model.expand(whole, own, mask).paths["tobo"][0], before["tobo"][0])


def test_cross_attention_learns_from_the_auxiliary_path_alone():
    model = network()
    frames, noise = sample(model)
    model(frames, noise)["tobo"].backward()
    inside = {name: p.grad for name, p in model.named_parameters() if "cross" in name or "norm_query" in name}
    assert len(inside) == 2 * 8
    assert all(grad is None or not grad.any() for grad in inside.values())
    model(frames, noise)["siam"].backward()
    assert all(p.grad.any() for name, p in model.named_parameters() if "cross.kv.weight" in name)


def test_joint_paths_equal_separate_paths():
    """One batch through the decoder against two passes, with the source projected for each."""
    model = network(bottleneck_position="learned").eval()
    frames, noise = sample(model)
    source, target = model.split(frames)
    paths = model.predict(source, target, noise).paths
    mask = random_mask(noise, 0.9)
    slots = model.decoder.slots(model._encode(target, mask.visible), mask)
    bottleneck = model.decoder.embed(model._encode(source)[:, :1]) + model.bottleneck_positions
    alone = model.decoder(torch.cat([bottleneck, slots[:, 1:]], 1))
    torch.testing.assert_close(paths["tobo"][0], alone)
    torch.testing.assert_close(paths["siam"][0], model.decoder(slots, model.decoder.memory(model._encode(source))))


def test_a_decoder_written_out():
    """One block, with matrix products."""
    model = network(decoder_depth=1).eval()
    (block,) = model.decoder.blocks
    x, memory = torch.randn(2, 7, 16), torch.randn(2, 5, 16)

    def attend(q, k, v):
        parts = [part.unflatten(-1, (2, 8)).transpose(1, 2) for part in (q, k, v)]
        weights = (parts[0] @ parts[1].mT / math.sqrt(8)).softmax(-1)
        return (weights @ parts[2]).transpose(1, 2).flatten(2)

    y = x
    k, v = block.cross.kv(block.norm_memory(memory)).split(16, -1)
    y = y + block.cross.out(attend(block.cross.q(block.norm_query(y)), k, v))
    y = y + block.attention.out(attend(*block.attention.qkv(block.norm1(y)).split(16, -1)))
    y = y + block.mlp.fc2(nn.functional.gelu(block.mlp.fc1(block.norm2(y))))
    torch.testing.assert_close(block(x, 0.0, memory), y)


def test_positions_written_out():
    actual = sincos_positions(3, 4, 8)
    for row in range(3):
        for column in range(4):
            expected = []
            for place in (column, row):
                angles = [place / 10000 ** (k / 2) for k in range(2)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert actual[row, column].tolist() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_positions(2, 2, 6)
    model = network()
    assert not model.encoder.positions.requires_grad
    assert not model.encoder.class_position.any()


def test_the_loss():
    torch.manual_seed(0)
    frames = torch.randn(2, 3, 32, 32)
    expected = pixel_targets(frames, 16)
    assert expected.shape == (2, 4, 768)
    hidden = torch.tensor([[True, False, True, True]] * 2)
    assert float(pixel_loss(expected, expected, hidden)) == 0
    assert float(pixel_loss(torch.zeros_like(expected), expected, hidden)) == pytest.approx(767 / 768, abs=1e-5)
    constant = pixel_targets(torch.full((1, 3, 16, 16), 0.3), 16)
    assert constant.isfinite().all()
    predicted = torch.randn_like(expected)
    other = predicted.clone()
    other[:, 1] = float("nan")
    assert pixel_loss(predicted, expected, hidden) == pixel_loss(other, expected, hidden)
    by_hand = ((predicted - expected) ** 2)[:, [0, 2, 3]].mean()
    torch.testing.assert_close(pixel_loss(predicted, expected, hidden), by_hand)
    # Rows, columns, then channels, for each patch separately.
    patch = frames[1, :, 16:, :16].permute(1, 2, 0).flatten()
    torch.testing.assert_close(expected[1, 2], (patch - patch.mean()) / (patch.var() + 1e-6).sqrt())
    a, b = predicted[0, 0], expected[0, 0]
    cosine = 1 - float(a @ b / (a.norm() * b.norm()))
    assert float(pixel_loss(predicted[:1, :1], expected[:1, :1], None, "cosine")) == pytest.approx(cosine, abs=1e-5)


def test_divergence_by_hand():
    torch.manual_seed(0)
    posterior, prior = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    total = 0.0
    for p, q in zip(
        posterior.flatten(0, 1).softmax(-1).tolist(), prior.flatten(0, 1).softmax(-1).tolist(), strict=True
    ):
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    mean = total / 2
    assert mean > 0.1
    assert float(balanced_divergence(posterior, prior, 0.2, 0.1)) == pytest.approx(mean, rel=1e-5)
    assert float(balanced_divergence(posterior, posterior, 0.2, 0.1)) == pytest.approx(0.1)
    # Balance: a fifth of the KL gradient updates the posterior, four fifths the prior; none below the free nats.
    for leaf, share in ((posterior, 0.2), (prior, 0.8)):
        leaf.requires_grad_(True)
        grads = []
        for function in (
            lambda: balanced_divergence(posterior, prior, 0.2, 0.1),
            lambda: (posterior.softmax(-1) * (posterior.log_softmax(-1) - prior.log_softmax(-1))).sum((1, 2)).mean(),
        ):
            leaf.grad = None
            function().backward()
            grads.append(leaf.grad)
        torch.testing.assert_close(grads[0], share * grads[1])
        leaf.grad = None
        balanced_divergence(posterior, prior, 0.2, 1e3).backward()
        assert not leaf.grad.any()
        leaf.requires_grad_(False)


# Names in huiwon-jang/RSP's models_rsp.py -> names here.
RELEASED = (
    (r"^cls_token", "encoder.class_token"), (r"^patch_embed\.proj", "encoder.patches"),
    (r"^norm\.", "encoder.norm_last."), (r"^blocks", "encoder.blocks"), (r"^to_prior", "prior"),
    (r"^to_posterior", "posterior"), (r"^decoder_embed_mae", "decoder.embed"),
    (r"^decoder_embed_deter", "embed_source"), (r"^decoder_embed_stoch", "embed_latent"),
    (r"^mask_token", "decoder.mask_token"), (r"^decoder_norm", "decoder.norm"), (r"^decoder_pred", "decoder.pixels"),
    (r"^decoder_blocks\.(\d+)\.norm1\.", r"decoder.blocks.\1.norm_query."),
    (r"^decoder_blocks\.(\d+)\.norm_kv1\.", r"decoder.blocks.\1.norm_memory."),
    (r"^decoder_blocks\.(\d+)\.norm3\.", r"decoder.blocks.\1.norm1."),
    (r"^decoder_blocks\.(\d+)\.norm4\.", r"decoder.blocks.\1.norm2."),
    (r"^decoder_blocks\.(\d+)\.mlp2\.", r"decoder.blocks.\1.mlp."), (r"^decoder_blocks", "decoder.blocks"),
    (r"\.cattn\.proj", ".cross.out"), (r"\.cattn", ".cross"),
    (r"\.attn\.proj", ".attention.out"), (r"\.attn\.", ".attention."),
)  # fmt: skip


def released_rsp() -> dict[str, torch.Tensor]:
    """All 94 tensors of a released RSP of 32 channels, 2 blocks, decoder 16 x 2, 3 variables of 4 values, 32 px in
    patches of 8, with the released names and values from a formula."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 32), "pos_embed": (1, 17, 32), "mask_token": (1, 1, 16), "decoder_pos_embed": (1, 17, 16),
        "patch_embed.proj.weight": (32, 3, 8, 8), "patch_embed.proj.bias": (32,),
    }  # fmt: skip

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    for block in range(2):
        for name, width, mlp, norms in (
            (f"blocks.{block}", 32, "mlp", ("norm1", "norm2")),
            (f"decoder_blocks.{block}", 16, "mlp2", ("norm1", "norm_kv1", "norm3", "norm4")),
        ):
            for each in norms:
                norm(f"{name}.{each}", width)
            linear(f"{name}.attn.qkv", width, 3 * width)
            linear(f"{name}.attn.proj", width, width)
            linear(f"{name}.{mlp}.fc1", width, 4 * width)
            linear(f"{name}.{mlp}.fc2", 4 * width, width)
        for each, factor in (("q", 1), ("kv", 2), ("proj", 1)):
            linear(f"decoder_blocks.{block}.cattn.{each}", 16, factor * 16)
    for name, inputs, outputs in (
        ("to_prior.0", 32, 64), ("to_prior.2", 64, 12), ("to_posterior.0", 64, 64), ("to_posterior.2", 64, 12),
        ("decoder_embed_mae", 32, 16), ("decoder_embed_deter", 32, 16), ("decoder_embed_stoch", 12, 16),
        ("decoder_pred", 16, 192),
    ):  # fmt: skip
        linear(name, inputs, outputs)
    norm("norm", 32)
    norm("decoder_norm", 16)
    tensors = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        waves = 0.2 * torch.sin(1.7 * torch.arange(math.prod(shape)) + number).reshape(shape)
        tensors[name] = 1 + waves if "norm" in name and name.endswith("weight") else waves
    for name, width in (("pos_embed", 32), ("decoder_pos_embed", 16)):
        tensors[name] = torch.cat([torch.zeros(1, width), sincos_positions(4, 4, width).flatten(0, 1)])[None]
    return tensors


def test_rsp_equals_the_released_code():
    """Losses of huiwon-jang/RSP's RSP with these weights and frames, run in float32."""
    config = {"dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "image_size": (32, 32), "decoder_dim": 16,
              "decoder_depth": 2, "decoder_num_heads": 2, "variables": 3, "values": 4, "noise": 0.0}  # fmt: skip
    model = network("rsp", **config).eval()
    state = {}
    for name, value in released_rsp().items():
        if name == "pos_embed":
            state["encoder.class_position"], state["encoder.positions"] = value[0, 0], value[0, 1:].unflatten(0, (4, 4))
        elif name != "decoder_pos_embed":
            for theirs, ours in RELEASED:
                name = re.sub(theirs, ours, name)
            state[name] = value.flatten() if name == "encoder.class_token" else value
    model.load_state_dict(state)
    source, target = torch.sin(torch.arange(2 * 2 * 3 * 32 * 32) * 0.37).reshape(2, 2, 3, 32, 32)
    noise = torch.cos(torch.arange(32) * 1.3).reshape(2, 16)
    expected = pixel_targets(target, 8)
    latent = torch.eye(4)[torch.tensor([[0, 2, 3], [1, 1, 0]])]
    with torch.no_grad():
        future = model._future(model._encode(source), latent)
        prediction = model.predict(source, target, noise)
    masked, hidden = prediction.paths["mae"]
    losses = pixel_loss(future, expected), pixel_loss(masked, expected, hidden), prediction.extra["kl"]
    numbers = [*map(float, losses),
               float(future[1, 3, 50]), float(masked[0, 15, 191])]  # fmt: skip
    assert numbers == pytest.approx([1.4029760, 1.3266233, 0.5419015, 0.6768342, -0.5941867], rel=1e-4)


def test_latents_follow_their_probabilities():
    torch.manual_seed(0)
    logits = torch.tensor([[[0.0, math.log(3.0)]]]).expand(4000, 1, 2).clone().requires_grad_(True)
    latents = sample_latent(logits)
    assert set(latents.detach().unique().round(decimals=4).tolist()) == {0.0, 1.0}
    assert float(latents[..., 1].detach().mean()) == pytest.approx(0.75, abs=0.03)
    latents[..., 1].sum().backward()
    assert float(logits.grad[0, 0, 1]) == pytest.approx(0.75 * 0.25, abs=1e-5)


@pytest.mark.parametrize("kind", PRETRAINING)
@pytest.mark.parametrize("batch", [1, 3])
def test_any_batch_and_every_parameter_learns(kind, batch):
    model = network(kind)
    named = model(*sample(model, batch))
    assert named["loss"].isfinite()
    named["loss"].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("kind", PRETRAINING)
def test_half_precision_and_recomputing(kind):
    model = network(kind)
    frames, noise = sample(model)
    torch.manual_seed(0)
    plain = model(frames, noise)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        half = model(frames, noise)["loss"]
    assert half.dtype == torch.float32
    assert float(half.detach()) == pytest.approx(float(plain.detach()), rel=0.05)
    model.checkpointing = True
    torch.manual_seed(0)
    again = model(frames, noise)["loss"]
    torch.testing.assert_close(again, plain)
    again.backward()
    for dtype in (torch.float16, torch.bfloat16):
        torch.manual_seed(0)
        cast = float(model.to(dtype)(frames, noise)["loss"].detach())
        assert cast == pytest.approx(float(plain.detach()), rel=0.05)


@pytest.mark.parametrize("tokens", [1, 2, 4, 8])
def test_several_bottleneck_tokens(tokens, tmp_path):
    model = network(bottleneck_tokens=tokens, bottleneck_position="learned")
    frames, noise = sample(model)
    named = model(frames, noise)
    named["loss"].backward()
    model.save_pretrained(tmp_path)
    tokens_out, _ = load_encoder(tmp_path)(frames[:, :1])
    assert tokens_out.prefix.shape == (3, tokens, 32)
    torch.testing.assert_close(named["loss"], named["tobo"] + named["siam"])


def test_without_the_auxiliary_path():
    model = network(auxiliary_weight=0)
    named = model(*sample(model))
    assert named.keys() == {"loss", "tobo"}
    assert not any("cross" in name for name, _ in model.named_parameters())
    half = network(auxiliary_weight=0.5)
    named = half(*sample(half))
    torch.testing.assert_close(named["loss"], named["tobo"] + 0.5 * named["siam"])


@pytest.mark.parametrize("kind", PRETRAINING)
def test_a_saved_network_is_an_encoder(kind, tmp_path):
    model = network(kind).eval()
    model.save_pretrained(tmp_path / "whole")
    save_encoder(model, tmp_path / "few")
    frames = torch.randint(256, (2, 3, 3, 32, 40)).byte()
    expected = model._encode(model.split(frames[:, :1].expand(-1, model.frames, -1, -1, -1))[0])
    for folder in ("whole", "few"):
        tokens, _ = load_encoder(tmp_path / folder)(frames)
        assert tokens.features.shape == (2, 3 * 20, 32)
        torch.testing.assert_close(tokens.prefix[:, 0], expected[:, 0])
        torch.testing.assert_close(tokens.features[:, :20], expected[:, 1:])
    # Positions are resized for other sizes; methods act between blocks.
    assert load_encoder(tmp_path / "few")(torch.rand(1, 1, 3, 64, 64))[0].features.shape == (1, 64, 32)
    again = load_pretraining(tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match="contains only the encoder"):
        load_pretraining(tmp_path / "few")
    assert not models.is_saved(tmp_path / "whole")


@pytest.mark.parametrize("decoder", [True, False])
def test_released_checkpoints(tmp_path, decoder):
    """{"model": ...} with the names of timm, with and without tensors that the encoder does not use."""
    model = network(image_size=(32, 32)).eval()
    vit = model.encoder
    theirs = {"cls_token": vit.class_token[None, None],
              "pos_embed": torch.cat([vit.class_position[None], vit.positions.flatten(0, 1)])[None]}  # fmt: skip
    for name, value in vit.state_dict().items():
        if name not in ("class_token", "class_position", "positions"):
            for ours, timm in (("patches.", "patch_embed.proj."), ("attention.out", "attn.proj"),
                               ("attention.qkv", "attn.qkv"), ("norm_last", "norm")):  # fmt: skip
                name = name.replace(ours, timm)
            theirs[name] = value
    if decoder:
        theirs |= {"mask_token": torch.zeros(1, 1, 16), "decoder_embed.weight": torch.zeros(16, 32),
                   "decoder_blocks.0.norm1.weight": torch.ones(16), "decoder_norm.bias": torch.zeros(16)}  # fmt: skip
    torch.save({"model": theirs, "epoch": 399}, tmp_path / "checkpoint.pth")
    frames = torch.randint(256, (1, 2, 3, 32, 32)).byte()
    model.save_pretrained(tmp_path / "ours")
    a, _ = load_encoder(tmp_path / "checkpoint.pth")(frames)
    b, _ = load_encoder(tmp_path / "ours")(frames)
    # Heads in timm have 64 channels; this network has fewer channels, so it has a single head.
    assert load_released(tmp_path / "checkpoint.pth").config.num_heads == 1
    assert a.features.shape == b.features.shape
    assert torch.equal(
        load_released(tmp_path / "checkpoint.pth").blocks[1].mlp.fc1.weight, vit.blocks[1].mlp.fc1.weight
    )


def test_released_checkpoints_of_full_width_give_the_same_features(tmp_path):
    model = network(dim=128, num_heads=2, image_size=(32, 32)).eval()
    vit = model.encoder
    state = {name: value for name, value in vit.state_dict().items() if name not in ("class_position", "positions")}
    state["pos_embed"] = torch.cat([vit.class_position[None], vit.positions.flatten(0, 1)])[None]
    torch.save({"model": state}, tmp_path / "a.pth")
    frames = torch.randint(256, (1, 2, 3, 32, 32)).byte()
    model.save_pretrained(tmp_path / "ours")
    for name in ("features", "prefix"):
        a, b = (getattr(load_encoder(tmp_path / each)(frames)[0], name) for each in ("a.pth", "ours"))
        torch.testing.assert_close(a, b)


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_bad_checkpoints(tmp_path, capsys):
    path = tmp_path / "x.pth"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"x\.pth"):
        load_encoder(path)
    torch.save({"model": {"fc.weight": torch.zeros(2)}}, path)
    with pytest.raises(ValueError, match="not a vision transformer"):
        load_encoder(path)
    torch.save({"model": Evil()}, path)
    with pytest.raises(ValueError, match="could run arbitrary code"):
        load_encoder(path)
    assert "run" not in capsys.readouterr().out


def released(changes: dict[str, torch.Tensor | None] | None = None) -> dict[str, torch.Tensor]:
    """An encoder of 64 channels with the names of timm and tensors changed, added, or removed (None)."""
    vit = network("mae", dim=64, num_heads=1, image_size=(32, 32)).encoder
    names = {"class_token": "cls_token", "patches.": "patch_embed.proj.", "norm_last.": "norm.",
             ".attention.out.": ".attn.proj.", ".attention.qkv.": ".attn.qkv."}  # fmt: skip
    state: dict[str, torch.Tensor] = {}
    for name, value in vit.state_dict().items():
        if name not in ("class_position", "positions"):
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            state[name] = value.clone()
    state["pos_embed"] = torch.cat([vit.class_position[None], vit.positions.flatten(0, 1)])[None].clone()
    changed = {name: value for name, value in (state | (changes or {})).items() if value is not None}
    return changed


def test_a_full_training_checkpoint_of_mae_and_rsp(tmp_path):
    """Decoder, optimizer, scaler and the arguments in a Namespace; also with the prefixes of wrappers."""
    args = argparse.Namespace(lr=1.5e-4, output_dir=Path("run"), model="rsp_vit_small_patch16", betas=(0.9, 0.95))
    extra = {
        name: value for name, value in released_rsp().items() if not name.startswith(("blocks", "cls", "pos", "p"))
    }
    extra = {name: value for name, value in extra.items() if not name.startswith("norm")}
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(3))]).state_dict()
    frames = torch.rand(1, 2, 3, 32, 32)
    expected = None
    for prefix in ("", "module.", "module.backbone.", "base_encoder."):
        whole = {prefix + name: value for name, value in {**released(), **extra}.items()}
        path = tmp_path / "checkpoint-199.pth"
        torch.save({"model": whole, "optimizer": optimizer, "epoch": 199, "scaler": {}, "args": args}, path)
        actual = load_encoder(path)(frames)[0].features
        expected = actual if expected is None else expected
        assert torch.equal(actual, expected)


WRONG = {
    "a million blocks": (
        {"blocks.1000000.norm1.weight": torch.ones(64)},
        "blocks, the last with index 1000000",
    ),
    "no number": ({"blocks.99999999999999999999.norm1.weight": torch.ones(64)}, "unexpected: "),
    "patches of two axes": ({"patch_embed.proj.weight": torch.ones(64, 192)}, "not a vision transformer"),
    "no positions": ({"pos_embed": torch.ones(64)}, "not a vision transformer"),
    "a single position": ({"pos_embed": torch.ones(1, 1, 64)}, "those of a square grid"),
    "another width": ({"pos_embed": torch.ones(1, 17, 32)}, "of a different shape"),
    "bytes": ({"blocks.0.mlp.fc1.weight": torch.ones(256, 64, dtype=torch.int8)}, "is it quantized"),
    "sparse": ({"cls_token": torch.ones(1, 1, 64).to_sparse()}, "must be dense floating point"),
    "larger than stored": ({"cls_token": torch.ones(1).half().expand(10**6, 10**6)}, "than are stored"),
    "a name of two lines": ({"blocks.0.mlp.a\nb": torch.ones(1)}, "unexpected: blocks.0.mlp.a b"),
    "a list": ({"cls_token": [1.0]}, "missing: class_token"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("archive", [True, False])
def test_checkpoint_tensors_are_checked(name, archive, tmp_path):
    changes, message = WRONG[name]
    torch.save({"model": released(changes)}, tmp_path / "x.pth", _use_new_zipfile_serialization=archive)
    with pytest.raises(ValueError, match=message) as caught:
        load_encoder(tmp_path / "x.pth")
    assert "\n" not in str(caught.value)


def test_damaged_checkpoints(tmp_path):
    """Changing any byte or truncating anywhere results in features or a one-line error."""
    generator = random.Random(0)
    for archive in (True, False):
        torch.save({"model": released()}, tmp_path / "whole.pth", _use_new_zipfile_serialization=archive)
        whole = (tmp_path / "whole.pth").read_bytes()
        for _ in range(60):
            changed = bytearray(whole)
            for _ in range(generator.choice([1, 3, 20])):
                changed[generator.randrange(generator.choice([300, 3000, len(whole)]))] = generator.randrange(256)
            (tmp_path / "x.pth").write_bytes(changed[: generator.choice([200, 2000, len(whole), len(whole)])])
            message = ""
            try:
                load_encoder(tmp_path / "x.pth")
            except ValueError as error:
                message = str(error)
            assert "\n" not in message


def test_a_checkpoint_that_unpacks_to_much_more(tmp_path):
    torch.save({"model": released({"zeros": torch.zeros(4_000_000)})}, tmp_path / "whole.pth")
    with (
        zipfile.ZipFile(tmp_path / "whole.pth") as whole,
        zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in whole.infolist():
            packed.writestr(entry.filename, whole.read(entry))
    with pytest.raises(ValueError, match="unpacks to"):
        load_encoder(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (30, 32)}, "multiples of patch_size"), ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"mask_ratio": 0.0}, "mask_ratio"), ({"distance": "l1"}, "distance"), ({"decoder_dim": 18}, "multiple of 4"),
        ({"bottleneck_tokens": 0}, "at least 1"),
        ({"bottleneck_position": "none"}, "bottleneck_position"), ({"auxiliary_weight": -1}, "at least 0"),
    ],
)  # fmt: skip
def test_invalid_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        network(**changes)


def test_frames_of_another_shape():
    model = network()
    with pytest.raises(ValueError, match=r"must be \[B,2,3,32,40\]"):
        model(torch.zeros(1, 1, 3, 32, 40), torch.rand(1, 20))


def test_an_rsp_of_an_earlier_version_is_refused(tmp_path):
    """Its prior and posterior had an additional layer; its encoder is the same."""
    model = network("rsp")
    model.prior = nn.Sequential(*model.prior, nn.ReLU(), nn.Linear(1024, 1024))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="saved by an earlier fewtokens, whose RSP had an additional layer"):
        load_pretraining(tmp_path)
    assert load_encoder(tmp_path)(torch.rand(1, 1, 3, 32, 40))[0].N == 20


def test_initialization():
    """As in the code of MAE: Xavier, tokens N(0, 0.02), biases 0, and the default of PyTorch for the patch bias."""
    model = network(dim=128, patch_size=8)
    bias, bound = model.encoder.patches.bias, (3 * 8 * 8) ** -0.5
    assert float(bias.detach().abs().max()) <= bound
    assert float(bias.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.2)
    linear = model.encoder.blocks[0].mlp.fc1
    assert not linear.bias.any()
    assert float(linear.weight.detach().abs().max()) == pytest.approx((6 / (128 + 512)) ** 0.5, rel=0.01)
    assert float(model.encoder.class_token.detach().std()) == pytest.approx(0.02, rel=0.3)


def test_its_encoder_initializes_a_classifier(tmp_path):
    """A network initialized from it encodes an image equally."""
    save_encoder(network(), tmp_path)
    classifier = VisionTransformer(matching_config(tmp_path, num_classes=5)).eval()
    names = initialize_from(classifier, tmp_path)
    assert all(name.startswith("head.") for name in names["initialized"])
    image = torch.rand(1, 1, 3, 32, 40)
    with torch.no_grad():
        expected = classifier.head(load_encoder(str(tmp_path))(image)[0].prefix.flatten(0, -2))
        torch.testing.assert_close(classifier(image), expected)


@pytest.mark.parametrize(
    "changes",
    [{}, {"norm_first": True}, {"norm_last": False}, {"num_registers": 2}, {"gated": True}, {"qk_norm": True},
     {"qkv_bias": False}],
    ids=str,
)  # fmt: skip
def test_a_matching_network_computes_what_the_encoder_does(tmp_path, changes):
    source = network("mae", **changes).eval()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    save_encoder(source, tmp_path)
    classifier = VisionTransformer(matching_config(tmp_path, num_classes=5)).eval()
    assert not initialize_from(classifier, tmp_path)["unused"]
    image = torch.rand(1, 1, 3, 32, 40)
    with torch.no_grad():
        torch.nn.init.normal_(classifier.head.weight)
        prefix = load_encoder(str(tmp_path))(image)[0].prefix.flatten(0, -2)
        expected = classifier.head(prefix[:1])  # the class token
        torch.testing.assert_close(classifier(image), expected, rtol=1e-4, atol=1e-4)


def test_a_norm_that_the_network_does_not_have_is_not_lost(tmp_path):
    save_encoder(network("mae", norm_first=True), tmp_path)
    classifier = VisionTransformer(matching_config(tmp_path, norm_first=False))
    with pytest.raises(ValueError, match=r"this model has no norm_first\..*matching_config"):
        initialize_from(classifier, tmp_path)


def test_hidden_layers_of_three_times_the_channels_are_initialized_as_a_whole():
    model = VisionTransformer(VisionConfig(dim=64, depth=1, num_heads=2, mlp_dim=192, image_size=(32, 32)))
    block = model.blocks[0]
    assert float(block.mlp.fc1.weight.detach().abs().max()) <= (6 / (64 + 192)) ** 0.5
    assert float(block.attention.qkv.weight.detach().abs().max()) <= (6 / (64 + 64)) ** 0.5


def test_published_settings_of_crop_mae():
    """Its scripts: 400 epochs of one sample per video, gaps in [4,48) for SiamMAE."""
    for name in ("siam_mae", "crop_mae"):
        recipe = make_pretraining(f"{name}_vit_s16_k400")
        assert (recipe.batch, recipe.epochs, recipe.repeats, recipe.lr) == (2048, 400, 1, pytest.approx(8e-4))
    assert make_pretraining("siam_mae_vit_s16_k400").pairing.max_gap == 47
