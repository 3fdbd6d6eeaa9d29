"""`hierarchical_fsq` against the equations of VQ-VAE-2, written out for two depths."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from fewtokens.core.grid import Grid
from fewtokens.methods.quantizers.hierarchical_fsq import HierarchicalFsq


def build(**options) -> HierarchicalFsq:
    torch.manual_seed(0)
    return HierarchicalFsq((5, 3), dim=4, strides=((2, 2, 2),), hidden=3, **options).eval()


def fsq(z: torch.Tensor) -> torch.Tensor:
    """The values of channels [1,2,T,H,W] with 5 and 3 levels (arXiv 2309.15505): round(h tanh z) / (L // 2)."""
    half = (torch.tensor([4.0, 2.0]) * (1 + 1e-3) / 2)[None, :, None, None, None]
    return (half * z.tanh()).round() / torch.tensor([2.0, 1.0])[None, :, None, None, None]


def conv(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.conv3d(F.pad(x, (1, 1, 1, 1, 0, 0), mode="replicate"), layer.weight, layer.bias)


@torch.no_grad()
def test_it_is_the_rule_of_vq_vae_2():
    method = build()
    features = torch.randn(1, 3 * 2 * 4, 4) * 3
    quantized, codes, _ = method.quantize(features, None, Grid(3, 2, 4))
    h1 = conv(method.encoders[0], features.mT.reshape(1, 4, 3, 2, 4))
    # The first frame is a block in time alone; frames 1 and 2 are another.
    means = [h1[:, :, :1], h1[:, :, 1:].mean(2, keepdim=True)]
    h2 = conv(method.encoders[1], F.silu(F.avg_pool3d(torch.cat(means, 2), (1, 2, 2))))
    q2 = fsq(conv(method.heads[1], F.silu(h2)))
    d2 = F.silu(conv(method.decoders[1], q2))
    up = d2[:, :, [0, 1, 1]].repeat_interleave(2, 3).repeat_interleave(2, 4)
    q1 = fsq(conv(method.heads[0], F.silu(torch.cat([h1, up], 1))))
    d1 = F.silu(conv(method.decoders[0], torch.cat([q1, up], 1)))
    expected = d1.flatten(2).mT @ method.out.weight.T + method.out.bias
    torch.testing.assert_close(quantized, expected, atol=1e-5, rtol=1e-5)
    index = (q2[0] * torch.tensor([2, 1])[:, None, None, None] + torch.tensor([2, 1])[:, None, None, None]).long()
    assert codes[0, :4, 1].tolist() == (index[0] + 5 * index[1]).flatten().tolist()
    assert bool((codes[0, 4:, 1] == -1).all())


def test_bits_of_a_grid_that_blocks_do_not_divide():
    method = build(first_frame=False)
    assert method.shapes(Grid(3, 3, 5)) == [(3, 3, 5), (2, 2, 3)]
    assert method.planned_bits(Grid(3, 3, 5), 45) == (45 + 12) * math.log2(15)


def test_after_training_every_depth_lowers_the_error():
    """Features with a coarse and a fine part: both depths are needed, and the coarse one alone is better than none."""
    torch.manual_seed(0)
    method = HierarchicalFsq((5, 5, 5), dim=4, strides=((1, 2, 2),), hidden=16).train()
    grid = Grid(3, 4, 4)

    def sample(count: int) -> torch.Tensor:
        coarse = torch.randn(count, 4, 3, 2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
        return (coarse + 0.5 * torch.randn(count, 4, 3, 4, 4)).flatten(2).mT

    optimizer = torch.optim.Adam(method.parameters(), 1e-2)
    for _ in range(120):
        features = sample(16)
        loss = (method.quantize(features, None, grid).features - features).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    features = sample(64)
    codes = method.quantize(features, None, grid).codes

    def error(*removed: int) -> float:
        kept = codes.clone()
        kept[..., list(removed)] = -1
        return float((method.lookup(kept, grid) - features).square().mean())

    with torch.no_grad():
        assert error() < 0.5 * min(error(0), error(1))
        assert error(0) < error(0, 1)
