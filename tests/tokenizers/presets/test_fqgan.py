"""FQGAN: the penalty on similar codes, separate branches, and that both are used."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fewtokens.methods.ops.codes import orthogonality
from fewtokens.tokenizers import create_tokenizer, get_preset
from fewtokens.tokenizers.parts import to_signed
from fewtokens.video import synthetic


def build():
    torch.manual_seed(0)
    return create_tokenizer("fqgan", tiny=True)


def images() -> torch.Tensor:
    """Four different images [4,1,3,32,32] in 0..1."""
    frames = [synthetic(kind, frames=2, size=(32, 32)).frames for kind in ("pan", "shapes")]
    return torch.cat(frames)[:, None].float() / 255


def test_published_numbers():
    preset = get_preset("fqgan")
    with torch.device("meta"):
        tokenizer = create_tokenizer("fqgan")
    layout = tokenizer.layout(*preset.clip)
    assert (layout.tokens, layout.bits) == (preset.tokens, 2 * 14 * 256)


def test_the_penalty_of_equal_orthogonal_and_random_codes():
    unit = F.normalize(torch.randn(1000, 8), dim=-1)
    other = torch.zeros(1000, 8)
    other[:, 0], other[:, 1] = -unit[:, 1], unit[:, 0]
    torch.testing.assert_close(orthogonality(torch.stack([unit, unit], -2)), torch.tensor(1.0))
    torch.testing.assert_close(orthogonality(torch.stack([unit, other], -2)), torch.tensor(0.0), atol=1e-6, rtol=0)
    random = orthogonality(torch.randn(100_000, 2, 8))
    torch.testing.assert_close(random, torch.tensor(1 / 8), atol=2e-3, rtol=0)


def test_the_semantic_loss_reaches_the_last_branch_alone():
    tokenizer = build().train()
    tokenizer(images()).losses["semantic"].backward()
    first, last = tokenizer.encoder.ends
    assert first[1].weight.grad is None or not bool(first[1].weight.grad.any())
    assert bool(last[1].weight.grad.any())
    assert tokenizer.encoder.trunk.layers[0].weight.grad.any()


def test_both_branches_are_used_after_training():
    tokenizer = build().train()
    frames = images()[::2]
    optimizer = torch.optim.AdamW([p for p in tokenizer.parameters() if p.requires_grad], 5e-3)
    for _ in range(30):
        step = tokenizer(frames)
        loss = (step.frames - to_signed(frames)).abs().mean() + sum(step.losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokenizer.eval()
    tokens = tokenizer.encode(frames)

    def error(*removed: int) -> float:
        features = tokens.features.clone()
        for branch in removed:
            features[..., 8 * branch : 8 * branch + 8] = 0
        decoded = tokenizer.decoder(tokens.replace(features=features))
        return float((decoded - to_signed(frames)).square().mean())

    with torch.no_grad():
        assert error() < min(error(0), error(1))
