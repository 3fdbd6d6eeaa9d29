"""RLT, EVS and DTD against double loops, worked examples and the laws of their papers."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from fewtokens.core import registry
from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.pruning.dtd import Dtd
from fewtokens.methods.pruning.evs import Evs
from fewtokens.methods.pruning.rlt import Rlt
from tests.helpers.clips import clip, run

STD = torch.tensor([0.229, 0.224, 0.225])


def pixel_clip(T=5, H=3, W=4, P=2, seed=0):
    """Patches of 2x2 pixels, some of which stay from frame to frame; pixels [1,S,P,12]."""
    g = torch.Generator().manual_seed(seed)
    frames = [torch.rand(H * W, P, 12, generator=g)]
    frames[0][:] = frames[0][:, :1]
    for _ in range(T - 1):
        fresh = torch.rand(H * W, 1, 12, generator=g).expand(-1, P, -1)
        stays = torch.rand(H * W, 1, 1, generator=g) < 0.6
        frames.append(torch.where(stays, frames[-1][:, -1:].expand(-1, P, -1), fresh))
    pixels = torch.cat(frames)[None]
    return Tokens.from_cells(torch.randn(1, T * H * W, 8, generator=g), Grid(T, H, W)), pixels


class TestRlt:
    @pytest.mark.parametrize("P", [1, 2])
    @pytest.mark.parametrize("tau", [0.0, 0.1, 0.8, 3.0])
    def test_against_a_double_loop(self, P, tau):
        tokens, pixels = pixel_clip(P=P)
        T, HW = 5, 12
        p = pixels[0].reshape(T, HW, P, 4, 3)
        lengths = {}
        for place in range(HW):
            head = None
            for t in range(T):
                change = ((p[t, place, -1] - p[t - 1, place, 0]).abs() / STD).mean() if t else None
                if t == 0 or change > tau:
                    head = (t, place)
                    lengths[head] = 0
                lengths[head] += 1
        out = Rlt(tau)(tokens, pixels=pixels)
        heads = sorted(lengths)  # by time, then place: the order of the tokens
        assert out.sizes[0].tolist() == [lengths[h] for h in heads]
        assert torch.equal(out.features[0], tokens.features[0, [t * HW + s for t, s in heads]])
        assert out.cell[0].tolist() == [t * HW + s for t, s in heads]
        assert out.sizes.sum() == T * HW

    def test_the_last_sub_frame_is_compared_with_the_first_before(self):
        """Frames 3 apart at tubelets of 2, not the means of neighbouring tubelets."""
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

    def test_tau_is_on_the_normalised_scale(self):
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

    def test_wants_whole_frames(self):
        tokens, pixels = pixel_clip()
        with pytest.raises(ValueError, match="before methods that drop"):
            Rlt()(registry.build("random(0.5)")[0](tokens), pixels=pixels[:, :30])


class TestEvs:
    @pytest.mark.parametrize(("T", "q"), [(1, 0.0), (4, 0.5), (4, 0.99), (8, 0.75), (5, 0.3)])
    def test_against_a_double_loop(self, T, q):
        tokens = clip(T, 3, 4, B=1)
        x = tokens.features[0].reshape(T, 12, -1)
        scores = []
        for t, s in itertools.product(range(T), range(12)):
            d = 255.0 if t == 0 else 1 - float(F.cosine_similarity(x[t, s], x[t - 1, s], dim=0))
            scores.append((-d, t * 12 + s))
        k = max(12, int(T * 12 * (1 - q) + 1e-6))
        expected = sorted(cell for _, cell in sorted(scores)[:k])
        out = Evs(keep=1 - q)(tokens)
        assert out.cell[0].tolist() == expected
        assert torch.equal(out.features[0], tokens.features[0, expected])
        assert (out.assignment[0] >= 0).nonzero().flatten().tolist() == expected

    def test_never_below_one_frame(self):
        out = Evs(keep=1)(clip(6, 3, 4))
        assert out.count.tolist() == [12, 12]
        assert bool((out.positions[..., 0] == 0).all())
        assert Evs(keep=1).planned_count(Grid(6, 3, 4)) == 12

    def test_masks_shrink_with_the_budget(self):
        tokens = clip(8, 4, 4)
        kept = [Evs(keep=share)(tokens).assignment >= 0 for share in (0.9, 0.6, 0.4, 0.2)]
        for more, less in itertools.pairwise(kept):
            assert bool((more | ~less).all())


class TestDtd:
    @pytest.mark.parametrize("tau", [-1.0, 0.25, 0.5, 0.97, 1.0])
    def test_feature_mode_against_a_double_loop(self, tau):
        tokens = clip(5, 3, 4, B=1)
        x = tokens.features[0].reshape(5, 12, -1)
        expected = [
            t * 12 + s
            for t, s in itertools.product(range(5), range(12))
            if t == 0 or not F.cosine_similarity(x[t, s], x[t - 1, s], dim=0) > tau
        ]
        assert Dtd(tau)(tokens).cell[0].tolist() == expected

    @pytest.mark.parametrize("tau", [0.0, 0.29, 0.5, 1.0])
    def test_relative_mode_drops_the_most_similar_of_each_frame(self, tau):
        tokens = clip(5, 4, 5, B=1)
        x = tokens.features[0].reshape(5, 20, -1)
        expected = list(range(20))
        for t in range(1, 5):
            similarity = [(-float(F.cosine_similarity(x[t, s], x[t - 1, s], dim=0)), s) for s in range(20)]
            dropped = {s for _, s in sorted(similarity)[: int(20 * tau)]}
            expected += [t * 20 + s for s in range(20) if s not in dropped]
        method = Dtd(tau, mode="relative")
        assert method(tokens).cell[0].tolist() == expected
        assert method.planned_count(tokens.grid) == len(expected)

    @pytest.mark.parametrize("P", [1, 2])
    def test_pixel_mode_against_a_double_loop(self, P):
        tokens, pixels = pixel_clip(P=P)
        p = pixels[0].reshape(5, 12, P, 12)
        expected = [
            t * 12 + s
            for t, s in itertools.product(range(5), range(12))
            if t == 0 or not (p[t - 1, s, 0] - p[t, s, -1]).abs().mean() < 0.1
        ]
        before = pixels.clone()
        assert Dtd(mode="pixel")(tokens, pixels=pixels).cell[0].tolist() == expected
        assert torch.equal(pixels, before)

    def test_slow_drift_is_unseen(self):
        """The frame before is the original one, kept or not: as published, and worth knowing."""
        angle = torch.linspace(0, torch.pi / 2, 30)
        x = torch.stack([angle.cos(), angle.sin()], 1).reshape(1, 30, 1, 1, 2)
        assert Dtd(0.9)(Tokens.from_cells(x)).N == 1

    def test_bad_arguments(self):
        for wrong in ({"mode": "edges"}, {"tau": 2.0}, {"tau": -0.1, "mode": "pixel"}):
            with pytest.raises(ValueError, match=r"tau|modes"):
                Dtd(**wrong)


@pytest.mark.parametrize("spec", ["evs(0.4)", "dtd(0.5)", "dtd(0.4, mode='relative')"])
class TestCosineMethods:
    def test_scale_changes_nothing(self, spec):
        tokens, (method,) = clip(), registry.build(spec)
        scaled = tokens.replace(features=tokens.features * 37.5)
        assert torch.equal(method(tokens).assignment, method(scaled).assignment)

    def test_mirror(self, spec):
        tokens, (method,) = clip(), registry.build(spec)
        grid = tokens.features.reshape(2, *tokens.grid.shape, -1)
        mirrored = Tokens.from_cells(grid.flip(3))
        kept = (method(tokens).assignment >= 0).reshape(2, *tokens.grid.shape)
        assert torch.equal((method(mirrored).assignment >= 0).reshape(kept.shape), kept.flip(3))

    def test_static_and_novel_clips(self, spec):
        (method,) = registry.build(spec)
        static = Tokens.from_cells(torch.randn(1, 1, 3, 4, 64).expand(1, 6, 3, 4, 64))
        novel = Tokens.from_cells(torch.randn(1, 6, 3, 4, 512, generator=torch.Generator().manual_seed(1)))
        assert bool((method(static).assignment[0, :12] >= 0).all())
        if spec == "dtd(0.5)":
            assert method(static).N == 12
            assert method(novel).N == 72


def test_after_an_earlier_reduction():
    """What stands for the cell before is found through the source: a run is compared with its first patch."""
    tokens, pixels = pixel_clip(T=4, P=1)
    rlt, dtd = registry.build("rlt | dtd(0.5)")
    runs = rlt(tokens, pixels=pixels)
    out = dtd(runs)
    x, expected = tokens.features[0], []
    for n, cell in enumerate(runs.cell[0].tolist()):
        before = None if cell < 12 else int(runs.assignment[0, cell - 12])
        if before is None or not F.cosine_similarity(x[cell], runs.features[0, before], dim=0) > 0.5:
            expected.append(n)
    assert torch.equal(out.features[0], runs.features[0, expected])


def test_run_gives_each_method_its_cues():
    assert run(Rlt(), clip()).N > 0
