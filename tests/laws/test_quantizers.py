"""Laws of all quantizers."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core import registry
from fewtokens.core.batch import collate
from fewtokens.core.method import Quantizer
from fewtokens.core.syntax import folder
from fewtokens.core.tokens import Tokens
from tests.helpers.clips import assert_same_tokens, clip

NAMES = folder("quantizers")


def build(name: str, seed: int = 0) -> Quantizer:
    torch.manual_seed(seed)
    (method,) = registry.build(name, dim=24)
    assert isinstance(method, Quantizer)
    return method.eval()


@pytest.mark.parametrize("name", NAMES)
class TestQuantizer:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
    def test_lookup_gives_the_features_bit_for_bit(self, name, dtype):
        method = build(name).to(dtype)
        out = method(clip(C=24).to(dtype))
        assert torch.equal(method.lookup(out.codes).to(dtype).masked_fill(~out.mask[..., None], 0), out.features)
        for code, size in zip(out.codes.unbind(-1), method.codebook_sizes, strict=True):
            assert int(code.min()) >= 0
            assert int(code.max()) < size

    def test_codes_survive_a_file(self, name, tmp_path):
        method = build(name)
        out = method(clip(C=24))
        again = Tokens.load(out.save(tmp_path / "tokens.safetensors"))
        assert torch.equal(method.lookup(again.codes), method.lookup(out.codes))

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
        quantized, _, losses = method.quantize(features)
        (quantized.square().sum() + sum(losses.values())).backward()
        assert features.grad is not None
        assert features.grad.isfinite().all()
        assert (features.grad != 0).any(-1).all()
        for parameter in method.parameters():
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()

    def test_padding_affects_no_loss(self, name):
        mask = torch.ones(2, 20, dtype=torch.bool)
        mask[1, 8:] = False
        features = torch.randn(2, 20, 24)
        losses = []
        for fill in (0.0, 50.0):
            method = build(name).train()
            torch.manual_seed(3)
            losses.append(method.quantize(features.masked_fill(~mask[..., None], fill), mask).losses)
        for key in losses[0]:
            torch.testing.assert_close(losses[0][key], losses[1][key])

    def test_chunks_are_the_whole(self, name):
        method = build(name)
        tokens = clip(B=1, T=4, C=24)
        first, state = method.step(clip(B=1, T=4, C=24))
        assert state is None
        assert_same_tokens(first, method(tokens))

    def test_bits(self, name):
        method = build(name)
        assert method.bits == pytest.approx(sum(torch.tensor(float(size)).log2() for size in method.codebook_sizes))
