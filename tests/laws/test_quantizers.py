"""Laws of all quantizers."""

from __future__ import annotations

import math

import pytest
import torch

from fewtokens.core import registry
from fewtokens.core.batch import collate
from fewtokens.core.grid import Grid
from fewtokens.core.method import Quantized, Quantizer
from fewtokens.core.syntax import folder
from fewtokens.core.tokens import Tokens
from tests.helpers.clips import assert_same_tokens, clip

NAMES = folder("quantizers")


def build(name: str, seed: int = 0) -> Quantizer:
    torch.manual_seed(seed)
    (method,) = registry.build(name, dim=24)
    assert isinstance(method, Quantizer)
    return method.eval()


def quantize(method: Quantizer, features: torch.Tensor, mask: torch.Tensor | None = None) -> Quantized:
    """Quantizes features [B,20,C] as 5 frames of 2 x 2 cells."""
    return method.quantize(features, mask, *([Grid(5, 2, 2)] if method.full_grid else []))


@pytest.mark.parametrize("name", NAMES)
class TestQuantizer:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
    def test_lookup_gives_the_features_bit_for_bit(self, name, dtype):
        method = build(name).to(dtype)
        out = method(clip(C=24).to(dtype))
        erased = out.replace(features=torch.zeros_like(out.features))
        assert torch.equal(method.restore(erased).features, out.features)
        for code, size in zip(out.codes.unbind(-1), method.codebook_sizes, strict=True):
            assert int(code.min()) >= -1
            assert int(code.max()) in range(size)

    def test_codes_survive_a_file(self, name, tmp_path):
        method = build(name)
        out = method(clip(C=24))
        again = Tokens.load(out.save(tmp_path / "tokens.safetensors"))
        assert torch.equal(again.codes, out.codes)
        assert torch.equal(method.restore(again).features, out.features)

    def test_a_video_alone_and_in_a_padded_batch(self, name):
        method = build(name)
        parts = [clip(T=2, B=1, C=24, seed=0), clip(T=5, B=1, C=24, seed=1)]
        together = method(collate(parts))
        for index, part in enumerate(parts):
            alone = method(part)
            assert torch.equal(together.codes[index, : alone.N], alone.codes[0])

    def test_different_tokens_have_different_codes(self, name):
        method = build(name)
        codes = method(clip(C=24)).codes.flatten(0, 1)
        assert len(codes.unique(dim=0)) > 10

    def test_gradients_pass_to_the_features_and_the_parameters(self, name):
        method = build(name).train()
        features = torch.randn(2, 20, 24, requires_grad=True)
        quantized, _, losses = quantize(method, features)
        (quantized.square().sum() + sum(losses.values())).backward()
        assert features.grad is not None
        assert features.grad.isfinite().all()
        assert (features.grad != 0).any(-1).all()
        for parameter in method.parameters():
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()

    def test_padding_affects_no_loss(self, name):
        mask = torch.ones(2, 20, dtype=torch.bool)
        mask[1, 8:] = False  # two of five frames
        features = torch.randn(2, 20, 24)
        losses = []
        for fill in (0.0, 50.0):
            method = build(name).train()
            torch.manual_seed(3)
            losses.append(quantize(method, features.masked_fill(~mask[..., None], fill), mask).losses)
        for key in losses[0]:
            torch.testing.assert_close(losses[0][key], losses[1][key])

    def test_chunks_are_the_whole(self, name):
        method = build(name)
        if not method.causal:
            pytest.skip("not causal")
        tokens = clip(B=1, T=4, C=24)
        first, state = method.step(clip(B=1, T=4, C=24))
        assert state is None
        assert_same_tokens(first, method(tokens))

    def test_bits(self, name):
        method = build(name)
        assert method.bits == pytest.approx(sum(torch.tensor(float(size)).log2() for size in method.codebook_sizes))

    def test_minus_one_adds_nothing(self, name):
        """The features of tokens without codes are those of zero entries, whatever the codes were."""
        method = build(name)
        out = method(clip(C=24))
        none = method.restore(out.replace(codes=torch.full_like(out.codes, -1))).features
        assert torch.equal(none, none[:1, :1].expand_as(none))
        assert none.isfinite().all()
        some = out.codes.clone()
        some[0] = -1
        restored = method.restore(out.replace(codes=some)).features
        assert torch.equal(restored[0], none[0])
        assert torch.equal(restored[1], out.features[1])

    def test_bits_are_those_of_the_codes_of_real_tokens(self, name):
        method = build(name)
        out = method(clip(T=3, C=24, lengths=[3, 1]))
        expected = torch.zeros(2, dtype=torch.float64)
        for video in range(2):
            for codes in out.codes[video, : int(out.count[video])].tolist():
                expected[video] += sum(
                    math.log2(size) for code, size in zip(codes, method.codebook_sizes, strict=True) if code >= 0
                )
        torch.testing.assert_close(method.count_bits(out), expected)
        assert bool((method.count_bits(out) <= method.bits * out.count.double() * (1 + 1e-12)).all())
