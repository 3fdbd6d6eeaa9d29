"""The base class of memories: times, the state, the grid of what is read, and one line for what is wrong."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

import fewtokens
from fewtokens.core.grid import Grid
from fewtokens.core.memory import Memory, MemoryState, Slots
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.tokens import Tokens
from tests.helpers.frames import angles, at_angles, cut, stream


class Sums(Memory):
    """Adds up each pair of frames in one slot."""

    def __init__(self, cap: int = 3, *, on_jump: str = "error") -> None:
        super().__init__()
        self.set_memory(cap, on_jump, recent=2)

    def write(self, frames: Slots, state: MemoryState, **cues: torch.Tensor) -> None:
        assert state.frames % 2 == 0
        first, second = frames.span(0, 1), frames.span(1, 2)
        mean = (first.seconds + second.seconds) / 2
        total = Slots.create(first.features + second.features, first.mass + second.mass, mean, first.place)
        state.slots.put_span(state.frames // 2 % self.cap, total)


def push(memory: Memory, *chunks: list[float] | None, frames: int = 1) -> MemoryState:
    state = None
    for seconds in chunks:
        times = None if seconds is None else torch.tensor(seconds, dtype=torch.float64)
        T = frames if seconds is None else len(seconds)
        state = memory.push(Tokens.from_cells(torch.ones(1, T, 2), Grid(T, 1, 1, times)), state)
    assert state is not None
    return state


def seconds_of(memory: Memory, state: MemoryState) -> list[float]:
    return memory.read(state).grid.times.tolist()


class TestSteps:
    def test_a_step_waits_until_it_is_full(self):
        memory, tokens = Sums(), stream(5)
        x = tokens.features[0]
        read = memory.read(memory.push(cut(tokens, 0, 1)))
        assert torch.equal(read.features[0], x[:1])
        read = memory.read(memory.push(tokens))
        assert torch.equal(read.features[0], torch.stack([x[0] + x[1], x[2] + x[3], x[4]]))
        assert read.sizes.tolist() == [[2, 2, 1]]
        assert read.grid.times.tolist() == [0.25, 1.25, 2]

    def test_gradients_reach_all_frames(self):
        memory, tokens = Sums(), stream(5)
        features = tokens.features.clone().requires_grad_()
        memory(tokens.replace(features=features)).features.square().sum().backward()
        assert bool((features.grad != 0).all())
        memory = fewtokens.create_method("moviechat", cap=2, short=1, slots=1)
        features.grad = None
        state = memory.push(tokens.replace(features=features))
        memory.read(state).features.square().sum().backward()
        assert bool((features.grad != 0).all())


class TestTime:
    def test_seconds_are_absolute_and_exact(self):
        memory = fewtokens.create_method("ring", cap=3)
        start = 1.8e9  # a clock; float32 would have steps of 128 s
        state = push(memory, [start, start + 0.04], [start + 0.08, start + 3600])
        assert seconds_of(memory, state) == [start + 0.04, start + 0.08, start + 3600]

    def test_a_gap_stays_a_gap_and_equal_times_are_legal(self):
        memory = fewtokens.create_method("moviechat", cap=4, short=1, slots=1)
        state = push(memory, [0, 1, 1], [1, 3601.0])
        read = memory.read(state)
        assert read.grid.times.tolist() == [0.5, 1, 1, 3601]
        assert read.meta["spans"] == [[[0, 1], [1, 1], [1, 1], [3601, 3601]]]

    def test_frames_without_times_are_a_second_apart(self):
        memory = fewtokens.create_method("ring", cap=8)
        state = push(memory, None, None, frames=2)
        assert seconds_of(memory, state) == [0, 1, 2, 3]
        state = push(memory, [10.5], None, frames=2)
        assert seconds_of(memory, state) == [10.5, 11.5, 12.5]

    def test_a_step_back_raises_and_changes_nothing(self):
        memory = fewtokens.create_method("ring", cap=8)
        state = push(memory, [5, 6.0])
        before = state.clone()
        message = r"^ring: time goes back from 7\.000 s to 2\.000 s; on_jump='shift' continues .* empties the memory$"
        with pytest.raises(ValueError, match=message):
            memory.push(Tokens.from_cells(torch.ones(1, 2, 2), Grid(2, 1, 1, torch.tensor([7, 2.0]))), state)
        assert all(torch.equal(a, b) for a, b in zip(tree_leaves(state), tree_leaves(before), strict=True))
        # Less than a millisecond is rounding.
        assert seconds_of(memory, push(memory, [5.0, 4.9995, 6])) == [5, 5, 6]

    @pytest.mark.parametrize("chunks", [[[5, 6, 2, 3.5, 1, 2.0]], [[5, 6], [2, 3.5], [1], [2.0]]])
    def test_shift(self, chunks):
        memory = fewtokens.create_method("ring", cap=8, on_jump="shift")
        assert seconds_of(memory, push(memory, *chunks)) == [5, 6, 6, 7.5, 7.5, 8.5]

    @pytest.mark.parametrize("chunks", [[[5, 6, 2, 3.5]], [[5, 6], [2], [3.5]]])
    def test_reset(self, chunks):
        memory = Sums(on_jump="reset")
        state = push(memory, *chunks)
        fresh = push(Sums(on_jump="reset"), [2, 3.5])
        assert all(torch.equal(a, b) for a, b in zip(tree_leaves(state), tree_leaves(fresh), strict=True))

    def test_reset_without_a_buffer(self):
        memory = fewtokens.create_method("ring", cap=8, on_jump="reset")
        state = memory.push(at_angles(10, 20, 30, seconds=[6, 7, 2]))
        assert angles(memory.read(state)) == [30]
        assert memory.read(state).grid.times.tolist() == [2]

    def test_only_the_video_that_jumps_is_reset(self):
        memory, tokens = Sums(on_jump="reset"), stream(4, B=2)
        times = torch.tensor([[0, 1, 2, 3], [0, 1, 0.5, 1.5]])
        state = memory.push(tokens.replace(grid=Grid(4, 1, 1, times)))
        assert state.seen.tolist() == [4, 2]
        assert memory.read(state).count.tolist() == [2, 1]

    @pytest.mark.parametrize("second", [float("nan"), float("inf")])
    def test_times_must_be_finite(self, second):
        with pytest.raises(ValueError, match=r"^ring: the time of every frame must be finite$"):
            push(fewtokens.create_method("ring"), [0, second])


class TestState:
    def test_repr_and_pytree(self):
        state = Sums().push(stream(3, B=2, H=1, W=2))
        assert repr(state).startswith("MemoryState(slots=Slots(features=float32[2, 3, 2, 4]")
        doubled = tree_map(lambda value: value * 2, state)
        assert torch.equal(doubled.slots.features, state.slots.features * 2)
        assert state.nbytes == sum(value.numel() * value.element_size() for value in tree_leaves(state))
        assert state.nbytes <= 2 * Sums().max_bytes(2, 4)
        assert Sums().max_bytes(2, 4, torch.bfloat16) < Sums().max_bytes(2, 4)

    def test_the_bound_of_the_specification(self):
        """64 slots of 32 tokens of 896 channels in bfloat16 are 3.67 MB."""
        bound = fewtokens.create_method("ring", cap=64).max_bytes(32, 896, torch.bfloat16)
        assert bound == pytest.approx(3.67e6, rel=0.02)

    def test_other_frames_are_refused(self):
        memory = fewtokens.create_method("ring")
        state = memory.push(stream(2, H=2, W=2))
        for other, message in (
            (stream(2, H=4, W=1), "the state has rows 2, these frames have 4"),
            (stream(2, H=2, W=2, C=3), "the state has channels 4, these frames have 3"),
            (stream(2, H=2, W=2, B=2), "the state has videos 1, these frames have 2"),
            (stream(2, H=2, W=2).to(torch.bfloat16), r"the state has dtype torch.float32, these frames have torch.bf"),
        ):
            with pytest.raises(ValueError, match=f"^ring: {message}"):
                memory.push(other, state)

    def test_arguments(self):
        with pytest.raises(ValueError, match="ring: cap must be at least 1, got 0"):
            fewtokens.create_method("ring", cap=0)
        with pytest.raises(ValueError, match="ring: on_jump must be 'error', 'shift' or 'reset', got 'skip'"):
            fewtokens.create_method("ring", on_jump="skip")

    def test_a_snapshot_of_another_memory_is_refused(self, tmp_path):
        memory = fewtokens.create_method("ring", cap=3)
        path = memory.snapshot(memory.push(stream(2)), tmp_path / "state.safetensors")
        with pytest.raises(ValueError, match=r"is of ring\(cap=3.*\), not of ring\(cap=4"):
            fewtokens.create_method("ring", cap=4).restore(path)
        with pytest.raises(ValueError, match="no such file"):
            memory.restore(tmp_path / "missing.safetensors")


class TestGrid:
    def test_a_read_has_one_frame_per_slot(self):
        memory = fewtokens.create_method("moviechat", cap=3, short=1, slots=1)
        state = memory.push(at_angles(0, 4, 50, 52, 90, 91, seconds=[10, 11, 12, 13, 14, 15]))
        read = memory.read(state)
        assert read.grid == Grid(3, 1, 1, torch.tensor([10.5, 12.5, 14.5]))
        assert read.positions[0, :, 0].tolist() == [0, 1, 2]
        assert read.assignment.tolist() == [[0, 1, 2]]
        assert read.sizes.tolist() == [[2, 2, 2]]
        assert read.meta == {"spans": [[[10, 11], [12, 13], [14, 15]]], "forgotten": [3]}

    def test_cells_go_to_the_nearest_token_of_a_slot(self):
        tokens = stream(3, H=2, W=4)
        halves = fewtokens.build("spatial_pool(2)")[0](tokens)
        read = fewtokens.create_method("ring").read(fewtokens.create_method("ring").push(halves))
        assert read.assignment[0].tolist() == halves.assignment[0].tolist()
        torch.testing.assert_close(read.positions, halves.positions)

    def test_as_many_tokens_as_cells_that_are_not_the_cells(self):
        """LION-FS has the mean of a frame before its parts: 1 + 9 tokens of 2 x 5 cells."""
        read = fewtokens.create_method("lion_fs").read(fewtokens.create_method("lion_fs").push(stream(1, H=2, W=5)))
        assert read.N == 10
        cells = torch.cartesian_prod(torch.arange(2), torch.arange(5))
        assigned = read.positions[0, read.assignment[0], 1:]
        nearest = torch.cdist(cells.float(), read.positions[0, :, 1:]).min(1).values
        torch.testing.assert_close((assigned - cells).norm(dim=1), nearest)

    def test_a_pipeline(self):
        encoder = fewtokens.load_encoder("patches", patch_size=16)
        frames = torch.randint(0, 256, (9, 3, 32, 48), dtype=torch.uint8)
        times = torch.arange(9) / 4
        pipeline = Pipeline("ring(4)", encoder)
        out = pipeline(frames, times)
        assert out.grid.T == 9 and out.count.tolist() == [4 * 6]
        state, reads = None, []
        for start in (0, 5):
            read, state = pipeline.step(frames[start : start + 5], state, times[start : start + 5])
            reads.append(read)
        joined = pipeline.join(reads)
        assert torch.equal(joined.features, out.features)
        assert joined.grid.times.tolist() == times[-4:].tolist()
        assert pipeline.planned_count(Grid(9, 2, 3)) is None
        chained = Pipeline("ring(4) | tome(keep=6)", encoder)(frames, times)
        assert chained.count.tolist() == [6]
