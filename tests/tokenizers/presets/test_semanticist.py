"""Semanticist: published sizes, standardized ordered tokens, late nested dropout, the teacher."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers import create_tokenizer, get_preset
from fewtokens.tokenizers.blocks.autoencoder import Half
from fewtokens.video import synthetic


def images() -> torch.Tensor:
    kinds = ("pan", "shapes", "noise")
    return torch.stack([synthetic(kind, frames=1, size=(32, 32)).frames for kind in kinds])


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return create_tokenizer("semanticist", tiny=True).eval()


def test_published_size():
    pytest.importorskip("diffusers")
    with torch.device("meta"):
        published = create_tokenizer("semanticist")
    layout = published.layout(*get_preset("semanticist").clip)
    assert (layout.tokens, layout.bits) == (256, 256 * 16 * 32)

    def trained(module: torch.nn.Module) -> float:
        halves = [m for m in module.modules() if isinstance(m, Half)]
        fixed = {id(p) for half in halves for p in half.parameters()}
        return sum(p.numel() for p in module.parameters() if p.requires_grad and id(p) not in fixed) / 1e6

    # ViT-B/16 without its classifier and learned positions has 85.7 M, DiT-L/2 without labels 457 M.
    assert trained(published.pipeline) == pytest.approx(85.7 + 0.2, rel=0.01)
    alignment = trained(published.decoder.alignment)
    assert trained(published.decoder) - alignment == pytest.approx(457, rel=0.01)
    assert published.decoder._patches_of(1, 256, 256) == (1, 8, 8, 64)


def test_tokens_are_standardized_and_ordered(tokenizer):
    tokens = tokenizer.encode(images())
    torch.testing.assert_close(tokens.features.mean(-1), torch.zeros(3, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.features.std(-1), torch.ones(3, 16), atol=1e-4, rtol=0)
    # A later query changes no earlier token.
    with torch.no_grad():
        tokenizer.methods[0].queries[10:].normal_()
    changed = tokenizer.encode(images())
    torch.testing.assert_close(changed.features[:, :10], tokens.features[:, :10], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(changed.features[:, 10:], tokens.features[:, 10:], atol=1e-2)


def test_nested_dropout_begins_late(tokenizer):
    tokenizer.train()
    tokenizer.register_buffer("steps", torch.tensor(50))
    assert tokenizer(images()).tokens.count.tolist() == [16, 16, 16]
    tokenizer.steps += 1
    torch.manual_seed(0)
    counts = torch.stack([tokenizer(images()).tokens.count for _ in range(12)]).flatten()
    assert 1 <= int(counts.min()) < int(counts.max()) <= 16
    tokenizer.eval()
    assert tokenizer.encode(images()).count.tolist() == [16, 16, 16]


def test_any_number_of_first_tokens_can_be_decoded(tokenizer):
    with torch.no_grad():
        tokenizer.decoder.output.project.weight.normal_(std=0.1)
    tokens = tokenizer.encode(images())
    tokenizer.methods[-1].set_budget(5)
    first = tokenizer.encode(images())
    assert first.N == 5
    assert torch.equal(first.features, tokens.features[:, :5])
    assert float(tokenizer.bits(first)[0]) == 5 * 8 * 32
    assert tokenizer.decode(first).shape == (3, 1, 3, 32, 32)


def test_losses_and_the_frozen_teacher(tokenizer):
    step = tokenizer.train()(images())
    assert sorted(step.losses) == ["alignment", "diffusion"]
    teacher = tokenizer.decoder.alignment.teacher
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.parameters())


def test_nested_dropout_orders_a_linear_code_like_principal_components():
    # The law of nested dropout: the decoder's columns are the principal axes, in order; without it only their span.
    variances = torch.tensor([8.0, 4.0, 2.0, 1.0])
    torch.manual_seed(0)
    axes = torch.linalg.qr(torch.randn(4, 4)).Q
    x = torch.randn(128, 4) * variances.sqrt() @ axes.T
    drop = create_tokenizer("semanticist", tiny=True).methods[-1]
    cosines = {}
    for nested in (True, False):
        torch.manual_seed(1)
        encoder, decoder = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-2)
        for _ in range(600):
            code = encoder(x)
            if nested:
                tokens = Tokens.from_cells(torch.zeros(len(x), 1, 1, 4, 1))
                code = code * F.pad(drop.train()(tokens).mask.float(), (0, 4))[:, :4]
            loss = (decoder(code) - x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        columns = torch.linalg.qr(decoder.weight.detach()).Q
        principal = torch.linalg.eigh(x.T @ x).eigenvectors.flip(1)
        cosines[nested] = (columns * principal).sum(0).abs()
    assert float(cosines[True].min()) > 0.98
    assert float(cosines[False].min()) < 0.9
