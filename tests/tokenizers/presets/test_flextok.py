"""FlexTok: published tokens and bits, nested codes, guidance."""

from __future__ import annotations

import math

import pytest
import torch

from fewtokens.tokenizers import create_tokenizer, get_preset
from fewtokens.video import synthetic


def images() -> torch.Tensor:
    return torch.stack([synthetic(kind, frames=1, size=(32, 32)).frames for kind in ("pan", "shapes")])


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    tokenizer = create_tokenizer("flextok", tiny=True).eval()
    with torch.no_grad():
        for name, parameter in tokenizer.decoder.named_parameters():
            if "modulation" in name or "output" in name:
                parameter.normal_(std=0.2)
    return tokenizer


def test_published_size():
    pytest.importorskip("diffusers")
    with torch.device("meta"):
        published = create_tokenizer("flextok")
    layout = published.layout(*get_preset("flextok").clip)
    assert layout.tokens == 256
    assert layout.bits == pytest.approx(256 * math.log2(64_000))
    assert published.decoder._patches_of(1, 256, 256) == (1, 16, 16, 64)


def test_nested_codes(tokenizer):
    tokens = tokenizer.encode(images())
    assert tokens.codes.shape == (2, 16, 1)
    for k in (1, 4, 16):
        tokenizer.methods[-1].set_budget(k)
        first = tokenizer.encode(images())
        assert torch.equal(first.codes, tokens.codes[:, :k])
        assert float(tokenizer.bits(first)[0]) == pytest.approx(k * math.log2(1000))
        assert tokenizer.decode(first).shape == (2, 1, 3, 32, 32)


def test_numbers_of_tokens_in_training_are_powers_of_two(tokenizer):
    tokenizer.train()
    torch.manual_seed(0)
    counts = {int(n) for _ in range(6) for n in tokenizer(images()).tokens.count}
    assert counts <= {1, 2, 4, 8, 16}
    assert len(counts) > 1


@torch.no_grad()
def test_decoding_is_reproducible_and_depends_on_the_codes(tokenizer):
    tokens = tokenizer.encode(images())
    decoded = tokenizer.decode(tokens)
    assert torch.equal(tokenizer.decode(tokens), decoded)
    other = tokenizer.decoder(tokens, seed=1)
    guided = tokenizer.decoder(tokens, guidance=7.5, projected=True)
    plain = tokenizer.decoder(tokens)
    assert not torch.allclose(other, plain)
    assert not torch.allclose(guided, plain)
    assert not torch.equal(decoded[0], decoded[1])
