"""V2L: frozen words, words of the whole video, and the way from codes to words and back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fewtokens.methods.quantizers.frozen_vq import save_vocabulary
from fewtokens.tokenizers import Tokenizer, create_tokenizer
from fewtokens.tokenizers.presets.v2l import V2l
from fewtokens.video import synthetic


def build() -> Tokenizer:
    torch.manual_seed(0)
    return create_tokenizer("v2l", tiny=True).eval()


def images() -> torch.Tensor:
    """Two different images [2,1,3,32,32], uint8."""
    return torch.stack([synthetic(kind, frames=1, size=(32, 32)).frames for kind in ("pan", "shapes")])


def test_the_table_is_frozen_and_its_projection_moves():
    tokenizer = build().train()
    table, projection = tokenizer.quantizer.embeddings.clone(), tokenizer.quantizer.project_words.weight
    before = projection.detach().clone()
    optimizer = torch.optim.SGD([p for p in tokenizer.parameters() if p.requires_grad], 1.0)
    step = tokenizer(images())
    (step.frames.square().mean() + sum(step.losses.values())).backward()
    optimizer.step()
    assert torch.equal(tokenizer.quantizer.embeddings, table)
    assert not torch.equal(projection, before)


def test_global_words_are_the_nearest_to_the_image():
    tokenizer = build()
    x = images().float().div(127.5).sub(1).transpose(1, 2)
    words = tokenizer.encoder.global_words(x)
    mean = tokenizer.encoder.image.latents(x).mean((2, 3, 4))
    for image, found in zip(mean, words, strict=True):
        cosine = F.cosine_similarity(image, tokenizer.encoder.features)
        assert found.tolist() == cosine.argsort(descending=True)[:3].tolist()
    assert torch.equal(tokenizer.encode(images()).codes[:, -3:, 0], words)


def test_global_words_change_the_image():
    """Equal words of the cells and different ones of the whole decode differently."""
    tokenizer = build()
    tokens = tokenizer.encode(images())
    codes = tokens.codes.clone()
    codes[0, -3:] = torch.tensor([[5], [6], [7]])
    changed = tokenizer.decode(tokens.replace(codes=codes))
    decoded = tokenizer.decode(tokens)
    assert not torch.equal(changed[0], decoded[0])
    assert torch.equal(changed[1], decoded[1])


def test_codes_are_words(tmp_path):
    """With a vocabulary, codes map to words and back, and neighbors in meaning are neighbors in the table."""
    table = torch.randn(6, 16)
    table[1] = table[0] + 0.1 * torch.randn(16)
    names = ["cat", "kitten", "sea", "sky", "car", "tree"]
    path = save_vocabulary(tmp_path / "words.safetensors", table, names)
    image = save_vocabulary(
        tmp_path / "image.safetensors", torch.randn(6, 32), ["cat", "kitten", "sea", "sky", "car", "tree"]
    )
    parts = "width=8, mult=(1, 2), depth=1"
    tokenizer = V2l.from_spec(
        f"word_conv2d(16, {parts}, words=2, table={str(image)!r}) | frozen_vq({str(path)!r}) > word_conv2d({parts})"
    ).eval()
    codes = tokenizer.encode(images()).codes
    words = tokenizer.quantizer.to_words(codes[0])
    assert torch.equal(tokenizer.quantizer.to_codes(words), codes[0, :, 0])
    similarity = F.normalize(tokenizer.quantizer.embeddings, dim=-1) @ F.normalize(table[0], dim=0)
    assert tokenizer.quantizer.to_words(similarity.argsort(descending=True)[:2]) == ["cat", "kitten"]


def test_tables_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="both tables must have the same words, got 64 and 32"):
        V2l.from_spec(
            "word_conv2d(16, width=8, mult=(1, 2), size=64) | frozen_vq(size=32, code_dim=16) "
            "> word_conv2d(width=8, mult=(1, 2))"
        )


def test_published_size():
    with torch.device("meta"):
        tokenizer = create_tokenizer("v2l")
    layout = tokenizer.layout(1, 128, 128)
    assert layout.tokens == 16 * 16 + 21
