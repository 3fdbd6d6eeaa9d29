"""The registry of methods, and the spec strings that build them.

    "tome(keep=0.25)"                  one method
    "rlt(tau=0.1) | kmeans(keep=32)"   a chain, applied from left to right

`fewtokens.core.syntax` reads names and arguments with `ast.literal_eval`; nothing in a spec is ever executed.
"""

from __future__ import annotations

import fnmatch
import inspect
import os
import reprlib
from importlib import import_module
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any, get_type_hints

import torch

from fewtokens.core import entry_points
from fewtokens.core.budget import ConflictingArguments
from fewtokens.core.method import STAGES, Method
from fewtokens.core.plain import conform
from fewtokens.core.selection import FrameSelector
from fewtokens.core.spec import Spec
from fewtokens.core.syntax import (
    ALL_KINDS,
    KINDS,
    LAYER_KIND,
    SELECTION_KIND,
    Link,
    check_argument_names,
    check_name,
    external,
    folder,
    read_links,
    short,
)  # fmt: skip

# Included in every comparison, at the same budget as the compared methods.
BASELINES = ("random", "uniform", "fewer_frames", "downsample", "mean_pool")

# Defaults that `build` accepts even if no method of the chain has such an argument.
_SHARED = ("keep", "seed", "dim", "text_dim")
# Larger integers overflow in tensors; larger layers do not fit into the memory of any machine.
_MAX_SEED, _MAX_COUNT, _MAX_SIZE, _MAX_LAYERS = 2**63 - 1, 2**31 - 1, 2**20, 1000
_SIZES = ("dim", "text_dim", "hidden", "heads", "memory", "read", "state", "side", "grid", "num_layers")


def names() -> list[str]:
    """Returns the names of all methods from tokens to tokens, baselines first: not of `selector_names`, `layer_names`.

    Methods of other packages, which are entry points of the group `fewtokens.methods`, are last. Their packages are
    imported; one that cannot be loaded is skipped, with one warning per process.
    """
    own = [name for kind in KINDS for name in folder(kind)]
    external_names = [name for name in _external_names(Spec) if name not in _external_names(FrameSelector)]
    return [*BASELINES, *(name for name in own if name not in BASELINES), *external_names]


def layer_names() -> list[str]:
    """Returns the names of the methods that act inside a language model, for `fewtokens.llm.attach`.

    They need more than tokens, so `names`, which comparisons iterate over, does not contain them.
    """
    return list(folder(LAYER_KIND))


def selector_names() -> list[str]:
    """Returns the names of the methods that select the frames of a video before encoding (`FrameSelector`)."""
    return [*folder(SELECTION_KIND), *_external_names(FrameSelector)]


def every_name() -> list[str]:
    """Returns the names of all methods: `names`, `selector_names` and `layer_names`."""
    return [*names(), *selector_names(), *layer_names()]


def list_methods(
    pattern: str = "*", *, kind: str | None = None, stage: str | None = None, learned: bool | None = None
) -> list[str]:
    """Lists the names of methods, baselines first.

        fewtokens.list_methods(kind="merging", learned=False)
        fewtokens.list_methods(stage="llm")
        fewtokens.list_methods("tome*")  # ["tome", "tome_in_encoder", "tome_video"]

    Args:
        pattern: a wildcard pattern of names, with `*` and `?`. Default: all names.
        kind: only methods of this kind, one of `ALL_KINDS`.
        stage: only methods of this stage, a key of `fewtokens.core.method.STAGES`. Methods of the stages "frames" and
            "llm", which have the kinds "selection" and "layers", are listed only if the stage or the kind is given.
        learned: True for only methods with trainable parameters, False for only those without.

    Raises:
        ValueError: `kind` is not a kind, or `stage` is not a stage.
    """
    if kind is not None and kind not in ALL_KINDS:
        raise ValueError(f"kind must be one of {', '.join(ALL_KINDS)}, got {kind!r}")
    if stage is not None and stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {stage!r}")
    candidates = names()
    if stage in ("frames", "llm") or kind in (SELECTION_KIND, LAYER_KIND):
        candidates = [*selector_names(), *layer_names()]
    return [
        name
        for name in fnmatch.filter(candidates, pattern)
        if (kind is None or get_kind(name) == kind)
        and (stage is None or get(name).stage == stage)
        and (learned is None or getattr(get(name), "learned", False) == learned)
    ]


def create_method(name: str, **arguments: Any) -> Any:
    """Creates a method by name.

        method = fewtokens.create_method("tome", keep=0.1)

    Args:
        name: the name, see `list_methods`.
        arguments: arguments of its constructor.

    Returns:
        A `Method`, `LayerMethod` or `FrameSelector`.

    Raises:
        ValueError: the name or an argument is unknown, or an argument has the wrong type or is out of range.
    """
    check_argument_names(name, arguments, (), list(inspect.signature(get(name)).parameters))
    return _create(name, arguments)


def get_kind(name: str) -> str:
    """Returns the kind of a method, which is its folder in `fewtokens.methods`, or "other packages"."""
    return next((kind for kind in ALL_KINDS if name in folder(kind)), "other packages")


def get(name: str) -> type[Any]:
    """Returns the class of a method.

    Raises:
        ValueError: there is no method of this name (the message suggests similar names), or its entry point cannot be
            loaded.
    """
    check_name(name)
    kind = get_kind(name)
    if kind in ALL_KINDS:
        return _class_of(import_module(f"fewtokens.methods.{kind}.{name}"))
    return _load_external(external()[name])


def _class_of(module: ModuleType) -> type[Any]:
    """Returns the only `Spec` that the module of a method defines."""
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Spec) and value.__module__ == module.__name__
    ]
    assert len(own) == 1, f"{module.__name__} must define one method, has {[cls.__name__ for cls in own]}"
    return own[0]


def _load_external(point: EntryPoint) -> type[Any]:
    """Loads the class of an entry point; from then on the entry point determines its name."""
    loaded = entry_points.load(point, Spec)
    loaded.name = point.name
    required = [p.name for p in inspect.signature(loaded).parameters.values() if p.default is inspect.Parameter.empty]
    if required:
        raise ValueError(
            f"{entry_points.describe(point)} cannot be used: its argument {required[0]} must have a default"
        )
    return loaded


def _external_names(base: type[Spec]) -> list[str]:
    """Returns the names of the entry points that can be loaded and are subclasses of `base`."""
    usable = []
    for name, point in sorted(external().items()):
        try:
            loaded = _load_external(point)
        except ValueError as error:
            entry_points.warn_once(f"{error}; skipped")
        else:
            usable += [name] if issubclass(loaded, base) else []
    return usable


def streaming_names() -> list[str]:
    """Returns the names of methods that can be streamed, at least with some arguments, in alphabetical order."""
    return sorted(name for name in names() if get(name).step is not Method.step)


def is_registered(method: Spec) -> bool:
    """Whether a spec string with the name of this method builds an object of its class."""
    try:
        return get(method.name) is type(method)
    except ValueError:
        return False


def parse(spec: str) -> list[tuple[str, dict[str, Any]]]:
    """Parses a spec string into names and arguments, from left to right, without building the methods.

        parse("rlt(0.1) | tome(keep=0.25)")  # [("rlt", {"tau": 0.1}), ("tome", {"keep": 0.25})]

    The first argument may be positional. All values are checked against the annotations of the parameters.

    Raises:
        ValueError: the spec cannot be parsed, a name is unknown, or an argument has the wrong type.
    """
    return [_parse_link(link) for link in read_links(spec)]


def _parse_link(link: Link) -> tuple[str, dict[str, Any]]:
    name, values, named, text = link
    parameters = list(inspect.signature(get(name)).parameters)
    assigned = [argument for argument, _ in named] + parameters[: len(values)]
    if len(values) > 1 or len(set(assigned)) < len(assigned):
        raise ValueError(f"all arguments but the first must be named, and each given only once: {text}")
    check_argument_names(name, [argument for argument, _ in named], values, parameters)
    arguments = dict(zip(parameters, values, strict=False)) | dict(named)
    check_arguments(name, arguments)
    return name, arguments


def check_arguments(name: str, arguments: dict[str, Any]) -> None:
    """Checks a method's arguments against the annotations of its constructor.

    Raises:
        ValueError: an argument has the wrong type or is out of range.
    """
    kind = get(name)
    hints = get_type_hints(kind.__init__) if get_kind(name) != "other packages" else {}
    for argument, value in arguments.items():
        conform(value, hints.get(argument, Any), f"{name}: {argument}")
        for number in _whole_numbers(value):
            if abs(number) > (_MAX_SEED if argument == "seed" else _MAX_COUNT):
                raise ValueError(f"{name}: {argument} is too large, got {reprlib.repr(number)}")
        if argument in _SIZES and value is not None:
            maximum = _MAX_LAYERS if argument == "num_layers" else _MAX_SIZE
            if not 1 <= value <= maximum:
                raise ValueError(f"{name}: {argument} must be in 1..{maximum}, got {value}")


def _whole_numbers(value: Any) -> list[int]:
    if isinstance(value, list | tuple):
        return [number for part in value for number in _whole_numbers(part)]
    return [value] if isinstance(value, int) else []


def build(spec: str, **defaults: Any) -> list[Any]:
    """Builds the methods of a spec string.

        rlt, tome = fewtokens.build("rlt | tome", keep=0.25)

    Args:
        spec: a method or a chain, such as "rlt(tau=0.1) | tome".
        defaults: arguments for all methods of the chain that accept them and do not set them in the spec. A method
            with a threshold receives `keep` only if it is the last of the chain and its threshold is not set.

    Returns:
        The methods in the order of the spec.

    Raises:
        ValueError: the spec cannot be parsed, a method or argument is unknown, an argument has the wrong type or is
            out of range, or the parameters exceed the memory of this machine.
    """
    links = parse(spec)
    accepted = {name for kind, _ in links for name in inspect.signature(get(kind)).parameters}
    if unknown := sorted(set(defaults) - accepted - set(_SHARED)):
        raise ValueError(
            f"no method of {short(spec)} has an argument {', '.join(unknown)}; they accept "
            f"{', '.join(sorted(accepted))}"
        )
    chain = []
    for index, (name, arguments) in enumerate(links):
        parameters = inspect.signature(get(name)).parameters
        own = {key: value for key, value in defaults.items() if key in parameters and key not in arguments}
        budget = {"keep": own.pop("keep")} if "keep" in own else {}
        arguments = own | arguments
        if budget and accepts_default_keep(name, arguments, last=index == len(links) - 1):
            arguments = budget | arguments
        chain.append(_create(name, arguments))
    return chain


def _create(name: str, arguments: dict[str, Any]) -> Any:
    check_arguments(name, arguments)
    kind = get(name)
    if getattr(kind, "learned", False):
        sketch = _build_on_meta(name, arguments)
        required = sum(value.numel() * value.element_size() for value in sketch.parameters())
        memory = _total_memory()
        if memory is not None and required > memory:
            raise ValueError(
                f"{sketch.spec} has {required / 2**30:.0f} GiB of parameters, this machine has "
                f"{memory / 2**30:.0f} GiB of memory"
            )
    return kind(**arguments)


def _build_on_meta(name: str, arguments: dict[str, Any]) -> Method:
    """Builds the method on the meta device, without its checkpoint."""
    with torch.device("meta"):
        return get(name)(**(arguments | {"checkpoint": None} if "checkpoint" in arguments else arguments))


def _total_memory() -> int | None:
    """Returns the bytes of memory of this machine, or None if the system does not report them."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def accepts_default_keep(name: str, arguments: dict[str, Any], *, last: bool) -> bool:
    """Whether `build` passes a default `keep` to a method of a chain.

    Args:
        name: the method.
        arguments: its arguments.
        last: whether it is the last method of the chain.
    """
    kind = get(name)
    # The default budget is one of tokens, not of frames.
    if kind.stage == "frames" or "keep" not in inspect.signature(kind).parameters or "keep" in arguments:
        return False
    check_arguments(name, arguments)
    if getattr(_build_on_meta(name, arguments), "budget", None) is None and not last:
        return False
    try:
        _build_on_meta(name, {**arguments, "keep": _ANY_BUDGET[kind.stage]})
    except ConflictingArguments:
        return False
    except ValueError:
        pass  # a budget of another unit, which raises its own error when the method is built
    return True


_ANY_BUDGET = {"pixels": 0.5, "encoder": 0.5, "tokens": 0.5, "llm": 0.5}
