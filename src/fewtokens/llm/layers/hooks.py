"""Hooks on decoder layers through which methods take tokens out: forward pre-hooks, put on and taken off again.

A layer is given fewer columns by its pre-hook, which shortens what the model hands to every layer: hidden states,
rotary embeddings (so positions stay what they were) and masks. What goes is remembered, and put back behind the last
layer, so that logits have the length that the caller expects; nothing but a layer's own cache is shorter.

While words are generated each layer's cache says which columns it has, and the pre-hook cuts the model's mask to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.core.layer_method import CachePoint, CacheState, LayerMethod, LayerState, PlacedVideo
from fewtokens.core.shapes import by_shape
from fewtokens.llm.backends.base import backend_of
from fewtokens.llm.features import is_reduced, layout_of
from fewtokens.llm.interface import cache_of, changed, filled, layer_cache
from fewtokens.llm.layers.attention import attention_rows, check_layers
from fewtokens.llm.layers.cache import FewerLayer, fewer_layer, make_fewer, to_slots
from fewtokens.llm.layers.masks import narrow
from fewtokens.llm.layout import Layout


@dataclass
class Run:
    """One pass through the model.

    Attributes:
        layout: of the prompt; None while words are generated, or if the prompt is text alone.
        real: bool [B,K], columns that are no padding; None if all are.
        deep: the prompt's features include DeepStack's.
        deepstack: how many of the first layers have features added after them.
        columns: int64 [B,M], columns that are left, -1 is padding; None if all are.
        padded: some of them, or of `real`, are padding.
        rope, mask: of these columns, for the layers to come.
        full: [B,L,D], what each column was when it went.
        scores: [B,L] by method and prune point.
        done: prune points that were met, by method and prune point.
        finished: the last layer was left behind.
        active: bool [B,L], columns that a method wants in the caches of the layers to come; None leaves them alone.
    """

    layout: Layout | None
    real: Tensor | None
    deep: bool = False
    deepstack: int = 0
    columns: Tensor | None = None
    padded: bool = False
    rope: tuple[Tensor, Tensor] | None = None
    mask: Tensor | None = None
    full: Tensor | None = None
    scores: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    done: set[tuple[int, int]] = field(default_factory=set)
    finished: bool = False
    active: Tensor | None = None

    __repr__ = by_shape


class LayerRuntime:
    """Carries out what methods inside one model decide.

    Args:
        model: of a family in `BACKENDS`, with its language-model head.
        methods: of the stage "llm", in order.

    Raises:
        ValueError: layers that the model does not have or that see a window.
    """

    def __init__(self, model: Any, methods: Sequence[LayerMethod]) -> None:
        self.model, self.methods, self.backend = model, list(methods), backend_of(model)
        self.text = language_model(model)
        self.depth = len(self.text.layers)
        self.prune_points = [method.prune_points(self.depth) for method in self.methods]
        check_layers(self.text)
        for method in self.methods:
            for layer, first in method.named_layers(self.depth):
                if first >= self.depth:
                    later = first - layer
                    raise ValueError(
                        f"{method.spec}: layer {layer} is beyond the model's {self.depth} layers; give one of "
                        f"{1 - later} to {self.depth - 1 - later}"
                    )
        self.cache_points = [method.cache_point(self.depth) for method in self.methods]
        self.run: Run | None = None

    @property
    def flash(self) -> bool:
        return "flash" in (self.text.config._attn_implementation or "")

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Puts the hooks on, and takes them off at the end."""
        with ExitStack() as hooks:
            hooks.callback(setattr, self, "run", None)
            # Each is entered as soon as it is on, so that it comes off whatever happens.
            enter = hooks.enter_context
            causal_lm = self.backend.causal_lm(self.model)
            enter(causal_lm.register_forward_pre_hook(self._begin, with_kwargs=True))
            enter(causal_lm.register_forward_hook(self._end, always_call=True))
            enter(self.text.register_forward_pre_hook(self._note_deepstack, with_kwargs=True))
            enter(self.text.norm.register_forward_pre_hook(self._put_back))
            for number, layer in enumerate(self.text.layers):
                enter(layer.register_forward_pre_hook(partial(self._before, number), with_kwargs=True))
                enter(layer.register_forward_hook(partial(self._after, number)))
            yield

    def _begin(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        given = self.backend.features_given(self.model, kwargs).values()
        if any(is_reduced(outputs) and layout_of(outputs) is None for outputs in given):
            raise ValueError("methods inside a language model need the prompt whole; leave out prefill_chunk_size")
        layouts = map(layout_of, given)
        layout = next((layout for layout in layouts if layout is not None and layout.videos), None)
        mask = kwargs.get("attention_mask")
        real = mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
        ids = kwargs.get("input_ids")
        ids = args[0] if ids is None and args else ids
        ids = kwargs.get("inputs_embeds") if ids is None else ids
        if layout is not None:
            assert ids is not None
            if filled(cache_of(kwargs)):
                raise ValueError("a video reached a cache that is not empty; begin a new one")
            if ids.shape[1] < layout.visual.shape[1]:
                raise ValueError("methods inside a language model need the prompt whole; leave out prefill_chunk_size")
            for method in self.methods:
                if method.prunes_earlier and ids.shape[1] > layout.visual.shape[1]:
                    raise ValueError(f"{method.name} takes tokens out of caches; generate with use_cache=True")
            layout = layout.fitted(*ids.shape[:2])
        padded = layout is not None and real is not None and not bool(real.all())
        deep = any(outputs.get("deepstack_features") is not None for outputs in given)
        self.run = Run(layout, real, deep, padded=padded)

    def _end(self, model: Any, args: Any, output: Any) -> None:
        run, self.run = self.run, None
        if run is None or run.layout is None or not run.finished:
            return
        for number, (method, prune_points) in enumerate(zip(self.methods, self.prune_points, strict=True)):
            for which, point in enumerate(prune_points):
                if (number, which) not in run.done:
                    raise ValueError(
                        f"{method.spec}: nothing was dropped before layer {point.layer}, which was not met; the model "
                        "ran fewer layers than it has"
                    )

    def _note_deepstack(self, text: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if self.run is not None:
            if self.run.deep and "deepstack_visual_embeds" not in kwargs:
                raise changed("gives DeepStack features to the language model under another name")
            self.run.deepstack = len(kwargs.get("deepstack_visual_embeds") or ())

    def _put_back(self, norm: Any, args: Any) -> Any:
        run = self.run
        if run is None:
            return None
        run.finished = True
        return None if run.columns is None else (_restored(run, args[0]), *args[1:])

    def _after(self, number: int, layer: Any, args: Any, output: Any) -> Any:
        run = self.run
        # DeepStack adds to columns of the whole prompt, so it is given all of them.
        if run is None or run.columns is None or number >= run.deepstack:
            return None
        return _restored(run, output)

    def _before(self, number: int, layer: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        run = self.run
        if run is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        inputs = {**kwargs, "hidden_states": hidden}
        if missing := [name for name in ("attention_mask", "position_embeddings") if name not in inputs]:
            raise changed(f"hands its decoder layers no {' and no '.join(missing)}")
        self._prompt(number, layer, inputs, run) if run.layout is not None else self._word(number, layer, inputs, run)
        if not args:
            return args, inputs
        return (inputs.pop("hidden_states"), *args[1:]), inputs

    def _prompt(self, number: int, layer: Any, inputs: dict[str, Any], run: Run) -> None:
        """The prompt on its way through layer `number`: changes `inputs`."""
        if run.columns is not None:
            if inputs["hidden_states"].shape[1] != run.columns.shape[1]:
                inputs["hidden_states"] = _gathered(inputs["hidden_states"], run.columns)
            self._shorten(inputs, run)
        for one, (method, prune_points) in enumerate(zip(self.methods, self.prune_points, strict=True)):
            for which, point in enumerate(prune_points):
                if point.score_layer == number:
                    run.scores[one, which] = self._measure(method, layer, inputs, run)
                if point.layer == number:
                    self._drop(method, one, which, number, inputs, run)
        cache = layer_cache(inputs)
        cut = any(point is not None and number >= point.layer for point in self.cache_points)
        if cache is not None and (run.columns is not None or cut):
            columns = _columns(run, inputs["hidden_states"])
            made = make_fewer(cache, number, columns)
            made.expect(columns, run.layout.visual.shape[1], run.padded)  # type: ignore[union-attr]
            made.notes["video"] = run.layout.video()  # type: ignore[union-attr]

    def _word(self, number: int, layer: Any, inputs: dict[str, Any], run: Run) -> None:
        """Words after the prompt: cuts the mask to what the layer's cache holds."""
        cache = layer_cache(inputs)
        if cache is None:
            return
        for method, point in zip(self.methods, self.cache_points, strict=True):
            if point is not None:
                self._cut_cache(method, point, number, layer, inputs, run)
        fewer = fewer_layer(cache, number)
        if fewer is None or not fewer.is_initialized:
            return
        hidden = inputs["hidden_states"]
        new = torch.arange(hidden.shape[1], device=hidden.device).expand(len(hidden), -1) + fewer.length
        keys = torch.cat([fewer.columns, new], 1)
        mask = inputs.get("attention_mask")
        inputs["attention_mask"] = narrow(mask, new, keys, first=fewer.length, flash=self.flash, padded=fewer.padded)
        fewer.ready = True

    def _cut_cache(
        self, method: LayerMethod, point: CachePoint, number: int, layer: Any, inputs: dict[str, Any], run: Run
    ) -> None:
        """What a method decides at its cache point, carried out from that layer on."""
        cache: Any = layer_cache(inputs)
        cut = fewer_layer(cache, point.layer)
        # Several words at once are the next question, which is read with the entries that are left.
        if cut is None or "video" not in cut.notes or inputs["hidden_states"].shape[1] != 1:
            return
        if number == point.score_layer:
            run.active = self._choose_cached(method, point, layer, inputs, cache, cut, run)
        elif number >= point.layer and run.active is not None:
            fewer = fewer_layer(cache, number)
            assert fewer is not None
            fewer.select(run.active, revive=point.revive)

    def _choose_cached(
        self, method: LayerMethod, point: CachePoint, layer: Any, inputs: dict[str, Any], cache: Any, cut: FewerLayer,
        run: Run,
    ) -> Tensor | None:  # fmt: skip
        """The columns that the layers to come shall hold, bool [B,length]; None if nothing changes."""
        previous = cut.notes.get("scores")
        if previous is not None and not point.revive:
            return None
        hidden, video = inputs["hidden_states"], cut.notes["video"]
        own = fewer_layer(cache, point.score_layer)
        stored = cache.layers[point.score_layer].keys
        every = torch.arange(stored.shape[2], device=hidden.device).expand(len(hidden), -1)
        columns = every if own is None else own.columns
        real = columns >= 0
        if run.real is not None:
            real = real & run.real.gather(1, columns.clamp(min=0))
        real = nn.functional.pad(real, (0, 1), value=True)
        queries = torch.zeros_like(columns[:, :1])
        scores = attention_rows(layer, hidden, inputs["position_embeddings"], queries, real, keys=stored)[:, :-1]
        length = video.shape[1]
        seen = video.gather(1, columns.clamp(min=0, max=length - 1)) & (columns < length) & (columns >= 0)
        spare = columns.masked_fill(~seen, length)
        scores = scores.new_zeros(len(scores), length + 1).scatter(1, spare, scores)[:, :-1]
        held = video.new_zeros(len(scores), length + 1).scatter(1, spare, True)[:, :-1]
        kept = method.choose_cached(CacheState(scores, video, held, previous, cut.notes.get("kept")))
        cut.notes["scores"] = scores
        if kept is None:
            return None
        cut.notes["kept"] = kept
        return nn.functional.pad(kept | ~video, (0, cut.length - length), value=True)

    def _shorten(self, inputs: dict[str, Any], run: Run) -> None:
        # Positions are in the rotary embeddings; ids with gaps would look to flash attention like packed sequences.
        inputs.update(position_embeddings=run.rope, attention_mask=run.mask, position_ids=None)

    def _measure(self, method: LayerMethod, layer: Any, inputs: dict[str, Any], run: Run) -> Tensor:
        """The attention that a method asks for, by column of the whole prompt, float32 [B,L]."""
        assert run.layout is not None
        layout, hidden = run.layout, inputs["hidden_states"]
        columns = _columns(run, hidden)
        place = torch.arange(layout.visual.shape[1], device=hidden.device)
        asked = place == layout.ends[:, None]
        if method.asks == "text":
            last = torch.where(layout.visual, place, -1).amax(1, keepdim=True)
            words = (place > last) & (place <= layout.ends[:, None])
            asked = torch.where(words.any(1, keepdim=True), words, asked)
        real = columns >= 0
        queries = to_slots(asked.gather(1, columns.clamp(min=0)) & real)
        found = attention_rows(layer, hidden, inputs["position_embeddings"], queries, real, pool=method.pool)
        scores = found.new_zeros(layout.visual.shape[0], len(place) + 1)
        return scores.scatter(1, columns.masked_fill(~real, len(place)), found)[:, :-1]

    def _drop(self, method: LayerMethod, one: int, which: int, number: int, inputs: dict[str, Any], run: Run) -> None:
        assert run.layout is not None
        layout, hidden = run.layout, inputs["hidden_states"]
        columns = _columns(run, hidden)
        rope = tuple(part.expand(len(hidden), -1, -1) for part in inputs["position_embeddings"])
        real = columns >= 0
        video = layout.video()
        here = video.gather(1, columns.clamp(min=0)) & real
        scores = run.scores.get((one, which))
        if scores is not None:
            scores = scores.gather(1, columns.clamp(min=0))
        slot = torch.full((len(hidden), video.shape[1] + 1), -1, device=hidden.device)
        own = torch.arange(columns.shape[1], device=hidden.device).expand_as(columns)
        slot = slot.scatter(1, columns.masked_fill(~real, video.shape[1]), own)
        videos = [PlacedVideo(each.row, slot[each.row, each.columns], each.tokens) for each in layout.videos]
        state = LayerState(hidden, rope, here, video.sum(1), scores, videos)
        decision = method.choose(state, which)
        run.done.add((one, which))
        stays = real & (~here | decision.kept)
        if decision.hidden is None and bool((stays | ~real).all()):
            if not method.keeps_all(which) and int(here.sum()) > int((here.sum(1) > 0).sum()):
                raise ValueError(f"{method.spec}: nothing was dropped before layer {number}")
            return
        if decision.hidden is not None and number < run.deepstack:
            raise ValueError(
                f"{method.spec}: DeepStack adds features of single tokens after the first {run.deepstack} layers, so "
                f"tokens can be merged before layer {run.deepstack} at the earliest"
            )
        run.full = hidden if run.columns is None else _restored(run, hidden)
        slots = to_slots(stays)
        hidden = hidden if decision.hidden is None else decision.hidden
        run.rope = tuple(_gathered(part, slots) for part in (decision.rope or rope))  # type: ignore[assignment]
        run.columns = columns.gather(1, slots.clamp(min=0)).masked_fill(slots < 0, -1)
        run.padded = bool((slots < 0).any())
        mask = inputs.get("attention_mask")
        run.mask = narrow(mask, slots, slots, first=0, flash=self.flash, padded=run.padded)
        inputs["hidden_states"] = _gathered(hidden, slots)
        self._shorten(inputs, run)
        cache = layer_cache(inputs)
        if method.prunes_earlier and cache is not None:
            wanted = run.columns.new_zeros(len(columns), video.shape[1] + 1, dtype=torch.bool)
            wanted = wanted.scatter(1, run.columns.masked_fill(run.columns < 0, video.shape[1]), True)[:, :-1]
            for earlier in range(number):
                every = torch.arange(video.shape[1], device=hidden.device).expand_as(video)
                make_fewer(cache, earlier, every).select(wanted)


def language_model(model: Any) -> Any:
    """The part of a video language model that has `layers`, `norm` and the rotary embedding.

    Raises:
        ValueError: there is none at the known places.
    """
    for name in ("language_model", "text_model"):
        if hasattr(found := getattr(model.base_model, name, None), "layers"):
            return found
    raise ValueError(f"{type(model).__name__} has no language model with decoder layers at a known place")


def _columns(run: Run, hidden: Tensor) -> Tensor:
    """The column of each place in `hidden`, -1 is padding, int64 [B,M]."""
    if run.columns is not None:
        return run.columns
    every = torch.arange(hidden.shape[1], device=hidden.device).expand(len(hidden), -1)
    return every if run.real is None else every.masked_fill(~run.real, -1)


def _gathered(values: Tensor, slots: Tensor) -> Tensor:
    """Rows [B,M,D] of values [B,N,D]; those of padding are any."""
    return values.gather(1, slots.clamp(min=0)[..., None].expand(-1, -1, values.shape[2]))


def _restored(run: Run, hidden: Tensor) -> Tensor:
    """All columns again [B,L,D]: those that went as they were then."""
    assert run.full is not None and run.columns is not None
    real = run.columns >= 0
    row = torch.arange(len(hidden), device=hidden.device)[:, None].expand_as(real)
    return run.full.index_put((row[real], run.columns[real]), hidden[real])
