"""Product VQ: each group of channels alone."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.quantizers.product_vq import ProductVq


def test_a_group_determines_its_code_alone():
    torch.manual_seed(0)
    method = ProductVq(64, dim=12, groups=3).eval()
    x = torch.randn(1, 40, 12)
    other = x.clone()
    other[..., 4:8] = torch.randn(1, 40, 4)
    a, b = method.quantize(x), method.quantize(other)
    assert torch.equal(a.codes[..., [0, 2]], b.codes[..., [0, 2]])
    assert not torch.equal(a.codes[..., 1], b.codes[..., 1])
    assert torch.equal(a.features[..., :4], b.features[..., :4])


def test_the_loss_is_the_sum_over_groups():
    torch.manual_seed(0)
    method = ProductVq(16, dim=8, groups=2, restart=0).train()
    x = torch.randn(1, 40, 8)
    groups = zip(method.codebooks, method.project_in, x.chunk(2, -1), strict=True)
    parts = [book(layer(part))[2].sum() for book, layer, part in groups]
    torch.manual_seed(0)
    again = ProductVq(16, dim=8, groups=2, restart=0).train()
    torch.testing.assert_close(again.quantize(x).losses["commitment"], torch.stack(parts).sum())


def test_bits():
    assert ProductVq(1024, groups=3).bits == 30


def test_any_number_of_channels():
    torch.manual_seed(0)
    method = ProductVq(16, dim=7, groups=3).eval()
    assert method.quantize(torch.randn(1, 5, 7)).features.shape == (1, 5, 7)


@pytest.mark.parametrize("groups", [0, 13])
def test_bad_arguments(groups):
    with pytest.raises(ValueError, match=r"groups must be in 1\.\.12"):
        ProductVq(dim=12, groups=groups)


def test_the_penalty_on_similar_entries():
    torch.manual_seed(0)
    x = torch.randn(1, 40, 8)
    mask = torch.ones(1, 40, dtype=torch.bool)
    mask[0, 30:] = False
    method = ProductVq(16, dim=8, code_dim=3, restart=0, orthogonality=0.5).train()
    before = [book.codebook.clone() for book in method.codebooks]
    _, codes, losses = method.quantize(x.requires_grad_(), mask)
    a, b = (entries[code] for entries, code in zip(before, codes[0, :30].unbind(-1), strict=True))
    cosine = torch.nn.functional.cosine_similarity(a, b)
    torch.testing.assert_close(losses["orthogonality"], 0.5 * cosine.square().mean())
    losses["orthogonality"].backward()
    assert bool((x.grad[0, :30] != 0).any(-1).all())
    assert not bool(x.grad[0, 30:].any())
    assert "orthogonality" not in ProductVq(16, dim=8).train().quantize(x.detach()).losses
    with pytest.raises(ValueError, match="at least two groups"):
        ProductVq(dim=8, groups=1, orthogonality=0.1)
