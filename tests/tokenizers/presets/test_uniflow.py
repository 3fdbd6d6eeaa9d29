"""UniFlow: published sizes, the teacher, and independent patches."""

from __future__ import annotations

import pytest
import torch

from fewtokens.tokenizers import create_tokenizer, get_preset
from fewtokens.video import synthetic


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_size():
    with torch.device("meta"):
        published = create_tokenizer("uniflow")
    layout = published.layout(*get_preset("uniflow").clip)
    assert (layout.tokens, layout.bits) == (1024, 1024 * 64 * 32)
    assert count(published.encoder) / 1e6 == pytest.approx(304, rel=0.01)

    # By the layers of the released config, without its two learned tables of positions.
    def linear(a, b):
        return a * b + b

    d, pixels = 1024, 3 * 14 * 14
    blocks = 6 * (linear(d, 3 * d) + linear(d, d) + linear(d, 4 * d) + linear(4 * d, d) + 4 * d)
    head = linear(pixels, d) + linear(d, d) + linear(256, d) + linear(d, d)
    head += 12 * (2 * d + 2 * linear(d, d) + linear(d, 3 * d)) + linear(d, 2 * d) + linear(d, pixels)
    assert count(published.decoder) == linear(64, d) + linear(d, d) + blocks + head
    assert count(published.methods[0]) == linear(d, d) + linear(d, 64)


def test_the_teacher_is_frozen_and_equal_at_the_start():
    torch.manual_seed(0)
    tokenizer = create_tokenizer("uniflow", tiny=True).train()
    frames = synthetic("pan", frames=1, size=(32, 32)).frames[None]
    before = {name: value.clone() for name, value in tokenizer.teacher.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in tokenizer.parameters() if p.requires_grad], 3e-2)
    losses = []
    for _ in range(5):
        step = tokenizer(frames)
        losses.append(step.losses["distillation"].item())
        optimizer.zero_grad()
        sum(step.losses.values()).backward()
        optimizer.step()
    assert losses[0] == pytest.approx(0, abs=1e-5)
    assert losses[-1] > 1e-4
    assert not tokenizer.teacher.training
    for name, value in tokenizer.teacher.state_dict().items():
        assert torch.equal(value, before[name])
    first = tokenizer.encoder.model.patches.weight
    assert not torch.equal(first, tokenizer.teacher.network.model.patches.weight)
