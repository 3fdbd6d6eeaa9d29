"""Attention VQ: the value with the most attention, its gradient, the losses of CODA, and training next to VQ."""

from __future__ import annotations

import math

import pytest
import torch

from fewtokens.methods.quantizers.attention_vq import AttentionVq
from fewtokens.methods.quantizers.vq import Vq


def parts(method: AttentionVq, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [n,K] and values [K,D], from the formulas of the paper."""
    book = method.codebook

    def normed(y: torch.Tensor) -> torch.Tensor:
        return y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    q, k, v = ((book.query, x), (book.key, book.table), (book.value, book.table))
    q, k, v = (y @ layer.weight.T + layer.bias for layer, y in (q, k, v))
    return normed(q) @ normed(k).T / math.sqrt(k.shape[1]), v


def test_the_value_with_the_most_attention_and_the_gradient_of_the_attention_to_all():
    torch.manual_seed(0)
    method = AttentionVq(20, dim=6, code_dim=6, query_dim=4).eval()
    x = torch.randn(1, 30, 6, requires_grad=True)
    features, codes, losses = method.quantize(x)
    logits, values = parts(method, x[0])
    assert torch.equal(codes[0, :, 0], logits.argmax(1))
    torch.testing.assert_close(features[0], values[logits.argmax(1)])
    assert losses == {}
    weight = torch.randn(30, 6)
    inputs = (x, method.codebook.table)
    gradients = torch.autograd.grad((features[0] * weight).sum(), inputs)
    attention = logits.softmax(1)
    chosen = torch.eye(20)[logits.argmax(1)] - attention.detach() + attention
    expected = torch.autograd.grad(((chosen @ values) * weight).sum(), inputs)
    torch.testing.assert_close(gradients, expected)
    with torch.no_grad():
        assert torch.equal(method.quantize(x).features, features)


def test_losses():
    """mean(z_q - f)^2 + mean(sg z_q2 - f)^2 + 0.05 mean(z_q2 - sg f)^2, and 0.05 of the entropies at 0.01."""
    torch.manual_seed(0)
    method = AttentionVq(20, dim=6, code_dim=6, query_dim=4).train()
    x = torch.randn(1, 30, 6)
    losses = method.quantize(x).losses
    logits, values = parts(method, x[0])
    error = (values[logits.argmax(1)] - x[0]).square().mean()
    p = (logits.double() / 0.01).softmax(1)
    sample = -(p * p.clamp(min=1e-300).log()).sum(1).mean()
    mean = p.mean(0)
    entropy = sample + (mean * mean.clamp(min=1e-300).log()).sum()
    expected = {"attention": error, "commitment": error, "codebook": 0.05 * error, "entropy": 0.05 * entropy.float()}
    torch.testing.assert_close(losses, expected, atol=1e-4, rtol=1e-4)


def test_training_reaches_the_error_of_vq_with_restarts():
    """Within 0.6 dB, and no collapse: more than 60 % of the entries are used after few steps."""
    torch.manual_seed(0)
    basis = torch.randn(3, 16) / 3**0.5
    x = torch.randn(1, 1000, 3) @ basis
    errors = []
    for kind in (Vq, AttentionVq):
        torch.manual_seed(1)
        method = kind(32, dim=16, code_dim=8).train()
        optimizer = torch.optim.AdamW(method.parameters(), 0.01)
        for _ in range(150):
            batch = torch.randn(1, 256, 3) @ basis
            features, _, losses = method.quantize(batch)
            optimizer.zero_grad()
            ((features - batch).square().mean() + sum(losses.values())).backward()
            optimizer.step()
        with torch.no_grad():
            features, codes, _ = method.eval().quantize(x)
        errors.append(10 * (features - x).square().mean().log10())
    assert errors[1] - errors[0] < 0.6
    assert len(codes.unique()) > 0.6 * 32


def test_bad_arguments():
    with pytest.raises(ValueError, match="query_dim must be at least 1"):
        AttentionVq(query_dim=0)
