"""A tokenizer as an encoder: the features that its decoder reads, for any method."""

from __future__ import annotations

import pytest
import torch

from fewtokens import Pipeline, load_encoder
from fewtokens.tokenizers import Tokenizer
from fewtokens.video import synthetic

CONV = "causal_conv(8, stride=(4, 8, 8)) | lfq(10) > causal_conv(width=8, stride=(4, 8, 8))"


def save(tmp_path, spec: str = CONV, **options):
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_spec(spec, **options).eval()
    return tokenizer, load_encoder(tokenizer.save_pretrained(tmp_path / "tokenizer"), device="cpu")


def frames(T: int = 9) -> torch.Tensor:
    return synthetic("pan", frames=T, size=(30, 44)).frames[None]


@pytest.mark.parametrize("length", [1, 3, 9])
def test_features_and_codes_are_those_of_the_tokenizer(length, tmp_path):
    tokenizer, encoder = save(tmp_path)
    video, times = frames(length), torch.arange(length) / 10
    tokens, cues = encoder(video, times)
    expected = tokenizer.encode(video)
    assert torch.equal(tokens.features, expected.features) and torch.equal(tokens.codes, expected.codes)
    assert encoder.dim == tokens.C and not cues
    assert tokens.grid.times.tolist() == pytest.approx([0.0, 0.1, 0.5][: tokens.grid.T])
    assert torch.equal(encoder.decode(tokens, size=(30, 44))[:, :length], tokenizer.decode(expected))


def test_a_long_video_is_encoded_in_windows(tmp_path):
    tokenizer, encoder = save(tmp_path, window=5)
    video, times = frames(12), torch.arange(12) / 10
    both = torch.cat([video, video.flip(-1)])
    tokens, _ = encoder(both, times)
    assert tokens.grid.shape == (6, 4, 6) == encoder.grid(12, 30, 44).shape
    assert tokens.grid.times.tolist() == pytest.approx([0.0, 0.1, 0.5, 0.6, 1.0, 1.1])
    for b in range(2):
        expected = tokenizer.encode(both[b])
        assert torch.equal(tokens.codes[b], expected.codes.flatten(0, 1))
        decoded = encoder.decode(tokens[b : b + 1], size=(30, 44))[:, :12]
        assert torch.allclose(decoded, tokenizer.decode(expected), atol=1e-6)


def test_methods_after_it(tmp_path):
    _, encoder = save(tmp_path)
    few = Pipeline("tome(keep=5)", encoder)(frames())
    assert few.N == 5 and few.meta["encoder"]["fingerprint"] == encoder.fingerprint
    assert encoder.decode(few).shape == (1, 9, 3, 32, 48)


def test_gradients_reach_the_encoder(tmp_path):
    _, encoder = save(tmp_path)
    encoder(frames(1).float() / 255)[0].features.square().sum().backward()
    assert next(encoder.tokenizer.encoder.parameters()).grad.abs().sum() > 0


def test_refusals(tmp_path):
    _, encoder = save(tmp_path)
    with pytest.raises(ValueError, match="accepts no options"):
        load_encoder(tmp_path / "tokenizer", device="cpu", proportional="none")
    with pytest.raises(ValueError, match="requires the cue attention"):
        Pipeline("vispruner(keep=4)", encoder)
    with pytest.raises(ValueError, match="one value per frame"):
        encoder.grid(3, 8, 8, torch.zeros(2))
