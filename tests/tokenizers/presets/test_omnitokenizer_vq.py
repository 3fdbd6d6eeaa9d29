"""OmniTokenizer: published sizes, images and videos, causality through codes."""

from __future__ import annotations

import pytest
import torch

from tests.tokenizers.presets.tiny import build, clips, published


def test_published_size():
    parameters, layout = published("omnitokenizer_vq")
    assert parameters == pytest.approx(51, rel=0.02)
    assert layout.grid == (5, 32, 32)
    assert (layout.tokens, layout.bits) == (5120, 5120 * 13)


@torch.no_grad()
def test_an_image_has_the_codes_of_the_first_frame_of_a_video():
    tokenizer, frames = build("omnitokenizer_vq"), clips("omnitokenizer_vq")
    tokens, image = tokenizer.encode(frames), tokenizer.encode(frames[:, :1])
    assert image.grid.shape == (1, 4, 4)
    assert torch.equal(image.codes, tokens.codes[:, :16])
    torch.testing.assert_close(tokenizer.decode(image), tokenizer.decode(tokens)[:, :1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_attention_in_space_reads_windows_last():
    """With only the window block, a cell depends on the cells of its window."""
    encoder = build("omnitokenizer_vq").encoder
    encoder.transformer.blocks, encoder.transformer.norms = (
        part[1:2] for part in (encoder.transformer.blocks, encoder.transformer.norms)
    )
    x = torch.randn(1, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[..., :8, :8] *= torch.linspace(0, 1, 8)
    difference = (encoder.latents(x) != encoder.latents(changed)).any(1)[0, 0]
    assert difference.nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
