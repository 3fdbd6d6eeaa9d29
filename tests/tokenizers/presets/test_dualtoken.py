"""DualToken: what pixel and semantic codes depend on, where gradients go, and the frozen teacher."""

from __future__ import annotations

import pytest
import torch

from fewtokens.tokenizers import create_tokenizer, get_preset
from fewtokens.video import synthetic


def build():
    torch.manual_seed(0)
    return create_tokenizer("dualtoken", tiny=True)


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return synthetic("shapes", frames=1, size=(32, 32)).frames[None].float() / 255


def test_published_tokens_and_bits():
    with torch.device("meta"):
        published = create_tokenizer("dualtoken")
    layout = published.layout(*get_preset("dualtoken").clip)
    assert (layout.grid, layout.tokens, layout.bits) == ((1, 27, 27), 729, 729 * 2 * 8 * 14)


def test_pixel_codes_depend_on_the_blocks_below_the_tap_only(frames):
    tokenizer = build().eval()
    before = tokenizer.encode(frames).codes
    for block in tokenizer.encoder.model.blocks[1:]:
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    after = tokenizer.encode(frames).codes
    assert torch.equal(before[..., :2], after[..., :2])
    assert not torch.equal(before[..., 2:], after[..., 2:])


def test_the_pixel_loss_trains_only_the_blocks_below_the_tap(frames):
    tokenizer = build().train()
    step = tokenizer(frames)
    (step.frames - (2 * frames - 1)).square().mean().backward()
    reached = [
        any(p.grad is not None and bool(p.grad.any()) for p in b.parameters()) for b in tokenizer.encoder.model.blocks
    ]
    assert reached == [True, False, False, False]


def test_the_teacher_stays_and_the_semantic_loss_falls(frames):
    tokenizer = build().train()
    before = {name: value.clone() for name, value in tokenizer.teacher.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in tokenizer.parameters() if p.requires_grad], 3e-3)
    losses = []
    for _ in range(40):
        step = tokenizer(frames)
        losses.append(float(step.losses["semantic"].detach()))
        optimizer.zero_grad()
        (sum(step.losses.values()) + (step.frames - (2 * frames - 1)).square().mean()).backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.teacher.state_dict().items())
    tokens = tokenizer.eval().encode(frames)
    assert tokenizer.semantic_features(tokens).shape == (1, 32, 1, 4, 4)
