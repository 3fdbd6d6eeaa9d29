"""`Memory`: the base class of methods that summarize an endless stream in bounded memory.

A memory holds M slots. A slot is P tokens, the tokens of one frame or the mean of several, with the seconds that it
stands for. The base class splits any chunk into single frames, checks their times, collects the frames of a step in a
buffer, and turns the slots into `Tokens`; a subclass only writes a step of frames to the slots.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from fewtokens.core import files
from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.plan import group_count
from fewtokens.core.pytree import register
from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import Tokens

OnJump = Literal["error", "shift", "reset"]

# Time stamps of real files differ by rounding; a smaller step back is none.
TOLERANCE = 1e-3
# In seconds; more than any time stamp.
_LONG_AGO = 1e18


@dataclass(eq=False)
class Slots:
    """M slots of P tokens for each of B videos.

    Attributes:
        features: [B,M,P,C].
        info: float64 [B,M,4+2P], all other numbers of a slot, in this order: `mass`, `seconds`, `place`. In one tensor
            they move by one operation.
    """

    features: Tensor
    info: Tensor

    __repr__ = shape_repr

    @staticmethod
    def create(features: Tensor, mass: Tensor, seconds: Tensor, place: Tensor) -> Slots:
        """Creates slots from `features` [B,M,P,C] and numbers of any dtype, see the properties."""
        parts = (mass[..., None], seconds, place.flatten(2))
        return Slots(features, torch.cat([part.double() for part in parts], 2))

    @staticmethod
    def empty(shape: Sequence[int], like: Tensor) -> Slots:
        """Creates free slots of a shape [B,M,P,C], with features in the dtype and on the device of `like`."""
        B, M, P, _ = shape
        info = torch.zeros(B, M, 4 + 2 * P, dtype=torch.float64, device=like.device)
        return Slots(like.new_zeros(shape), info)

    @property
    def count(self) -> int:
        """The number M of slots, free ones included."""
        return self.features.shape[1]

    @property
    def mass(self) -> Tensor:
        """The number of frames that a slot stands for, float64 [B,M]; 0 for a free slot."""
        return self.info[..., 0]

    @property
    def mask(self) -> Tensor:
        """Which slots are in use, bool [B,M]."""
        return self.mass > 0

    @property
    def seconds(self) -> Tensor:
        """The mean, first and last second of these frames, float64 [B,M,3]."""
        return self.info[..., 1:4]

    @property
    def place(self) -> Tensor:
        """The mean (y,x) of each token as a fraction of the height and width of the frame, float64 [B,M,P,2].

        As fractions, frames of several sizes can be averaged.
        """
        return self.info[..., 4:].unflatten(2, (-1, 2))

    def take(self, index: Tensor) -> Slots:
        """Returns copies of the slots at `index`, int64 [B,K]."""
        flat = self._flat(index)
        return Slots(*(part.flatten(0, 1).index_select(0, flat).unflatten(0, index.shape) for part in self._parts))

    def span(self, start: int, stop: int) -> Slots:
        """Returns the slots start..stop-1 of all videos, without copying them."""
        return Slots(self.features[:, start:stop], self.info[:, start:stop])

    def put(self, index: Tensor, slots: Slots) -> None:
        """Replaces the slots at `index`, int64 [B,K], in place; no index may repeat within a video."""
        row = torch.arange(len(index), device=index.device)[:, None]
        self._write((row, index), slots)

    def put_span(self, start: int, slots: Slots) -> None:
        """Replaces the slots from `start` on, in place."""
        self._write((slice(None), slice(start, start + slots.count)), slots)

    def put_videos(self, videos: Sequence[int], slots: Slots) -> None:
        """Replaces all slots of some videos, in place."""
        self._write((list(videos),), slots)

    def clear(self, start: int = 0) -> None:
        """Frees the slots from `start` on."""
        self.info[:, start:] = 0

    @staticmethod
    def concatenate(parts: Sequence[Slots]) -> Slots:
        """Concatenates the slots of the same videos."""
        return Slots(torch.cat([part.features for part in parts], 1), torch.cat([part.info for part in parts], 1))

    @property
    def _parts(self) -> tuple[Tensor, Tensor]:
        return self.features, self.info

    def _flat(self, index: Tensor) -> Tensor:
        """Indices into the slots of all videos, int64 [B*K]."""
        start = torch.arange(0, len(index) * self.count, self.count, device=index.device)
        return (index + start[:, None]).flatten()

    def _write(self, index: tuple[Any, ...], slots: Slots) -> None:
        if torch.is_grad_enabled() and (slots.features.requires_grad or self.features.requires_grad):
            # The values before are needed for the backward pass.
            self.features = self.features.clone()
        self.features[index] = slots.features.to(self.features.dtype)
        self.info[index] = slots.info


@dataclass(eq=False)
class MemoryState:
    """The state of a `Memory` for B videos. `push` changes it in place; `clone` copies it.

    Attributes:
        slots: the M slots.
        recent: frames of a step that is not full yet, one slot each; None if every frame is written at once.
        seen: int64 [B], number of frames pushed so far; on the CPU.
        clock: float64 [B,2], the second of the last frame, and what is added to the seconds of the stream (see
            `on_jump`); on the CPU.
        stats: small tensors of the method by name, [B,...].
        H, W: rows and columns of a frame.
    """

    slots: Slots
    recent: Slots | None
    seen: Tensor
    clock: Tensor
    stats: dict[str, Tensor] = field(default_factory=dict)
    H: int = 1
    W: int = 1

    __repr__ = shape_repr

    @property
    def frames(self) -> int:
        """The number of frames of the first video; in `Memory.write` that of every video."""
        return int(self.seen[0])

    @property
    def nbytes(self) -> int:
        """The number of bytes of all tensors."""
        return sum(value.numel() * value.element_size() for value in tree_leaves(self))

    def clone(self) -> MemoryState:
        """Returns a copy that shares no memory."""
        return tree_map(torch.clone, self)

    def to(self, device: torch.device | str) -> MemoryState:
        """Moves the state to a device; `seen` and `clock` stay on the CPU."""
        moved = tree_map(lambda value: value.to(device), self)
        return replace(moved, seen=self.seen, clock=self.clock)

    def select(self, videos: Sequence[int]) -> MemoryState:
        """Returns a copy of the state of some videos."""
        return tree_map(lambda value: value[list(videos)], self)


register(Slots, ("features", "info"))
register(MemoryState, ("slots", "recent", "seen", "clock", "stats"))


class Memory(Method):
    """A method that summarizes an endless stream in bounded memory and can be read at any time.

        memory = fewtokens.create_method("moviechat", cap=64)
        state = None
        for chunk in chunks:  # Tokens, with the second of each frame in `chunk.grid.times`
            state = memory.push(chunk, state)
        tokens = memory.read(state)

    Every frame must have the same number P of tokens: one per cell, or as many as an earlier method of the chain leaves
    in each. The result depends on the frames only, not on the chunks in which they are pushed, and each video of a
    batch is independent of the others. Prefix tokens are discarded.

    Seconds are those of the stream, in float64. A frame of equal time is legal; an earlier one (by more than 1 ms) is
    handled as `on_jump` says:
        "error": raises; the state is unchanged.
        "shift": this and all later frames are moved in time, so that it is shown at the second of the last frame.
        "reset": the memory of this video is emptied.
    Frames without times are 1 s apart.

    A subclass calls `set_memory` in its constructor and overrides `write`. It may override `new_stats` and `held`. One
    that reads the question has `optional_cues = ("text",)`; its state must not depend on it.

    Attributes:
        cap: number M of slots.
        recent: number of frames of a step; earlier frames of it wait unchanged in a buffer.
        on_jump: see above.
        separate: whether videos of a batch are written individually, because frames decide when slots are written.
        spare: number of slots in addition to `cap`, free between two frames.
    """

    separate: ClassVar[bool] = False
    spare: ClassVar[int] = 0

    cap: int
    recent: int
    on_jump: str

    def set_memory(self, cap: int, on_jump: str, *, recent: int = 1) -> None:
        """Sets `cap`, `on_jump` and `recent` from the arguments of the constructor.

        Raises:
            ValueError: a number is below 1, or `on_jump` is unknown.
        """
        self.check_initialized()
        for name, value in (("cap", cap), ("recent", recent)):
            if value < 1:
                raise ValueError(f"{self.name}: {name} must be at least 1, got {value}")
        if on_jump not in get_args(OnJump):
            raise ValueError(f"{self.name}: on_jump must be 'error', 'shift' or 'reset', got {on_jump!r}")
        self.cap, self.on_jump, self.recent = cap, on_jump, recent

    @abstractmethod
    def write(self, frames: Slots, state: MemoryState, **cues: Any) -> None:
        """Writes the next `recent` frames to the slots, in place.

        Args:
            frames: these frames as slots of mass 1, [B,recent,P,C].
            state: the state to change. All its videos have seen the same number of frames, `state.frames`, without
                these.
            cues: the cues of `needs`, by name.
        """

    def new_stats(self, B: int, P: int, C: int, device: torch.device) -> dict[str, Tensor]:
        """Returns the initial `MemoryState.stats`, tensors [B,...] of a constant size."""
        return {}

    def slot_tokens(self, P: int) -> int:
        """Returns the number of tokens of a slot, if a frame has P."""
        return P

    def slot_channels(self, C: int) -> int:
        """Returns the number of channels of a slot, if a frame has C."""
        return C

    def min_count(self, grid: Grid) -> int:
        # The first slot.
        return self.slot_tokens(grid.cells_per_frame)

    def held(self, state: MemoryState, **cues: Any) -> Slots:
        """Returns what `read` returns as slots, in any order: the slots and the frames of the last, incomplete step."""
        return state.slots if state.recent is None else Slots.concatenate([state.slots, state.recent])

    def max_bytes(self, P: int, C: int, dtype: torch.dtype = torch.float32) -> int:
        """Returns an upper bound of the bytes of the state of one video, which `push` asserts.

        Args:
            P: number of tokens of a frame.
            C: number of channels.
            dtype: dtype of the features.
        """

        def slot(tokens: int, channels: int) -> int:
            return tokens * (channels * dtype.itemsize + 16) + 32

        stats = self.new_stats(1, P, C, torch.device("meta")).values()
        recent = self.recent if self.recent > 1 else 0
        small = 24 + sum(value.numel() * value.element_size() for value in stats)
        own = slot(self.slot_tokens(P), self.slot_channels(C))
        return (self.cap + self.spare) * own + recent * slot(P, C) + small

    def new_state(self, frames: Slots, H: int, W: int) -> MemoryState:
        """Returns an empty memory for videos with such frames [B,n,P,C]."""
        B, _, P, C = frames.features.shape
        like = frames.features.detach()
        return MemoryState(
            slots=Slots.empty((B, self.cap + self.spare, self.slot_tokens(P), self.slot_channels(C)), like),
            recent=Slots.empty((B, self.recent, P, C), like) if self.recent > 1 else None,
            seen=torch.zeros(B, dtype=torch.int64),
            clock=torch.tensor([[-torch.inf, 0.0]], dtype=torch.float64).repeat(B, 1),
            stats=self.new_stats(B, P, C, like.device),
            H=H,
            W=W,
        )

    def push(self, tokens: Tokens, state: MemoryState | None = None, **cues: Any) -> MemoryState:
        """Adds the next frames of each video.

        Args:
            tokens: the tokens of these frames, the same number in each.
            state: the state that the previous call returned, or None for an empty memory. It is changed in place.
            cues: the cues of `needs`, by name.

        Returns:
            The new state.

        Raises:
            ValueError: frames have different numbers of tokens or another shape than earlier ones, or a time is
                invalid (see `on_jump`).
        """
        return self._push(tokens, state, **cues)[0]

    def _push_video(self, tokens: Tokens, **cues: Any) -> tuple[MemoryState, Tensor]:
        """Pushes a whole video; also returns the second of each frame, float64 [B,T], rising.

        Frames before a reset are at -inf, and padding comes with the last frame.
        """
        state, seconds, jumps = self._push(tokens, None, **cues)
        begin = torch.tensor([max(each, default=0) for each in jumps])
        real = tokens.grid.cell_mask(tokens.B)[:, :: tokens.grid.cells_per_frame]
        counted = real & (torch.arange(tokens.grid.T) >= begin[:, None])
        return state, seconds.masked_fill(~counted, -torch.inf).cummax(1).values

    def _push(
        self, tokens: Tokens, state: MemoryState | None, **cues: Any
    ) -> tuple[MemoryState, Tensor, list[set[int]]]:
        """As `push`; also the second of each frame, float64 [B,T], and the frames before which each video was reset."""
        self._check_inputs(tokens, cues)
        grid = tokens.grid
        frames = _split(tokens, self.name)
        if state is None:
            state = self.new_state(frames, grid.H, grid.W)
        self._check_state(state, frames, grid)
        lengths = [grid.T] * tokens.B if grid.lengths is None else grid.lengths.tolist()
        seconds, jumps = self._set_seconds(frames, grid, lengths, state)
        for t in range(grid.T):
            for b in range(tokens.B):
                if t in jumps[b]:
                    self._reset(state, b, *frames.features.shape[2:])
            seen = state.seen.tolist()
            active = [b for b in range(tokens.B) if t < lengths[b]]
            groups = {(seen[b], b if self.separate else 0): [] for b in active}  # type: ignore[var-annotated]
            for b in active:
                groups[seen[b], b if self.separate else 0].append(b)
            frame = frames.span(t, t + 1)
            for videos in groups.values():
                if len(videos) == tokens.B:
                    self._push_frame(frame, state, **cues)
                else:
                    part = state.select(videos)
                    own = {name: cue[videos] for name, cue in cues.items()}
                    self._push_frame(tree_map(lambda value, v=videos: value[v], frame), part, **own)
                    _assign(state, videos, part)
        P, C = frames.features.shape[2:]
        assert state.nbytes <= tokens.B * self.max_bytes(P, C, frames.features.dtype)
        return state, seconds, jumps

    def _push_frame(self, frame: Slots, state: MemoryState, **cues: Any) -> None:
        """Adds one frame of every video of the state."""
        if state.recent is None:
            self.write(frame, state, **cues)
        else:
            index = state.frames % self.recent
            state.recent.put_span(index, frame)
            if index == self.recent - 1:
                step, state.recent = state.recent, Slots.empty(state.recent.features.shape, frame.features.detach())
                # The frames of the step have been counted but for the last one.
                state.seen -= index
                self.write(step, state, **cues)
                state.seen += index
        state.seen += 1

    def _check_state(self, state: MemoryState, frames: Slots, grid: Grid) -> None:
        B, _, P, C = frames.features.shape
        slots = state.slots.features
        expected = len(state.seen), state.H, state.W, slots.shape[2], slots.shape[3], slots.dtype
        actual = B, grid.H, grid.W, self.slot_tokens(P), self.slot_channels(C), frames.features.dtype
        names = "videos", "rows", "columns", "tokens per slot", "channels", "dtype"
        for name, before, now in zip(names, expected, actual, strict=True):
            if before != now:
                raise ValueError(f"{self.name}: the state has {name} {before}, these frames have {now}")

    def _set_seconds(
        self, frames: Slots, grid: Grid, lengths: list[int], state: MemoryState
    ) -> tuple[Tensor, list[set[int]]]:
        """Sets the seconds of the frames and the clock; returns them and the frames before which each video is reset.

        Changes nothing if a time is invalid.
        """
        B = len(lengths)
        last, offset = state.clock.unbind(1)
        if grid.times is None:
            start = torch.where(last.isinf(), 0.0, last + 1)[:, None]
            seconds = torch.cat([start, torch.ones(B, grid.T - 1, dtype=torch.float64)], 1).cumsum(1)
        else:
            seconds = grid.times.expand(B, -1) + offset[:, None]
        real = torch.arange(grid.T) < torch.tensor(lengths)[:, None]
        if not bool(seconds[real].isfinite().all()):
            raise ValueError(f"{self.name}: the time of every frame must be finite")
        clock = state.clock.clone()
        jumps: list[set[int]] = [set() for _ in range(B)]
        before = torch.cat([last[:, None], seconds[:, :-1]], 1)
        if bool((seconds < before)[real].any()):
            for b in range(B):
                latest, shift = float(last[b]), float(offset[b])
                for t in range(lengths[b]):
                    # Added to the stream's own second, so that rounding does not depend on the chunks.
                    second = float(seconds[b, t] if grid.times is None else grid.times.expand(B, -1)[b, t] + shift)
                    if second < latest - TOLERANCE:
                        if self.on_jump == "error":
                            raise ValueError(
                                f"{self.name}: time goes back from {latest:.3f} s to {second:.3f} s; on_jump='shift' "
                                "continues at the earlier time, on_jump='reset' empties the memory"
                            )
                        if self.on_jump == "shift":
                            shift += latest - second
                            second = latest
                        else:
                            jumps[b].add(t)
                            latest = second
                    latest = max(latest, second)
                    seconds[b, t] = latest
                clock[b, 1] = shift
        clock[:, 0] = seconds[torch.arange(B), torch.tensor(lengths) - 1]
        state.clock = clock
        frames.seconds[:] = seconds[..., None].to(frames.features.device)
        return seconds, jumps

    def _reset(self, state: MemoryState, video: int, P: int, C: int) -> None:
        """Empties the memory of one video with P tokens of C channels per frame; its clock stays."""
        part = state.select([video])
        part.slots = tree_map(torch.zeros_like, part.slots)
        if part.recent is not None:  # a leaf to `tree_map`
            part.recent = tree_map(torch.zeros_like, part.recent)
        part.stats = self.new_stats(1, P, C, part.slots.features.device)
        part.seen = torch.zeros_like(part.seen)
        _assign(state, [video], part)

    def read(self, state: MemoryState, **cues: Any) -> Tokens:
        """Returns tokens that summarize all frames pushed so far; the state is unchanged.

        Args:
            state: what `push` returned.
            cues: those of `optional_cues`, by name, such as "text", the question.

        Returns:
            The tokens of all slots, in the order of the mean second of a slot. Their grid has one frame for each slot,
            at its mean second, so it does not grow with the stream. `sizes` are the cells that a token stands for:
            frames of the slot times cells of a frame, divided by the tokens of the slot. `meta["spans"]` lists the
            first and last second of each slot, and `meta["forgotten"]` is the number of frames that have no
            frame in the grid, both as lists over videos.
        """
        slots = _by_time(self.held(state, **cues))
        return self._as_tokens(slots, state)

    def _as_tokens(self, slots: Slots, state: MemoryState) -> Tokens:
        B, M, P, _ = slots.features.shape
        H, W, device = state.H, state.W, slots.features.device
        mask = slots.mask
        count = mask.sum(1).cpu()
        seconds = slots.seconds.cpu()
        # Past the last slot of a video its last second is repeated.
        times = torch.where(mask.cpu(), seconds[..., 0], -torch.inf).cummax(1).values
        same = B == 1 or bool((times == times[0]).all())
        grid = Grid(M, H, W, times[0] if same else times, None if bool((count == M).all()) else count)
        rows = (slots.place * torch.tensor([H, W], device=device) - 0.5).flatten(1, 2).float()
        frame = torch.arange(M, device=device).repeat_interleave(P)
        token = _token_of_cell(slots.place, mask, H, W) + P * torch.arange(M, device=device)[:, None]
        filled = mask.repeat_interleave(P, 1)
        return Tokens(
            features=slots.features.flatten(1, 2),
            positions=torch.cat([frame.to(rows).expand(B, -1)[..., None], rows], 2) * filled[..., None],
            sizes=(slots.mass.float() * (H * W / P)).repeat_interleave(P, 1),
            mask=filled,
            assignment=token.masked_fill(~mask[..., None], -1).flatten(1),
            grid=grid,
            meta={
                "spans": [seconds[b, : count[b], 1:].tolist() for b in range(B)],
                "forgotten": (state.seen - count).tolist(),
            },
        )

    @property
    def causal(self) -> bool:
        return True

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        """Pushes all frames of a video and reads.

        Unlike `read`, the result is on the grid of the video: a token is at the frame of its mean second, and the cells
        of a frame are assigned to the slot whose first and last second contain it. If there is no such slot, or more
        than one, or the memory was emptied after the frame (`on_jump`), they count as dropped, and the frame as
        forgotten.
        """
        state, times = self._push_video(tokens, **cues)
        slots = _by_time(self.held(state, **cues))
        return _on_video(self._as_tokens(slots, state), slots, tokens, times)

    def step(self, tokens: Tokens, state: Any = None, **cues: Any) -> tuple[Tokens, Any]:
        """Pushes the next frames and reads; the tokens are those of all frames so far, see `read`."""
        state = self.push(tokens, state, **cues)
        return self.read(state, **cues), state

    def join(self, chunks: Sequence[Tokens]) -> Tokens:
        """Returns the last output, which summarizes the full video."""
        return chunks[-1]

    def snapshot(self, state: MemoryState, path: str | Path) -> Path:
        """Writes the state to a safetensors file; `restore` returns a bit-identical state.

        Raises:
            OSError: the path is not writable.
        """
        tensors = {"seen": state.seen, "clock": state.clock}
        tensors |= {"slots.features": state.slots.features, "slots.info": state.slots.info}
        if state.recent is not None:
            tensors |= {"recent.features": state.recent.features, "recent.info": state.recent.info}
        tensors |= {f"stats.{name}": value for name, value in state.stats.items()}
        return files.save(path, "memory", tensors, {"spec": self.spec, "H": state.H, "W": state.W})

    def restore(self, path: str | Path, device: torch.device | str = "cpu") -> MemoryState:
        """Reads a state written by `snapshot`.

        Args:
            path: the file.
            device: device of the tensors. Default: "cpu".

        Raises:
            ValueError: the file does not exist, is corrupt, or is of a memory with another spec.
        """
        tensors, header = files.load(path, "memory")
        if header.get("spec") != self.spec:
            raise ValueError(f"{path}: is of {files.one_line(header.get('spec'))}, not of {self.spec}")

        def slots(part: str) -> Slots:
            return Slots(tensors[f"{part}.features"], tensors[f"{part}.info"])

        try:
            state = MemoryState(
                slots("slots"), slots("recent") if self.recent > 1 else None, tensors["seen"], tensors["clock"],
                {name: tensors[f"stats.{name}"] for name in self.new_stats(1, 1, 1, torch.device("meta"))},
                int(header["H"]), int(header["W"]),
            )  # fmt: skip
        except KeyError as error:
            raise ValueError(f"{path}: has no {error}") from None
        return state.to(device)


def _split(tokens: Tokens, name: str) -> Slots:
    """The frames of each video as slots of mass 1 without times, [B,T,P,C]; frames past its length are zero."""
    B, (T, H, W), device = tokens.B, tokens.grid.shape, tokens.device
    features, positions = tokens.features, tokens.positions
    if tokens.has_full_grid() and tokens.grid.lengths is None:
        P = H * W
    else:
        frame = tokens.frame.masked_fill(~tokens.mask, T)
        count = group_count(frame, T + 1)[:, :T]
        real = tokens.grid.cell_mask(B, device)[:, :: H * W]
        P = int(count.max())
        if not bool((count == P * real).all()):
            raise ValueError(
                f"{name} requires the same number of tokens in every frame; put it before methods that drop tokens, or "
                "give these a budget per frame, such as '16/frame'"
            )
        order = frame.argsort(dim=1, stable=True)
        start = torch.arange(T, device=device)[:, None] * P
        index = (start + torch.arange(P, device=device)).flatten()
        index = order[:, index.clamp(max=tokens.N - 1)][..., None]
        features = features.gather(1, index.expand(-1, -1, tokens.C))
        positions = positions.gather(1, index.expand(-1, -1, 3))
    place = (positions[..., 1:] + 0.5) / torch.tensor([H, W], device=device)
    mass, seconds = torch.ones(B, T, device=device), torch.zeros(B, T, 3, device=device)
    return Slots.create(features.reshape(B, T, P, tokens.C), mass, seconds, place.reshape(B, T, P, 2))


def _assign(state: MemoryState, videos: list[int], part: MemoryState) -> None:
    """Replaces the state of some videos."""
    state.slots.put_videos(videos, part.slots)
    if state.recent is not None and part.recent is not None:
        state.recent.put_videos(videos, part.recent)
    for name, value in part.stats.items():
        if value.requires_grad:
            state.stats[name] = state.stats[name].clone()
        state.stats[name][videos] = value
    state.seen[videos] = part.seen


def _on_video(read: Tokens, slots: Slots, video: Tokens, times: Tensor) -> Tokens:
    """Moves what was read, the tokens of `slots`, to the grid of the video that they summarize.

    Args:
        read: the tokens.
        slots: their slots.
        video: the video.
        times: float64 [B,T], rising, the second at which each frame was pushed; -inf if it does not count.
    """
    B, (_, H, W) = video.B, video.grid.shape
    real = video.grid.cell_mask(B)[:, :: H * W]
    seconds = slots.seconds.cpu().masked_fill(~slots.mask.cpu()[..., None], torch.inf)
    mean, first, last = (part.contiguous() for part in seconds.unbind(2))
    (starts, by_start), (ends, by_end) = first.sort(dim=1), last.sort(dim=1)
    started, ended = torch.searchsorted(starts, times, right=True), torch.searchsorted(ends, times)
    inside = (started - ended == 1) & real & times.isfinite()
    # Of all slots that have started, the one that has not ended, by the difference of the sums of their indices.
    sum_started = F.pad(by_start.cumsum(1), (1, 0)).gather(1, started)
    sum_ended = F.pad(by_end.cumsum(1), (1, 0)).gather(1, ended)
    slot = (sum_started - sum_ended).where(inside, 0)
    rows = torch.arange(B, device=read.device)[:, None]
    assignment = read.assignment.reshape(B, -1, H * W)[rows, slot.to(read.device)]
    assignment = assignment.masked_fill(~inside.to(read.device)[..., None], -1)

    at = frame_at(mean, times)
    positions = read.positions.clone()
    positions[..., 0] = at.to(positions).repeat_interleave(slots.features.shape[2], 1) * read.mask
    return read.replace(
        grid=video.grid,
        positions=positions,
        assignment=assignment.flatten(1),
        meta={**video.meta, **read.meta, "forgotten": (real & ~inside).sum(1).tolist()},
    )


def frame_at(seconds: Tensor, times: Tensor) -> Tensor:
    """The index of the frame at each second, between two frames interpolated, float64 [B,n].

    Args:
        seconds: float64 [B,n], those before the first or after the last frame are moved to it.
        times: float64 [B,T], the second of each frame, rising; no frame at -inf is returned.
    """
    times = times.clamp(min=-_LONG_AGO)
    right = torch.searchsorted(times, seconds.contiguous()).clamp(max=times.shape[1] - 1)
    left = (right - 1).clamp(min=0)
    before, after = times.gather(1, left), times.gather(1, right)
    return left + ((seconds - before) / (after - before).clamp(min=1e-9)).clamp(0, 1) * (right - left)


def _by_time(slots: Slots) -> Slots:
    """The used slots in the order of their mean second, then the free slots, up to the largest count of a video."""
    mask = slots.mask
    key = slots.seconds[..., 0].masked_fill(~mask, torch.inf)
    order = key.argsort(dim=1, stable=True)[:, : max(1, int(mask.sum(1).max()))]
    ordered = slots.take(order)
    free = ~ordered.mask
    if bool(free.any()):
        ordered.features = ordered.features.masked_fill(free[..., None, None], 0)
    return ordered


def _token_of_cell(place: Tensor, mask: Tensor, H: int, W: int) -> Tensor:
    """The token of each slot whose place is nearest to each cell, int64 [B,M,H*W]; arbitrary in free slots."""
    B, M, P, _ = place.shape
    if P == 1:
        return torch.zeros(H * W, dtype=torch.int64, device=place.device).expand(B, M, -1)
    cells = torch.cartesian_prod(torch.arange(H, device=place.device), torch.arange(W, device=place.device))
    scale = torch.tensor([H, W], device=place.device)
    if P == H * W and bool((((place * scale - 0.5 - cells).abs() < 1e-3).all(-1) | ~mask[..., None]).all()):
        return torch.arange(H * W, device=place.device).expand(B, M, -1)  # one per cell
    # One slot of all videos at a time bounds the table of distances.
    parts = [torch.cdist(cells.double() + 0.5, part * scale).argmin(2) for part in place.unbind(1)]
    return torch.stack(parts, 1)
