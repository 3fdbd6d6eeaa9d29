"""RLT against a double loop, worked examples and the properties stated in its paper."""

from __future__ import annotations

import pytest
import torch

import fewtokens
from fewtokens.core import registry
from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.pruning.rlt import Rlt
from tests.helpers.clips import clip, run_method
from tests.helpers.pixels import pixel_clip

STD = torch.tensor([0.229, 0.224, 0.225])


class TestRlt:
    @pytest.mark.parametrize("P", [1, 2])
    @pytest.mark.parametrize("tau", [0.0, 0.1, 0.8, 3.0])
    def test_against_a_double_loop(self, P, tau):
        tokens, pixels = pixel_clip(P=P)
        T, HW = 5, 12
        p = pixels[0].reshape(T, HW, P, 4, 3)
        lengths = {}
        for position in range(HW):
            head = None
            for t in range(T):
                change = ((p[t, position, -1] - p[t - 1, position, 0]).abs() / STD).mean() if t else None
                if t == 0 or change > tau:
                    head = (t, position)
                    lengths[head] = 0
                lengths[head] += 1
        out = Rlt(tau)(tokens, pixels=pixels)
        heads = sorted(lengths)  # by time, then position: the order of the tokens
        assert out.sizes[0].tolist() == [lengths[h] for h in heads]
        assert torch.equal(out.features[0], tokens.features[0, [t * HW + s for t, s in heads]])
        assert out.cell[0].tolist() == [t * HW + s for t, s in heads]
        assert out.sizes.sum() == T * HW

    def test_the_last_sub_frame_is_compared_with_the_first_before(self):
        """With tubelets of 2, these two frames are 3 apart; the means of the tubelets are not used."""
        pixels = torch.zeros(1, 2, 2, 3)
        pixels[0, 0, 1] = 1.0  # only the second sub-frame of the first tubelet differs
        tokens = Tokens.from_cells(torch.randn(1, 2, 4), Grid(2, 1, 1))
        assert Rlt()(tokens, pixels=pixels).N == 1
        pixels[0, 1, 1] = 1.0
        assert Rlt()(tokens, pixels=pixels).N == 2

    def test_static_clip_is_one_frame(self):
        tokens = Tokens.from_cells(torch.randn(1, 7, 3, 3, 4))
        pixels = torch.rand(1, 1, 9, 1, 12).expand(1, 7, 9, 1, 12).reshape(1, 63, 1, 12)
        out = Rlt()(tokens, pixels=pixels)
        assert out.sizes.tolist() == [[7.0] * 9]
        assert torch.equal(out.features, tokens.features[:, :9])

    def test_tau_is_on_the_normalized_scale(self):
        tokens = Tokens.from_cells(torch.randn(1, 2, 4), Grid(2, 1, 1))
        pixels = torch.zeros(1, 2, 1, 3)
        pixels[0, 1] = 0.99 * 0.1 * STD
        assert Rlt()(tokens, pixels=pixels).N == 1
        pixels[0, 1] = 1.01 * 0.1 * STD
        assert Rlt()(tokens, pixels=pixels).N == 2

    def test_does_not_change_the_pixels(self):
        tokens, pixels = pixel_clip()
        before = pixels.clone()
        Rlt()(tokens, pixels=pixels)
        assert torch.equal(pixels, before)

    def test_requires_full_frames(self):
        tokens, pixels = pixel_clip()
        with pytest.raises(ValueError, match="before methods that drop"):
            Rlt()(registry.build("random(0.5)")[0](tokens), pixels=pixels[:, :30])


def test_run_method_passes_the_cues():
    assert run_method(Rlt(), clip()).N > 0


def test_chunks_of_videos_of_different_lengths():
    """Cells past the end of a video belong to no run."""
    method = fewtokens.create_method("rlt")
    pixels = torch.rand(2, 24, 2, 3, generator=torch.Generator().manual_seed(0)).round()
    features, lengths = torch.randn(2, 24, 4), torch.tensor([6, 4])
    whole = method(Tokens.from_cells(features, Grid(6, 2, 2, lengths=lengths)), pixels=pixels)
    state, parts = None, []
    for start, own in ((0, None), (3, torch.tensor([3, 1]))):
        cells = slice(4 * start, 4 * start + 12)
        part = Tokens.from_cells(features[:, cells], Grid(3, 2, 2, lengths=own))
        out, state = method.step(part, state, pixels=pixels[:, cells])
        parts.append(out)
    joined = method.join(parts)
    assert torch.equal(joined.assignment, whole.assignment)
    assert joined.sizes.sum(1).tolist() == whole.sizes.sum(1).tolist() == [24, 16]
