"""Names of methods, and the spec strings that build them.

    "tome(keep=0.25)"                  one method
    "rlt(tau=0.1) | kmeans(keep=32)"   a chain, left to right

Only literals are read (`ast.literal_eval`); nothing in a spec is ever executed.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import os
import reprlib
import warnings
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, get_type_hints

import torch

from fewtokens.core import files
from fewtokens.core.method import Method
from fewtokens.core.plain import conform

# name -> "module:Class". Strings, so that nothing is imported before it is used. Add a method here.
METHODS = {
    "random": "fewtokens.methods.baselines.random:Random",
    "uniform": "fewtokens.methods.baselines.uniform:Uniform",
    "fewer_frames": "fewtokens.methods.baselines.fewer_frames:FewerFrames",
    "downsample": "fewtokens.methods.baselines.downsample:Downsample",
    "mean_pool": "fewtokens.methods.baselines.mean_pool:MeanPool",
    "rlt": "fewtokens.methods.pruning.rlt:Rlt",
    "grt": "fewtokens.methods.pruning.grt:Grt",
    "visual_words": "fewtokens.methods.merging.visual_words:VisualWords",
    "evs": "fewtokens.methods.pruning.evs:Evs",
    "dtd": "fewtokens.methods.pruning.dtd:Dtd",
    "tome": "fewtokens.methods.merging.tome:Tome",
    "kmeans": "fewtokens.methods.clustering.kmeans:KMeans",
    "dpc_knn": "fewtokens.methods.clustering.dpc_knn:DpcKnn",
    "vidcom2": "fewtokens.methods.pruning.vidcom2:VidCom2",
    "dycoke": "fewtokens.methods.pruning.dycoke:DyCoke",
    "visionzip": "fewtokens.methods.merging.visionzip:VisionZip",
    "holitom": "fewtokens.methods.merging.holitom:HoliTom",
    "fastvid": "fewtokens.methods.merging.fastvid:FastVid",
    "scissor": "fewtokens.methods.merging.scissor:Scissor",
    "sttm": "fewtokens.methods.merging.sttm:Sttm",
    "hourglass": "fewtokens.methods.pruning.hourglass:Hourglass",
    "dynamic_pool": "fewtokens.methods.pooling.dynamic_pool:DynamicPool",
    "frame_fusion": "fewtokens.methods.merging.frame_fusion:FrameFusion",
    "centerclip": "fewtokens.methods.clustering.centerclip:CenterClip",
    "max_min": "fewtokens.methods.pruning.max_min:MaxMin",
    "prunevid": "fewtokens.methods.merging.prunevid:PruneVid",
    "testa": "fewtokens.methods.merging.testa:Testa",
    "tempme": "fewtokens.methods.merging.tempme:TempMe",
    "tome_video": "fewtokens.methods.merging.tome_video:TomeVideo",
    "merge_windows": "fewtokens.methods.merging.merge_windows:MergeWindows",
    "lftr": "fewtokens.methods.merging.lftr:Lftr",
    "metok": "fewtokens.methods.pooling.metok:Metok",
    "vid_tldr": "fewtokens.methods.merging.vid_tldr:VidTldr",
    "representation_shift": "fewtokens.methods.pruning.representation_shift:RepresentationShift",
    "tokenlearner": "fewtokens.methods.learned.tokenlearner:TokenLearner",
    "grid_split": "fewtokens.methods.pooling.grid_split:GridSplit",
    "spatial_pool": "fewtokens.methods.pooling.spatial_pool:SpatialPool",
    "dense_tokens": "fewtokens.methods.learned.dense_tokens:DenseTokens",
    "pool_mlp": "fewtokens.methods.learned.pool_mlp:PoolMlp",
    "token_dynamics": "fewtokens.methods.learned.token_dynamics:TokenDynamics",
    "perceiver": "fewtokens.methods.learned.perceiver:Perceiver",
    "qformer": "fewtokens.methods.learned.qformer:QFormer",
    "attentional_pool": "fewtokens.methods.learned.attentional_pool:AttentionalPool",
    "token_turing": "fewtokens.methods.learned.token_turing:TokenTuring",
    "llama_vid": "fewtokens.methods.learned.llama_vid:LlamaVid",
    "ppllava": "fewtokens.methods.learned.ppllava:PpLlava",
    "storm": "fewtokens.methods.learned.storm:Storm",
    "linvt": "fewtokens.methods.learned.linvt:LinVt",
}

# Methods inside the layers of a language model, for `fewtokens.llm.attach`. They do not act on tokens alone, so they
# are no part of `names()`, which comparisons and contract tests run over.
INSIDE = {
    "fastv": "fewtokens.methods.layers.fastv:FastV",
    "pyramid_drop": "fewtokens.methods.layers.pyramid_drop:PyramidDrop",
    "holitom_inner": "fewtokens.methods.layers.holitom_inner:HoliTomInner",
    "prunevid_inner": "fewtokens.methods.layers.prunevid_inner:PruneVidInner",
    "flexselect": "fewtokens.methods.layers.flexselect:FlexSelect",
    "sttm_inner": "fewtokens.methods.layers.sttm_inner:SttmInner",
    "dycoke_cache": "fewtokens.methods.layers.dycoke_cache:DyCokeCache",
}

# Printed by every comparison, at the same budget as the methods compared.
BASELINES = ("random", "uniform", "fewer_frames", "downsample", "mean_pool")

# More than any chain that is written on purpose.
MAX_LENGTH, MAX_LINKS = 10_000, 100
# Whole numbers past these overflow in tensors; no machine holds larger layers.
_MAX_SEED, _MAX_COUNT, _MAX_SIZE, _MAX_LAYERS = 2**63 - 1, 2**31 - 1, 2**20, 1000
_SIZES = (
    "dim",
    "text_dim",
    "hidden",
    "num_tokens",
    "heads",
    "memory",
    "read",
    "state",
    "side",
    "grid",
    "num_layers",
)


def names() -> list[str]:
    """All known methods but those of `INSIDE`; those of other packages (entry-point group `fewtokens.methods`) last."""
    return [*METHODS, *sorted(_others())]


def get(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        ValueError: no method of this name; says which names are close.
    """
    target = METHODS.get(name) or INSIDE.get(name) or _others().get(name)
    if target is None:
        close = difflib.get_close_matches(name, [*names(), *INSIDE], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names())}"
        raise ValueError(f"no method called {files.in_a_line(name)!r}; {hint}")
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def _others() -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group="fewtokens.methods") if point.name not in METHODS}


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
    hints = get_type_hints(kind.__init__) if name in METHODS or name in INSIDE else {}
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


def build(spec: str, **defaults: Any) -> list[Method]:
    """The methods of a spec string, in order.

    Args:
        spec: see `parse`.
        defaults: given to every method of the chain that takes such an argument and does not say it itself.
            This is how one `--keep` reaches a chain: methods that work by a threshold get it only at its end, and
            only where nothing was said of their threshold.

    Raises:
        ValueError: an unknown method or argument, an argument of the wrong type or out of its range, or
            parameters that are more than this machine has memory.
    """
    links = parse(spec)
    methods = []
    for number, (name, arguments) in enumerate(links):
        known = inspect.signature(get(name)).parameters
        fitting = {key: value for key, value in defaults.items() if key in known}
        if not leaves_keep_open(name, arguments, last=number == len(links) - 1):
            fitting.pop("keep", None)
        methods.append(_make(name, fitting | arguments))
    return methods


def _make(name: str, arguments: dict[str, Any]) -> Method:
    check_arguments(name, arguments)
    kind = get(name)
    if kind.trainable:
        with torch.device("meta"):
            sketch = kind(**(arguments | {"checkpoint": None} if "checkpoint" in arguments else arguments))
        needed = sum(value.numel() * value.element_size() for value in sketch.parameters())
        there = _memory()
        if there is not None and needed > there:
            raise ValueError(
                f"{sketch.spec} has {needed / 2**30:.0f} GiB of parameters, this machine {there / 2**30:.0f} of memory"
            )
    return kind(**arguments)


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
    return (kind.budget or last) and not set(arguments) & set(kind.instead_of_keep)
