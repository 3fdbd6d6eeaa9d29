"""Grid, Tokens and Plan: shapes, applying plans, and `unmerge`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewtokens.core import files, registry
from fewtokens.core.batch import collate, concatenate, join_frames, split_frames
from fewtokens.core.grid import Grid
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from tests.helpers.clips import assert_same_tokens, clip


class TestGrid:
    def test_raster_order(self):
        grid = Grid(2, 3, 4)
        assert grid.cells == 24
        assert grid.positions()[(1 * 3 + 2) * 4 + 3].tolist() == [1, 2, 3]

    def test_videos_of_a_batch(self):
        grid = Grid(3, 2, 2, torch.tensor([[0.0, 1, 2], [0, 2, 4]]), torch.tensor([3, 2]))
        one, two = grid.videos(2)
        assert (one.T, two.T) == (3, 2)
        assert two.times.tolist() == [0, 2]
        assert grid.cell_mask(2).sum(1).tolist() == [12, 8]
        assert grid.select(torch.tensor([1])).lengths.tolist() == [2]

    def test_invalid_grids(self):
        for shape in ((0, 1, 1), (1, 1, -1)):
            with pytest.raises(ValueError, match="T, H and W must be at least 1"):
                Grid(*shape)
        with pytest.raises(ValueError, match="times"):
            Grid(3, 1, 1, torch.arange(4))
        with pytest.raises(ValueError, match="lengths"):
            Grid(3, 1, 1, None, torch.tensor([4]))

    def test_equality(self):
        assert Grid(2, 3, 4) == Grid(2, 3, 4)
        assert Grid(2, 3, 4) != Grid(2, 3, 4, torch.arange(2))
        assert Grid(2, 3, 4, torch.arange(2)) == Grid(2, 3, 4, torch.arange(2))


class TestApply:
    def test_a_worked_example(self):
        """Cells 0 and 2 merge, cell 1 is dropped, cell 3 is kept; a second step merges the remaining tokens."""
        x = torch.tensor([[1.0, 10], [2, 20], [3, 30], [8, 80]])
        tokens = Tokens.from_cells(x.reshape(1, 1, 2, 2, 2))
        out = tokens.apply(Plan(torch.tensor([2]), 2, torch.tensor([[0, -1, 0, 1]])))
        assert out.features.tolist() == [[[2, 20], [8, 80]]]
        assert out.sizes.tolist() == [[2, 1]]
        assert out.positions.tolist() == [[[0, 0.5, 0], [0, 1, 1]]]
        assert out.assignment.tolist() == [[0, -1, 0, 1]]
        last = out.apply(Plan(torch.tensor([1]), 1, torch.tensor([[0, 0]])))
        assert last.features.tolist() == [[[4, 40]]]
        assert last.sizes.tolist() == [[3]]
        assert last.assignment.tolist() == [[0, -1, 0, 0]]

    def test_an_unmerged_token_is_bitwise_equal(self):
        tokens = clip().replace(sizes=torch.rand(2, 120) * 7 + 0.1)
        identity = Plan(tokens.count, 120, torch.arange(120).expand(2, -1))
        assert torch.equal(tokens.apply(identity).features, tokens.features)

    def test_half_precision_is_summed_in_float32(self):
        tokens = Tokens.from_cells(torch.full((1, 1, 64, 64, 1), 3.0, dtype=torch.float16))
        out = tokens.apply(Plan(torch.tensor([1]), 1, torch.zeros(1, 4096, dtype=torch.int64)))
        assert out.features.item() == 3.0
        assert out.features.dtype == torch.float16

    def test_a_representative_is_copied(self):
        tokens = Tokens.from_cells(torch.arange(4.0).reshape(1, 1, 2, 2, 1))
        out = tokens.apply(Plan(torch.tensor([2]), 2, torch.tensor([[0, 0, 1, 0]]), torch.tensor([[1, 2]])))
        assert out.features.flatten().tolist() == [1, 2]
        assert out.sizes.tolist() == [[3, 1]]

    def test_codes_travel_with_kept_tokens(self):
        tokens = clip(B=1).replace(codes=torch.arange(120)[None, :, None])
        kept = tokens.apply(Plan.keep(torch.arange(120)[None] % 3 == 0))
        assert kept.codes[..., 0].tolist() == [list(range(0, 120, 3))]

    def test_soft_weights(self):
        torch.manual_seed(0)
        tokens = clip(2, 3, 3, 8)
        weights = torch.rand(2, 4, 18)
        out = tokens.apply(Plan(torch.tensor([4, 4]), 4, weights=weights)).check()
        torch.testing.assert_close(out.features, weights @ tokens.features)
        torch.testing.assert_close(out.attribution, weights)
        torch.testing.assert_close(out.sizes.sum(1), torch.tensor([18.0, 18]))
        assert torch.equal(out.assignment, (weights / weights.sum(1, keepdim=True)).argmax(1))

    @pytest.mark.parametrize("soft_first", [True, False])
    def test_attribution_reconstructs_the_features(self, soft_first):
        """After any chain of linear steps, attribution @ cells equals the features."""
        tokens = clip(2, 3, 3, 8)
        soft = Plan(torch.tensor([6, 6]), 6, weights=torch.rand(2, 6, 18 if soft_first else 9))
        hard = Plan(torch.tensor([9, 9] if not soft_first else [3, 3]), 9 if not soft_first else 3,
                    (torch.arange(18 if not soft_first else 6) // 2).expand(2, -1))  # fmt: skip
        out = tokens.apply(soft).apply(hard) if soft_first else tokens.apply(hard).apply(soft)
        torch.testing.assert_close(out.attribution @ tokens.features, out.features)

    def test_groups_are_numbered_by_time(self):
        tokens = Tokens.from_cells(torch.randn(1, 3, 1, 2, 4))
        plan = Plan.group(torch.tensor([[7, 7, 2, 0, 2, 0]]), tokens)
        assert plan.dest.tolist() == [
            [0, 0, 1, 2, 1, 2]
        ]  # 7 first; 2 before 0, which has the same time but is further right
        assert plan.num_slots == 3

    def test_top_breaks_ties_in_favor_of_the_first(self):
        tokens = Tokens.from_cells(torch.randn(1, 1, 1, 6, 2))
        plan = Plan.top(torch.tensor([[1.0, 2, 1, 2, 1, 1]]), torch.tensor([4]), tokens)
        assert plan.representative.tolist() == [[0, 1, 2, 3]]

    def test_plans_compose(self):
        tokens = clip()
        first = Plan.group(torch.randint(0, 30, (2, 120)), tokens)
        half = tokens.apply(first)
        second = Plan.group(torch.randint(0, 7, (2, half.N)), half)
        assert_same_tokens(half.apply(second), tokens.apply(first.then(second)))
        keep = Plan.keep(torch.arange(120).expand(2, -1) % 2 == 0)
        kept = tokens.apply(keep)
        again = Plan.keep(torch.arange(60).expand(2, -1) % 3 == 0)
        assert_same_tokens(kept.apply(again), tokens.apply(keep.then(again)), 0)

    def test_means_and_copies_of_groups_do_not_compose(self):
        """The composite would average tokens that the first plan never copied."""
        copies = Plan(torch.tensor([2]), 2, torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 2]]))
        means = Plan(torch.tensor([1]), 1, torch.tensor([[0, 0]]))
        for first, second in ((copies, means), (Plan(torch.tensor([4]), 4, torch.arange(4)[None]), copies)):
            with pytest.raises(ValueError, match="a plan of means and one that copies"):
                first.then(second)
        # A plan that only drops or reorders copies every token that it keeps.
        kept = Plan.keep(torch.tensor([[True, False, True, True]]))
        tokens = Tokens.from_cells(torch.randn(1, 4, 3), Grid(4, 1, 1))
        merge = Plan(torch.tensor([2]), 2, torch.tensor([[0, 1, 1]]))
        expected = tokens.apply(kept).apply(merge)
        torch.testing.assert_close(tokens.apply(kept.then(merge)).features, expected.features)

    def test_a_batch_in_which_one_video_keeps_all_cells_has_no_full_grid(self):
        tokens = Tokens.from_cells(torch.randn(2, 4, 3), Grid(4, 1, 1))
        kept = tokens.apply(Plan.keep(torch.tensor([[True, True, False, False], [True] * 4])))
        assert not kept.has_full_grid() and kept[1].has_full_grid() and tokens.has_full_grid()
        padded = Tokens.from_cells(torch.randn(2, 4, 3), Grid(4, 1, 1, lengths=torch.tensor([4, 2])))
        assert padded.has_full_grid()

    def test_no_videos_of_a_batch(self):
        tokens = Tokens.from_cells(torch.randn(2, 4, 3), Grid(4, 1, 1, lengths=torch.tensor([4, 2])))
        assert tokens[[]].B == 0 and tokens[0:0].grid.lengths.tolist() == []

    def test_from_assignment_recovers_the_plan(self):
        """Other tensors can be moved by the combined plan of several steps."""
        tokens = clip()
        middle = tokens.apply(Plan.group(torch.randint(0, 30, (2, 120)), tokens))
        after = middle.apply(Plan.group(torch.randint(0, 7, (2, middle.N)), middle))
        plan = Plan.from_assignment(tokens, after)
        torch.testing.assert_close(plan.move(tokens.features, tokens.sizes), after.features, rtol=1e-4, atol=1e-4)

    def test_gradients_reach_every_kept_token(self):
        tokens = clip(B=1)
        x = tokens.features.clone().requires_grad_()
        labels = torch.arange(120)[None] % 11
        labels[0, :5] = -1
        tokens.replace(features=x).apply(Plan.group(labels, tokens)).features.sum().backward()
        assert x.grad[0, :5].abs().sum() == 0
        torch.testing.assert_close(x.grad[0, 5:, 0], 1 / (labels[0, 5:, None] == labels[0, None]).sum(1).float())

    def test_a_plan_is_hard_or_soft(self):
        with pytest.raises(ValueError, match="must have either dest"):
            Plan(torch.tensor([1]), 1)

    def test_invalid_shapes_are_rejected(self):
        tokens = clip()
        with pytest.raises(ValueError, match=r"sizes must be \[2, 120\]"):
            tokens.replace(sizes=torch.ones(2, 3))
        with pytest.raises(ValueError, match="the grid has 6 cells"):
            Tokens.from_cells(torch.randn(1, 5, 2), Grid(1, 2, 3))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: {"mask": t.mask.flip(1) & (torch.arange(120) > 3)}, "must come before padding"),
            (lambda t: {"assignment": t.assignment + 1}, "not the index of a real token"),
            (lambda t: {"assignment": t.assignment - 2}, "below -1"),
            (lambda t: {"sizes": t.sizes * 0}, "valid token has size 0"),
            (lambda t: {"features": t.features * torch.nan}, "not finite"),
        ],
    )
    def test_check_finds_violations(self, change, message):
        tokens = clip().check()
        with pytest.raises(ValueError, match=message):
            tokens.replace(**change(tokens)).check()


class TestUnmerge:
    @settings(max_examples=25, deadline=None)
    @given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99), st.sampled_from([1.0, 0.3]))
    def test_a_dropped_cell_takes_the_nearest_token(self, T, H, W, seed, time_weight):
        g = torch.Generator().manual_seed(seed)
        tokens = Tokens.from_cells(torch.randn(2, T, H, W, 3, generator=g))
        kept = torch.rand(2, T * H * W, generator=g) < 0.4
        kept[:, 0] = True
        out = tokens.apply(Plan.keep(kept))
        back = out.unmerge(time_weight=time_weight).flatten(1, 3)
        scale = torch.tensor([time_weight, 1, 1])
        for b in range(2):
            for s, position in enumerate(tokens.grid.positions()):
                distance = ((out.positions[b, : out.count[b]] - position) * scale).square().sum(1)
                m = out.assignment[b, s] if kept[b, s] else distance.argmin()
                assert torch.equal(back[b, s], out.features[b, m])

    def test_held_cells_take_the_latest_token_at_their_position(self):
        tokens = Tokens.from_cells(torch.arange(1.0, 13).reshape(1, 4, 1, 3, 1))
        # Position 0 is kept in frames 0 and 2, position 1 only in frame 1, position 2 never.
        kept = torch.tensor([[1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0]]).bool()
        back = tokens.apply(Plan.keep(kept, dropped="held")).unmerge().reshape(4, 3)
        assert back[:, 0].tolist() == [1, 1, 7, 7]
        assert back[1:, 1].tolist() == [5, 5, 5]
        assert back[0, 1] == 1  # no earlier token: the nearest, and the first if equal

    def test_merged_cells_share_their_token(self):
        tokens = clip(B=1)
        labels = torch.arange(120)[None] // 4
        back = tokens.apply(Plan.group(labels, tokens)).unmerge().flatten(1, 3)[0]
        torch.testing.assert_close(back[::4], back[3::4])

    def test_blockwise_distances_are_equal(self, monkeypatch):
        out = clip().apply(Plan.keep(torch.arange(120).expand(2, -1) % 7 == 0))
        expected = out.unmerge()
        monkeypatch.setattr("fewtokens.core.tokens._MAX_DISTANCES", 50)
        assert torch.equal(out.unmerge(), expected)

    def test_frames_past_the_end_are_zero(self):
        back = clip(T=3, lengths=[3, 1]).unmerge()
        assert bool((back[1, 1:] == 0).all())
        assert bool((back[0] != 0).all())


class TestBatch:
    def test_collate_and_index(self):
        videos = [clip(T, B=1, seed=T) for T in (2, 5, 3)]
        batch = collate(videos).check()
        assert batch.grid.shape == (5, 5, 6)
        assert batch.grid.lengths.tolist() == [2, 5, 3]
        for one, video in zip(batch, videos, strict=True):
            assert_same_tokens(one, video, 0)
            assert one.grid == video.grid

    def test_collate_keeps_optional_fields(self):
        video = clip(B=1).replace(
            prefix=torch.randn(1, 2, 24), codes=torch.arange(120)[None, :, None], attribution=torch.rand(1, 120, 120)
        )
        batch = collate([video, video])
        assert torch.equal(batch.prefix[1], video.prefix[0])
        assert torch.equal(batch.codes[1], video.codes[0])
        assert torch.equal(batch.attribution[1], video.attribution[0])

    def test_frames_of_different_sizes_do_not_collate(self):
        with pytest.raises(ValueError, match="the same H and W"):
            collate([clip(B=1), clip(H=4, B=1)])
        with pytest.raises(ValueError, match="videos must not be empty"):
            collate([])

    def test_packed_and_back(self):
        tokens = clip(B=3).apply(Plan.keep(torch.rand(3, 120) < torch.tensor([[0.2], [0.5], [0.8]])))
        packed = tokens.pack()
        assert packed.cu_seqlens.dtype == torch.int32
        assert packed.cu_seqlens.tolist() == [0, *tokens.count.cumsum(0).tolist()]
        assert packed.max_count == int(tokens.count.max())
        for b in range(3):
            rows = packed.features[packed.cu_seqlens[b] : packed.cu_seqlens[b + 1]]
            assert torch.equal(rows, tokens[b].features[0])
        assert_same_tokens(tokens.unpack(packed.features), tokens, 0)

    @pytest.mark.parametrize("reduced", [False, True])
    def test_frames_and_back(self, reduced):
        tokens = clip(T=4, B=3)
        if reduced:
            tokens = tokens.apply(Plan.keep(torch.rand(3, 120, generator=torch.Generator().manual_seed(1)) < 0.3))
        frames = split_frames(tokens).check()
        assert frames.grid.shape == (1, 5, 6)
        assert frames.B == 12
        assert_same_tokens(join_frames(frames, 4, tokens.grid), tokens, 0)

    def test_frames_of_unequal_videos(self):
        tokens = clip(T=4, lengths=[4, 2])
        assert_same_tokens(join_frames(split_frames(tokens), 4, tokens.grid), tokens, 0)

    def test_prefixes_of_frames_are_concatenated(self):
        frames = split_frames(clip(T=3)).replace(prefix=torch.arange(6.0).reshape(6, 1, 1).expand(6, 1, 24))
        assert join_frames(frames, 3).prefix[..., 0].tolist() == [[0, 1, 2], [3, 4, 5]]

    def test_a_token_over_several_frames_counts_only_in_its_own_frame(self):
        """Two frames of one cell, one token for both: the second frame has no token."""
        tokens = Tokens.from_cells(torch.randn(1, 2, 1, 1, 3))
        merged = tokens.apply(Plan(torch.tensor([1]), 1, torch.tensor([[0, 0]]), torch.tensor([[0]])))
        frames = split_frames(merged)
        assert frames.mask.tolist() == [[True], [False]]
        assert frames.assignment.tolist() == [[0], [-1]]
        assert frames.sizes.tolist() == [[1], [0]]

    def test_concatenate(self):
        tokens = clip(T=5)
        parts = []
        for start, stop in ((0, 2), (2, 5)):
            grid = Grid(stop - start, 5, 6, tokens.grid.times[start:stop])
            parts.append(Tokens.from_cells(tokens.features[:, start * 30 : stop * 30], grid))
        joined = concatenate(parts)
        assert_same_tokens(joined, tokens, 0)
        assert joined.grid == tokens.grid
        with pytest.raises(ValueError, match="chunks must not be empty"):
            concatenate([])


def test_to_keeps_positions_in_float32():
    tokens = clip().replace(aux={"loss": torch.tensor(1.0)}).to(torch.bfloat16)
    assert tokens.features.dtype == torch.bfloat16
    assert tokens.positions.dtype == tokens.sizes.dtype == torch.float32


class TestDamagedFiles:
    """Every tensor and header entry is validated when a file is read."""

    @staticmethod
    def change(path: Path, header: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None) -> None:
        old_tensors, old_header = files.load(path, "tokens")
        old_header = {name: value for name, value in old_header.items() if name not in ("kind", "version", "versions")}
        changed = {name: value for name, value in {**old_tensors, **(tensors or {})}.items() if value is not None}
        files.save(path, "tokens", changed, old_header | (header or {}))

    @pytest.mark.parametrize(
        "header",
        [
            {"grid": None}, {"grid": {}}, {"grid": []}, {"grid": {"shape": [2, 3], "times": None, "lengths": None}},
            {"grid": {"shape": [2, 3, "4"], "times": None, "lengths": None}},
            {"grid": {"shape": [True, 3, 4], "times": None, "lengths": None}},
            {"grid": {"shape": [10**30, 3, 4], "times": None, "lengths": None}},
            {"grid": {"shape": [2, 3, 4], "times": [0, "x"], "lengths": None}},
            {"grid": {"shape": [2, 3, 4], "times": [[0, 1], [0]], "lengths": None}},
            {"grid": {"shape": [2, 3, 4], "times": [[0, 1]] * 3, "lengths": None}},
            {"grid": {"shape": [2, 3, 4], "times": 1.5, "lengths": None}},
            {"grid": {"shape": [2, 3, 4], "times": None, "lengths": []}},
            {"grid": {"shape": [2, 3, 4], "times": None, "lengths": [10**30, 1]}},
            {"grid": {"shape": [2, 3, 4], "times": None, "lengths": [2]}},
            {"meta": None}, {"meta": [1]},
        ],
    )  # fmt: skip
    def test_headers(self, tmp_path, header):
        path = Tokens.from_cells(torch.rand(2, 2, 3, 4, 5)).save(tmp_path / "a.safetensors")
        self.change(path, header)
        with pytest.raises(ValueError, match="a damaged token file") as caught:
            Tokens.load(path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "tensors",
        [
            {"features": None}, {"mask": None}, {"more": torch.zeros(1)}, {"grid": torch.zeros(1)},
            {"features": torch.zeros(2, 24, 5, dtype=torch.int64)}, {"features": torch.zeros(2, 24)},
            {"mask": torch.ones(2, 24)}, {"mask": torch.ones(2, 24, dtype=torch.int64)}, {"sizes": torch.ones(2, 25)},
            {"assignment": torch.zeros(2, 24)}, {"assignment": torch.full((2, 24), 24)},
            {"assignment": torch.full((2, 24), -2)},
            {"positions": torch.zeros(2, 24, 3, dtype=torch.float64)}, {"codes": torch.zeros(2, 24)},
            {"prefix": torch.zeros(3, 1, 5)}, {"prefix": torch.zeros(2, 5)}, {"attribution": torch.zeros(2, 24)},
            {"features": torch.full((2, 24, 5), torch.nan)},
        ],
    )  # fmt: skip
    def test_tensors(self, tmp_path, tensors):
        path = Tokens.from_cells(torch.rand(2, 2, 3, 4, 5)).save(tmp_path / "a.safetensors")
        self.change(path, tensors=tensors)
        with pytest.raises(ValueError, match="a damaged token file") as caught:
            Tokens.load(path)
        assert "\n" not in str(caught.value)


def test_times_of_long_videos_are_exact(tmp_path):
    """After a day at 30 frames per second, adjacent frames are closer than float32 can distinguish."""
    times = torch.arange(4, dtype=torch.float64) / 30 + 86_400
    tokens = Tokens.from_cells(torch.randn(1, 4, 2, 2, 3)).replace(grid=Grid(4, 2, 2, times))
    after = Tokens.from_cells(torch.randn(1, 2, 2, 2, 3)).replace(grid=Grid(2, 2, 2, times[:2] + 1))
    assert torch.equal(tokens.grid.times, times)
    assert torch.equal(concatenate([tokens, after]).grid.times, torch.cat([times, times[:2] + 1]))
    batch = collate([tokens, after])
    for result in (batch, batch.to(torch.float16), batch.select([0, 1]), Tokens.load(batch.save(tmp_path / "a"))):
        assert torch.equal(result.grid.times[0], times)
        # A padded frame has the time of the last frame.
        assert torch.equal(result.grid.times[1], torch.stack([times[0], times[1], times[1], times[1]]) + 1)
        assert torch.equal(result[1].grid.times, times[:2] + 1)
    assert torch.equal(registry.build("tome(0.5)")[0](tokens).grid.times, times)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_means_are_summed_in_float32(dtype):
    """The error is at most the final rounding; weights of 1/3000 in half precision would exceed it."""
    g = torch.Generator().manual_seed(0)
    values = torch.rand(1, 6000, 3, generator=g).to(dtype)
    tokens = Tokens.from_cells(values.reshape(1, 60, 10, 10, 3))
    plan = Plan.group((torch.arange(6000) % 2)[None], tokens)
    expected = torch.stack([values[:, n::2].double().mean(1) for n in range(2)], 1)
    soft = Plan(plan.count, 2, weights=torch.nn.functional.one_hot(torch.arange(6000) % 2).T[None] / 3000)
    merged, resampled = tokens.apply(plan), tokens.apply(soft)
    for out in (
        merged.features, merged.pool(values, tokens), plan.move(values), plan.move(values, tokens.sizes),
        resampled.features, resampled.pool(values, tokens), soft.move(values),
    ):  # fmt: skip
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, rtol=0.51 * torch.finfo(dtype).eps, atol=0)
