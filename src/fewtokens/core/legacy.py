"""Spec strings of earlier versions under the names of today."""

from __future__ import annotations

import ast

_RENAMED = {
    "width": "dim", "text_width": "text_dim", "weights": "checkpoint", "neighbours": "neighbors",
    "normalise": "normalize", "total": "keep", "step": "stride",
}  # fmt: skip
_PER_FRAME = ("tokenlearner", "dense_tokens", "pool_mlp", "grid_split")
_TWO_STAGES = ("tome", "merge_windows", "representation_shift")


def current_spec(spec: str) -> str:
    """A spec that an earlier version wrote, as today's would be; others come back as they are.

    Earlier versions wrote every argument that was not None, so that an old spec is told by the names in it.
    """
    try:
        tree = ast.parse(spec.strip(), mode="eval").body
        links: list[ast.expr] = []
        while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr):
            links.insert(0, tree.right)
            tree = tree.left
        return " | ".join(_current(link) for link in [tree, *links])
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return spec  # the reader of specs says what is wrong


def _current(link: ast.expr) -> str:
    if not isinstance(link, ast.Call) or not isinstance(link.func, ast.Name):
        return ast.unparse(link)
    name = link.func.id
    first = [ast.literal_eval(value) for value in link.args]
    old = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in link.keywords}
    if not old and not first:
        return ast.unparse(link)
    given = {_RENAMED.get(key, key) if key != "step" or name == "fastvid" else key: v for key, v in old.items()}
    if name in _TWO_STAGES and "stage" in given:
        if given.pop("stage") == "encoder":
            name += "_in_encoder"
        else:
            given.pop("layers", None)
    if "num_tokens" in given:
        count = given.pop("num_tokens")
        given = {"keep": f"{count}/frame" if name in _PER_FRAME else count, **given}
    if name in _PER_FRAME and first and isinstance(first[0], int):
        first = [f"{first[0]}/frame"]
    if name == "llama_vid" and isinstance(given.get("grid"), int):
        given = {"keep": f"{1 + given.pop('grid') ** 2}/frame", **given}
    if name == "rlt" and given.get("longest") == 0:
        given = {key: value for key, value in given.items() if key not in ("longest", "dim")}
    if name == "token_dynamics" and given.get("mode") == "reference":
        name = "vqtoken"
        given.pop("mode")
    elif name == "token_dynamics":
        given.pop("side", None)
    arguments = [repr(value) for value in first] + [f"{key}={value!r}" for key, value in given.items()]
    return f"{name}({', '.join(arguments)})"
