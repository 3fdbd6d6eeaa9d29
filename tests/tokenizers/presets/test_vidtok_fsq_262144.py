"""The preset of VidTok: published numbers."""

from __future__ import annotations

import pytest
import torch

from fewtokens.tokenizers import create_tokenizer, get_preset
from tests.tokenizers.streaming import millions


def test_published_numbers():
    preset = get_preset("vidtok_fsq_262144")
    with torch.device("meta"):
        tokenizer = create_tokenizer("vidtok_fsq_262144")
    layout = tokenizer.layout(*preset.clip)
    assert layout.tokens == preset.tokens == 5 * 32 * 32
    assert layout.bits == 18 * 5120
    assert layout.bits_per_pixel == pytest.approx(0.083, abs=5e-4)
    assert round(millions(tokenizer)) == preset.parameters
