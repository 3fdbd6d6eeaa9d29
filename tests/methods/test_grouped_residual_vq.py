"""Grouped residual quantization: each group equals residual quantization alone."""

from __future__ import annotations

import torch

from fewtokens.methods.quantizers.grouped_residual_vq import GroupedResidualVq


def test_codes_are_those_of_a_greedy_search_in_each_group():
    torch.manual_seed(0)
    method = GroupedResidualVq(16, dim=12, groups=3, levels=3, code_dim=4).eval()
    x = torch.randn(2, 5, 12)
    found = method.quantize(x)
    for group in range(3):
        rest = x[..., 4 * group : 4 * group + 4]  # dim / groups == code_dim, so there are no projections
        for level in range(3):
            table = method.codebooks[group].layers[level].codebook
            code = torch.cdist(rest, table).argmin(-1)
            assert torch.equal(found.codes[..., 3 * group + level], code)
            rest = rest - table[code]
        torch.testing.assert_close(x[..., 4 * group : 4 * group + 4] - rest, found.features[..., 4 * group :][..., :4])


def test_groups_do_not_mix():
    torch.manual_seed(0)
    method = GroupedResidualVq(16, dim=12, groups=2, levels=2, code_dim=3)
    x = torch.randn(1, 7, 12, requires_grad=True)
    method.quantize(x).features[..., :6].square().sum().backward()
    assert bool(x.grad[..., :6].any())
    assert not bool(x.grad[..., 6:].any())
    method.eval()
    changed = torch.cat([x[..., :6], torch.randn(1, 7, 6)], -1)
    assert torch.equal(method.quantize(x).codes[..., :2], method.quantize(changed).codes[..., :2])
