"""CAT: three rates in one network, batches of mixed rates, and the policies."""

from __future__ import annotations

import math

import pytest
import torch

from fewtokens.tokenizers import create_tokenizer
from fewtokens.tokenizers.blocks.rates import by_error, by_jpeg, by_score, constant
from fewtokens.video import synthetic


def build():
    torch.manual_seed(0)
    return create_tokenizer("cat", tiny=True).eval()


def images() -> torch.Tensor:
    """Three different images [3,1,3,32,32], uint8, the last of constant color."""
    frames = [synthetic(kind, frames=1, size=(32, 32)).frames for kind in ("noise", "shapes")]
    return torch.stack([*frames, torch.full_like(frames[0], 90)])


def test_published_tokens():
    """256 pixels are 1,024, 256 or 64 tokens of one set of weights."""
    with torch.device("meta"):
        tokenizer = create_tokenizer("cat")
        counts = [
            math.prod(tokenizer.encoder.latents_at(torch.zeros(1, 3, 1, 256, 256), rate).shape[2:]) for rate in range(3)
        ]
    assert counts == [1024, 256, 64]


def test_a_batch_of_mixed_rates_equals_each_alone():
    tokenizer = build()
    frames = images()
    tokenizer.policy = by_score(torch.tensor([9.0, 5.0, 1.0]), (4, 7))
    together = tokenizer.encode(frames)
    assert together.count.tolist() == [64, 16, 4]
    decoded = tokenizer.decode(together)
    for index in range(3):
        tokenizer.policy = constant(index)
        alone = tokenizer.encode(frames[index])
        torch.testing.assert_close(alone.features[0], together[index].features[0, : alone.N], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(tokenizer.decode(alone)[0], decoded[index], atol=1e-5, rtol=1e-4)
        assert float(tokenizer.bits(alone)) == 32 * 8 * alone.N
        assert int(alone.sizes.sum()) == 64


def test_a_larger_rate_uses_all_layers_of_a_smaller_one():
    tokenizer = build()
    used = []
    for rate in range(3):
        tokenizer.zero_grad()
        frames = torch.rand(1, 3, 1, 32, 32)
        tokenizer.encoder.latents_at(frames, rate).square().mean().backward()
        used.append({name for name, value in tokenizer.encoder.named_parameters() if value.grad is not None})
    assert used[0] < used[1] < used[2]
    assert used[2] == {name for name, _ in tokenizer.encoder.named_parameters()}


class TestPolicies:
    def test_score_is_monotone_in_its_thresholds(self):
        scores = torch.arange(1.0, 10)
        rates = by_score(scores, (4, 7))(torch.zeros(9, 1, 3, 8, 8))
        assert rates.tolist() == [2, 2, 2, 1, 1, 1, 0, 0, 0]
        assert bool((by_score(scores, (5, 8))(torch.zeros(9, 1, 3, 8, 8)) >= rates).all())
        with pytest.raises(ValueError, match="thresholds must be ascending"):
            by_score(scores, (7, 4))

    def test_jpeg_gives_noise_more_tokens_than_a_constant(self):
        frames = images().float() / 255
        noise, _, constant_color = by_jpeg((1.0, 2.0))(frames).tolist()
        assert (noise, constant_color) == (0, 2)

    def test_the_oracle_meets_the_target_with_the_fewest_tokens(self):
        """Errors that grow with the rate, against a search over all rates."""
        base = torch.tensor([0.01, 0.02, 0.05, 0.4])

        def reconstruct(frames: torch.Tensor, rate: int) -> torch.Tensor:
            return frames + (frames[:, :1, :1, :1, :1] * 2**rate).sqrt()

        frames = base.view(4, 1, 1, 1, 1).expand(4, 1, 3, 2, 2)
        chosen = by_error(reconstruct, 3, 0.09)(frames)
        expected = [max((r for r in range(3) if float(b) * 2**r <= 0.09), default=0) for b in base]
        assert chosen.tolist() == expected == [2, 2, 0, 0]

    def test_the_oracle_of_a_tokenizer(self):
        tokenizer = build()
        tokenizer.policy = tokenizer.oracle(psnr=0)
        assert tokenizer.encode(images()).count.tolist() == [4, 4, 4]
        tokenizer.policy = tokenizer.oracle(psnr=90)
        assert tokenizer.encode(images()).count.tolist() == [64, 64, 64]
