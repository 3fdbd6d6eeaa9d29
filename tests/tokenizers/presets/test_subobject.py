"""Subobject: segments partition the image, their reconstructions cover it once, and vectors do not know places."""

from __future__ import annotations

import math

import pytest
import torch

from fewtokens.tokenizers.blocks.segments import boxes
from fewtokens.tokenizers.files import read_encoded, write_encoded
from tests.tokenizers.presets.tiny import build, clips, published

NAME = "subobject"


def label_maps() -> torch.Tensor:
    """Voronoi cells of 5 and of 3 places, [2,1,32,32]."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    pixels = torch.stack([y, x], -1).flatten(0, 1)
    maps = [torch.cdist(pixels, 32 * torch.rand(n, 2, generator=generator)).argmin(1) for n in (5, 3)]
    return torch.stack(maps).view(2, 1, 32, 32)


def test_segments_partition_the_image(tmp_path):
    tokenizer, labels = build(NAME), label_maps()
    tokens = tokenizer.encode(clips(NAME), labels=labels)
    assert tokens.count.tolist() == [5, 3]
    assert torch.equal(tokens.assignment, labels.flatten(1))
    assert tokens.sizes.sum(1).tolist() == [1024, 1024]
    assert tokens.sizes[1].tolist() == [*torch.bincount(labels[1].flatten()).tolist(), 0, 0]
    expected = [n * 32 * 32 + 1024 * math.log2(n + 1) for n in (5, 3)]
    assert tokenizer.bits(tokens).tolist() == pytest.approx(expected)
    path = write_encoded(tmp_path / "a", tokens, tokenizer)
    assert torch.equal(tokenizer.decode(read_encoded(path, tokenizer)), tokenizer.decode(tokens))
    assert published(NAME)[1].tokens is None


def test_reconstructions_of_segments_cover_every_pixel_once():
    tokenizer, labels = build(NAME), label_maps()
    tokens = tokenizer.encode(clips(NAME), labels=labels)
    whole = tokenizer.decode(tokens)
    changes = []
    for n in range(tokens.N):
        features = tokens.features.clone()
        features[:, n] = features[:, n] + 1
        changes.append((tokenizer.decode(tokens.replace(features=features)) != whole).any(2).flatten(1))
    assert torch.equal(torch.stack(changes).sum(0), torch.ones(2, 1024, dtype=torch.long))
    assert torch.equal(torch.stack(changes).long().argmax(0), tokens.assignment)


def test_a_translation_changes_the_box_only():
    tokenizer = build(NAME)
    shape = torch.rand(9, 7, generator=torch.Generator().manual_seed(0)) < 0.6
    colors = torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(1))
    shape[0, 0] = shape[-1, -1] = True
    encoded = []
    for (top, left), background in (((2, 3), 0.0), ((20, 11), 1.0)):
        image, labels = torch.full((3, 32, 32), background), torch.zeros(32, 32, dtype=torch.long)
        area = (slice(top, top + 9), slice(left, left + 7))
        image[:, *area] = torch.where(shape, colors, image[:, *area])
        labels[area] = shape.long()
        tokens = tokenizer.encode(image, labels=labels)
        assert boxes(tokens.assignment, tokens.grid, 2)[0, 1].tolist() == [top, left, top + 9, left + 7]
        encoded.append(tokens)
    first, second = encoded
    torch.testing.assert_close(first.features[:, 1], second.features[:, 1], atol=1e-5, rtol=0)
    assert not torch.allclose(first.features[:, 0], second.features[:, 0], atol=1e-2)
    assert not torch.equal(first.positions[:, 1], second.positions[:, 1])
    # The decoded segment moves with it.
    a, b = (tokenizer.decode(tokens)[0, 0] for tokens in encoded)
    torch.testing.assert_close(a[:, 2:11, 3:10][:, shape], b[:, 20:29, 11:18][:, shape], atol=1e-5, rtol=0)


def test_new_labels_permute_the_tokens():
    tokenizer, frames, labels = build(NAME), clips(NAME)[:1], label_maps()[:1]
    names = torch.tensor([40, -3, 12, 7, 10**12])
    tokens, renamed = tokenizer.encode(frames, labels=labels), tokenizer.encode(frames, labels=names[labels])
    order = names.argsort()
    torch.testing.assert_close(renamed.features, tokens.features[:, order], atol=1e-5, rtol=0)
    assert torch.equal(order[renamed.assignment], tokens.assignment)
    torch.testing.assert_close(tokenizer.decode(renamed), tokenizer.decode(tokens), atol=1e-5, rtol=0)


def test_a_segmenter_and_labels_that_do_not_fit():
    tokenizer, frames = build(NAME), clips(NAME)
    tokenizer.segmenter = lambda frames: (frames[:, :, 0] > 0.5).long()
    assert tokenizer.encode(frames).count.tolist() == [2, 2]
    with pytest.raises(ValueError, match="labels must be integers"):
        tokenizer.encode(frames, labels=label_maps().float())
    with pytest.raises(ValueError, match="labels must be integers"):
        tokenizer.encode(frames, labels=label_maps()[..., :16])


def test_training_learns_colors_and_shapes_of_segments():
    tokenizer = build(NAME).train()
    frames = torch.nn.functional.interpolate(clips(NAME)[:, 0, :, :4, :4], 32, mode="bicubic").clamp(0, 1)[:, None]
    optimizer = torch.optim.Adam(tokenizer.parameters(), 3e-3)
    for _ in range(60):
        error = (tokenizer(frames).frames - (2 * frames - 1)).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    # Four times closer than the mean color of each image.
    assert float(error.detach()) < 4 * float(frames.flatten(3).var(3, correction=0).mean()) / 4
