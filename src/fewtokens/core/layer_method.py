"""The base class of methods that act inside a language model, and the types of their inputs and decisions.

A method only decides which columns to keep. `fewtokens.llm.layers` computes attention scores, moves hidden states and
prunes key-value caches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from fewtokens.core.shapes import shape_repr
from fewtokens.core.spec import Spec
from fewtokens.core.tokens import Tokens


@dataclass(frozen=True)
class PrunePoint:
    """A layer before which tokens are dropped during prefill.

    Attributes:
        layer: index of the first layer with fewer tokens.
        score_layer: index of the layer whose attention scores the tokens; None for no scores.
        key_layer: index of the layer whose keys `choose` receives; None for no keys.
        skips: whether the dropped tokens only skip this layer: they return after it, as they were before it.
    """

    layer: int
    score_layer: int | None = None
    key_layer: int | None = None
    skips: bool = False


@dataclass(frozen=True)
class CachePoint:
    """The layer from which on key-value caches are pruned during generation.

    Attributes:
        layer: index of the first layer whose cache is pruned.
        score_layer: index of the layer in which attention from the newest text token scores the video tokens.
        revive: whether dropped entries move to host memory and can be restored later. If False, they are discarded and
            the first decision is final.
    """

    layer: int
    score_layer: int
    revive: bool = True


@dataclass
class VideoPlacement:
    """The position of one video's tokens in a batch of prompts.

    Attributes:
        row: index of the prompt in the batch.
        columns: int64 [n], the column of each token; -1 if the token was dropped.
        tokens: the tokens of the video that entered the language model, B=1.
    """

    row: int
    columns: Tensor
    tokens: Tokens

    __repr__ = shape_repr


@dataclass
class LayerState:
    """The input of `LayerMethod.choose` at a prune point, for the M columns that remain.

    Attributes:
        hidden: [B,M,D], hidden states at the input of the layer.
        rope: cos and sin of the rotary embedding, [B,M,d] each; empty if the layer has none.
        video: bool [B,M], whether each column is a video token.
        before: int64 [B], number of video tokens of each prompt at the first layer.
        scores: float32 [B,M], attention that each column receives, or None if the point has no `score_layer`.
        videos: each video and the columns of its tokens.
        question: bool [B,M], whether each column is a text token after the last video and before the answer.
        final_norm: the norm of the language model before its head, [...,D] -> [...,D].
        keys: [B,M,heads*d], rotated keys of each column, or None if the point has no `key_layer`.
        norm: the norm of the layer before its attention, [...,D] -> [...,D]; the identity if it has none under a known
            name.
    """

    hidden: Tensor
    rope: tuple[Tensor, ...]
    video: Tensor
    before: Tensor
    scores: Tensor | None
    videos: list[VideoPlacement]
    question: Tensor
    final_norm: Callable[[Tensor], Tensor]
    keys: Tensor | None = None
    norm: Callable[[Tensor], Tensor] = field(default_factory=nn.Identity)

    __repr__ = shape_repr


@dataclass
class LayerDecision:
    """The decision of a method at a prune point.

    Attributes:
        kept: bool [B,M], whether each video token is kept. Other columns are always kept.
        hidden: new hidden states [B,M,D], or None if unchanged.
        rope: new cos and sin, [B,M,d] each, or None if unchanged.
        gate: float [B,M], at a point that `skips`: the factor of what the layer adds to each video token; None for 1.
    """

    kept: Tensor
    hidden: Tensor | None = None
    rope: tuple[Tensor, ...] | None = None
    gate: Tensor | None = None

    __repr__ = shape_repr


@dataclass
class CacheState:
    """The input of `LayerMethod.choose_cached` at each generated token, for the L columns of the prompt.

    Attributes:
        scores: float32 [B,L], attention from the newest text token to each video token; 0 in other columns.
        video: bool [B,L], whether each column is a video token.
        held: bool [B,L], whether the cache of the scoring layer still contains each video token.
        previous_scores: `scores` at the previous generated token, or None at the first one.
        previous: bool [B,L], the most recent decision, or None at the first generated token.
    """

    scores: Tensor
    video: Tensor
    held: Tensor
    previous_scores: Tensor | None
    previous: Tensor | None

    __repr__ = shape_repr


class LayerMethod(Spec):
    """The base class of methods that act inside the layers of a language model, see `fewtokens.llm.attach`.

    A subclass overrides `prune_points` and `choose` to prune during prefill, or `cache_point` and `choose_cached` to
    prune caches during generation:

        class Half(LayerMethod):
            def prune_points(self, depth):
                return [PrunePoint(layer=3, score_layer=2)]

            def choose(self, state, index):
                return LayerDecision(top(state, counts(state, 0.5)))

    Only video tokens are dropped. Images, text and separators of a video (such as newlines) are always kept. A
    fractional budget is relative to the number of video tokens of the prompt at the first layer.

    Class attributes:
        stage: always "llm".
        scoring_queries: the queries whose attention scores the tokens: "last", the last token of the question, or
            "text", all text tokens after the last video.
        prunes_earlier: whether dropped tokens are also removed from the caches of earlier layers.
        paper: citation, in one line.
        license: license of the authors' code, in one line.
        cost: computational cost, in one line.
    """

    stage: ClassVar[str] = "llm"
    scoring_queries: ClassVar[str] = "last"
    prunes_earlier: ClassVar[bool] = False
    paper: ClassVar[str] = ""
    license: ClassVar[str] = ""
    cost: ClassVar[str] = ""

    def __repr__(self) -> str:
        return self.spec

    @property
    def pool(self) -> str:
        """The reduction of attention over heads and queries, "mean" or "max"."""
        return "mean"

    def prune_points(self, depth: int) -> list[PrunePoint]:
        """Returns the points at which tokens are dropped, in order of layers.

        Args:
            depth: number of layers of the language model.
        """
        return []

    def raters(self, embeddings: Tensor, video: Tensor, question: Tensor) -> Tensor | None:
        """Chooses which question tokens score the tokens, if `scoring_queries` is "text"; None for all of them.

        Args:
            embeddings: [B,L,D], the input of the first layer.
            video: bool [B,L], whether each column is a video token.
            question: bool [B,L], as in `LayerState`.

        Returns:
            bool [B,L].
        """
        return None

    def choose(self, state: LayerState, index: int) -> LayerDecision:
        """Decides which video tokens to keep at a prune point.

        Args:
            state: the remaining columns.
            index: index of the point in `prune_points`.
        """
        raise NotImplementedError

    def cache_point(self, depth: int) -> CachePoint | None:
        """Returns the point from which on caches are pruned during generation, or None.

        Args:
            depth: number of layers of the language model.
        """
        return None

    def choose_cached(self, state: CacheState) -> Tensor | None:
        """Decides which video tokens the caches contain from now on.

        Returns:
            bool [B,L], or None for no change.
        """
        raise NotImplementedError

    def begin(self) -> None:
        """Called before each pass through the language model, also of prompts without a video."""

    def auxiliary_loss(self) -> Tensor | None:
        """Returns a loss of the last pass to be added in training, a scalar, or None."""
        return None

    def named_layers(self, depth: int) -> list[tuple[int, int]]:
        """Returns (layer, first layer with fewer tokens) for each layer that an argument of the method specifies."""
        point = self.cache_point(depth)
        layers = [point.layer for point in self.prune_points(depth)] + ([] if point is None else [point.layer])
        return [(layer, layer) for layer in layers]


def check_layer(layer: int, caller: str) -> int:
    """Returns `layer` if it is a valid index of at least 1 (before layer 0, methods of the stage "tokens" act).

    Raises:
        ValueError: `layer` is not an int or below 1.
    """
    if not isinstance(layer, int) or isinstance(layer, bool) or layer < 1:
        raise ValueError(f"{caller}: a layer must be an int of at least 1, got {layer!r}")
    return layer


def counts(state: LayerState, keep: float | int, *, nearest: bool = False) -> Tensor:
    """Returns the number of video tokens to keep in each prompt, int64 [B], clamped to 1..the number that remain.

    Args:
        state: the remaining columns.
        keep: a fraction (float) of the video tokens at the first layer, or a count (int).
        nearest: whether a fraction is rounded half up, instead of down with a tolerance for floating-point error.
    """
    if isinstance(keep, int):
        budget = torch.full_like(state.before, keep)
    else:
        budget = (state.before.double() * keep + (0.5 if nearest else 1e-6)).long()
    return budget.clamp(min=1).minimum(state.video.sum(1))


def top(state: LayerState, count: Tensor) -> Tensor:
    """Selects the `count` [B] video tokens with the highest scores, bool [B,M]; ties go to the first."""
    assert state.scores is not None
    return highest(state.scores, state.video, count)


def highest(scores: Tensor, allowed: Tensor, count: Tensor) -> Tensor:
    """Selects the `count` [B] highest `scores` [B,M] where `allowed` [B,M], bool [B,M]; ties go to the first."""
    rank = scores.masked_fill(~allowed, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank < count[:, None]) & allowed
