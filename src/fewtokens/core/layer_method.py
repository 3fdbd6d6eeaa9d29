"""The base class of methods inside a language model: at which layers they look, and what they decide there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.tokens import Tokens
from fewtokens.llm.layout import Video

if TYPE_CHECKING:
    from fewtokens.llm.layers.hooks import Inside, Run


@dataclass(frozen=True)
class Stop:
    """A layer where tokens go.

    Attributes:
        at: they go before this layer.
        measure: the layer whose attention decides, computed from what enters it; None where none is asked for.
    """

    at: int
    measure: int | None = None


@dataclass
class View:
    """What a method sees at a stop: the M columns that are there.

    Attributes:
        hidden: [B,M,D], what would enter the layer.
        rope: cos and sin [B,M,d] of each column.
        video: bool [B,M], tokens of videos.
        before: int64 [B], tokens of videos that each prompt had at first.
        scores: float32 [B,M] attention to each column, or None.
        videos: each video, and the place of each of its tokens, int64 [n], -1 where it is gone.
    """

    hidden: Tensor
    rope: tuple[Tensor, Tensor]
    video: Tensor
    before: Tensor
    scores: Tensor | None
    videos: list[tuple[Video, Tensor]]


@dataclass
class Choice:
    """What a method decides.

    Attributes:
        kept: bool [B,M], of the tokens of videos (others are left alone).
        hidden: [B,M,D], where tokens that stay have changed.
        rope: cos and sin [B,M,d], where their positions have.
    """

    kept: Tensor
    hidden: Tensor | None = None
    rope: tuple[Tensor, Tensor] | None = None


class InsideMethod(Method):
    """Acts inside the layers of a language model, see `fewtokens.llm.attach`.

    Tokens of videos go; images, and what follows a video's cells (a newline), are left alone. A share is of the tokens
    that a prompt's videos had at the first layer.

    Class attributes:
        asks: whose attention counts: "last" token of the question, or its "text": all words after the last video.
        pool: how it is pooled over heads and queries.
        prunes_earlier: what goes is taken out of the caches of earlier layers too.
        may_keep_all: nothing may be alike, so that nothing goes.
        later: tokens go so many layers after the one that its arguments name.
    """

    stage = "llm"
    asks: ClassVar[str] = "last"
    pool: str = "mean"
    prunes_earlier: ClassVar[bool] = False
    may_keep_all: ClassVar[bool] = False
    later: ClassVar[int] = 0
    choose: Callable[[View, int], Choice]  # decides at the stop of this number

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        raise ValueError(f"{self.name} acts inside a language model: `with fewtokens.llm.attach(model, ...)`")

    def planned_count(self, grid: Grid) -> int | None:
        return None

    def stops(self, depth: int) -> list[Stop]:
        """Where it acts in a model of `depth` layers, in order."""
        return []

    def asked_layers(self, depth: int) -> list[int]:
        """The layers that its arguments name, so that those beyond the model are refused."""
        return [stop.at - self.later for stop in self.stops(depth)]

    def keeps_all(self, number: int) -> bool:
        """Whether nothing is to go at stop `number`."""
        return self.may_keep_all

    def first_cut(self, depth: int) -> int | None:
        """The first layer whose cache it cuts while words are generated; None where it does not."""
        return None

    def decode(self, number: int, layer: Any, inputs: dict[str, Any], inside: Inside, run: Run) -> None:
        """Acts before layer `number` while words are generated one by one."""


def may_spare_all(keep: float | int) -> bool:
    """Whether a budget may leave every token: all of them, or a count that a video may be below of."""
    return isinstance(keep, int) or keep == 1


def check_layer(layer: int, who: str) -> int:
    """Returns a layer in which something may go: not the first, before which methods of the stage tokens act."""
    if not isinstance(layer, int) or isinstance(layer, bool) or layer < 1:
        raise ValueError(f"{who}: a layer is a count of at least 1, got {layer!r}")
    return layer


def counts(view: View, keep: float | int, *, nearest: bool = False) -> Tensor:
    """How many tokens of videos stay in each prompt, int64 [B]; at least one, at most those at hand.

    Args:
        keep: a share of those there were at first, rounded down but for the error of floating point (or to the
            `nearest` whole number, halves up), or a count.
    """
    if isinstance(keep, int):
        wanted = torch.full_like(view.before, keep)
    else:
        wanted = (view.before.double() * keep + (0.5 if nearest else 1e-6)).long()
    return wanted.clamp(min=1).minimum(view.video.sum(1))


def top(view: View, count: Tensor) -> Tensor:
    """The `count` [B] tokens of videos of the highest score, bool [B,M]; equal ones from the front."""
    assert view.scores is not None
    scores = view.scores.masked_fill(~view.video, -torch.inf)
    rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank < count[:, None]) & view.video
