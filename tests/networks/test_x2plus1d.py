"""X(2+1)D-M: its modules against direct calculations, its parameters against the paper's table."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewtokens import networks as models
from fewtokens.networks.x2plus1d import (
    GridAttention,
    TokenLearnerModule,
    VectorAttention,
    X2plus1d,
    X2plus1dConfig,
    make_part,
)

TINY = {
    "stem": 8, "depths": (1, 1, 1, 3), "dims": (8, 8, 8, 16), "inner": (8, 8, 8, 24), "last": 24, "hidden": 32,
    "num_classes": 5, "num_frames": 4, "num_tokens": 3, "keys": 8, "num_heads": 4, "replaced": (0, 1, 2),
}  # fmt: skip
MODULES = [
    "conv2d+conv1d", "joint", "conv2d+joint", "conv2d+temporal", "spatial+temporal", "conv2d+spatial+temporal",
    "tokenlearner", "conv2d+tokenlearner",
]  # fmt: skip


@pytest.mark.parametrize("reading", ["paper_fit", "paper_text"])
@pytest.mark.parametrize("module", MODULES)
def test_every_module_trains(module, reading, tmp_path):
    torch.manual_seed(0)
    model = X2plus1d(X2plus1dConfig(**TINY, module=module, reading=reading)).train()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm3d):
            nn.init.ones_(part.weight)
    clip = torch.rand(2, 4, 3, 48, 32)
    logits = model(clip)
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    for label, parameter in model.named_parameters():
        assert parameter.grad is not None, label
        assert bool(parameter.grad.isfinite().all()), label
    model.eval().save_pretrained(tmp_path)
    assert torch.equal(models.load(tmp_path)(clip), model(clip))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reading", ["paper_fit", "paper_text"])
@pytest.mark.parametrize("module", MODULES)
def test_every_module_in_half_precision(module, reading, dtype):
    torch.manual_seed(0)
    model = X2plus1d(X2plus1dConfig(**TINY, module=module, reading=reading)).eval()
    clip = torch.rand(1, 4, 3, 32, 32)
    expected, actual = model(clip), model.to(dtype)(clip.to(dtype))
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.float(), expected, rtol=0.1, atol=0.1)


def test_vector_attention_by_its_formula():
    torch.manual_seed(0)
    attention = VectorAttention(6).double()
    z = torch.randn(2, 5, 6, dtype=torch.float64)
    q, k, v = attention.q(z), attention.k(z), attention.v(z)
    expected = torch.zeros_like(z)
    for i in range(5):
        weights = (q[:, i : i + 1] * k).softmax(1)  # over j, separately for each channel
        expected[:, i] = (weights * v).sum(1)
    torch.testing.assert_close(attention(z), expected)


@pytest.mark.parametrize("over", ["spatial", "temporal", "joint"])
def test_attention_over_space_time_or_both(over):
    torch.manual_seed(0)
    attention = GridAttention(8, over, keys=4, num_heads=2).double()
    x = torch.randn(2, 8, 3, 2, 2, dtype=torch.float64)
    rows = x.flatten(2).transpose(1, 2)  # [B,T*H*W,C]
    frame, place = torch.arange(12) // 4, torch.arange(12) % 4
    allowed = {
        "spatial": frame[:, None] == frame,
        "temporal": place[:, None] == place,
        "joint": torch.ones(12, 12, dtype=torch.bool),
    }[over]
    q, k, v = (layer(rows).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (attention.q, attention.k, attention.v))
    logits = (q @ k.transpose(2, 3) / 2**0.5).masked_fill(~allowed, -torch.inf)
    expected = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(attention(x), expected)


def test_tokenlearner_module_by_hand():
    """paper_text, with loops over frames and pixels."""
    torch.manual_seed(0)
    module = TokenLearnerModule(6, num_tokens=2, num_frames=3, reading="paper_text").double()
    nn.init.normal_(module.mixing.weight)
    x = torch.randn(1, 6, 3, 2, 2, dtype=torch.float64)
    alpha, beta = module.maps.weight[:, :, 0, 0], module.gate.weight[:, :, 0, 0]
    tokens = torch.stack(
        [
            sum((alpha @ x[0, :, t, y, u]).sigmoid()[s] * x[0, :, t, y, u] for y in range(2) for u in range(2)) / 4
            for t in range(3)
            for s in range(2)
        ]
    )
    mixed = module.mixing.weight @ module.attention(tokens[None])[0]
    for t in range(3):
        for y in range(2):
            for u in range(2):
                gate = (beta @ x[0, :, t, y, u]).sigmoid()
                expected = gate[0] * mixed[2 * t] + gate[1] * mixed[2 * t + 1]
                torch.testing.assert_close(module(x)[0, :, t, y, u], expected)
    with pytest.raises(ValueError, match="clips must have 3 frames"):
        module(torch.randn(1, 6, 2, 2, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("module", "millions"),
    [
        ("conv2d+conv1d", 2.24), ("joint", 0.30), ("conv2d+joint", 1.98), ("conv2d+temporal", 1.98),
        ("spatial+temporal", 0.59), ("conv2d+spatial+temporal", 2.27), ("tokenlearner", 0.81),
        ("conv2d+tokenlearner", 2.49),
    ],
)  # fmt: skip
def test_parameters_of_table_13(module, millions):
    with torch.device("meta"):
        parts = [make_part(name, 432, X2plus1dConfig()) for name in module.split("+")]
    assert round(sum(p.numel() for part in parts for p in part.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"module": "conv3d"}, "module must join"),
        ({"reading": "mine"}, "reading must be"),
        ({"replaced": (7,)}, "replaced must be unit indices"),
        ({"depths": (1, 2)}, "one entry per stage"),
    ],
)
def test_invalid_configs(changes, message):
    with pytest.raises(ValueError, match=message):
        X2plus1dConfig(**changes)


@pytest.mark.parametrize("side", [72, 40])
def test_odd_sizes_before_a_replaced_unit_with_stride(side):
    """Pooling has the size of the strided shortcut."""
    model = X2plus1d(X2plus1dConfig(**TINY, module="conv2d+tokenlearner")).eval()
    clip = torch.rand(1, 4, 3, side, side)
    shapes = []
    for stage in model.stages:
        stage[0].register_forward_hook(lambda unit, args, out: shapes.append(out.shape[3:]))
    model(clip)
    plain = X2plus1d(X2plus1dConfig(**TINY | {"replaced": ()})).eval()
    for stage in plain.stages:
        stage[0].register_forward_hook(lambda unit, args, out: shapes.append(out.shape[3:]))
    plain(clip)
    assert shapes[:4] == shapes[4:]


def test_checkpointing_counts_a_batch_once():
    """The statistics of batch norms, and gradients, are those without activation checkpointing."""
    clip, states, gradients = torch.rand(2, 4, 3, 32, 32), [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = X2plus1d(X2plus1dConfig(**TINY)).train()
        model.checkpointing = checkpointing
        model(clip).square().sum().backward()
        states.append(model.state_dict())
        gradients.append([parameter.grad for parameter in model.parameters()])
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, msg=name)
    torch.testing.assert_close(gradients[1], gradients[0])
    assert all(part.momentum == 0.1 for part in model.modules() if isinstance(part, nn.BatchNorm3d))
