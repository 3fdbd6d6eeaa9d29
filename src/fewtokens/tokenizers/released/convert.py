"""Computes our tensors from released ones by rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from fewtokens.core.plain import one_line
from fewtokens.tokenizers.tokenizer import Tokenizer

# The name of a released tensor, or names and a function of their values.
Rule = str | tuple[Sequence[str], Callable[..., Tensor]]


def convert(tokenizer: Tokenizer, rules: Mapping[str, Rule], tensors: Mapping[str, Tensor], where: str) -> None:
    """Sets parameters and buffers of a tokenizer from released tensors.

    Args:
        tokenizer: which they are for.
        rules: by our name; each released tensor must occur in one.
        tensors: theirs by name.
        where: of the messages.

    Raises:
        ValueError: tensors are missing, unexpected or of another size.
    """
    steps = {own: ((rule,), _same) if isinstance(rule, str) else rule for own, rule in rules.items()}
    used = {name for names, _ in steps.values() for name in names}
    _check(tokenizer, "missing", used - set(tensors), where)
    _check(tokenizer, "unexpected", set(tensors) - used, where)
    ours, state, wrong = tokenizer.state_dict(), {}, set()
    for own, (names, function) in steps.items():
        try:
            state[own] = function(*(tensors[name].float() for name in names))
        except (RuntimeError, IndexError):  # sizes that do not fit one another
            wrong |= set(names)
            continue
        if state[own].shape != ours[own].shape:
            wrong |= set(names)
    _check(tokenizer, "of a different size", wrong, where)
    tokenizer.load_state_dict(state)


def shape_of(tensors: Mapping[str, Tensor], name: str, axes: int, where: str) -> list[int]:
    """Returns the shape of a released tensor, from which the size of the network follows.

    Raises:
        ValueError: there is none of this name with this number of axes.
    """
    if name not in tensors or tensors[name].ndim != axes or 0 in tensors[name].shape:
        raise ValueError(f"{where}: no tensor {name} with {axes} axes")
    return list(tensors[name].shape)


def count(tensors: Iterable[str], prefix: str) -> int:
    """The number of members of a list of modules, by the names of their tensors; the prefix ends with a dot."""
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def weight_and_bias(own: str, theirs: str) -> dict[str, Rule]:
    """The rules of a layer with weight and bias."""
    return {f"{own}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}


def range_in(weight: Tensor) -> Tensor:
    """The weights [n,C,...] of patches of pixels in 0..1 as rows [n,...*C] for pixels in -1..1."""
    return weight.movedim(1, -1).flatten(1) / 2


def range_in_bias(bias: Tensor, weight: Tensor) -> Tensor:
    """The bias for pixels in -1..1 instead of 0..1."""
    return bias + weight.flatten(1).sum(1) / 2


def range_out(layer: str, theirs: str) -> dict[str, Rule]:
    """The rules of a last layer, whose pixels are in -1..1 instead of 0..1."""
    return {
        f"{layer}.weight": ((f"{theirs}.weight",), lambda weight: 2 * weight),
        f"{layer}.bias": ((f"{theirs}.bias",), lambda bias: 2 * bias - 1),
    }


def codebook(own: str, theirs: str, entries: Callable[[Tensor], Tensor] | None = None) -> dict[str, Rule]:
    """The rules of the entries of `vq`, and of what moves them in training, from a table [K,C].

    Args:
        own: the name of the quantizer.
        theirs: the name of the table.
        entries: maps the table to the entries. Default: they are equal.
    """
    names, book = (theirs,), f"{own}.codebook._codebook"

    def embed(table: Tensor) -> Tensor:
        return (table if entries is None else entries(table))[None]

    return {
        f"{book}.embed": (names, embed),
        f"{book}.embed_avg": (names, embed),
        f"{book}.cluster_size": (names, lambda table: table.new_ones(1, len(table))),
        f"{book}.initted": (names, lambda table: table.new_ones((), dtype=bool)),
    }


def _same(value: Tensor) -> Tensor:
    return value


def _check(tokenizer: Tokenizer, problem: str, wrong: Iterable[str], where: str) -> None:
    """Raises ValueError that names up to 5 wrong tensors if there are any."""
    if names := [one_line(name) for name in sorted(wrong)]:
        more = " ..." if len(names) > 5 else ""
        raise ValueError(f"{where}: does not fit {tokenizer.spec!r}; {problem}: {', '.join(names[:5])}{more}")
