"""Laws of presets of tokenizers, at their tiny size, of their common contract: T1 to T6 and T9 for all of them.

T7 and T8 require training: a few presets.
"""

from __future__ import annotations

import itertools
from copy import deepcopy
from functools import cache
from inspect import signature

import pytest
import torch

from fewtokens.tokenizers import Tokenizer, create_tokenizer, get_preset, list_tokenizers
from fewtokens.tokenizers.files import read_encoded, write_encoded
from fewtokens.tokenizers.parts import to_signed
from tests.tokenizers import fitting
from tests.tokenizers.signals import crop, signals, sizes

NAMES = list_tokenizers()


@cache
def build(name: str) -> Tokenizer:
    torch.manual_seed(0)
    return create_tokenizer(name, tiny=True).eval()


def clips(name: str, count: int = 2) -> torch.Tensor:
    """Different inputs of the tiny size: clips uint8 [count,T,3,H,W], or other signals, see `SignalTokenizer`."""
    preset = get_preset(name)
    return signals(preset.source, preset.tiny_clip, count)


@pytest.mark.parametrize("name", NAMES)
class TestTokenizer:
    def test_layout_and_bits(self, name):
        """T1: counts and bits are those of the layout, for the tiny clip and for sizes that do not fit."""
        tokenizer = build(name)
        source = tokenizer.source
        for size in sizes(source, get_preset(name).tiny_clip):
            video = crop(source, clips(name, 1), size)
            tokens, layout = tokenizer.encode(video), tokenizer.layout(*size)
            if source != "points":  # those are decoded to a field
                assert tokenizer.decode(tokens).shape == video.shape
            assert tokens.grid.shape == layout.grid
            if layout.tokens is not None:
                assert int(tokens.count.sum()) == layout.tokens
                assert float(tokenizer.bits(tokens).sum()) == pytest.approx(layout.bits)

    def test_bfloat16(self, name):
        """A tokenizer in half precision encodes and decodes, also on a CPU."""
        half = deepcopy(build(name)).to(torch.bfloat16)
        tokens = half.encode(clips(name, 1))
        assert tokens.features.dtype == torch.bfloat16
        decoded = half.decode(tokens)
        assert decoded.dtype != torch.bfloat16 and bool(decoded.isfinite().all())

    def test_the_decoder_reads_tokens_only(self, name, tmp_path):
        """T2: features are restored from codes, and a file decodes to the same bits as the tokens.

        T5: exchanging the tokens of two clips exchanges the outputs.
        """
        tokenizer = build(name)
        tokens = tokenizer.encode(clips(name))
        decoded = tokenizer.decode(tokens)
        swapped = tokenizer.decode(tokens.select([1, 0]).replace(meta=tokens.meta))
        torch.testing.assert_close(swapped, decoded.flip(0), atol=1e-4, rtol=1e-4)
        path = write_encoded(tmp_path / "a", tokens, tokenizer, packed=bool(tokenizer.codebook_sizes))
        # A decoder of motion also gets the first frame, which is not in the file.
        side = {"side": clips(name)[:, 0]} if "side" in signature(tokenizer.decode).parameters else {}
        assert torch.equal(tokenizer.decode(read_encoded(path), **side), decoded)
        if tokenizer.quantizer is not None:
            again = tokenizer.decode(tokens.replace(features=torch.zeros_like(tokens.features)))
            assert torch.equal(again, decoded)
        if bool((decoded[0] != decoded[1]).any()):
            assert not torch.equal(tokens[0].features, tokens[1].features)

    def test_gradients_and_frozen_parts(self, name):
        """T3: every trained parameter gets a finite gradient, the first ones of the encoder a non-zero one; frozen
        parts do not change."""
        torch.manual_seed(0)
        tokenizer = create_tokenizer(name, tiny=True).train()
        frames = clips(name)
        trained = {n: p for n, p in tokenizer.named_parameters() if p.requires_grad}
        frozen = {n: p.clone() for n, p in tokenizer.named_parameters() if not p.requires_grad}
        optimizer = torch.optim.SGD(trained.values(), 1e-3)
        first = next((p for n, p in trained.items() if n.startswith("pipeline")), None)
        largest = 0.0
        for _ in range(3):
            step = tokenizer(frames)
            losses = list(step.losses.values())
            if step.frames is not None:
                losses.append((step.frames - to_signed(frames)).square().mean())
            optimizer.zero_grad()
            sum(losses).backward()
            missing = [n for n, p in trained.items() if p.grad is None or not bool(p.grad.isfinite().all())]
            assert not missing
            if first is not None:
                largest = max(largest, float(first.grad.abs().max()))
            optimizer.step()
        assert first is None or largest > 0
        parameters = dict(tokenizer.named_parameters())
        for n, value in frozen.items():
            assert torch.equal(parameters[n], value), n

    def test_codes_are_in_range(self, name):
        """T4, for a clip of constant color and for one frame too."""
        tokenizer = build(name)
        if tokenizer.quantizer is None:
            pytest.skip("continuous tokens")
        frames = clips(name, 3)
        for video in (frames, torch.zeros_like(frames), frames[:, :1]):
            tokens = tokenizer.encode(video)
            assert tokens.features.isfinite().all()
            for codes, size in zip(tokens.codes.unbind(-1), tokenizer.codebook_sizes, strict=True):
                assert -1 <= int(codes.min()) <= int(codes.max()) < size
            assert tokenizer.decode(tokens).isfinite().all()

    def test_causality(self, name):
        """T6: a change of the last frames changes no earlier cell of the encoder, nor earlier frames of the decoder."""
        tokenizer = build(name)
        encoder, decoder = tokenizer.encoder, tokenizer.decoder
        if not encoder.causal or tokenizer.source != "video":
            pytest.skip("not causal")
        frames = to_signed(clips(name, 1)).transpose(1, 2)
        changed = frames.clone()
        changed[:, :, -1] = -changed[:, :, -1]
        before, after = encoder.latents(frames), encoder.latents(changed)
        if before.shape[2] > 1:
            assert torch.equal(before[:, :, :-1], after[:, :, :-1])
        assert not torch.equal(before[:, :, -1], after[:, :, -1])
        if decoder.causal and before.shape[2] > 1:
            tokens = tokenizer.encode(clips(name, 1))
            last = tokens.cell // tokens.grid.cells_per_frame == tokens.grid.T - 1
            other = tokens.replace(
                features=torch.where(last[..., None], -tokens.features, tokens.features),
            )
            a, b = decoder(tokens), decoder(other)
            kept = decoder.first_frame + (tokens.grid.T - 1 - decoder.first_frame) * decoder.stride[0]
            assert torch.equal(a[:, :kept], b[:, :kept])

    def test_batch_mates_do_not_matter(self, name):
        """T9: the codes of a clip alone and in a batch are equal, and features nearly so."""
        tokenizer = build(name)
        frames = clips(name, 3)
        together = tokenizer.encode(frames)
        for index in range(3):
            alone = tokenizer.encode(frames[index])
            if together.codes is not None:
                assert torch.equal(together[index].codes, alone.codes)
            else:
                torch.testing.assert_close(together[index].features, alone.features, atol=1e-4, rtol=1e-3)

    def test_it_is_documented(self, name):
        preset = get_preset(name)
        assert preset.paper
        assert preset.license
        assert preset.differs
        assert create_tokenizer(name, tiny=True).spec


@pytest.mark.parametrize("name", ["ett", "revq", "vfmtok"])
def test_two_clips_are_fitted(name):
    """T8: after 50 steps, PSNR is 6 dB above that of the mean frame. All presets: benchmarks/tokenizer_laws.py."""
    frames = fitting.clips(name, 2)
    ((_, tokenizer),) = fitting.train(name, frames, 50)
    decoded = tokenizer.decode(tokenizer.encode(frames))
    assert fitting.psnr(frames, decoded) > fitting.mean_frame_psnr(frames) + 6
    # It follows from the tokens: with those of the other clip it is lost.
    assert fitting.psnr(frames, decoded.flip(0)) < fitting.mean_frame_psnr(frames)


@pytest.mark.parametrize("name", ["coda"])
def test_more_scales_raise_psnr(name):
    """T7: on a trained tokenizer, for the mean over the clips. All presets: benchmarks/tokenizer_laws.py."""
    frames, (_, parts) = fitting.clips(name, 4), fitting.PARTS[name]
    (*_, (_, tokenizer)) = fitting.train(name, frames, 100, decay=True)
    scores = [fitting.psnr(frames, tokenizer.decode(tokens)) for _, tokens in parts(tokenizer, frames)]
    assert all(more > fewer + 0.3 for fewer, more in itertools.pairwise(scores)), scores
