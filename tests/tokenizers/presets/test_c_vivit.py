"""C-ViViT: tokens of the published clip, attention of frames, causality."""

from __future__ import annotations

import torch

from tests.tokenizers.presets.tiny import build, clips, published


def test_published_size():
    _, layout = published("c_vivit")
    assert layout.grid == (6, 16, 16)
    assert (layout.tokens, layout.bits) == (1536, 1536 * 13)


@torch.no_grad()
def test_later_frames_change_neither_earlier_codes_nor_earlier_frames():
    tokenizer, frames, changed = build("c_vivit"), clips("c_vivit"), clips("c_vivit")
    changed[:, 3:] = 1 - changed[:, 3:]
    before, after = tokenizer.encode(frames), tokenizer.encode(changed)
    assert torch.equal(before.codes[:, :32], after.codes[:, :32])
    assert not torch.equal(before.codes[:, 32:], after.codes[:, 32:])
    assert torch.equal(tokenizer.decode(before)[:, :3], tokenizer.decode(after)[:, :3])


@torch.no_grad()
def test_time_is_mixed_only_by_the_second_half():
    encoder = build("c_vivit").encoder
    x, changed = torch.zeros(1, 3, 3, 32, 32), torch.zeros(1, 3, 3, 32, 32)
    changed[:, :, 0, :8, :8] = 1

    def changed_cells() -> torch.Tensor:
        return (encoder.latents(x) != encoder.latents(changed)).any(1)[0].flatten(1).sum(1)

    assert changed_cells().tolist() == [16, 16]
    encoder.transformer.blocks = encoder.transformer.blocks[:2]
    assert changed_cells().tolist() == [16, 0]
