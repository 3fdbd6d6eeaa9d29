"""Reference values, permutation and initialization properties of TokenLearner and TokenFuser."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import save_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.learned.pool_mlp import PoolMlp
from fewtokens.methods.learned.tokenlearner import TokenLearner
from fewtokens.methods.ops import per_frame
from fewtokens.networks.token_fuser import FUSERS, Reproject, TokenFuser, Unpool

TYPES = [torch.float32, torch.float64]


def set_reference_parameters(module: nn.Module) -> None:
    """Weights 0.2 sin(k+1) flat in (in, out) order, biases 0.05 cos(k+1), scales of norms 1 + 0.1 sin(k+1)."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Linear):
                k = torch.arange(part.weight.numel(), dtype=part.weight.dtype)
                part.weight.copy_((0.2 * torch.sin(k + 1)).reshape(part.in_features, part.out_features).T)
                if part.bias is not None:
                    part.bias.copy_(0.05 * torch.cos(torch.arange(len(part.bias), dtype=part.bias.dtype) + 1))
            elif isinstance(part, nn.LayerNorm):
                k = torch.arange(len(part.weight), dtype=part.weight.dtype)
                part.weight.copy_(1 + 0.1 * torch.sin(k + 1))
                part.bias.copy_(0.05 * torch.cos(k + 1))


def ramp(shape: tuple[int, ...], rate: float, wave, dtype: torch.dtype) -> torch.Tensor:
    return wave(rate * torch.arange(math.prod(shape), dtype=dtype)).reshape(shape)


@pytest.mark.parametrize("dtype", TYPES)
def test_reference_values_of_version_1_1(dtype):
    learner = TokenLearner("3/frame", dim=6, version="1.1").to(dtype).eval()
    set_reference_parameters(learner)
    z, maps = (part.detach() for part in learner.learn(ramp((1, 4, 4, 6), 0.37, torch.cos, dtype)))
    expected = [0.039466, 0.008395, -0.023812, -0.052797, -0.074635, -0.086373]
    torch.testing.assert_close(z[0, 0], torch.tensor(expected, dtype=dtype), rtol=1e-4, atol=1e-6)
    assert float(z.sum()) == pytest.approx(-0.408930, abs=2e-6)
    assert float(z.square().sum()) == pytest.approx(0.041822, abs=1e-6)
    torch.testing.assert_close(maps.sum(2), torch.ones(1, 3, dtype=dtype))


@pytest.mark.parametrize("dtype", TYPES)
def test_reference_values_of_the_fuser(dtype):
    fuser = TokenFuser(3, dim=6, gate="mlp").to(dtype).eval()
    set_reference_parameters(fuser)
    x, y = ramp((1, 1, 4, 4, 6), 0.37, torch.cos, dtype), ramp((1, 1, 3, 6), 0.23, torch.sin, dtype)
    out = fuser(y, x)[0, 0].flatten(0, 1).detach()
    expected = [-0.197419, -1.215525, -1.242267, -0.528459, 0.580738, 2.362791]
    torch.testing.assert_close(out[0], torch.tensor(expected, dtype=dtype), rtol=1e-4, atol=1e-5)
    assert float(out.sum()) == pytest.approx(-3.817327, abs=1e-4)
    assert float(out.square().sum()) == pytest.approx(146.45486, rel=1e-5)


def version_1_0_by_loops(x: np.ndarray, learner: TokenLearner) -> np.ndarray:
    """Version 1.0 written as loops: LayerNorm, four zero-padded 3x3 convolutions, sigmoid, sum over pixels."""
    H, W, _ = x.shape
    scale, shift = (p.detach().double().numpy() for p in (learner.norm.weight, learner.norm.bias))
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + shift
    convolutions = [part.weight.detach().double().numpy() for part in learner.scorer if isinstance(part, nn.Conv2d)]
    assert len(convolutions) == 4
    for index, kernel in enumerate(convolutions):
        out = np.zeros((H, W, len(kernel)))
        for i in range(H):
            for j in range(W):
                for a in range(3):
                    for b in range(3):
                        if 0 <= i + a - 1 < H and 0 <= j + b - 1 < W:
                            out[i, j] += kernel[:, :, a, b] @ y[i + a - 1, j + b - 1]
        # The tanh approximation of GELU, after all but the last.
        inner = np.sqrt(2 / np.pi) * (out + 0.044715 * out**3)
        y = 0.5 * out * (1 + np.tanh(inner)) if index < 3 else out
    gate = 1 / (1 + np.exp(-y))
    return np.einsum("hws,hwc->sc", gate, x)


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (1, 1), (1, 5)])
@pytest.mark.parametrize("pool", ["sum", "mean"])
def test_version_1_0_against_loops(shape, pool):
    torch.manual_seed(1)
    learner = TokenLearner("5/frame", dim=6, pool=pool).double()
    set_reference_parameters(learner)
    x = torch.randn(2, *shape, 6, dtype=torch.float64)
    z, _ = learner.learn(x)
    for b in range(2):
        expected = version_1_0_by_loops(x[b].numpy(), learner) / (shape[0] * shape[1] if pool == "mean" else 1)
        np.testing.assert_allclose(z[b].detach().numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", TYPES)
def test_permutation_of_the_pixels(dtype):
    """1.1 is invariant to the order of pixels; 1.0 is not, because of its convolutions."""
    torch.manual_seed(0)
    x = torch.randn(1, 4, 5, 8, dtype=dtype)
    mixed = x.flatten(1, 2)[:, torch.randperm(20)].reshape(x.shape)
    by_mlp, by_convolution = (TokenLearner("3/frame", dim=8, version=v).to(dtype).eval() for v in ("1.1", "1.0"))
    torch.testing.assert_close(by_mlp.learn(mixed)[0], by_mlp.learn(x)[0])
    assert not torch.allclose(by_convolution.learn(mixed)[0], by_convolution.learn(x)[0], atol=1e-2)


@pytest.mark.parametrize("dtype", TYPES)
def test_constant_maps(dtype):
    x = torch.randn(1, 1, 1, 8, dtype=dtype).expand(1, 3, 4, 8)
    z, _ = TokenLearner("2/frame", dim=8, version="1.1").to(dtype).eval().learn(x)
    torch.testing.assert_close(z, x[:, 0, :1].expand(1, 2, 8))
    constant = TokenLearner("2/frame", dim=8).to(dtype)
    for part in constant.scorer:
        if isinstance(part, nn.Conv2d):
            nn.init.zeros_(part.weight)
    z, _ = constant.learn(torch.arange(96, dtype=dtype).reshape(1, 3, 4, 8))
    mean = torch.arange(96, dtype=dtype).reshape(12, 8).mean(0)
    torch.testing.assert_close(z, (6 * mean).expand(1, 2, 8))


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_the_method_applies_the_module_per_frame(version):
    torch.manual_seed(0)
    learner = TokenLearner("4/frame", dim=6, version=version).eval()
    x = torch.randn(2, 3, 4, 5, 6)
    out = learner(Tokens.from_cells(x))
    z, maps = learner.learn(x.flatten(0, 1))
    torch.testing.assert_close(out.features, z.reshape(2, 12, 6))
    # The maps are the weights of the plan, each token's within its own frame.
    weights = out.cell_weights().detach().reshape(2, 3, 4, 3, 20)
    for t in range(3):
        torch.testing.assert_close(weights[:, t, :, t], maps.reshape(2, 3, 4, 20)[:, t])
        assert float(weights[:, t, :, [s for s in range(3) if s != t]].abs().max()) == 0
    assert out.positions[0, :, 0].tolist() == pytest.approx([0] * 4 + [1] * 4 + [2] * 4)


def test_clips_of_unequal_length():
    learner = TokenLearner("4/frame", dim=6).eval()
    x = torch.randn(2, 3, 4, 5, 6)
    tokens = Tokens.from_cells(x.flatten(1, 3), Grid(3, 4, 5, lengths=torch.tensor([3, 1])))
    out = learner(tokens).check()
    assert out.count.tolist() == [12, 4]
    alone = learner(Tokens.from_cells(x[1:, :1]))
    torch.testing.assert_close(out.features[1, :4], alone.features[0])


def test_learner_block_and_fuser_are_the_identity_at_initialization():
    x = torch.randn(2, 3, 4, 5, 8)
    learner = TokenLearner("4/frame", dim=8)
    z, maps = learner.learn(x.flatten(0, 1))
    for mix in ("frame", "clip"):
        for gate in ("linear", "mlp"):
            fuser = TokenFuser(4, dim=8, mix=mix, frames=3, gate=gate)
            assert torch.equal(fuser(z.reshape(2, 3, 4, 8), x, maps), torch.zeros_like(x))
    assert torch.equal(Reproject(4, dim=8)(z.reshape(2, 3, 4, 8), x, maps), torch.zeros_like(x))


def test_only_mixing_over_the_clip_combines_frames():
    torch.manual_seed(0)
    x, y = torch.randn(1, 3, 2, 2, 8), torch.randn(1, 3, 4, 8)
    changed = y.clone()
    changed[:, 2] += 1 + torch.randn(1, 4, 8)
    for mix, affected in (("frame", False), ("clip", True)):
        fuser = TokenFuser(4, dim=8, mix=mix, frames=3)
        nn.init.normal_(fuser.mixing.weight)
        difference = (fuser(y, x) - fuser(changed, x))[:, 0].abs().max()
        assert bool(difference > 1e-3) is affected
    with pytest.raises(ValueError, match=r"clips must have 3 frames .* got 2"):
        fuser(y[:, :2], x[:, :2])


def test_unpooling_is_the_transpose_of_the_maps():
    x, y, maps = torch.randn(1, 2, 3, 4, 8), torch.randn(1, 2, 5, 8), torch.rand(2, 5, 12)
    unpool = Unpool(5, dim=8)
    out = unpool(y, x, maps)
    z = nn.functional.layer_norm(y, (8,), eps=1e-6)
    for t in range(2):
        for n in range(12):
            expected = sum(maps[t, s, n] * z[0, t, s] for s in range(5))
            torch.testing.assert_close(out[0, t].flatten(0, 1)[n], expected)


@pytest.mark.parametrize("name", FUSERS)
def test_gradients_of_the_fusers(name):
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 4, 5, 8), torch.randn(2, 3, 4, 8)
    fuser = FUSERS[name](4, dim=8)
    for parameter in fuser.parameters():
        nn.init.normal_(parameter)
    fuser(y, x, torch.rand(6, 4, 20)).square().sum().backward()
    for label, parameter in fuser.named_parameters():
        # A softmax is invariant to the constant that the bias of the keys adds to all logits.
        assert parameter.grad is not None, label
        assert bool(parameter.grad.isfinite().all()), label


def test_save_and_load(tmp_path):
    learner = TokenLearner("4/frame", dim=6)
    path = save_weights(learner, tmp_path / "learner.safetensors")
    again = TokenLearner("4/frame", dim=6, checkpoint=str(path))
    assert all(
        torch.equal(a, b) for a, b in zip(learner.state_dict().values(), again.state_dict().values(), strict=True)
    )
    with pytest.raises(ValueError, match="does not fit"):
        TokenLearner("5/frame", dim=6, checkpoint=str(path))
    with pytest.raises(ValueError, match="not of pool_mlp"):
        PoolMlp("4/frame", dim=6, checkpoint=str(path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 8}, "tokenlearner: keep must be a count per frame"),
        ({"version": "2"}, "version"),
        ({"pool": "max"}, "pool"),
        ({"version": "1.1", "pool": "mean"}, "requires version 1.0"),
        ({"hidden": 32}, "require version 1.1"),
        ({"dropout": 0.1}, "require version 1.1"),
    ],
)
def test_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TokenLearner(**arguments)


def test_other_channels_are_rejected():
    with pytest.raises(ValueError, match="set dim=7"):
        TokenLearner("4/frame", dim=6)(Tokens.from_cells(torch.randn(1, 1, 2, 2, 7)))


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("shape", [(3, 5, 4, 16), (2, 1, 3, 16), (1, 1, 1, 16)])
def test_without_gradients_frames_are_processed_in_parts(version, shape, monkeypatch):
    monkeypatch.setattr(per_frame, "_MAX_ENTRIES", 1)
    torch.manual_seed(0)
    x, y = torch.randn(shape), torch.randn(1, shape[0], 8, shape[3])
    learner, fuser = TokenLearner("8/frame", dim=16, version=version), TokenFuser(8, dim=16)
    nn.init.normal_(fuser.mixing.weight)
    expected = learner.maps(x), fuser(y, x[None])
    with torch.no_grad():
        for got, value in zip((learner.maps(x), fuser(y, x[None])), expected, strict=True):
            torch.testing.assert_close(got, value.detach(), rtol=1e-5, atol=1e-5)
