"""A model with few visual tokens for the length of a `with` block; nothing of it is changed, hooks are taken off again.

with attach(model, "dycoke(keep=0.25)") as few:
    ids = few.generate(**inputs, max_new_tokens=64)     # as model.generate
    loss = few(**inputs, labels=labels).loss            # as model(...)

with attach(model, "dycoke(keep=0.25) | fastv(keep=0.5, layer=2)") as few:     # and fewer still from layer 2 on
    ids = few.generate(**inputs, max_new_tokens=64)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from fewtokens.llm.family import family_of
from fewtokens.llm.splice import Compressed, as_pipeline, built, compress
from fewtokens.method import Method
from fewtokens.pipeline import Pipeline


class Attached:
    """What `attach` gives.

    Attributes:
        last: what became of the last prompt that held a video, see `Compressed`.
    """

    def __init__(self, model: Any, pipeline: Pipeline, options: dict[str, Any]) -> None:
        self.model, self.pipeline, self.options = model, pipeline, options
        self.last: Compressed | None = None

    def compress(self, **inputs: Any) -> dict[str, Any]:
        """The shorter prompt; a later turn, whose video is in the kept cache, is given positions that go on from it."""
        made = compress(self.model, inputs, self.pipeline, **self.options)
        if made.tokens:
            self.last = made
        elif self.last is not None and _goes_on(inputs) and not family_of(self.model).mrope:
            shift = self.last.shift
            if bool(shift.any()):
                counted = (inputs["attention_mask"].long().cumsum(1) - 1).clamp(min=0)
                made.inputs["position_ids"] = counted + shift.to(counted.device)[:, None]
        return made.inputs

    def generate(self, **inputs: Any) -> Any:
        """`model.generate` on the shorter prompt; sequences begin with its ids, `last.inputs["input_ids"]`."""
        return self.model.generate(**self.compress(**inputs))

    def __call__(self, **inputs: Any) -> Any:
        """`model(...)` on the shorter prompt; labels are shortened with it."""
        return self.model(**self.compress(**inputs))


def _goes_on(inputs: dict[str, Any]) -> bool:
    cache = inputs.get("past_key_values")
    return cache is not None and cache.get_seq_length() > 0 and inputs.get("attention_mask") is not None


@contextmanager
def attach(model: Any, spec: str | Sequence[Method] | Pipeline, **options: Any) -> Iterator[Attached]:
    """Few visual tokens in a video language model for the length of a `with` block.

    Args:
        model: of a family in `FAMILIES`, with its language-model head.
        spec: a chain of methods, see `compress`; after them such as act inside the language model (`registry.INSIDE`),
            for which its decoder layers are given forward pre-hooks. Those keep prompts, generated words and logits
            as long as they are; hidden states, attention and caches get shorter. Images are left alone.
        options: layout, positions, items of `compress`.

    Raises:
        ValueError: what `compress` says; layers that the model does not have; and where a video reaches the model
            without having been reduced, since the model itself was called instead of what `attach` gives.
    """
    family_of(model)
    before, inside = split(spec, model)
    attached = Attached(model, as_pipeline(before, model), options)
    hook = model.register_forward_pre_hook(_check_reduced, with_kwargs=True)
    try:
        with inside_of(model, inside)():
            yield attached
    finally:
        hook.remove()


def inside_of(model: Any, methods: Sequence[Any]) -> Callable[[], AbstractContextManager[Any]]:
    """What puts hooks on the layers of the language model for the length of a `with` block, for methods inside it.

    Raises:
        ValueError: layers that the model does not have.
    """
    if not methods:
        return nullcontext
    from fewtokens.llm.inside import Inside

    return Inside(model, methods).attached


def split(spec: str | Sequence[Method] | Pipeline, model: Any) -> tuple[Sequence[Method] | Pipeline, list[Any]]:
    """A chain as what comes before the language model, and what acts inside it.

    Raises:
        ValueError: a method before the language model after one inside it.
    """
    if isinstance(spec, Pipeline):
        return spec, []
    methods = built(spec, model)
    within = [method.stage == "llm" for method in methods]
    if within != sorted(within):
        late = methods[within.index(True) + within[within.index(True) :].index(False)].name
        raise ValueError(f"{late} acts before the language model; put it before the methods inside it")
    inner = sum(within)
    return list(methods)[: len(within) - inner], list(methods)[len(within) - inner :]


def _check_reduced(model: Any, args: Any, kwargs: dict[str, Any]) -> None:
    given = (kwargs.get("mm_encoder_outputs") or {}).values()
    pixels = [name for name in ("pixel_values", "pixel_values_videos") if kwargs.get(name) is not None]
    if pixels or not all(getattr(outputs, "reduced_by_fewtokens", False) for outputs in given):
        raise ValueError(
            "a video reached the model as it was, nothing was reduced: inside `with attach(model, ...) as few` call "
            "few.generate(...) or few(...) instead of the model"
        )
