"""The causal encoder of CDT: sizes, causality, chunks."""

from __future__ import annotations

import torch

from fewtokens.tokenizers.encoders.causal_unet import CausalUnet


def build() -> CausalUnet:
    torch.manual_seed(0)
    return CausalUnet(4, channels=3).eval()


@torch.no_grad()
def test_chunks_equal_the_whole_and_later_frames_do_not_matter():
    encoder = build()
    frames = torch.randn(1, 3, 13, 16, 24, generator=torch.Generator().manual_seed(0))
    latents = encoder.latents(frames)
    assert latents.shape == (1, 6, 4, 2, 3)
    state, parts = None, []
    for chunk in frames.split([1, 4, 8], 2):
        part, state = encoder.step(chunk, state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 2), latents, rtol=1e-5, atol=1e-5)
    frames[:, :, 5:] += 1
    changed = encoder.latents(frames)
    assert torch.equal(changed[:, :, :2], latents[:, :, :2])
    assert not torch.equal(changed[:, :, 2], latents[:, :, 2])
