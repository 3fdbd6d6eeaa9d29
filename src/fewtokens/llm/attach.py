"""A model with few visual tokens for the length of a `with` block; nothing of it is changed, hooks are taken off again.

with attach(model, "dycoke(keep=0.25)") as few:
    ids = few.generate(**inputs, max_new_tokens=64)     # as model.generate
    loss = few(**inputs, labels=labels).loss            # as model(...)

with attach(model, "dycoke(keep=0.25) | fastv(keep=0.5, layer=2)") as few:     # and fewer still from layer 2 on
    ids = few.generate(**inputs, max_new_tokens=64)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from fewtokens.core.pipeline import Pipeline
from fewtokens.llm.backends.base import backend_of
from fewtokens.llm.chains import Methods, as_pipeline, split_chain
from fewtokens.llm.compress import check_options, compress
from fewtokens.llm.features import is_reduced, pipeline_of
from fewtokens.llm.interface import CACHE_NAMES, cache_of, filled, unwrapped, version
from fewtokens.llm.prompt_editor import Compressed
from fewtokens.llm.turns import later_positions, remember


class Attached:
    """What `attach` gives.

    Attributes:
        model: without what was wrapped around it, see `unwrapped`.
        last: what became of the last prompt that held a video, see `Compressed`.
    """

    def __init__(self, model: Any, pipeline: Pipeline, options: dict[str, Any]) -> None:
        self.model, self.pipeline, self.options = unwrapped(model), pipeline, options
        # DDP adds up gradients in its own forward only.
        self._called = model if isinstance(model, DistributedDataParallel) else self.model
        self.last: Compressed | None = None

    def compress(self, **inputs: Any) -> dict[str, Any]:
        """The shorter prompt, for `generate`.

        A later turn, which brings the cache of an earlier one, is given positions that go on from that one's, whatever
        other conversations there were in between.

        Raises:
            ValueError: what `compress` says, and features that something else has made.
        """
        return self._shortened(inputs, whole=True)

    def _shortened(self, inputs: dict[str, Any], *, whole: bool) -> dict[str, Any]:
        if (cache := cache_of(inputs)) is not None:
            takes = inspect.signature(self.model.forward).parameters
            name = next(name for name in CACHE_NAMES if name in takes)
            inputs = {key: value for key, value in inputs.items() if key not in CACHE_NAMES} | {name: cache}
        given = (inputs.get("mm_encoder_outputs") or {}).values()
        if any(is_reduced(outputs) and pipeline_of(outputs) is not self.pipeline for outputs in given):
            raise ValueError(
                "this prompt was shortened before, by other methods than those attached; give it to the model outside "
                "of the block, or give its pixels here"
            )
        compressed = compress(self.model, inputs, self.pipeline, **self.options)
        if compressed.tokens:
            self.last = compressed
        elif filled(cache) and compressed.inputs.get("position_ids") is None:
            positions = later_positions(cache, compressed.inputs, three=backend_of(self.model).mrope, whole=whole)
            if positions is not None:
                compressed.inputs["position_ids"] = positions
        return compressed.inputs

    def generate(self, *args: Any, **inputs: Any) -> Any:
        """`model.generate` on the shorter prompt; sequences begin with its ids, `last.inputs["input_ids"]`.

        Raises:
            ValueError: what `compress` says, and `prefill_chunk_size` before transformers 5.23, which leaves out the
                video then.
        """
        inputs = _by_name(self.model.generate, args, inputs)
        if "inputs" in inputs:
            inputs["input_ids"] = inputs.pop("inputs")
        if version() < (5, 23) and _chunked(self.model, inputs):
            raise ValueError("with prefill_chunk_size videos need transformers 5.23 or newer; leave it out")
        return self.model.generate(**self.compress(**inputs))

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        """`model(...)` on the shorter prompt; labels are shortened with it."""
        return self._called(**self._shortened(_by_name(self.model.forward, args, inputs), whole=False))


def _by_name(function: Callable[..., Any], args: tuple[Any, ...], inputs: dict[str, Any]) -> dict[str, Any]:
    """Arguments with those without a name under the names that a function has for them."""
    return inputs if not args else {**inspect.signature(function).bind_partial(*args).arguments, **inputs}


def _chunked(model: Any, inputs: dict[str, Any]) -> bool:
    configs = (inputs, vars(inputs.get("generation_config") or model.generation_config))
    return any(config.get("prefill_chunk_size") is not None for config in configs)


class Attachment(AbstractContextManager[Attached]):
    """What `attach` returns, for a `with` block; nothing is attached before it."""

    def __init__(self, model: Any, spec: Methods, options: dict[str, Any]) -> None:
        self._arguments = model, spec, options
        self._block: AbstractContextManager[Attached] | None = None

    def __enter__(self) -> Attached:
        self._block = _attached(*self._arguments)
        return self._block.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        assert self._block is not None
        return self._block.__exit__(*error)

    def _refuse(self, *args: Any, **inputs: Any) -> Any:
        raise ValueError(
            "nothing is attached yet; write `with attach(model, ...) as few:` and call few(...), few.generate(...) or "
            "few.compress(...) inside of the block"
        )

    __call__ = generate = compress = _refuse


def attach(model: Any, spec: Methods, **options: Any) -> Attachment:
    """Few visual tokens in a video language model for the length of a `with` block.

    Args:
        model: of a family in `BACKENDS`, with its language-model head; also wrapped by peft, torch.compile (what was
            compiled is then not used), DataParallel (one device is used) or DDP.
        spec: a chain of methods, see `compress`; after them such as act inside the language model
            (`registry.layer_names()`), for which its decoder layers are given forward pre-hooks. Those keep prompts,
            generated words and logits as long as they are; hidden states, attention and caches get shorter. Only videos
            are reduced: an image is left whole, and a warning says so.
        options: layout, positions, items of `compress`.

    Raises:
        ValueError: what `compress` says; a model that something is attached to already; layers that the model does not
            have; and pixels that reach the model as they are, since the model itself was called instead of what
            `attach` gives.
    """
    check_options("attach", options)
    return Attachment(model, spec, options)


@contextmanager
def _attached(model: Any, spec: Methods, options: dict[str, Any]) -> Iterator[Attached]:
    backend, inner = backend_of(model), unwrapped(model)
    check_free(inner)
    before, inside = split_chain(spec, inner)
    attached = Attached(model, as_pipeline(before, inner), options)
    hooks = []
    try:
        hooks.append(inner.register_forward_pre_hook(_check_reduced, with_kwargs=True))
        hooks.append(backend.causal_lm(inner).register_forward_hook(remember, with_kwargs=True))
        with inside_of(inner, inside)():
            yield attached
    finally:
        for hook in hooks:
            hook.remove()


def check_free(model: Any) -> None:
    """Raises a ValueError where something is attached to a model: one of two reducers would do nothing."""
    if any(hook is _check_reduced for hook in unwrapped(model)._forward_pre_hooks.values()):
        raise ValueError(
            "something is attached to this model already; leave that block first, or write one chain such as "
            "'tome(keep=0.5) | fastv(keep=0.5)'"
        )


def inside_of(model: Any, methods: Sequence[Any]) -> Callable[[], AbstractContextManager[Any]]:
    """What puts hooks on the layers of the language model for the length of a `with` block, for methods inside it.

    Raises:
        ValueError: layers that the model does not have.
    """
    if not methods:
        return nullcontext
    from fewtokens.llm.layers.hooks import LayerRuntime

    return LayerRuntime(model, methods).attached


def _check_reduced(model: Any, args: Any, kwargs: dict[str, Any]) -> None:
    given = (kwargs.get("mm_encoder_outputs") or {}).values()
    names = (name for each in backend_of(model).pixel_inputs.values() for name in each)
    pixels = [name for name in names if kwargs.get(name) is not None]
    if pixels or not all(map(is_reduced, given)):
        raise ValueError(
            "pixels reached the model as they were, nothing was reduced: inside `with attach(model, ...) as few` call "
            "few.generate(...) or few(...) instead of the model"
        )
