"""Laws of all memories: bounded, independent of chunks, batch and later frames, and bit-identical after a restart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._pytree import tree_leaves

from fewtokens.core import registry
from fewtokens.core.batch import collate
from fewtokens.core.grid import Grid
from fewtokens.core.memory import Memory, MemoryState
from fewtokens.core.syntax import folder
from fewtokens.core.tokens import Tokens
from fewtokens.methods.memory.videollamb import VideoLLaMB
from tests.helpers.clips import assert_same_tokens
from tests.helpers.frames import cut, stream
from tests.laws.laws import check_metadata

# Small memories, so that short streams fill them.
SPECS = [
    "halving(6)",
    "kmeans_cap(6, recent=3)",
    "lion_fs(6)",
    "ma_lmm(6)",
    "moviechat(6, short=4)",
    "moviechat(6, short=1, slots=1)",
    "moviechat(4, short=5, variant='code')",
    "reservoir(6)",
    "ring(6)",
    "tdc(6, chunk=3, tokens=2, num_layers=1)",
    "token_turing_memory(4, tokens=4, processed=2, num_layers=1)",
    "tome_cap(6, recent=3)",
    "vidcompress(6, clip=3)",
    "video_xl_pro(6)",
    "videollamb(10, memory=2)",
    "videoscan(6)",
    "videoscan(6, rule='merge')",
    "videostreaming(6, clip=3)",
]
# Summarize also the frames of a step that is not full yet.
SUMMARIES = ("tdc", "token_turing_memory", "video_xl_pro", "videostreaming")
# Their tokens are new features, also without training.
NETWORKS = ("token_turing_memory",)
# Their slots have a token for the full frame, in addition to those of its parts.
WITH_MEAN = ("lion_fs",)
# Merge only neighbors in time, so that slots are disjoint spans.
ADJACENT = ("lion_fs", "ma_lmm", "moviechat", "videoscan", "ring", "halving", "reservoir", "vidcompress", *SUMMARIES)
# Every frame is in some slot.
CONSERVE = (
    "lion_fs", "ma_lmm", "moviechat", "kmeans_cap", "tome_cap", "vidcompress", "videoscan(6, rule='merge')",
    "videostreaming", "video_xl_pro", "token_turing_memory",
)  # fmt: skip
# Summarize each step, also before the memory is full.
NEVER_UNCHANGED = ("moviechat(6, short=4)", "moviechat(4, short=5, variant='code')")


def build(spec: str) -> Memory:
    torch.manual_seed(0)
    (memory,) = registry.build(spec, dim=4)
    assert isinstance(memory, Memory)
    return memory.eval()


def push_chunks(memory: Memory, tokens: Tokens, size: int, state: MemoryState | None = None) -> MemoryState:
    with torch.no_grad():
        for start in range(0, tokens.grid.T, size):
            state = memory.push(cut(tokens, start, min(start + size, tokens.grid.T)), state)
    assert state is not None
    return state


def assert_bit_equal(a: MemoryState | Tokens, b: MemoryState | Tokens) -> None:
    first, second = tree_leaves(a), tree_leaves(b)
    assert len(first) == len(second)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_every_memory_is_tested():
    assert {spec.partition("(")[0] for spec in SPECS} == set(folder("memory"))


@pytest.mark.parametrize("name", folder("memory"))
def test_metadata(name):
    check_metadata(build(name), build)
    assert registry.get(name).stage == "tokens"


@pytest.mark.parametrize("spec", SPECS)
class TestEveryMemory:
    def test_bytes_are_flat(self, spec):
        """The benchmark `longvideo` has 36,000 frames of each memory."""
        memory = build(spec)
        T = 10_000 if spec == "ring(6)" else 300
        tokens = stream(T // 10)
        state = push_chunks(memory, tokens, 100)
        size = state.nbytes
        assert size <= memory.max_bytes(1, 4)
        for part in range(1, 10):
            later = tokens.replace(grid=type(tokens.grid)(T // 10, 1, 1, tokens.grid.times + part * T / 20))
            state = push_chunks(memory, later, 100, state)
            assert state.nbytes == size
        assert state.seen.tolist() == [T]
        assert memory.cap + waiting(memory) >= memory.read(state).grid.T

    def test_chunks_do_not_matter(self, spec):
        memory, tokens = build(spec), stream(29, H=2, W=3, B=2)
        expected = push_chunks(memory, tokens, 29)
        for size in (1, 3, 7):
            assert_bit_equal(push_chunks(memory, tokens, size), expected)

    def test_reading_at_any_time(self, spec):
        """A read equals that of a stream that ends there, reads change nothing, and no read depends on later frames."""
        memory, tokens = build(spec), stream(29)
        later = tokens.replace(features=torch.cat([tokens.features[:, :20], -tokens.features[:, 20:]], 1))
        state = other = None
        for t in range(29):
            state, other = (push_chunks(memory, cut(x, t, t + 1), 1, s) for x, s in ((tokens, state), (later, other)))
            before = state.clone()
            read = memory.read(state).check()
            assert_bit_equal(read, memory.read(state))
            assert_bit_equal(before, state)
            if t in (0, 5, 11, 28):
                assert_bit_equal(read, memory.read(push_chunks(memory, cut(tokens, 0, t + 1), 40)))
            assert read.meta["forgotten"] == [t + 1 - read.grid.T]
            if t < 20:
                assert_bit_equal(read, memory.read(other))

    def test_a_short_video_is_unchanged(self, spec):
        T = 1 if spec.startswith(SUMMARIES) else 6 if memory_keeps_frames(spec) else 3
        memory, tokens = build(spec), stream(T, H=2, W=2, B=2)
        out = memory(tokens).check()
        read = memory.read(memory.push(tokens))
        if spec.startswith("videoscan"):
            assert out.features.tolist() == tokens.features.unflatten(1, (-1, 4)).mean(2).tolist()
        elif spec.startswith(WITH_MEAN):
            frames = tokens.features.unflatten(1, (-1, 4))
            assert out.features.tolist() == torch.cat([frames.mean(2, True), frames], 2).flatten(1, 2).tolist()
        elif not spec.startswith(NETWORKS):
            assert_same_tokens(out, tokens)
            assert_same_tokens(read, tokens)
        assert torch.equal(read.grid.times, tokens.grid.times)
        assert out.meta["forgotten"] == read.meta["forgotten"] == [0, 0]

    def test_mass(self, spec):
        memory, tokens = build(spec), stream(50, H=2, W=2)
        out, read = memory(tokens).check(), memory.read(memory.push(tokens))
        frames = float(out.sizes.sum()) / 4
        assert float(read.sizes.sum()) / 4 == pytest.approx(frames)
        if spec.startswith(CONSERVE):
            assert frames == pytest.approx(50)
            cells = memory.slot_tokens(4)
            expected = tokens.features.unflatten(1, (50, 4)).mean(1) if cells == 4 else tokens.features.mean(1, True)
            mean = (out.sizes[..., None] * out.features).unflatten(1, (-1, cells)).sum(1) / (200 / cells)
            # video_xl_pro repeats the last frame.
            if "variant" not in spec and not spec.startswith(("video_xl_pro", *WITH_MEAN, *NETWORKS)):
                torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)
        elif spec.startswith(("videollamb", "tdc")):
            assert 50 - frames >= out.meta["forgotten"][0]  # merges frames and drops others
        else:
            assert 50 - frames == out.meta["forgotten"][0] == read.meta["forgotten"][0]

    def test_time(self, spec):
        memory, tokens = build(spec), stream(50)
        out = memory.read(memory.push(tokens))
        seconds, spans = out.grid.times, torch.tensor(out.meta["spans"][0])
        assert bool((seconds[1:] >= seconds[:-1]).all())
        assert bool((spans[:, 0] <= seconds).all()) and bool((seconds <= spans[:, 1]).all())
        if spec.startswith(ADJACENT):
            assert bool((spans[1:, 0] > spans[:-1, 1]).all())
            # On the grid of the video, sizes are the numbers of assigned cells.
            placed = memory(tokens)
            counts = torch.bincount(placed.assignment[placed.assignment >= 0], minlength=placed.N)
            if spec.startswith(("tdc", *WITH_MEAN, *NETWORKS)):  # tokens of a slot share its cells
                assert counts.sum() == placed.sizes.sum()
            else:
                assert counts.tolist() == placed.sizes[0].tolist()

    @pytest.mark.parametrize("on_jump", ["shift", "reset"])
    def test_times_that_go_back_in_a_whole_video(self, spec, on_jump):
        """A video is that with the seconds of `on_jump`: later ones, or only those since it was emptied."""
        memory, tokens = build(spec), stream(29, H=1, W=2, B=2, lengths=[29, 25])
        memory.on_jump = on_jump
        times = torch.arange(29) / 2
        back = torch.stack([times, torch.cat([times[:12] + 100, times[12:]])])  # only in the second video
        both = memory(tokens.replace(grid=replace(tokens.grid, times=back))).check()
        out, forgotten = both[1], both.meta["forgotten"]
        start = 12 if on_jump == "reset" else 0
        shifted = torch.cat([times[:12], times[12:] - times[12] + times[11]]) + 100
        seconds = (shifted if on_jump == "shift" else back[1])[start:25]
        alone = Tokens.from_cells(tokens.features[1:, 2 * start : 50], Grid(25 - start, 1, 2, seconds))
        expected = memory(alone)
        count = int(expected.count)
        torch.testing.assert_close(out.features[0, :count], expected.features[0, :count])
        assert int(out.count) == count
        assert forgotten[1] == expected.meta["forgotten"][0] + start
        assert out.assignment[0].tolist()[: 2 * start] == [-1] * 2 * start
        assert out.assignment[0, 2 * start : 50].tolist() == expected.assignment[0].tolist()
        places = expected.positions[0, :count] + torch.tensor([start, 0, 0])
        torch.testing.assert_close(out.positions[0, :count], places)

    def test_a_snapshot_is_bit_identical(self, spec, tmp_path):
        memory, tokens = build(spec), stream(40, B=2, H=1, W=2)
        state = push_chunks(memory, cut(tokens, 0, 23), 5)
        path = memory.snapshot(state, tmp_path / "state.safetensors")
        restored = build(spec).restore(path)
        assert_bit_equal(restored, state)
        rest = cut(tokens, 23, 40)
        assert_bit_equal(push_chunks(memory, rest, 4, restored), push_chunks(memory, rest, 4, state))

    def test_videos_of_a_batch_are_independent(self, spec):
        memory = build(spec)
        videos = [stream(T, H=2, W=2, seed=T) for T in (31, 9, 17, 31)]
        batch = collate(videos)
        with torch.no_grad():
            state = memory.push(batch, memory.push(batch.replace(grid=later(batch.grid, -20))))
            out = memory.read(state)
            forward = memory(batch)
        for b, video in enumerate(videos):
            alone = memory.read(memory.push(video, memory.push(video.replace(grid=later(video.grid, -20)))))
            assert_same_tokens(out[b], alone)
            assert torch.equal(out[b].grid.times, alone.grid.times)
            assert_same_tokens(forward[b], memory(video))

    def test_a_reset_memory_is_as_new(self, spec):
        memory, tokens = build(f"{spec[:-1]}, on_jump='reset')"), stream(20, H=2, W=2)
        state = push_chunks(memory, tokens.replace(grid=later(tokens.grid, 100)), 20)
        assert_bit_equal(push_chunks(memory, tokens, 7, state), push_chunks(memory, tokens, 20))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, spec, dtype):
        """Comparisons are in float32, so that scenes are held as in float32."""
        memory = build(spec)
        generator = torch.Generator().manual_seed(0)
        scenes = torch.randn(9, 4, generator=generator).to(dtype).repeat_interleave(5, 0)[None]
        tokens = stream(45).replace(features=scenes)
        out = memory.read(memory.push(tokens))
        assert out.features.dtype == dtype
        expected = memory.read(memory.push(tokens.to(torch.float32)))
        assert out.meta == expected.meta
        torch.testing.assert_close(out.features.float(), expected.features, rtol=1e-2, atol=1e-2)

    def test_tokens_of_an_earlier_method(self, spec):
        """Frames may have any number of tokens, if all have the same."""
        memory, tokens = build(spec), stream(20, H=3, W=4)
        fewer = registry.build("spatial_pool(2)")[0](tokens)
        out = memory(fewer).check()
        if not spec.startswith("tdc"):  # drops tokens of chunks with fewer frames
            assert out.N % memory.slot_tokens(4) == 0
        assert out.grid == tokens.grid
        with pytest.raises(ValueError, match="requires the same number of tokens in every frame"):
            memory(registry.build("random(0.3)")[0](tokens))

    def test_equal_frames(self, spec):
        memory, tokens = build(spec), stream(40)
        for value in (0.0, 1.5):
            out = memory(tokens.replace(features=torch.full_like(tokens.features, value))).check()
            if spec.startswith(NETWORKS):
                continue
            torch.testing.assert_close(out.features, torch.full_like(out.features, value))

    def test_a_memory_of_one_slot(self, spec):
        name, _, arguments = spec.partition("(")
        others = arguments.partition(",")[2] or ")"
        if name == "tome_cap":
            others = " recent=1)"
        memory = build(f"{name}(1,{others}")
        assert 1 + waiting(memory) >= memory.read(memory.push(stream(30))).check().grid.T


def waiting(memory: Memory) -> int:
    """The largest number of frames that wait to be written."""
    return memory.frames if isinstance(memory, VideoLLaMB) else memory.recent


def memory_keeps_frames(spec: str) -> bool:
    return spec not in NEVER_UNCHANGED


def later(grid, seconds: float):
    return type(grid)(*grid.shape, grid.times + seconds, grid.lengths)


def needles(spec: str, T: int, at: list[int]) -> torch.Tensor:
    """Whether a slot within 2 s of a planted frame is similar to it, for each of a batch of streams of 1 frame/s."""
    memory = build(spec)
    generator = torch.Generator().manual_seed(0)
    B, C = len(at), 64
    scene, needle = torch.nn.functional.normalize(torch.randn(2, B, 1, C, generator=generator), dim=-1)
    # Pairs of frames have a cosine of 0.8.
    features = scene + 0.5 * torch.randn(B, T, C, generator=generator) / C**0.5
    rows = torch.arange(B)
    features[rows, at] = needle[:, 0]
    tokens = Tokens.from_cells(features[:, :, None, None])
    with torch.no_grad():
        out = memory.read(memory.push(tokens))
    near = (out.grid.times.expand(B, -1) - torch.tensor(at)[:, None]).abs() <= 2
    return ((torch.nn.functional.cosine_similarity(out.features, needle, dim=2) > 0.6) & near & out.mask).any(1)


def test_a_needle():
    at = torch.randint(20, 1900, (10,), generator=torch.Generator().manual_seed(0)).tolist()
    assert bool(needles("moviechat(64, short=1, slots=1)", 2000, at).all())
    assert bool(needles("videoscan(64)", 2000, at).all())
    assert not bool(needles("ring(64)", 2000, at).any())
    assert needles("halving(64)", 2000, at).tolist() == [index % 32 == 0 for index in at]
