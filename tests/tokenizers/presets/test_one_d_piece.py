"""One-D-Piece: published tokens, prefixes of the tokens decode."""

from __future__ import annotations

import torch

from tests.tokenizers.presets.tiny import build, clips, published


def test_published_size():
    parameters, layout = published("one_d_piece")
    assert 170 < parameters - 33.5 < 175  # two ViT-B, and the predictor, codebook and decoder of the VQGAN
    assert (layout.tokens, layout.bits) == (256, 256 * 12)


@torch.no_grad()
def test_prefixes_decode_as_in_training():
    tokenizer, frames = build("one_d_piece"), clips("one_d_piece")
    tokens = tokenizer.encode(frames)
    whole = tokenizer.decode(tokens)
    (drop,) = [method for method in tokenizer.methods if method.name == "tail_drop"]
    previous = whole
    for k in (8, 4, 2, 1):
        drop.set_budget(k)
        prefix = tokenizer.encode(frames)
        assert torch.equal(prefix.codes, tokens.codes[:, :k])
        assert float(tokenizer.bits(prefix)[0]) == 8 * k
        decoded = tokenizer.decode(prefix)
        assert not torch.equal(decoded, previous)
        previous = decoded


def test_training_draws_prefixes():
    tokenizer = build("one_d_piece").train()
    counts = {tokenizer(clips("one_d_piece")).tokens.N for _ in range(12)}
    assert len(counts) > 3
    assert max(counts) <= 16
