"""BSQ-ViT: published tokens, block-causal attention, codes are signs, fewer bits with a prior."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewtokens.tokenizers.entropy import compress, decompress
from fewtokens.video import synthetic
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


def test_an_arithmetic_coder_with_a_prior_needs_fewer_bits():
    """The prior is that of a bit given the same bit of the previous frame, counted in other clips."""
    pytest.importorskip("constriction")
    tokenizer = build("bsq_vit_18")

    def bits_of(seeds: range) -> np.ndarray:
        """Bits [clips,4,16,18] of each clip, frame, cell and channel."""
        videos = [synthetic(kind, frames=4, size=(32, 32), seed=s).frames for s in seeds for kind in ("pan", "shapes")]
        codes = tokenizer.encode(torch.stack(videos)).codes
        return ((codes >> torch.arange(18)) & 1).unflatten(1, (4, 16)).numpy()

    def context(bits: np.ndarray) -> np.ndarray:
        """The previous bit, and 2 in the first frame."""
        return np.concatenate([np.full_like(bits[:, :1], 2), bits[:, :-1]], 1)

    known, bits, channels = bits_of(range(8)), bits_of(range(8, 12)), np.arange(18)
    counts = np.full((18, 3, 2), 0.5)
    np.add.at(counts, (np.broadcast_to(channels, known.shape), context(known), known), 1)
    prior = counts[channels, context(bits)].reshape(-1, 2)
    data = compress(bits.reshape(-1), 2, prior)
    assert np.array_equal(decompress(data, bits.size, 2, prior), bits.reshape(-1))
    entropy = -np.log2(np.take_along_axis(prior, bits.reshape(-1, 1), 1)[:, 0] / prior.sum(1)).sum()
    assert 8 * len(data) == pytest.approx(entropy, rel=0.01)
    assert 8 * len(data) < 0.8 * len(bits) * tokenizer.layout(4, 32, 32).bits
