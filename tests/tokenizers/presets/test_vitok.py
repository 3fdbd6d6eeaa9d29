"""ViTok: published sizes of the three tubelets, continuous tokens."""

from __future__ import annotations

import pytest
import torch

from fewtokens.tokenizers import Tokenizer, get_preset
from tests.tokenizers.presets.tiny import build, clips, largest_gradient, published


def test_published_size():
    parameters, layout = published("vitok")
    assert parameters == pytest.approx(129, rel=0.01)
    assert (layout.tokens, layout.bits) == (1024, 1024 * 16 * 32)


@pytest.mark.parametrize(("stride", "tokens"), [((4, 8, 8), 1024), ((8, 8, 8), 512), ((4, 16, 16), 256)])
def test_published_tokens_of_other_tubelets(stride, tokens):
    spec = get_preset("vitok").spec.replace("(4, 8, 8)", str(stride))
    with torch.device("meta"):
        assert Tokenizer.from_spec(spec).layout(16, 128, 128).tokens == tokens


def test_tokens_are_sampled_in_training_only():
    tokenizer, frames = build("vitok"), clips("vitok")
    tokens = tokenizer.encode(frames)
    assert tokens.codes is None
    assert tokens.features.shape == (2, 16, 16)
    assert torch.equal(tokens.features, tokenizer.encode(frames).features)
    tokenizer.train()
    first, second = tokenizer(frames), tokenizer(frames)
    assert not torch.equal(first.tokens.features, second.tokens.features)
    assert float(first.losses["gaussian.kl"].detach()) > 0
    first.losses["gaussian.kl"].backward()
    assert largest_gradient(tokenizer.encoder.embed) > 0
    assert largest_gradient(tokenizer.decoder) == 0
