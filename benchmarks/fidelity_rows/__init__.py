"""The rows of the fidelity table: what is compared with which published code, and how the rows are collected.

Each module of this package has `ROWS`, a sequence of `Row`. A comparison imports the published code from the folder of
clones, runs it and our method on the same features, and returns an `Agreement`. Published code is never copied here;
imports that a comparison does not need are replaced by stubs (`importing`).
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import pkgutil
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

import fewtokens
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.vit_encoder import VitEncoder

PATCH = 14  # of the encoder, in pixels


@dataclass(frozen=True)
class Agreement:
    """The result of a comparison on one clip.

    Args:
        equal: fraction of the tokens of both, in 0..1; see `same_rows` and `same_places`.
        difference: largest absolute difference of the features of equal tokens.
        why: reason for any difference, in one sentence; empty if there is none.
    """

    equal: float
    difference: float
    why: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        method: name of the method in the registry.
        repository: repository of the reference, "owner/name"; its clone is FOLDER/name. Empty if no code is published.
        commit: commit of the reference, at least seven hex digits; empty if it is an installed package called name.
        settings: settings of the comparison, as text.
        compare: runs both on the features of one clip; None if nothing can be run.
        why: the reason, for rows that cannot be run.
    """

    method: str
    repository: str = ""
    commit: str = ""
    settings: str = ""
    compare: Callable[[Path, Features], Agreement] | None = None
    why: str = ""

    @property
    def folder(self) -> str:
        """The name of the clone in FOLDER."""
        return self.repository.rpartition("/")[2]


@dataclass
class Features:
    """A real clip with its features and cues, each computed once.

    Args:
        clip: a video file.
        encoder: a ViT with patches of 14 pixels.
    """

    clip: Path
    encoder: VitEncoder
    _cache: dict[tuple, tuple[Tokens, dict[str, Tensor]]] = field(default_factory=dict, repr=False)

    def frames(self, frames: int = 32, side: int = 14) -> Tensor:
        """Uniformly sampled frames, resized to a square: [1,T,3,14*side,14*side] uint8."""
        return fewtokens.read(self.clip, frames=frames, size=(PATCH * side, PATCH * side)).frames[None]

    def tokens(self, frames: int = 32, side: int = 14) -> Tokens:
        """Features of the last block, each channel standardized over the clip: [1,frames*side*side,384]."""
        return self._encoded(frames, side)[0]

    def cue(self, name: str, frames: int = 32, side: int = 14) -> Tensor:
        """A cue of the same tokens: "keys" [1,N,64], "attention" [1,N], "frame_global" [1,T,384]."""
        return self._encoded(frames, side)[1][name]

    def _encoded(self, frames: int, side: int) -> tuple[Tokens, dict[str, Tensor]]:
        if (frames, side) not in self._cache:
            tokens, cues = self.encoder(self.frames(frames, side), needs=("keys", "attention", "frame_global"))
            x = tokens.features
            self._cache[frames, side] = tokens.replace(features=(x - x.mean(1)) / x.std(1), prefix=None), cues
        return self._cache[frames, side]


def collect() -> list[Row]:
    """All rows of the modules of this package, in the order of the modules' names."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return [row for module in modules for row in module.ROWS]


@contextlib.contextmanager
def importing(folder: Path, *stubs: str) -> Iterator[None]:
    """Makes published code in `folder` importable, with stubs for packages that the comparison does not need.

    Its modules are removed from sys.modules afterwards, so that two repositories can use the same name.

    Args:
        folder: directory to put first on sys.path.
        stubs: packages to replace, with their submodules; every attribute of a stub is an empty class.
    """
    before = dict(sys.modules)
    for name in before:
        if name.partition(".")[0] in stubs:
            del sys.modules[name]
    finder = _Stubs(stubs)
    sys.meta_path.insert(0, finder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.meta_path.remove(finder)
        added = [name for name, module in sys.modules.items() if name not in before and _is_in(folder, module)]
        for name in list(sys.modules):
            if name.partition(".")[0] in stubs or name in added:
                del sys.modules[name]
        sys.modules.update({name: module for name, module in before.items() if name not in sys.modules})


def _is_in(folder: Path, module: types.ModuleType) -> bool:
    """Whether a module is in a folder; a package without __init__.py has no file, but a path."""
    origin = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), "")
    return origin.startswith(str(folder))


def load(file: Path, *stubs: str) -> types.ModuleType:
    """Loads one file of published code as a module; imports from its own package are stubs.

    Args:
        file: path in the clone.
        stubs: other packages to replace by stubs.
    """
    name = f"published.a.b.{file.stem}"  # deep enough for imports relative to its parents
    with importing(file.parent, "published", *stubs):
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look modules up there
        spec.loader.exec_module(module)
    return module


class _Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds stubs for packages of these names."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in self.names:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class _StandInType(type):
    """Classes that have every attribute and, used as a decorator, return the decorated object."""

    def __getattr__(cls, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return stand_in(name)

    def __getitem__(cls, key: object) -> type:
        return cls

    def __call__(cls, *args: object, **kwargs: object) -> object:
        decorates = cls.__module__ == __name__ and len(args) == 1 and not kwargs
        if decorates and isinstance(args[0], type | types.FunctionType):
            return args[0]
        return super().__call__(*args, **kwargs)


class _StandIn(metaclass=_StandInType):
    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return stand_in(name)

    def __call__(self, *args: object, **kwargs: object) -> object:
        return stand_in("called")(*args, **kwargs)


def stand_in(name: str) -> type:
    """An empty class of this name that can be subclassed, called, or used as a decorator."""
    return _StandInType(name, (_StandIn,), {"__module__": __name__})


class _Stub(types.ModuleType):
    def __getattr__(self, attribute: str) -> object:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return stand_in(attribute)


def same_rows(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> tuple[float, float]:
    """Matches tokens [M,C] and [M',C] by value, in any order.

    Returns:
        The fraction of equal tokens: twice the number of pairs within `tolerance` (largest absolute difference over
        the channels), divided by the number of tokens of both; and the largest difference within a pair.
    """
    # The nearest token by a matrix product, then the exact difference to it.
    squared = ours.square().sum(1) - 2 * theirs @ ours.T
    partner = squared.argmin(1)
    distance = (theirs - ours[partner]).abs().amax(1)
    equal = distance <= tolerance
    hits = partner[equal].unique().numel()
    return 2 * hits / (len(ours) + len(theirs)), float(distance[equal].max()) if hits else float("nan")


def same_places(ours: Tensor, theirs: Tensor) -> float:
    """The fraction of equal cells of two kept sets, int64 [M] and [M']: twice the common ones over the size of both."""
    common = set(ours.tolist()) & set(theirs.tolist())
    return 2 * len(common) / (len(ours) + len(theirs))
