"""Converts spec strings and training settings of earlier versions to current names."""

from __future__ import annotations

import ast

_RENAMED = {
    "width": "dim", "text_width": "text_dim", "weights": "checkpoint", "neighbours": "neighbors",
    "normalise": "normalize", "centre": "center", "total": "keep", "step": "stride",
}  # fmt: skip
RENAMED_SETTINGS = {"colour": "color", "grey": "gray"}
_PER_FRAME = ("tokenlearner", "dense_tokens", "pool_mlp", "grid_split")
_TWO_STAGES = ("tome", "merge_windows", "representation_shift")


def current_spec(spec: str) -> str:
    """Converts a spec written by an earlier version; any other spec is returned unchanged.

    Earlier versions wrote every argument that was not None, so an old spec is recognized by its argument names.
    """
    try:
        tree = ast.parse(spec.strip(), mode="eval").body
        links: list[ast.expr] = []
        while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr):
            links.insert(0, tree.right)
            tree = tree.left
        return " | ".join(_current(link) for link in [tree, *links])
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return spec  # the parser of specs reports the error


def _current(link: ast.expr) -> str:
    if not isinstance(link, ast.Call) or not isinstance(link.func, ast.Name):
        return ast.unparse(link)
    name = link.func.id
    first = [ast.literal_eval(value) for value in link.args]
    old = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in link.keywords}
    if not old and not first:
        return ast.unparse(link)
    new = {_RENAMED.get(key, key) if key != "step" or name == "fastvid" else key: v for key, v in old.items()}
    if name in _TWO_STAGES and "stage" in new:
        if new.pop("stage") == "encoder":
            name += "_in_encoder"
        else:
            new.pop("layers", None)
    if "num_tokens" in new:
        count = new.pop("num_tokens")
        new = {"keep": f"{count}/frame" if name in _PER_FRAME else count, **new}
    if name in _PER_FRAME and first and isinstance(first[0], int):
        first = [f"{first[0]}/frame"]
    if name == "llama_vid" and isinstance(new.get("grid"), int):
        new = {"keep": f"{1 + new.pop('grid') ** 2}/frame", **new}
    if name == "rlt" and new.get("longest") == 0:
        new = {key: value for key, value in new.items() if key not in ("longest", "dim")}
    if name == "token_dynamics" and new.get("mode") == "reference":
        name = "vqtoken"
        new.pop("mode")
    elif name == "token_dynamics":
        new.pop("side", None)
    arguments = [repr(value) for value in first] + [f"{key}={value!r}" for key, value in new.items()]
    return f"{name}({', '.join(arguments)})"
