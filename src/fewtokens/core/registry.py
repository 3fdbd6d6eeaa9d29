"""Names of methods, and the spec strings that build them.

    "tome(keep=0.25)"                  one method
    "rlt(tau=0.1) | kmeans(keep=32)"   a chain, left to right

Only literals are read (`ast.literal_eval`); nothing in a spec is ever executed.
"""

from __future__ import annotations

import ast
import difflib
import fnmatch
import inspect
import os
import pkgutil
import reprlib
import warnings
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import torch

from fewtokens import methods
from fewtokens.core import files
from fewtokens.core.budget import NotBoth
from fewtokens.core.method import STAGES, Method
from fewtokens.core.plain import conform
from fewtokens.core.spec import Spec

# A method is a file of one of these folders of `fewtokens.methods`, named like the file: the folders are the registry.
KINDS = ("baselines", "pruning", "merging", "clustering", "pooling", "learned", "selection", "memory", "quantizers")
LAYER_KIND = "layers"

# Printed by every comparison, at the same budget as the methods compared.
BASELINES = ("random", "uniform", "fewer_frames", "downsample", "mean_pool")

# Defaults that `build` may be given for a chain in which no method takes them.
_SHARED = ("keep", "seed", "dim", "text_dim")
# More than any chain that is written on purpose.
MAX_LENGTH, MAX_LINKS = 10_000, 100
# Whole numbers past these overflow in tensors; no machine holds larger layers.
_MAX_SEED, _MAX_COUNT, _MAX_SIZE, _MAX_LAYERS = 2**63 - 1, 2**31 - 1, 2**20, 1000
_SIZES = ("dim", "text_dim", "hidden", "heads", "memory", "read", "state", "side", "grid", "num_layers")


@cache
def _folder(kind: str) -> tuple[str, ...]:
    """Names of the methods of a kind, read off its folder; nothing is imported."""
    folder = Path(methods.__path__[0]) / kind
    return tuple(sorted(module.name for module in pkgutil.iter_modules([str(folder)])))


def names() -> list[str]:
    """All known methods but those of `layer_names`; those of other packages (entry points `fewtokens.methods`) last."""
    own = [name for kind in KINDS for name in _folder(kind)]
    return [*BASELINES, *(name for name in own if name not in BASELINES), *sorted(_others())]


def layer_names() -> list[str]:
    """Methods inside the layers of a language model, for `fewtokens.llm.attach`.

    They do not act on tokens alone, so they are no part of `names`, which comparisons and laws run over.
    """
    return list(_folder(LAYER_KIND))


def list_methods(pattern: str = "*", *, stage: str | None = None, learned: bool | None = None) -> list[str]:
    """Names of methods, the plain baselines first.

    Args:
        pattern: with `*` and `?`, such as "*merge*".
        stage: one of `fewtokens.core.method.STAGES`; those at "llm" are not listed otherwise.
        learned: True for those with parameters, False for those without.

    Raises:
        ValueError: no such stage.
    """
    if stage is not None and stage not in STAGES:
        raise ValueError(f"a stage is one of {', '.join(STAGES)}, got {stage!r}")
    candidates = layer_names() if stage == "llm" else names()
    return [
        name
        for name in fnmatch.filter(candidates, pattern)
        if (stage is None or get(name).stage == stage)
        and (learned is None or getattr(get(name), "learned", False) == learned)
    ]


def create_method(name: str, **arguments: Any) -> Any:
    """One method by name.

    Args:
        name: see `list_methods`.
        arguments: of its constructor.

    Raises:
        ValueError: an unknown name or argument, or an argument of the wrong type or out of its range.
    """
    parameters = inspect.signature(get(name)).parameters
    if unknown := sorted(set(arguments) - set(parameters)):
        raise ValueError(f"{name} takes {', '.join(parameters) or 'no arguments'}; not {', '.join(unknown)}")
    return _make(name, arguments)


def kind_of(name: str) -> str:
    """The kind of a method, a folder of `fewtokens.methods`; "other packages" for those."""
    return next((kind for kind in (*KINDS, LAYER_KIND) if name in _folder(kind)), "other packages")


def get(name: str) -> type[Any]:
    """The class of a method: a `Method`, or a `LayerMethod` for `layer_names`.

    Raises:
        ValueError: no method of this name; says which names are close.
    """
    kind = kind_of(name)
    if kind in (*KINDS, LAYER_KIND):
        return _class_of(import_module(f"fewtokens.methods.{kind}.{name}"))
    if point := _others().get(name):
        loaded = point.load()
        loaded.name = name
        return loaded
    close = difflib.get_close_matches(name, [*names(), *layer_names()], n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names())}"
    raise ValueError(f"no method called {files.in_a_line(name)!r}; {hint}")


def _class_of(module: ModuleType) -> type[Any]:
    """The one class that a method's file defines for a spec."""
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Spec) and value.__module__ == module.__name__
    ]
    assert len(own) == 1, f"{module.__name__} must define one method, has {[one.__name__ for one in own]}"
    return own[0]


def _others() -> dict[str, EntryPoint]:
    return {
        point.name: point
        for point in entry_points(group="fewtokens.methods")
        if kind_of(point.name) == "other packages"
    }


def streaming_names() -> list[str]:
    """Methods that can be streamed, with some of their arguments, in alphabetical order."""
    return sorted(name for name in names() if get(name).step is not Method.step)


def is_registered(method: Spec) -> bool:
    """Whether a spec string with its name builds a method of this class."""
    try:
        return get(method.name) is type(method)
    except ValueError:
        return False


def parse(spec: str) -> list[tuple[str, dict[str, Any]]]:
    """Reads a spec string into names and arguments, left to right; builds nothing.

    A first argument without a name belongs to the method's first parameter: `tome(0.25)`. Every value is checked
    against the annotation of its parameter.

    Raises:
        ValueError: says what in the spec cannot be read, or which argument is of the wrong type.
    """
    if len(spec) > MAX_LENGTH:
        raise ValueError(f"a spec has at most {MAX_LENGTH} characters, got {len(spec)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's doubts about literals are of no use to whoever wrote a spec
            tree = ast.parse(spec.strip(), mode="eval").body
        links: list[ast.expr] = []
        while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr):
            links.append(tree.right)
            tree = tree.left
        links = [tree, *reversed(links)]
        if len(links) > MAX_LINKS:
            raise ValueError(f"a chain has at most {MAX_LINKS} methods, got {len(links)}")
        return [_link(link, spec) for link in links]
    except SyntaxError:
        raise _unreadable(spec) from None
    except (RecursionError, MemoryError):
        raise ValueError(f"the spec {_short(spec)} is nested too deeply") from None


def _short(text: str) -> str:
    return repr(text) if len(text) <= 120 else f"{text[:117]!r}..."


def _unreadable(spec: str) -> ValueError:
    return ValueError(f"cannot read the spec {_short(spec)}; write it like 'rlt(tau=0.1) | tome(keep=0.25)'")


def _link(node: ast.expr, spec: str) -> tuple[str, dict[str, Any]]:
    text = _short(ast.unparse(node))[1:-1]
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name):
        raise ValueError(f"cannot read '{text}' in the spec {_short(spec)}; a method is written like tome(keep=0.25)")
    name = call.func.id
    parameters = list(inspect.signature(get(name)).parameters)
    try:
        named = [(str(keyword.arg), ast.literal_eval(keyword.value)) for keyword in call.keywords]
        values = [ast.literal_eval(value) for value in call.args]
    except (ValueError, TypeError):  # a call, a name; a list as the key of a dict
        raise ValueError(f"only plain values may stand in a spec (numbers, strings, tuples, lists): {text}") from None
    said = [argument for argument, _ in named] + parameters[: len(values)]
    if len(values) > 1 or len(set(said)) < len(said):
        raise ValueError(f"name the arguments after the first, and each only once: {text}")
    arguments = dict(named)
    unknown = set(arguments) - set(parameters)
    if unknown or (values and not parameters):
        takes = ", ".join(parameters) or "no arguments"
        raise ValueError(f"{name} takes {takes}; not {files.in_a_line(', '.join(sorted(unknown)) or text)}")
    arguments = dict(zip(parameters, values, strict=False)) | arguments
    check_arguments(name, arguments)
    return name, arguments


def check_arguments(name: str, arguments: dict[str, Any]) -> None:
    """Checks a method's arguments against the annotations of its constructor.

    Raises:
        ValueError: names the argument, what it takes and what it got.
    """
    kind = get(name)
    hints = get_type_hints(kind.__init__) if kind_of(name) != "other packages" else {}
    for argument, value in arguments.items():
        conform(value, hints.get(argument, Any), f"{name}: {argument}")
        for number in _whole_numbers(value):
            if abs(number) > (_MAX_SEED if argument == "seed" else _MAX_COUNT):
                raise ValueError(f"{name}: {argument} is too large a number, {reprlib.repr(number)}")
        if argument in _SIZES and value is not None:
            most = _MAX_LAYERS if argument == "num_layers" else _MAX_SIZE
            if not 1 <= value <= most:
                raise ValueError(f"{name}: {argument} must be a count of 1 to {most}, got {value}")


def _whole_numbers(value: Any) -> list[int]:
    if isinstance(value, list | tuple):
        return [number for part in value for number in _whole_numbers(part)]
    return [value] if isinstance(value, int) else []


def build(spec: str, **defaults: Any) -> list[Any]:
    """The methods of a spec string, in order: each a `Method`, or a `LayerMethod`.

    Args:
        spec: see `parse`.
        defaults: given to every method of the chain that takes such an argument and does not say it itself.
            This is how one `--keep` reaches a chain: methods that work by a threshold get it only at its end, and
            only where their threshold is not given.

    Raises:
        ValueError: an unknown method or argument, an argument of the wrong type or out of its range, or
            parameters that are more than this machine has memory.
    """
    links = parse(spec)
    taken = {name for kind, _ in links for name in inspect.signature(get(kind)).parameters}
    if unknown := sorted(set(defaults) - taken - set(_SHARED)):
        raise ValueError(
            f"no method of {_short(spec)} takes {', '.join(unknown)}; they take {', '.join(sorted(taken))}"
        )
    chain = []
    for number, (name, arguments) in enumerate(links):
        known = inspect.signature(get(name)).parameters
        fitting = {key: value for key, value in defaults.items() if key in known and key not in arguments}
        budget = {"keep": fitting.pop("keep")} if "keep" in fitting else {}
        arguments = fitting | arguments
        if budget and leaves_keep_open(name, arguments, last=number == len(links) - 1):
            arguments = budget | arguments
        chain.append(_make(name, arguments))
    return chain


def _make(name: str, arguments: dict[str, Any]) -> Any:
    check_arguments(name, arguments)
    kind = get(name)
    if getattr(kind, "learned", False):
        sketch = _sketch(name, arguments)
        needed = sum(value.numel() * value.element_size() for value in sketch.parameters())
        there = _memory()
        if there is not None and needed > there:
            raise ValueError(
                f"{sketch.spec} has {needed / 2**30:.0f} GiB of parameters, this machine {there / 2**30:.0f} of memory"
            )
    return kind(**arguments)


def _sketch(name: str, arguments: dict[str, Any]) -> Method:
    """The method without memory for its parameters, and without its checkpoint."""
    with torch.device("meta"):
        return get(name)(**(arguments | {"checkpoint": None} if "checkpoint" in arguments else arguments))


def _memory() -> int | None:
    """Bytes of memory that this machine has, where the system says it."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def leaves_keep_open(name: str, arguments: dict[str, Any], *, last: bool) -> bool:
    """Whether a budget given from outside is for this link of a chain, see `build`."""
    kind = get(name)
    if "keep" not in inspect.signature(kind).parameters or "keep" in arguments:
        return False
    check_arguments(name, arguments)
    if getattr(_sketch(name, arguments), "budget", None) is None and not last:
        return False
    try:
        _sketch(name, {**arguments, "keep": _ANY_BUDGET[kind.stage]})
    except NotBoth:
        return False
    except ValueError:
        pass  # a budget of another unit: its own message comes when it is built
    return True


_ANY_BUDGET = {"pixels": 0.5, "encoder": 0.5, "tokens": 0.5, "llm": 0.5}
