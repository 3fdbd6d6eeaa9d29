"""The base class of every method: what it decides, where it acts, what it needs to know.

A method overrides `plan` (and the shared `apply` moves the tokens), or `forward` where it works in several
steps or makes new features.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewtokens.core import files
from fewtokens.core.batch import concatenate
from fewtokens.core.grid import Grid
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens

STAGES = {
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


def check_keep(keep: float | int) -> float | int:
    """Returns a valid budget: a share in (0,1] as a float, a count of at least 1 as an int."""
    whole = isinstance(keep, int) and not isinstance(keep, bool)
    if whole and keep >= 1:
        return keep
    if isinstance(keep, float) and 0 < keep <= 1:
        return keep
    raise ValueError(f"keep must be a share in (0, 1] such as 0.1, or a count of at least 1 such as 32, got {keep!r}")


def check_share(keep: float | int) -> float:
    """Returns a valid budget of a method inside an encoder, which knows a frame and not how many there are."""
    if isinstance(check_keep(keep), int):
        raise ValueError(f"keep must be a share such as 0.25 inside an encoder, not the count {keep}")
    return keep


def planned_count(grid: Grid, keep: float | int) -> int:
    """How many tokens one video of this grid keeps: the one place where a budget becomes a count.

    Args:
        grid: the cells of one video.
        keep: a float is a share of the grid's cells, rounded down but for the error of floating point
            (0.29 of 100 is 29); an int is a count. At least 1, at most all cells.
    """
    keep = check_keep(keep)
    wanted = keep if isinstance(keep, int) else int(keep * grid.cells + 1e-6)
    return max(1, min(wanted, grid.cells))


def check_rate(q: float) -> float:
    """Returns a valid pruning rate, a number in [0, 1)."""
    if isinstance(q, bool) or not isinstance(q, (int, float)) or not 0 <= q < 1:
        raise ValueError(f"q is a pruning rate in [0, 1), got {q!r}")
    return q


def pruned_count(grid: Grid, q: float) -> int:
    """How many tokens a video keeps at vLLM's pruning rate: the share 1 - q in double precision, cut off.

    At most what `planned_count` gives for keep=1-q, and one less where 1 - q falls short of its decimal value.
    """
    return min(int(grid.cells * (1 - q)), grid.cells)


def planned_by_frame(grid: Grid, keep: float | int) -> int:
    """How many tokens a video keeps where each frame meets the budget by itself, as inside an encoder."""
    return grid.T * planned_count(Grid(1, grid.H, grid.W), keep)


class Method(nn.Module):
    """Tokens in, fewer tokens out.

    Arguments of a method are plain values, keyword-only after the first, each stored under its own name, so
    that the config, the flag and the spec string are all made from the signature.

    Class attributes:
        stage: where it acts, one of `STAGES`.
        needs: cues that it is given by keyword, names out of `CUES`.
        budget: the count is known ahead from the grid (`planned_count`). False for a class that works by a threshold
            and takes a budget instead where it is given `keep`.
        instead_of_keep: arguments that say how much is left in another way, so that `keep` would contradict them.
        causal: a frame's tokens depend on no later frame; `step` gives the same result chunk by chunk.
        trainable: has parameters.
        neutral: before training they change nothing, so it is of use as it is.
        partition: every cell it was given ends in some token.
        conserves: sum(sizes * features) stays the same.
        merges: averages some of the tokens that it keeps, although it drops others.
        weighs: scales sizes by importance, so that they no longer count cells.
        resamples: makes new features with soft weights; `source` is then where a cell's largest share went.
        dense: wants a token for every cell, so it comes first in a chain.
        fill: how `Tokens.unmerge` gives back what it dropped: "nearest", or "hold" where dropping means that
            nothing changed.
        paper, licence, cost: one line each, for `fewtokens methods`.
    """

    stage: str = "tokens"
    needs: tuple[str, ...] = ()
    budget: bool = True
    instead_of_keep: ClassVar[tuple[str, ...]] = ()
    causal: bool = False
    trainable: bool = False
    neutral: bool = False
    partition: bool = False
    conserves: ClassVar[bool] = False
    merges: ClassVar[bool] = False
    weighs: ClassVar[bool] = False
    resamples: bool = False
    dense: bool = False
    fill: ClassVar[str] = "nearest"
    paper: ClassVar[str] = ""
    license: ClassVar[str] = ""
    cost: ClassVar[str] = ""

    keep: Any  # float | int, or None where another argument says the budget
    plan: Callable[..., Plan]

    def __call__(self, tokens: Tokens, **cues: Any) -> Tokens:
        missing = [name for name in self.needs if cues.get(name) is None]
        if missing:
            raise ValueError(
                f"{self.name} needs the cue {' and '.join(missing)}: "
                + "; ".join(f"{name} is {CUES[name]}" for name in missing)
            )
        return super().__call__(tokens, **cues)

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            plan = self.plan(tokens, **cues)
        return tokens.apply(plan)

    @property
    def name(self) -> str:
        """The name in spec strings: the module's file name."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments and their values here."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    @property
    def untrained(self) -> bool:
        """Whether its weights are drawn at random and would give nonsense."""
        return self.trainable and not self.neutral and not self.arguments.get("checkpoint")

    @property
    def spec(self) -> str:
        """The spec string that builds this method again; what is None is left out."""
        return f"{self.name}({self.extra_repr()})"

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments.items() if value is not None)

    def planned_count(self, grid: Grid) -> int | None:
        """Tokens that one video of this grid keeps, known before any feature exists; None if it depends."""
        return planned_count(grid, self.keep) if self.budget and self.keep is not None else None

    def counts(self, tokens: Tokens) -> Tensor:
        """`planned_count` of every video of a batch, int64 [B], at most the tokens at hand."""
        wanted = [self.planned_count(grid) for grid in tokens.grid.videos(tokens.B)]
        return torch.tensor(wanted, device=tokens.device).minimum(tokens.count)

    def join(self, chunks: Sequence[Tokens]) -> Tokens:
        """The outputs of `step`, put together as the offline result."""
        return concatenate(chunks)


def load_weights(method: Method, name: str, path: str | None) -> None:
    """Fills a method's parameters from a safetensors file written by `save_weights`.

    Raises:
        ValueError: the file is missing, damaged, of another method, or of another shape.
    """
    if path is None:
        return
    tensors, header = files.load(path, "method")
    if header.get("method") != name:
        raise ValueError(f"{path}: holds the weights of {files.in_a_line(header.get('method'))}, not of {name}")
    try:
        method.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path}: does not fit {name} ({' '.join(str(error).split())[:300]})") from None


def save_weights(method: Method, name: str, path: str | Path) -> Path:
    """Writes a method's parameters as one safetensors file, for its argument `checkpoint`."""
    return files.save(path, "method", method.state_dict(), {"method": name})
