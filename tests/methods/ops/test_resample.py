"""Modules shared by the learned resamplers."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.ops.resample import Attention, TokenSummary, fitting_heads


def test_heads_divide_the_width():
    assert [fitting_heads(width, 8) for width in (12, 13, 16, 384, 4)] == [6, 1, 8, 8, 4]


def with_weights(
    attention: Attention, x: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    return attention.attend(x, context, mask)[0]


@pytest.mark.parametrize("attend", [Attention.forward, with_weights], ids=["fused", "with weights"])
def test_padded_keys_are_ignored(attend):
    """5, 3 and 0 of 5 keys are real; with 0, all are visible and nothing is NaN, forward and backward."""
    torch.manual_seed(0)
    attention, x = Attention(8, 2, context_dim=6), torch.randn(3, 4, 8)
    context = torch.randn(3, 5, 6, requires_grad=True)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [False] * 5])
    out = attend(attention, x, context, mask)
    for b, real in enumerate((5, 3, 5)):
        torch.testing.assert_close(out[b], attend(attention, x[b : b + 1], context[b : b + 1, :real], None)[0])
    out.sum().backward()
    assert bool(context.grad.isfinite().all())
    assert bool((context.grad[1, 3:] == 0).all())


def test_maps_of_padded_tokens_are_zero():
    torch.manual_seed(0)
    summary, x = TokenSummary(8, 2, 4), torch.randn(3, 5, 8)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [False] * 5])
    maps = summary(x, mask)
    for b, real in enumerate((5, 3, 5)):
        torch.testing.assert_close(maps[b : b + 1, :, :real], summary(x[b : b + 1, :real]))
        assert bool((maps[b, :, real:] == 0).all())
