"""CoordTok: published planes; the planes of exchanged axes."""

from __future__ import annotations

import torch

from tests.tokenizers.presets.tiny import build, clips, published


def test_published_size():
    _, layout = published("coordtok")
    assert layout.tokens == 16 * 16 + 2 * 16 * 32 == 1280
    assert layout.bits == 1280 * 8 * 32


@torch.no_grad()
def test_a_plane_changes_the_patches_of_its_cell():
    """The cell (y,x) of the first plane is read by the patches at y and x of all frames."""
    tokenizer = build("coordtok")
    tokenizer.decoder.blocks = torch.nn.ModuleList()
    tokens = tokenizer.encode(clips("coordtok"))
    features = tokens.features.clone()
    features[:, 4 * 1 + 2] += 10
    difference = (tokenizer.decode(tokens) != tokenizer.decode(tokens.replace(features=features))).any(2)
    patches = difference.unflatten(3, (4, 8)).unflatten(2, (4, 8)).any(5).any(3)
    assert patches.nonzero()[:, 2:].unique(dim=0).tolist() == [[1, 2]]
    assert bool(patches[:, :, 1, 2].all())
