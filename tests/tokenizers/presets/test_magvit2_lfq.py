"""MAGVIT-v2: published numbers, causality, and the condition of the decoder."""

from __future__ import annotations

import torch

from fewtokens.tokenizers import Tokenizer, create_tokenizer, get_preset
from tests.tokenizers.streaming import (
    check_decoder_causality,
    check_decoder_chunks,
    check_encoder_causality,
    check_encoder_chunks,
    noise,
)


def test_published_numbers():
    preset = get_preset("magvit2_lfq")
    with torch.device("meta"):
        tokenizer = create_tokenizer("magvit2_lfq")
    layout = tokenizer.layout(*preset.clip)
    assert (layout.tokens, layout.bits) == (preset.tokens, 18 * 1280)
    # Counted in the authors' code.
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == 370_547_349


def tiny():
    torch.manual_seed(0)
    return create_tokenizer("magvit2_lfq", tiny=True).eval()


def test_it_is_causal_and_streams():
    tokenizer = tiny()
    check_encoder_causality(tokenizer)
    check_decoder_causality(tokenizer)
    check_encoder_chunks(tokenizer)
    check_decoder_chunks(tokenizer)


def test_the_condition_is_that_of_the_row_of_cells():
    """Scale and shift of a frame follow deviation and mean of its row, recomputed here for each frame."""
    norm = tiny().decoder.norms[-1]  # after all frames: the first row has 1, others 4
    x, cells = torch.randn(1, 16, 9, 2, 2), torch.randn(1, 9, 3, 4, 4)
    out = norm(x, cells, True)
    normal = norm.norm(x)
    for t in range(9):
        row = cells[0, :, (t + 3) // 4].flatten(1)
        scale, shift = norm.scale(row.std(1)), norm.shift(row.mean(1))
        expected = normal[0, :, t] * scale[:, None, None] + shift[:, None, None]
        torch.testing.assert_close(out[0, :, t], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_statistics_of_the_clip_are_not_causal():
    """As in Open-MAGVIT2: then neither half processes chunks, and the last frame changes the first cells."""
    tokenizer = Tokenizer.from_spec(
        "magvit2(9, width=8, depth=1, norm='clip') | lfq(9) > magvit2(width=8, depth=1, norm='clip')"
    ).eval()
    x, changed = noise(9, 32, 32), noise(9, 32, 32)
    changed[:, :, -1] = 0
    assert not torch.equal(tokenizer.encoder.latents(x)[:, :, 0], tokenizer.encoder.latents(changed)[:, :, 0])
    assert not tokenizer.encoder.streams and not tokenizer.decoder.streams
