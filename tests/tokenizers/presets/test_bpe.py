"""The preset bpe: merged codes decode to the same frames, in fewer tokens."""

from __future__ import annotations

import math

import pytest
import torch

from fewtokens.tokenizers import create_tokenizer, load_tokenizer
from fewtokens.tokenizers.files import read_encoded, write_encoded
from fewtokens.tokenizers.presets.bpe import BpeTokenizer
from fewtokens.video import synthetic

SPEC = "tubelet(24, stride=(1, 4, 4)) | lfq(3) > tubelet(stride=(1, 4, 4))"


@pytest.fixture
def tokenizer() -> BpeTokenizer:
    torch.manual_seed(0)
    return BpeTokenizer.from_spec(SPEC).eval()


def video(kind: str = "static", T: int = 3) -> torch.Tensor:
    return synthetic(kind, frames=T, size=(30, 46)).frames


def test_merged_codes_decode_to_the_same_frames(tokenizer, tmp_path):
    plain = tokenizer.encode(video())
    expected = tokenizer.decode(plain)
    assert tokenizer.layout(3, 30, 46).tokens == plain.N == 3 * 8 * 12
    new = tokenizer.fit_pairs([video(), video("pan")])
    assert 1 < new <= 1024 and tokenizer.codebook_sizes == (8 + new,)
    tokens = tokenizer.encode(video())
    assert tokens.N < plain.N and bool((tokens.assignment >= 0).all())
    assert torch.equal(tokenizer.decode(tokens), expected)
    assert float(tokenizer.bits(tokens)) == pytest.approx(tokens.N * math.log2(8 + new))
    assert tokenizer.layout(3, 30, 46).tokens is None
    codes, sizes = tokenizer.codes_by_book(tokens)
    assert sizes == (8 + new,) and torch.equal(codes, tokens.codes[0])
    path = write_encoded(tmp_path / "a.safetensors", tokens, tokenizer, packed=True)
    assert torch.equal(tokenizer.decode(read_encoded(path, tokenizer)), expected)


def test_a_batch_with_different_counts(tokenizer):
    both = torch.stack([video(), video("pan")])
    expected = tokenizer.decode(tokenizer.encode(both))
    tokenizer.fit_pairs([both])
    tokens = tokenizer.encode(both)
    assert tokens.count[0] != tokens.count[1]
    assert torch.equal(tokenizer.decode(tokens), expected)


def test_pairs_are_saved(tokenizer, tmp_path):
    before = tokenizer.fingerprint()
    tokenizer.fit_pairs([video()])
    assert tokenizer.fingerprint() != before
    tokenizer.title = "bpe"
    again = load_tokenizer(tokenizer.save_pretrained(tmp_path / "t"), device="cpu")
    assert again.codebook_sizes == tokenizer.codebook_sizes
    assert torch.equal(again.encode(video()).codes, tokenizer.encode(video()).codes)


def test_training_does_not_merge(tokenizer):
    tokenizer.fit_pairs([video()])
    frames = torch.rand(2, 2, 3, 16, 16)
    step = tokenizer(frames)
    assert step.tokens.N == 2 * 4 * 4
    step.frames.square().sum().backward()
    assert tokenizer.encoder.project.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("methods", ["lfq(3) | random(keep=3)", "tome(keep=4) | lfq(3)", "fsq(groups=2)"])
def test_codes_that_cannot_be_merged(methods):
    with pytest.raises(ValueError, match="one per cell of a grid"):
        BpeTokenizer.from_spec(SPEC.replace("lfq(3)", methods))


def test_the_preset():
    with torch.device("meta"):
        published = create_tokenizer("bpe")
    assert published.layout(1, 512, 512).tokens == 32 * 32  # the grid of the released code
    assert published.codebook_sizes == (8192,)
