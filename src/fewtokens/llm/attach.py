"""Reduces the visual tokens of a model inside a `with` block, by hooks; the model is unchanged afterwards.

Inside the block `few` is called like the model:

    with attach(model, "evs(keep=0.25)") as few:
        ids = few.generate(**inputs, max_new_tokens=64)     # the arguments of model.generate
        loss = few(**inputs, labels=labels).loss            # as model(...)

    with attach(model, "evs(keep=0.25) | fastv(keep=0.5, layer=2)") as few:  # and half of them from layer 2 on
        ids = few.generate(**inputs, max_new_tokens=64)

    with attach(model, "aks(keep=32) | tome(keep=0.25)") as few:  # 32 frames of a file, chosen by the question
        inputs = few.inputs(processor, "film.mp4", "Who opens the letter?", scorer="clip:models/clip")
        ids = few.generate(**inputs, max_new_tokens=64)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.nn.parallel import DistributedDataParallel

from fewtokens.core.kv_memory import KVMemory
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.selection import FrameSelector
from fewtokens.llm.backends.base import backend_of
from fewtokens.llm.chains import Methods, as_pipeline, build_methods, image_pipeline, split_chain
from fewtokens.llm.compress import check_options, compress
from fewtokens.llm.features import is_reduced, pipeline_of
from fewtokens.llm.interface import CACHE_NAMES, cache_name, cache_of, is_filled, unwrap, version
from fewtokens.llm.prompt_editor import Compressed
from fewtokens.llm.turns import later_positions, remember
from fewtokens.selection import Scorer, read
from fewtokens.selection.choose import load_selector

if TYPE_CHECKING:
    from fewtokens.llm.prompts import Inputs, Processor


class Attached:
    """A model whose prompts are shortened before it runs, as `attach` yields it.

    Attributes:
        model: the model without its wrappers, see `unwrap`.
        last: the result for the last prompt that contained an image or a video, see `Compressed`.
        selector: the method that selects the frames for `inputs`, or None.
    """

    def __init__(
        self, model: Any, pipeline: Pipeline, options: dict[str, Any], selector: FrameSelector | None = None
    ) -> None:
        self.model, self.pipeline, self.options, self.selector = unwrap(model), pipeline, options, selector
        # DDP sums gradients over processes only in its own forward.
        self._callable = model if isinstance(model, DistributedDataParallel) else self.model
        self.last: Compressed | None = None

    def inputs(
        self,
        processor: Processor,
        video: str | Path,
        question: str,
        *,
        scorer: str | Scorer | None = None,
        near: float = 0.0,
    ) -> Inputs:
        """Returns the prompt of a question about a file, whose frames the selector selects; for `generate` and calls.

        Args:
            processor: of the model.
            video, question, scorer, near: see `fewtokens.read`.

        Raises:
            ValueError: no method selects frames, it lacks a scorer, or the file cannot be read.
        """
        if self.selector is None:
            raise ValueError(
                "no method selects frames; attach 'aks(keep=32) | tome' or another such chain, or pass select="
            )
        selecting: dict[str, Any] = {"select": self.selector, "question": question, "scorer": scorer, "near": near}
        return processor(self.model, read(video, **selecting, size=processor.read_size), question)

    def compress(self, **inputs: Any) -> dict[str, Any]:
        """Returns the shortened prompt, for `generate`.

        A later turn, which brings the cache of an earlier one, gets positions that continue from that turn, even if
        other conversations took place in between.

        Raises:
            ValueError: as `compress`, or if the features were reduced by other methods.
        """
        return self._shortened(inputs, all_columns=True)

    def _shortened(self, inputs: dict[str, Any], *, all_columns: bool) -> dict[str, Any]:
        if (cache := cache_of(inputs)) is not None:
            inputs = {key: value for key, value in inputs.items() if key not in CACHE_NAMES}
            inputs[cache_name(self.model)] = cache
        encoded = (inputs.get("mm_encoder_outputs") or {}).values()
        if any(is_reduced(outputs) and pipeline_of(outputs) is not self.pipeline for outputs in encoded):
            raise ValueError(
                "this prompt was already shortened by methods other than those attached; pass it to the model outside "
                "the block, or pass its pixels here"
            )
        compressed = compress(self.model, inputs, self.pipeline, **self.options)
        if compressed.layout is not None:
            self.last = compressed
        elif is_filled(cache) and compressed.inputs.get("position_ids") is None:
            positions = later_positions(
                cache, compressed.inputs, axes=backend_of(self.model).axes(self.model), all_columns=all_columns
            )
            if positions is not None:
                compressed.inputs["position_ids"] = positions
        return compressed.inputs

    def generate(self, *args: Any, **inputs: Any) -> Any:
        """Runs `model.generate` on the shortened prompt; its sequences begin with the ids `last.inputs["input_ids"]`.

        The answer is `ids[:, few.last.inputs["input_ids"].shape[1] :]`, not from the length of the original prompt on.

        Raises:
            ValueError: as `compress`, or for `prefill_chunk_size` before transformers 5.23, which then skips the video.
        """
        inputs = _by_name(self.model.generate, args, inputs)
        if "inputs" in inputs:
            inputs["input_ids"] = inputs.pop("inputs")
        if version() < (5, 23) and _chunked(self.model, inputs):
            raise ValueError("prefill_chunk_size with a video requires transformers 5.23 or newer; remove it")
        if backend_of(self.model).video_spans and _chunked(self.model, inputs):
            raise ValueError("with prefill_chunk_size, transformers skips the videos of this family; remove it")
        return self.model.generate(**self.compress(**inputs))

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        """Runs `model(...)` on the shortened prompt; labels are shortened to match."""
        return self._callable(**self._shortened(_by_name(self.model.forward, args, inputs), all_columns=False))


def _by_name(function: Callable[..., Any], args: tuple[Any, ...], inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with positional arguments added under the names of the function's parameters."""
    return inputs if not args else {**inspect.signature(function).bind_partial(*args).arguments, **inputs}


def _chunked(model: Any, inputs: dict[str, Any]) -> bool:
    configs = (inputs, vars(inputs.get("generation_config") or model.generation_config))
    return any(config.get("prefill_chunk_size") is not None for config in configs)


class Attachment(AbstractContextManager[Attached]):
    """The context manager that `attach` returns; nothing is attached before its `with` block."""

    def __init__(self, model: Any, spec: Methods, select: str | FrameSelector | None, options: dict[str, Any]) -> None:
        self._arguments = model, spec, select, options
        self._block: AbstractContextManager[Attached] | None = None

    def __enter__(self) -> Attached:
        self._block = _attached(*self._arguments)
        return self._block.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        assert self._block is not None
        return self._block.__exit__(*error)

    def _refuse(self, *args: Any, **inputs: Any) -> Any:
        raise ValueError(
            "nothing is attached yet; write `with attach(model, ...) as few:` and call few(...), few.generate(...), "
            "few.compress(...) or few.inputs(...) inside the block"
        )

    __call__ = generate = compress = inputs = _refuse


def attach(model: Any, spec: Methods, *, select: str | FrameSelector | None = None, **options: Any) -> Attachment:
    """Reduces the visual tokens of a video language model inside a `with` block.

    Args:
        model: a model that takes precomputed features (`fewtokens llm-families`), with its language-model head. It may
            be wrapped by peft, torch.compile (the compiled code is not used), DataParallel (one device is used) or DDP.
        spec: a chain of methods, see `compress`. It may end with methods that act inside the language model
            (`registry.layer_names()`), which run as forward pre-hooks on its decoder layers. These leave the length of
            prompts, generated text and logits unchanged; hidden states, attention and caches get shorter. They act on
            the visual tokens that the chain before them could have reduced. Layers may have windows, or a state instead
            of attention (linear attention, convolution, Mamba); a method that reads attention requires a layer with it.
        select: the method that selects the frames of a file for `Attached.inputs`; the chain may start with it instead.
        options: layout, positions, items, images and tower of `compress`. By default images are left whole, with a
            warning.

    Raises:
        ValueError: as `compress`; a selector chooses frames of several sizes, which only a `Session` takes; methods
            are already attached to the model; the model does not have a layer of the spec, or has layers that share
            keys or choose them by an index; or pixels reach the model unreduced, because it was called directly instead
            of through the object that the block yields.
    """
    check_options("attach", options)
    return Attachment(model, spec, select, options)


@contextmanager
def _attached(
    model: Any, spec: Methods, select: str | FrameSelector | None, options: dict[str, Any]
) -> Iterator[Attached]:
    backend, inner = backend_of(model), unwrap(model)
    check_free(inner)
    selector, spec = _split_selector(spec, select, inner)
    before, inside = split_chain(spec, inner)
    pipeline = as_pipeline(before, inner)
    if options.get("images", False) is not False:  # methods are built once
        options = options | {"images": image_pipeline(options["images"], pipeline, inner)}
    attached = Attached(model, pipeline, options, selector)
    hooks = []
    try:
        hooks.append(inner.register_forward_pre_hook(_check_reduced, with_kwargs=True))
        hooks.append(backend.causal_lm(inner).register_forward_hook(remember, with_kwargs=True))
        with layer_hooks(inner, inside)():
            yield attached
    finally:
        for hook in hooks:
            hook.remove()


def _split_selector(
    spec: Methods, select: str | FrameSelector | None, model: Any
) -> tuple[FrameSelector | None, Methods]:
    """Returns the method that selects frames, given alone or at the start of a chain, and the rest of the chain."""
    selector = None if select is None else load_selector(select)
    methods: Any = spec if isinstance(spec, Pipeline) else list(build_methods(spec, model))
    first = spec.selector if isinstance(spec, Pipeline) else methods[0] if methods else None
    if isinstance(first, FrameSelector):
        if selector is not None:
            raise ValueError(f"the chain starts with {first.name}, which selects frames; remove it or select=")
        selector = first
        methods = methods if isinstance(spec, Pipeline) else methods[1:]
    if selector is not None and selector.sizes:
        raise ValueError(f"{selector.name} chooses frames of several sizes, which only a Session takes")
    return selector, methods


def check_free(model: Any) -> None:
    """Raises a ValueError if methods are attached to a model: one of two reducers would have no effect."""
    if any(hook is _check_reduced for hook in unwrap(model)._forward_pre_hooks.values()):
        raise ValueError(
            "methods are already attached to this model; leave that block first, or write one chain such as "
            "'tome(keep=0.5) | fastv(keep=0.5)'"
        )


def layer_hooks(model: Any, methods: Sequence[Any]) -> Callable[[], AbstractContextManager[Any]]:
    """Returns a context manager that hooks methods into the layers of the language model.

    Raises:
        ValueError: the model does not have a layer of the methods.
    """
    if not methods:
        return nullcontext
    if own := getattr(model, "inside", None):
        raise ValueError(
            f"{methods[0].name} cannot be added to this model, which runs {own[0].spec} inside its language model"
        )
    if memory := next((method for method in methods if isinstance(method, KVMemory)), None):
        raise ValueError(
            f"{memory.name} is a memory in the key-value cache; use a Session or a StreamSession, with it as the only "
            "method inside the language model"
        )
    from fewtokens.llm.layers.hooks import LayerRuntime

    return LayerRuntime(model, methods).attach


def _check_reduced(model: Any, args: Any, kwargs: dict[str, Any]) -> None:
    encoded = (kwargs.get("mm_encoder_outputs") or {}).values()
    names = (name for group in backend_of(model).pixel_inputs.values() for name in group)
    pixels = [name for name in names if kwargs.get(name) is not None]
    if pixels or not all(map(is_reduced, encoded)):
        raise ValueError(
            "the model was called directly, so no tokens were reduced; inside `with attach(model, ...) as few` call "
            "few.generate(...) or few(...) instead of the model"
        )
