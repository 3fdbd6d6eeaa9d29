"""Frozen VQ: words and codes, the table that never changes, the losses of V2L."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.quantizers.frozen_vq import FrozenVq, load_vocabulary, save_vocabulary

WORDS = ["cat", "dog", "car", "a tree"]


@pytest.fixture
def path(tmp_path) -> str:
    torch.manual_seed(0)
    return str(save_vocabulary(tmp_path / "words.safetensors", torch.randn(4, 6), WORDS))


def test_codes_are_words(path):
    method = FrozenVq(path, dim=6).eval()
    codes = torch.tensor([[3, -1], [0, 2]])
    assert method.codebook_sizes == (4,)
    assert method.words == tuple(WORDS)
    assert method.to_words(codes) == ["a tree", "", "cat", "car"]
    assert torch.equal(method.to_codes(method.to_words(codes)), codes.flatten())
    with pytest.raises(ValueError, match="has no word 'horse'"):
        method.to_codes(["cat", "horse"])
    with pytest.raises(ValueError, match="a random table, which has no words"):
        FrozenVq(dim=6).to_words(codes)


def test_a_token_with_the_direction_of_a_projected_word_is_that_word(path):
    method = FrozenVq(path, dim=6).eval()
    embeddings, _ = load_vocabulary(path)
    projected = (embeddings @ method.project_words.weight.T)[[2, 0, 3, 1]]
    features, codes, losses = method.quantize(7 * projected[None])
    assert method.to_words(codes) == ["car", "cat", "a tree", "dog"]
    torch.testing.assert_close(features[0], projected / projected.norm(dim=-1, keepdim=True))
    assert losses == {}


def test_training_moves_the_projection_and_not_the_table(path):
    torch.manual_seed(1)
    method = FrozenVq(path, dim=6).train()
    embeddings, projection = method.embeddings.clone(), method.project_words.weight.detach().clone()
    optimizer = torch.optim.AdamW(method.parameters(), 0.01)
    for _ in range(3):
        x = torch.randn(1, 20, 6)
        features, codes, losses = method.quantize(x)
        z, words = (y / y.norm(dim=-1, keepdim=True) for y in (x, method.project_words(embeddings)[codes[..., 0]]))
        error = (z - words).square().mean()
        torch.testing.assert_close(losses, {"commitment": error, "codebook": 0.33 * error})
        optimizer.zero_grad()
        ((features - x).square().mean() + sum(losses.values())).backward()
        optimizer.step()
    assert torch.equal(method.embeddings, embeddings)
    assert not torch.equal(method.project_words.weight, projection)


def test_a_random_table_follows_from_the_seed():
    a, b, c = FrozenVq(dim=6), FrozenVq(dim=6), FrozenVq(dim=6, seed=1, size=8, code_dim=5)
    assert a.embeddings.shape == (1024, 48)
    assert torch.equal(a.embeddings, b.embeddings)
    assert c.embeddings.shape == (8, 5)
    assert "embeddings" not in a.state_dict()


def test_bad_vocabularies(path, tmp_path):
    with pytest.raises(ValueError, match="leave them out with table"):
        FrozenVq(path, size=4)
    with pytest.raises(ValueError, match=r"missing\.safetensors"):
        FrozenVq(str(tmp_path / "missing.safetensors"))
    for embeddings, words, message in (
        (torch.randn(4, 6), WORDS[:3], "4 embeddings require as many different words, got 3"),
        (torch.randn(4, 6), ["cat", "cat", "car", "tree"], "different words, got 3"),
        (torch.randn(1, 6), ["cat"], "at least 2 words"),
        (torch.ones(4, 6, dtype=torch.int64), WORDS, "must be floats"),
    ):
        with pytest.raises(ValueError, match=message):
            save_vocabulary(tmp_path / "bad.safetensors", embeddings, words)
