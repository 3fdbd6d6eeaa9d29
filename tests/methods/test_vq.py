"""VQ: the nearest entry, the moving mean of a codebook, restarts, padding."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core import registry
from fewtokens.methods.quantizers.vq import Vq


def book(method: Vq) -> torch.Tensor:
    return method.codebook.codebook


@pytest.mark.parametrize("cosine", [False, True])
def test_the_code_is_the_nearest_entry(cosine):
    torch.manual_seed(0)
    method = Vq(50, dim=6, code_dim=6, cosine=cosine).eval()
    x = torch.randn(2, 40, 6)
    z = torch.nn.functional.normalize(x, dim=-1) if cosine else x
    distance = (z[:, :, None] - book(method)).square().sum(-1)
    features, codes, losses = method.quantize(x)
    assert torch.equal(codes[..., 0], distance.argmin(-1))
    torch.testing.assert_close(features, book(method)[codes[..., 0]])
    assert losses == {}


def test_entries_follow_the_moving_mean_of_their_tokens():
    torch.manual_seed(0)
    method = Vq(2, dim=2, code_dim=2, cosine=False, decay=0.9, restart=0).train()
    inner = method.codebook._codebook
    before = torch.tensor([[0.0, 0.0], [10.0, 10.0]])
    inner.embed.copy_(before[None])
    inner.embed_avg.copy_(before[None])
    inner.cluster_size.fill_(1.0)
    x = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [9.0, 10.0]]])
    losses = method.quantize(x).losses
    sums = 0.9 * before + 0.1 * torch.tensor([[4.0, 0.0], [9.0, 10.0]])
    counts = 0.9 + 0.1 * torch.tensor([2.0, 1.0])
    torch.testing.assert_close(book(method), sums / counts[:, None], atol=1e-3, rtol=1e-3)
    # The distances 1, 9 and 1, before the entries moved, over two channels each.
    torch.testing.assert_close(losses["commitment"], torch.tensor(0.25 * 11 / 6))


@pytest.mark.parametrize("name", ["vq", "residual_vq", "product_vq"])
def test_the_gradient_of_the_output_projection_is_that_of_the_features(name):
    """Of the entries after they moved, which `lookup` returns, from one projection."""
    torch.manual_seed(0)
    (method,) = registry.build(f"{name}(8, restart=0)", dim=24)
    features, codes, _ = method.train().quantize(torch.randn(2, 20, 24))
    gradients = []
    for out in (features, method.lookup(codes)):
        method.zero_grad()
        out.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in method.project_out.parameters()])
    torch.testing.assert_close(*gradients)


def test_padding_moves_no_entry():
    torch.manual_seed(0)
    x = torch.randn(2, 12, 4)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 5:] = False
    books, losses = [], []
    for fill in (0.0, 100.0):
        torch.manual_seed(1)
        method = Vq(8, dim=4, code_dim=4, restart=0).train()
        torch.manual_seed(2)
        losses.append(method.quantize(x.masked_fill(~mask[..., None], fill), mask).losses["commitment"])
        books.append(book(method).clone())
    torch.testing.assert_close(*books)
    torch.testing.assert_close(*losses)


def test_unused_entries_restart_at_tokens():
    torch.manual_seed(0)
    used = {}
    for restart in (0.0, 1.0):
        torch.manual_seed(1)
        method = Vq(16, dim=4, code_dim=4, cosine=False, decay=0.8, restart=restart).train()
        # Far from all tokens, except one entry.
        method.codebook._codebook.embed[:, 1:] += 1000
        method.codebook._codebook.embed_avg.copy_(method.codebook._codebook.embed)
        for step in range(30):
            torch.manual_seed(step)
            method.quantize(torch.randn(1, 200, 4))
        used[restart] = method.eval().quantize(torch.randn(1, 1000, 4)).codes.unique().numel()
    assert used[0.0] == 1
    assert used[1.0] >= 14


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 1}, "at least 2 entries"),
        ({"code_dim": 0}, "code_dim"),
        ({"decay": 1.0}, "decay"),
        ({"restart": -1}, "restart"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Vq(**arguments)
