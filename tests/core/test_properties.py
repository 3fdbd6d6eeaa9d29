"""Any operation on a padded, merged batch in half precision equals the same operation on each video in float64.

Values are multiples of 1/8, which are exact in half precision and in float32 sums, so only the final rounding of a mean
differs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewtokens.core.batch import collate, concatenate, join_frames, split_frames, trim
from fewtokens.core.grid import Grid
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens

_TENSORS = ("features", "positions", "sizes", "mask", "assignment", "prefix", "codes", "attribution")


def video(T: int, H: int, W: int, seed: int, *, soft: bool = False, C: int = 3) -> Tokens:
    """A video in float64 with merged cells, dropped cells, and all fields set."""
    g = torch.Generator().manual_seed(seed)
    S = T * H * W
    features = torch.randint(-16, 17, (1, S, C), generator=g).double() / 8
    grid = Grid(T, H, W, torch.arange(T, dtype=torch.float64) * 0.1 + 1e5)
    tokens = Tokens.from_cells(features, grid, torch.randint(-8, 9, (1, 2, C), generator=g).double() / 8)
    labels = torch.randint(-1, max(1, S // 2), (1, S), generator=g)
    labels[0, torch.randint(0, S, (1,), generator=g)] = 0
    tokens = tokens.apply(Plan.group(labels, tokens))
    # Features are replaced by values that are exact in half precision.
    exact = torch.randint(-16, 17, tokens.features.shape, generator=g).double() / 8
    tokens = tokens.replace(features=exact, codes=torch.randint(0, 9, (1, tokens.N, 2), generator=g))
    if soft:
        tokens = tokens.apply(Plan(tokens.count, tokens.N, weights=torch.eye(tokens.N)[None].double()))
    return tokens


@st.composite
def batches(draw: Any, *, same_times: bool = False) -> list[Tokens]:
    """Two or three videos with different lengths, token counts and token sizes."""
    H, W, seed = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(0, 10_000))
    lengths = draw(st.lists(st.integers(1, 4), min_size=2, max_size=3))
    if same_times:
        lengths = [lengths[0]] * len(lengths)
    return [video(T, H, W, seed + index) for index, T in enumerate(lengths)]


def random_values(video: Tokens, seed: int, *shape: int) -> Tensor:
    """Returns exact random values for each token of a video, the same alone and in a batch."""
    g = torch.Generator().manual_seed(seed + int(video.sizes.sum()) * 7 + video.N)
    return torch.randint(-32, 33, (1, video.N, *shape), generator=g).double() / 8


def pad_rows(rows: list[Tensor], width: int, fill: float = 0) -> Tensor:
    return torch.cat([F.pad(row.movedim(1, -1), (0, width - row.shape[1]), value=fill).movedim(-1, 1) for row in rows])


def compare(batch: Tokens, alone: list[Tokens], tolerance: float) -> None:
    """Compares every field of every video, and checks that padding is zero."""
    batch.check()
    for b, single in enumerate(alone):
        single.check()
        actual = batch[b]
        assert actual.grid == single.grid
        assert actual.dropped == single.dropped
        n = int(single.count[0])
        for name in _TENSORS:
            expected = getattr(single, name)
            if expected is None:
                assert getattr(actual, name) is None, name
                continue
            expected = expected if name in ("assignment", "prefix") else expected[:, :n]
            value = getattr(actual, name)
            assert value.shape == expected.shape, name
            if expected.is_floating_point():
                tol = tolerance if name in ("features", "prefix") else 1e-4
                torch.testing.assert_close(value.double(), expected.double(), rtol=tol, atol=tol, msg=name)
            else:
                assert torch.equal(value, expected), name


def keep_positive(tokens: Tokens, value: Tensor) -> Tokens:
    return tokens.apply(Plan.keep((value > 0) & tokens.mask, dropped="held"))


def keep_top_half(tokens: Tokens, value: Tensor) -> Tokens:
    return tokens.apply(Plan.top(value, (tokens.count + 1) // 2, tokens))


def group(tokens: Tokens, value: Tensor) -> Tokens:
    return tokens.apply(Plan.group(value.long().remainder(5), tokens, 5))


def group_with_shares(tokens: Tokens, value: Tensor) -> Tokens:
    plan = Plan.group(value.long().remainder(3), tokens, 3)
    assert plan.dest is not None
    return tokens.apply(Plan(plan.count, plan.num_slots, plan.dest, shares=value / 8, sizes=value.abs() + 1))


def mix(tokens: Tokens, value: Tensor) -> Tokens:
    """Weights of both signs; negative weights contribute to features but not to sizes."""
    weights = torch.stack([value, torch.ones_like(value), -value.abs()], 1) / 8
    weights[..., 0] = 1
    return tokens.apply(Plan(torch.full((tokens.B,), 3), 3, weights=weights))


def compose(tokens: Tokens, value: Tensor) -> Tokens:
    first = Plan.group(value.long().remainder(7), tokens, 7)
    fewer = tokens.apply(first)
    second = Plan.keep(fewer.mask & (fewer.sizes != 2))
    return tokens.apply(first.then(second))


OPERATIONS: dict[str, Callable[[Tokens, Tensor], Tokens]] = {
    "keep": keep_positive,
    "top": keep_top_half,
    "group": group,
    "shares": group_with_shares,
    "soft": mix,
    "then": compose,
    "ordered": lambda tokens, value: group(tokens, value).sort_by_position(),
    "finer": lambda tokens, value: tokens.to_grid(Grid(tokens.grid.T, tokens.grid.H * 2, tokens.grid.W * 3)),
    "soft, then hard": lambda tokens, value: keep_positive(mix(tokens, value), mix(tokens, value).features[..., 0]),
    "trim": lambda tokens, value: trim(keep_positive(tokens, value)),
    "per frame": lambda tokens, value: join_frames(
        split_frames(tokens), tokens.grid.T, Grid(*tokens.grid.shape, tokens.grid.times, tokens.grid.lengths)
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@settings(max_examples=25, deadline=None)
@given(videos=batches(), seed=st.integers(0, 999))
def test_an_operation_on_a_batch_equals_that_on_each_video(name, dtype, videos, seed):
    operation = OPERATIONS[name]
    rows = [random_values(single, seed) for single in videos]
    alone = [operation(single, row) for single, row in zip(videos, rows, strict=True)]
    batch = collate(videos).to(dtype)
    out = operation(batch, pad_rows(rows, batch.N, fill=1))
    compare(out, alone, {torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(dtype, 1e-9))


@settings(max_examples=40, deadline=None)
@given(videos=batches(), seed=st.integers(0, 999), time_weight=st.sampled_from([1.0, 0.1]))
def test_derived_values_of_a_batch_equal_those_of_each_video(videos, seed, time_weight):
    """Cells, previous-frame indices, packed rows, pooled cues and `unmerge`."""
    batch = collate(videos).to(torch.float16)
    rows = [random_values(single, seed, 2) for single in videos]
    fewer = group(batch, pad_rows([row[..., 0] for row in rows], batch.N, fill=1))
    moved = fewer.pool(pad_rows(rows, batch.N).half(), batch)
    back = batch.unmerge(time_weight=time_weight)
    packed = batch.pack()
    again = batch.unpack(packed.features)
    assert torch.equal(again.features, batch.features)
    for b, (single, row) in enumerate(zip(videos, rows, strict=True)):
        n, T = single.N, single.grid.T
        assert torch.equal(batch.cell[b, :n], single.cell[0])
        assert torch.equal(batch.previous_frame_index()[b, :n], single.previous_frame_index()[0])
        assert bool((batch.previous_frame_index()[b, n:] == -1).all())
        assert torch.equal(
            packed.features[packed.cu_seqlens[b] : packed.cu_seqlens[b + 1]].double(), single.features[0]
        )
        torch.testing.assert_close(
            back[b, :T].double(), single.unmerge(time_weight=time_weight)[0], rtol=1e-3, atol=1e-3
        )
        assert bool((back[b, T:] == 0).all())
        reduced = group(single, row[..., 0])
        expected = reduced.pool(row, single)[0]
        torch.testing.assert_close(moved[b, : reduced.N].double(), expected, rtol=2e-3, atol=2e-3)
        assert bool((moved[b, reduced.N :] == 0).all())


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=20, deadline=None)
@given(videos=batches(), seed=st.integers(0, 999))
def test_previous_frame_index_by_loops(name, videos, seed):
    """The token of the previous-frame cell at the nearest cell of each token, or -1 if it is the token itself."""
    for single in videos:
        after = OPERATIONS[name](single, random_values(single, seed))
        T, H, W = after.grid.shape
        assignment, expected = after.assignment[0].reshape(T, H, W), []
        for n in range(after.N):
            t, y, x = (round(value) for value in after.positions[0, n].tolist())
            previous = int(assignment[t - 1, y, x]) if t and n < int(after.count[0]) else -1
            expected.append(-1 if previous == n else previous)
        assert after.previous_frame_index()[0].tolist() == expected


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("shares", "finer", "per frame")])
@settings(max_examples=20, deadline=None)
@given(videos=batches(), seed=st.integers(0, 999))
def test_pool_weights_values_like_positions(name, videos, seed):
    """Pooled positions of the input tokens equal the positions of the output tokens, including negative weights."""
    batch = collate(videos)
    after = OPERATIONS[name](batch, pad_rows([random_values(single, seed) for single in videos], batch.N, fill=1))
    torch.testing.assert_close(after.pool(batch.positions, batch), after.positions, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 999))
def test_concatenated_chunks_equal_the_video(data, seed):
    """Positions, assignment and times of concatenated batches of chunks equal those of the full videos."""
    H, W = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    lengths = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    chunks = [[video(T, H, W, seed + 10 * index + b) for index, T in enumerate(lengths)] for b in range(2)]
    for index in range(len(lengths)):  # times continue over the chunks
        start = sum(lengths[:index])
        for b in range(2):
            single = chunks[b][index]
            times = torch.arange(single.grid.T, dtype=torch.float64) * 0.1 + 1e5 + start * 0.1
            chunks[b][index] = single.replace(grid=Grid(*single.grid.shape, times))
    batch = concatenate([collate([chunks[0][n], chunks[1][n]]).to(torch.bfloat16) for n in range(len(lengths))])
    alone = [concatenate(chunks[b]) for b in range(2)]
    compare(batch, alone, 1e-2)
    for single, parts in zip(alone, chunks, strict=True):
        frames = torch.cat([part.unmerge() for part in parts], 1)
        kept = (single.assignment >= 0).reshape(1, *single.grid.shape)
        torch.testing.assert_close(single.unmerge()[kept], frames[kept])


def test_three_resolutions_in_one_video():
    """Frames of 2x2, 4x4 and 6x6 cells on one reference grid; a token's size is the number of cells it covers."""
    chunks = [Tokens.from_cells(torch.randn(1, 1, side, side, 5).double()) for side in (2, 4, 6)]
    joined = concatenate(chunks).check()
    assert joined.grid.shape == (3, 12, 12)
    assert joined.count.tolist() == [4 + 16 + 36]
    assert joined.sizes.sum() == 3 * 144
    assert joined.sizes[0, :4].tolist() == [36.0] * 4
    back = joined.unmerge()[0]
    for t, (chunk, side) in enumerate(zip(chunks, (2, 4, 6), strict=True)):
        upsampled = chunk.unmerge()[0, 0].repeat_interleave(12 // side, 0).repeat_interleave(12 // side, 1)
        torch.testing.assert_close(back[t], upsampled)
    # The position of a merged token is the mean over its cells, regardless of the resolution of its parts.
    merged = joined.apply(Plan.group(torch.zeros(1, joined.N, dtype=torch.int64), joined, 1))
    torch.testing.assert_close(merged.positions, torch.tensor([[[1.0, 5.5, 5.5]]]))
    torch.testing.assert_close(merged.features[0, 0], back.mean((0, 1, 2)))
    with pytest.raises(ValueError, match="must be a multiple of"):
        chunks[1].to_grid(Grid(1, 6, 6))


@pytest.mark.parametrize("field", ["features", "positions", "sizes", "codes", "attribution"])
def test_check_requires_zero_padding(field):
    tokens = collate([video(1, 2, 2, 0, soft=True), video(3, 2, 2, 1, soft=True)])
    tokens = tokens.replace(codes=torch.zeros(2, tokens.N, 2, dtype=torch.int64)).check()
    value = getattr(tokens, field).clone()
    value[~tokens.mask] = 1
    with pytest.raises(ValueError, match="padded slots must be zero"):
        tokens.replace(**{field: value}).check()
