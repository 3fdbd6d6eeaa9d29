"""Names of methods, and the spec strings that build them.

    "tome(keep=0.25)"                  one method
    "rlt(tau=0.1) | kmeans(keep=32)"   a chain, left to right

Only literals are read (`ast.literal_eval`); nothing in a spec is ever executed.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from fewtokens.method import Method

# name -> "module:Class". Strings, so that nothing is imported before it is used. Add a method here.
METHODS = {
    "random": "fewtokens.reduce.random:Random",
    "uniform": "fewtokens.reduce.uniform:Uniform",
    "fewer_frames": "fewtokens.reduce.fewer_frames:FewerFrames",
    "downsample": "fewtokens.reduce.downsample:Downsample",
    "mean_pool": "fewtokens.reduce.mean_pool:MeanPool",
    "rlt": "fewtokens.reduce.rlt:Rlt",
    "grt": "fewtokens.reduce.grt:Grt",
    "visual_words": "fewtokens.reduce.visual_words:VisualWords",
    "evs": "fewtokens.reduce.evs:Evs",
    "dtd": "fewtokens.reduce.dtd:Dtd",
    "tome": "fewtokens.reduce.tome:Tome",
    "kmeans": "fewtokens.reduce.kmeans:KMeans",
    "dpc_knn": "fewtokens.reduce.dpc_knn:DpcKnn",
    "vidcom2": "fewtokens.reduce.vidcom2:VidCom2",
    "dycoke": "fewtokens.reduce.dycoke:DyCoke",
    "visionzip": "fewtokens.reduce.visionzip:VisionZip",
    "holitom": "fewtokens.reduce.holitom:HoliTom",
    "fastvid": "fewtokens.reduce.fastvid:FastVid",
    "scissor": "fewtokens.reduce.scissor:Scissor",
    "sttm": "fewtokens.reduce.sttm:Sttm",
    "hourglass": "fewtokens.reduce.hourglass:Hourglass",
    "dynamic_pool": "fewtokens.reduce.dynamic_pool:DynamicPool",
    "frame_fusion": "fewtokens.reduce.frame_fusion:FrameFusion",
    "centerclip": "fewtokens.reduce.centerclip:CenterClip",
    "max_min": "fewtokens.reduce.max_min:MaxMin",
    "prunevid": "fewtokens.reduce.prunevid:PruneVid",
    "testa": "fewtokens.reduce.testa:Testa",
    "tempme": "fewtokens.reduce.tempme:TempMe",
    "tome_video": "fewtokens.reduce.tome_video:TomeVideo",
    "merge_windows": "fewtokens.reduce.merge_windows:MergeWindows",
    "lftr": "fewtokens.reduce.lftr:Lftr",
    "metok": "fewtokens.reduce.metok:Metok",
    "vid_tldr": "fewtokens.reduce.vid_tldr:VidTldr",
    "representation_shift": "fewtokens.reduce.representation_shift:RepresentationShift",
    "tokenlearner": "fewtokens.learn.tokenlearner:TokenLearner",
    "grid_split": "fewtokens.learn.grid_split:GridSplit",
    "spatial_pool": "fewtokens.learn.spatial_pool:SpatialPool",
    "dense_tokens": "fewtokens.learn.dense_tokens:DenseTokens",
    "pool_mlp": "fewtokens.learn.pool_mlp:PoolMlp",
    "token_dynamics": "fewtokens.learn.token_dynamics:TokenDynamics",
    "perceiver": "fewtokens.learn.perceiver:Perceiver",
    "qformer": "fewtokens.learn.qformer:QFormer",
    "attentional_pool": "fewtokens.learn.attentional_pool:AttentionalPool",
    "token_turing": "fewtokens.learn.token_turing:TokenTuring",
    "llama_vid": "fewtokens.learn.llama_vid:LlamaVid",
    "ppllava": "fewtokens.learn.ppllava:PpLlava",
    "storm": "fewtokens.learn.storm:Storm",
    "linvt": "fewtokens.learn.linvt:LinVt",
}

# Methods inside the layers of a language model, for `fewtokens.llm.attach`. They do not act on tokens alone, so they
# are no part of `names()`, which comparisons and contract tests run over.
INSIDE = {
    "fastv": "fewtokens.llm.inside.fastv:FastV",
    "pyramid_drop": "fewtokens.llm.inside.pyramid_drop:PyramidDrop",
    "holitom_inner": "fewtokens.llm.inside.holitom_inner:HoliTomInner",
    "prunevid_inner": "fewtokens.llm.inside.prunevid_inner:PruneVidInner",
    "flexselect": "fewtokens.llm.inside.flexselect:FlexSelect",
    "sttm_inner": "fewtokens.llm.inside.sttm_inner:SttmInner",
    "dycoke_cache": "fewtokens.llm.inside.dycoke_cache:DyCokeCache",
}

# Printed by every comparison, at the same budget as the methods compared.
BASELINES = ("random", "uniform", "fewer_frames", "downsample", "mean_pool")


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
        raise ValueError(f"no method called {name!r}; {hint}")
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def _others() -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group="fewtokens.methods") if point.name not in METHODS}


def parse(spec: str) -> list[tuple[str, dict[str, Any]]]:
    """Reads a spec string into names and arguments, left to right; builds nothing.

    A first argument without a name belongs to the method's first parameter: `tome(0.25)`.

    Raises:
        ValueError: says what in the spec cannot be read.
    """
    try:
        tree = ast.parse(spec.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise ValueError(f"cannot read the spec {spec!r}; write it like 'rlt(tau=0.1) | tome(keep=0.25)'") from None
    links: list[ast.expr] = []
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr):
        links.insert(0, tree.right)
        tree = tree.left
    return [_link(link, spec) for link in [tree, *links]]


def _link(node: ast.expr, spec: str) -> tuple[str, dict[str, Any]]:
    text = ast.unparse(node)
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name):
        raise ValueError(f"cannot read {text!r} in the spec {spec!r}; a method is written like tome(keep=0.25)")
    name = call.func.id
    parameters = list(inspect.signature(get(name)).parameters)
    try:
        arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        values = [ast.literal_eval(value) for value in call.args]
    except ValueError:
        raise ValueError(f"only plain values may stand in a spec (numbers, strings, tuples, lists): {text}") from None
    if len(values) > 1 or (values and parameters[0] in arguments):
        raise ValueError(f"name the arguments after the first, and each only once: {text}")
    arguments = dict(zip(parameters, values, strict=False)) | arguments
    unknown = set(arguments) - set(parameters)
    if unknown:
        raise ValueError(f"{name} takes {', '.join(parameters)}; not {', '.join(sorted(unknown))}")
    return name, arguments


def build(spec: str, **defaults: Any) -> list[Method]:
    """The methods of a spec string, in order.

    Args:
        spec: see `parse`.
        defaults: given to every method of the chain that takes such an argument and does not say it itself.
            This is how one `--keep` reaches a chain: methods that work by a threshold get it only at its end, and
            only where nothing was said of their threshold.

    Raises:
        ValueError: an unknown method or argument, or an argument out of its range.
    """
    links = parse(spec)
    methods = []
    for number, (name, arguments) in enumerate(links):
        kind = get(name)
        known = inspect.signature(kind).parameters
        fitting = {key: value for key, value in defaults.items() if key in known}
        if not leaves_keep_open(name, arguments, last=number == len(links) - 1):
            fitting.pop("keep", None)
        methods.append(kind(**(fitting | arguments)))
    return methods


def leaves_keep_open(name: str, arguments: dict[str, Any], *, last: bool) -> bool:
    """Whether a budget given from outside is for this link of a chain, see `build`."""
    kind = get(name)
    if "keep" not in inspect.signature(kind).parameters or "keep" in arguments:
        return False
    return (kind.budget or last) and not set(arguments) & set(kind.instead_of_keep)
