"""The base class of methods inside a language model: at which layers they act, and what they decide there.

A method decides on plain tensors; `fewtokens.llm.layers` measures attention, moves hidden states and cuts caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewtokens.core.shapes import by_shape
from fewtokens.core.spec import Spec
from fewtokens.core.tokens import Tokens


@dataclass(frozen=True)
class PrunePoint:
    """A layer before which tokens are dropped.

    Attributes:
        layer: the first layer with fewer tokens.
        score_layer: the layer whose attention scores the tokens, computed from what enters it; None for no scores.
    """

    layer: int
    score_layer: int | None = None


@dataclass(frozen=True)
class CachePoint:
    """A layer from which on caches hold fewer tokens while text is generated.

    Attributes:
        layer: the first layer whose cache is cut.
        score_layer: the layer in which the latest word's attention scores the tokens.
        revive: entries that are dropped move to the host's memory and may come back; otherwise they are lost, and the
            first choice is final.
    """

    layer: int
    score_layer: int
    revive: bool = True


@dataclass
class PlacedVideo:
    """One video among columns.

    Attributes:
        row: its prompt in the batch.
        columns: int64 [n], the column of each of its tokens; -1 if the token was dropped.
        tokens: what the language model was given of it, one video.
    """

    row: int
    columns: Tensor
    tokens: Tokens

    __repr__ = by_shape


@dataclass
class LayerState:
    """What a method sees at a prune point: the M columns that are still there.

    Attributes:
        hidden: [B,M,D], hidden states that would enter the layer.
        rope: cos and sin [B,M,d] of each column.
        video: bool [B,M], tokens of videos.
        before: int64 [B], tokens of videos in each prompt at the first layer.
        scores: float32 [B,M], attention to each column, or None.
        videos: each video and the columns of its tokens.
    """

    hidden: Tensor
    rope: tuple[Tensor, Tensor]
    video: Tensor
    before: Tensor
    scores: Tensor | None
    videos: list[PlacedVideo]

    __repr__ = by_shape


@dataclass
class LayerDecision:
    """What a method decides at a prune point.

    Attributes:
        kept: bool [B,M], which tokens of videos stay; other columns always stay.
        hidden: [B,M,D], new hidden states, or None if they are unchanged.
        rope: cos and sin [B,M,d], new positions, or None if they are unchanged.
    """

    kept: Tensor
    hidden: Tensor | None = None
    rope: tuple[Tensor, Tensor] | None = None

    __repr__ = by_shape


@dataclass
class CacheState:
    """What a method sees at a cache point, for each word that is generated; columns are the L of the prompt.

    Attributes:
        scores: float32 [B,L], the latest word's attention to tokens of videos; 0 elsewhere.
        video: bool [B,L], tokens of videos.
        held: bool [B,L], those that the scoring layer still holds.
        previous_scores: the same for the word before, or None at the first word.
        previous: bool [B,L], the latest decision, or None at the first word.
    """

    scores: Tensor
    video: Tensor
    held: Tensor
    previous_scores: Tensor | None
    previous: Tensor | None

    __repr__ = by_shape


class LayerMethod(Spec):
    """Acts inside the layers of a language model, see `fewtokens.llm.attach`.

    A method overrides `prune_points` and `choose`, or `cache_point` and `choose_cached`. Only tokens of videos are
    dropped; images, and what follows a video's cells (a newline), stay. A share is of the tokens of videos that a
    prompt had at the first layer.

    Class attributes:
        stage: always "llm".
        asks: whose attention scores tokens: the "last" token of the question, or its "text": all words after the last
            video.
        prunes_earlier: dropped tokens are also taken out of the caches of earlier layers.
        may_keep_all: it is no error if nothing is dropped.
        paper, license, cost: one line each, for `fewtokens methods`.
    """

    stage: ClassVar[str] = "llm"
    asks: ClassVar[str] = "last"
    prunes_earlier: ClassVar[bool] = False
    may_keep_all: ClassVar[bool] = False
    paper: ClassVar[str] = ""
    license: ClassVar[str] = ""
    cost: ClassVar[str] = ""

    def __repr__(self) -> str:
        return self.spec

    @property
    def pool(self) -> str:
        """How attention is pooled over heads and queries, "mean" or "max"."""
        return "mean"

    def prune_points(self, depth: int) -> list[PrunePoint]:
        """Where it drops tokens in a model of `depth` layers, in order."""
        return []

    def choose(self, state: LayerState, number: int) -> LayerDecision:
        """Decides at prune point `number`."""
        raise NotImplementedError

    def cache_point(self, depth: int) -> CachePoint | None:
        """From where on it cuts caches while text is generated; None if it does not."""
        return None

    def choose_cached(self, state: CacheState) -> Tensor | None:
        """Which tokens of videos caches hold from now on, bool [B,L]; None if that does not change."""
        raise NotImplementedError

    def named_layers(self, depth: int) -> list[tuple[int, int]]:
        """Layers that the arguments name, each with the first layer that has fewer tokens because of it."""
        point = self.cache_point(depth)
        layers = [point.layer for point in self.prune_points(depth)] + ([] if point is None else [point.layer])
        return [(layer, layer) for layer in layers]

    def keeps_all(self, number: int) -> bool:
        """Whether the budget of prune point `number` may leave every token."""
        return self.may_keep_all


def may_spare_all(keep: float | int) -> bool:
    """Whether a budget may leave every token: all of them, or a count that may exceed those at hand."""
    return isinstance(keep, int) or keep == 1


def check_layer(layer: int, caller: str) -> int:
    """Returns a valid layer, at least 1: before the first layer methods of the stage tokens act.

    Raises:
        ValueError: another value.
    """
    if not isinstance(layer, int) or isinstance(layer, bool) or layer < 1:
        raise ValueError(f"{caller}: a layer is a count of at least 1, got {layer!r}")
    return layer


def counts(state: LayerState, keep: float | int, *, nearest: bool = False) -> Tensor:
    """How many tokens of videos stay in each prompt, int64 [B]; at least one, at most those at hand.

    Args:
        keep: a share of those at the first layer, rounded down up to floating-point error (or to the `nearest` whole
            number, halves up), or a count.
    """
    if isinstance(keep, int):
        budget = torch.full_like(state.before, keep)
    else:
        budget = (state.before.double() * keep + (0.5 if nearest else 1e-6)).long()
    return budget.clamp(min=1).minimum(state.video.sum(1))


def top(state: LayerState, count: Tensor) -> Tensor:
    """The `count` [B] tokens of videos with the highest scores, bool [B,M]; the first of equal ones."""
    assert state.scores is not None
    return highest(state.scores, state.video, count)


def highest(scores: Tensor, allowed: Tensor, count: Tensor) -> Tensor:
    """The `count` [B] highest of the `allowed` [B,M] scores [B,M], bool [B,M]; the first of equal ones."""
    rank = scores.masked_fill(~allowed, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank < count[:, None]) & allowed
