"""Methods before the encoder: the same tokens with every encoder, in chains, and in chunks without any token."""

from __future__ import annotations

import pytest
import torch

from fewtokens import Pipeline, load_encoder
from fewtokens.core.batch import concatenate
from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.encoders import VitEncoder
from fewtokens.encoders.vit import ViT, ViTConfig
from fewtokens.video import Video, synthetic


@pytest.fixture(scope="module")
def vit() -> VitEncoder:
    torch.manual_seed(0)
    return VitEncoder(ViT(ViTConfig(dim=16, depth=2, num_heads=2, patch_size=16, image_size=(64, 64))).eval())


@pytest.mark.parametrize("kind", ["noise", "pan", "shapes"])
@pytest.mark.parametrize("spec", ["visual_words(keep=0.2)", "rlt", "rlt | visual_words(keep=0.2)"])
def test_a_vit_has_the_cells_that_the_method_decided(kind, spec, vit):
    video = synthetic(kind, frames=3, size=(64, 96))
    with torch.no_grad():
        ours, expected = (
            Pipeline(spec, vit)(video).check(),
            Pipeline(spec, load_encoder("patches", device="cpu"))(video),
        )
    assert torch.equal(ours.count, expected.check().count)
    same = (a[:, :, None] == a[:, None] for a in (ours.assignment, expected.assignment))
    assert torch.equal(*same)


@pytest.mark.parametrize(
    "spec",
    ["rlt | length_embedding", "grt | visual_words(keep=0.2)", "visual_words(keep=0.5) | visual_words(keep=0.2)"],
)
def test_chains_on_patches(spec):
    video = synthetic("static", frames=4, size=(64, 64))
    tokens = Pipeline(spec, load_encoder("patches", device="cpu"))(video).check()
    assert 0 < int(tokens.count) < tokens.grid.cells


def test_pixels_of_merged_tokens_are_their_mean():
    encoder, (method,) = load_encoder("patches", device="cpu"), Pipeline("visual_words(keep=0.2)").methods
    frames = synthetic("noise", frames=2, size=(64, 64)).frames[None]
    _, cues = encoder(frames, needs=("pixels",))
    tokens, reduced = encoder(frames, needs=("pixels",), pixel_methods=(method,))
    torch.testing.assert_close(reduced["pixels"], tokens.pool(cues["pixels"]))


def test_chunks_without_a_token(vit):
    still = synthetic("noise", frames=1, size=(64, 64)).frames.expand(6, -1, -1, -1).contiguous()
    pipeline, state, chunks = Pipeline("rlt", vit), None, []
    with torch.no_grad():
        for start in range(0, 6, 2):
            video = Video(still[start : start + 2], torch.arange(start, start + 2) / 10)
            tokens, state = pipeline.step(video, state)
            chunks.append(tokens)
    assert [chunk.N for chunk in chunks] == [16, 0, 0]
    assert concatenate(chunks).check().N == 16


def test_lengths_of_the_last_chunk_remain():
    def chunk(lengths: list[int] | None) -> Tokens:
        grid = Grid(4, 1, 2, lengths=None if lengths is None else torch.tensor(lengths))
        return Tokens.from_cells(torch.randn(2, 8, 3), grid)

    joined = concatenate([chunk(None), chunk([4, 2])])
    assert joined.grid.lengths is not None and joined.grid.lengths.tolist() == [8, 6]
    assert joined.unmerge()[1, 6:].abs().sum() == 0
    with pytest.raises(ValueError, match="only the last chunk"):
        concatenate([chunk([4, 2]), chunk(None)])
