"""BSQ-ViT: published tokens, block-causal attention, codes are signs."""

from __future__ import annotations

import torch

from tests.tokenizers.presets.tiny import build, clips, published


def test_published_size():
    parameters, layout = published("bsq_vit_18")
    # Counted in the authors' code, with positions for 16 frames of 16 x 16 cells.
    assert round(parameters * 1e6) == 173_661_138
    assert layout.grid == (16, 16, 16)
    assert (layout.tokens, layout.bits) == (4096, 4096 * 18)


@torch.no_grad()
def test_codes_are_the_signs_of_a_vector_of_length_1():
    tokenizer, frames = build("bsq_vit_18"), clips("bsq_vit_18")
    tokens = tokenizer.encode(frames)
    vectors = tokenizer.quantizer.project_in(tokenizer.encoder(frames)[0].features)
    expected = ((vectors > 0) * 2 ** torch.arange(18)).sum(-1)
    assert torch.equal(tokens.codes[..., 0], expected)
    torch.testing.assert_close(tokenizer.quantizer._directions(tokens.codes).norm(dim=-1), torch.ones(2, 64))


@torch.no_grad()
def test_a_frame_attends_to_all_cells_of_earlier_frames():
    tokenizer, frames, changed = build("bsq_vit_18"), clips("bsq_vit_18"), clips("bsq_vit_18")
    changed[:, 2, :, :8, :8] = 1 - changed[:, 2, :, :8, :8]
    latents = [tokenizer.encoder(video)[0].features.unflatten(1, (4, 16)) for video in (frames, changed)]
    assert (latents[0] != latents[1]).any(-1).flatten(2).all(0).all(1).tolist() == [False, False, True, True]
    assert torch.equal(latents[0][:, :2], latents[1][:, :2])
    decoded = [tokenizer.decode(tokenizer.encode(video)) for video in (frames, changed)]
    assert torch.equal(decoded[0][:, :2], decoded[1][:, :2])
    assert not torch.equal(decoded[0][:, 3], decoded[1][:, 3])
