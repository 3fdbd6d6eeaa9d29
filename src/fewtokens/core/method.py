"""The base classes of methods: what each decides, where it acts, what it needs to know.

Most methods are a `Reducer`, which decides a `Plan` (the shared `Tokens.apply` moves the tokens), or a `Resampler`,
which makes new features and says which tokens they were made from. A method that is neither extends `Method` and
overrides `forward`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn

from fewtokens.core import files
from fewtokens.core.batch import concatenate
from fewtokens.core.budget import Budget, Unit
from fewtokens.core.grid import Grid
from fewtokens.core.plan import Plan
from fewtokens.core.shapes import by_shape
from fewtokens.core.spec import Spec
from fewtokens.core.tokens import Tokens

STAGES = {
    "frames": "which frames are read, before anything is decoded in full",
    "pixels": "on raw patches, so that the encoder sees fewer",
    "encoder": "between the attention and the MLP of every block",
    "tokens": "on the features that an encoder gives",
    "llm": "inside the layers of a language model",
}

# What a method may ask for beside the tokens; N is the tokens that it is given.
CUES = {
    "pixels": "[B,N,P,D] pixels of each cell in 0..1: P sub-frames, D = rows*columns*3 values, channel last",
    "keys": "[B,N,D] attention keys, averaged over heads",
    "attention": "[B,N] attention that each patch receives, averaged over heads and queries",
    "sharpness": "[B,N] sum over keys of A log A of each patch's attention A, averaged over heads, without sizes",
    "shift": "[B,N] length of what the last MLP added to each token",
    "frame_global": "[B,T,D] one vector for each frame",
    "text": "[B,L,D] embedded words of the question: every word before the answer, without padding",
}


class Method(Spec, nn.Module):
    """Tokens in, fewer tokens out.

    Class attributes, the same for all arguments:
        stage: where it acts, one of `STAGES`.
        learned: has parameters.
        full_grid: wants a token for every cell, so it comes first in a chain.
        paper, license, cost: one line each, for `fewtokens methods`.

    Attributes of an instance:
        budget: how many tokens it leaves; None where a threshold decides, or where the count follows from the grid.
        keep: the budget as it stands in the spec.
        needs: the cues that it is given by keyword, names out of `CUES`.
        causal: a frame's tokens depend on no later frame; `step` gives the same result chunk by chunk.
    """

    stage: ClassVar[str] = "tokens"
    learned: ClassVar[bool] = False
    full_grid: ClassVar[bool] = False
    paper: ClassVar[str] = ""
    license: ClassVar[str] = ""
    cost: ClassVar[str] = ""

    budget: Budget | None
    keep: Any  # float | int | str, or None where another argument says the budget

    def __init__(self) -> None:
        super().__init__()
        self.budget = None

    def take_budget(
        self,
        keep: float | int | str | None,
        *,
        default: float | int | str | None = None,
        units: tuple[Unit, ...] = (),
        **instead: Any,
    ) -> None:
        """Sets `budget` and `keep` from the constructor's arguments, see `Budget.choose`.

        Inside an encoder, which sees one frame at a time, a count of the whole video is refused.
        """
        if not units:
            units = ("share", "per frame") if self.stage == "encoder" else ("share", "count", "per frame")
        self.budget = Budget.choose(self.name, keep, default=default, units=units, **instead)
        self.keep = None if self.budget is None else self.budget.keep

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    @property
    def causal(self) -> bool:
        return False

    @property
    def untrained(self) -> bool:
        """Whether its parameters are random, so that what it gives means nothing."""
        return self.learned and not self.arguments.get("checkpoint")

    def __call__(self, tokens: Tokens, **cues: Any) -> Tokens:
        missing = [name for name in self.needs if cues.get(name) is None]
        if missing:
            raise ValueError(
                f"{self.name} needs the cue {' and '.join(missing)}: "
                + "; ".join(f"{name} is {CUES[name]}" for name in missing)
            )
        return super().__call__(tokens, **cues)

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        raise NotImplementedError(f"{self.name} must extend Reducer or Resampler, or override forward")

    def decide(self, tokens: Tokens, **cues: Any) -> Plan:
        """Where each token goes, [B,N]: the method's decision as data, to apply to anything that has a row a token.

        Raises:
            ValueError: the method makes new features, or a missing cue.
        """
        return Plan.from_assignment(tokens, self(tokens, **cues))

    def fewest(self, grid: Grid) -> int:
        """The fewest tokens that it can leave of one video of this grid, whatever the budget."""
        return 1

    def planned_count(self, grid: Grid) -> int | None:
        """Tokens that one video of this grid keeps, known before any feature exists; None if it depends."""
        if self.budget is None:
            return None
        if self.stage == "encoder":
            # Encoders look at one frame at a time, and each frame meets the budget by itself.
            return grid.T * max(self.fewest(grid.frame), self.budget.count(grid.frame))
        return max(self.fewest(grid), self.budget.count(grid))

    def counts(self, tokens: Tokens) -> Tensor:
        """`planned_count` of every video of a batch, int64 [B], at most the tokens at hand."""
        return torch.tensor(self.planned(tokens), device=tokens.device).minimum(tokens.count)

    def planned(self, tokens: Tokens) -> list[int]:
        """`planned_count` of every video of a batch, known without a look at the data."""
        return [self.planned_count(grid) or 0 for grid in tokens.grid.videos(tokens.B)]

    def max_slots(self, tokens: Tokens) -> int:
        """An upper bound of `counts` that needs no look at the data: M for a plan of exact counts."""
        return min(tokens.N, max(self.planned(tokens)))

    def step(self, tokens: Tokens, state: Any = None, **cues: Any) -> tuple[Tokens, Any]:
        """The next frames of a video.

        Args:
            tokens: of these frames, one for each cell.
            state: what the call before returned; None at the start. Its size is bounded.
            cues: of these tokens.

        Returns:
            Tokens on the grid of these frames, which `join` puts together, and the state.

        Raises:
            ValueError: the method is not causal.
        """
        raise ValueError(f"{self.spec} is not causal and cannot be streamed")

    def join(self, chunks: Sequence[Tokens]) -> Tokens:
        """The outputs of `step`, put together as the offline result."""
        return concatenate(chunks)


class Reducer(Method):
    """A method that decides a plan; the plan is all that it does.

    It overrides `plan(tokens, **cues)`: where each token goes. That is called without gradients; features flow through
    `Tokens.apply`.
    """

    plan: Callable[..., Plan]

    @final
    def decide(self, tokens: Tokens, **cues: Any) -> Plan:
        with torch.no_grad():
            return self.plan(tokens, **cues)

    @final  # type: ignore[misc]
    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        return tokens.apply(self.decide(tokens, **cues))


@dataclass(frozen=True, eq=False)
class Resampled:
    """What a resampler makes.

    Attributes:
        features: [B,M,C] new features, in any float dtype; None where they are the sums by `attribution`.
        attribution: [B,M,N] how much of each token went into each new one.
        count: int64 [B], how many of the M are real.
    """

    features: Tensor | None
    attribution: Tensor
    count: Tensor

    __repr__ = by_shape

    @property
    def plan(self) -> Plan:
        """The soft plan that moves the earlier tokens by attribution."""
        return Plan(self.count, self.attribution.shape[1], weights=self.attribution)


class Resampler(Method):
    """A method that makes new features, no mean of anything, and says which tokens each was made from.

    It overrides `resample(tokens, **cues)`.
    """

    resample: Callable[..., Resampled]

    def planned_count(self, grid: Grid) -> int | None:
        # New features may be more than there are cells.
        return None if self.budget is None else max(self.fewest(grid), int(self.budget.amount(grid) + 1e-6))

    @final
    def decide(self, tokens: Tokens, **cues: Any) -> Plan:
        raise ValueError(f"{self.name} makes new features; it decides no plan (see Tokens.attribution)")

    @final  # type: ignore[misc]
    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        new = self.resample(tokens, **cues)
        reduced = tokens.apply(new.plan)
        if new.features is None:
            return reduced
        features = new.features.to(tokens.features.dtype).masked_fill(~reduced.mask[..., None], 0)
        return reduced.replace(features=features)


class Quantized(NamedTuple):
    """What a quantizer makes of features [B,N,C].

    Attributes:
        features: [B,N,C] quantized, with a gradient to the features that went in.
        codes: int64 [B,N,Q].
        losses: named scalars, to be added in training.
    """

    features: Tensor
    codes: Tensor
    losses: dict[str, Tensor]

    def __repr__(self) -> str:
        return by_shape(self)


class Quantizer(Method):
    """A method that gives every token Q discrete codes and the features that they stand for; none is dropped."""

    @property
    @abstractmethod
    def codebook_sizes(self) -> tuple[int, ...]:
        """How many values each of the Q codes takes."""

    @abstractmethod
    def quantize(self, features: Tensor) -> Quantized:
        """Codes and quantized features of features [B,N,C]."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """The features [B,N,C] that codes int64 [B,N,Q] stand for: those of `quantize`, bit for bit."""

    @property
    def bits(self) -> float:
        """Bits of one token: the sum of log2 of the codebooks' sizes."""
        return float(sum(torch.tensor(size, dtype=torch.float64).log2() for size in self.codebook_sizes))

    @final  # type: ignore[misc]
    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        features, codes, losses = self.quantize(tokens.features)
        padding = ~tokens.mask[..., None]
        return tokens.replace(
            features=features.to(tokens.features.dtype).masked_fill(padding, 0),
            codes=codes.masked_fill(padding, 0),
            aux={**tokens.aux, **{f"{self.name}.{name}": loss for name, loss in losses.items()}},
        )

    @final
    def decide(self, tokens: Tokens, **cues: Any) -> Plan:
        return Plan.identity(tokens)

    def planned_count(self, grid: Grid) -> int:
        return grid.cells


class Memory(Method):
    """A method that holds an endless stream in bounded bytes and can be read at any moment."""

    @abstractmethod
    def push(self, tokens: Tokens, state: Any = None, **cues: Any) -> Any:
        """The state after the next frames of each video; None is the empty memory."""

    @abstractmethod
    def read(self, state: Any, **cues: Any) -> Tokens:
        """The tokens that stand for everything pushed so far."""

    @abstractmethod
    def max_bytes(self, grid: Grid, dim: int) -> int:
        """The most bytes that the state of one video takes, for frames of this grid with `dim` channels in float32."""

    @property
    def causal(self) -> bool:
        return True

    @final  # type: ignore[misc]
    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        return self.read(self.push(tokens, None, **cues), **cues)

    @final
    def step(self, tokens: Tokens, state: Any = None, **cues: Any) -> tuple[Tokens, Any]:
        state = self.push(tokens, state, **cues)
        return self.read(state, **cues), state

    def join(self, chunks: Sequence[Tokens]) -> Tokens:
        """What was read last."""
        return chunks[-1]


@dataclass(frozen=True, eq=False)
class Selection:
    """Which frames of a video are read.

    Attributes:
        index: int64 [K], numbers of frames, in order.
        sizes: int64 [K], the shorter side of each in pixels; 0 leaves the size of the file.
    """

    index: Tensor
    sizes: Tensor

    __repr__ = by_shape


class FrameSelector(Spec):
    """Chooses frames from their times and thumbnails, before anything is decoded or encoded in full."""

    stage: ClassVar[str] = "frames"
    paper: ClassVar[str] = ""
    license: ClassVar[str] = ""
    cost: ClassVar[str] = ""

    @abstractmethod
    def select(self, times: Tensor, thumbnails: Tensor, **cues: Any) -> Selection:
        """The frames to read.

        Args:
            times: float64 [T], the second of each frame.
            thumbnails: uint8 [T,3,h,w].
            cues: what it needs beside these, names out of `CUES`.
        """


def load_weights(method: Method, path: str | None) -> None:
    """Fills a method's parameters from a safetensors file written by `save_weights`.

    Raises:
        ValueError: the file is missing, damaged, of another method, or of another shape.
    """
    if path is None:
        return
    tensors, header = files.load(path, "method")
    if header.get("method") != method.name:
        raise ValueError(f"{path}: holds the weights of {files.in_a_line(header.get('method'))}, not of {method.name}")
    try:
        method.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path}: does not fit {method.name} ({' '.join(str(error).split())[:300]})") from None


def save_weights(method: Method, path: str | Path) -> Path:
    """Writes a method's parameters as one safetensors file, for its argument `checkpoint`."""
    return files.save(path, "method", method.state_dict(), {"method": method.name})
