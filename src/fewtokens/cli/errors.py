"""Errors that the user can correct are printed in one line, with exit code 2; all others keep their traceback."""

from __future__ import annotations

import functools
import math
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from fewtokens.cli.console import fail, log, note

# Upper limits of parameters, by name: far above any useful value, so that a typing error is reported at once.
_LIMITS = {
    "frames": 1_000_000, "size": 16_384, "davis_size": 16_384, "resize": 16_384, "patch": 1024, "number": 1_000_000,
    "repeats": 100_000, "batch": 1_000_000, "chunk": 1_000_000, "clips": 10_000, "crops": 10_000, "text": 10_000_000,
    "classes": 1_000_000, "workers": 1024, "seeds": 10_000, "side_by_side": 10_000, "rollouts": 1_000_000,
    "per_shard": 1_000_000,
}  # fmt: skip
# Verbs that begin the reason of `refuse`.
_SINGULAR = {"are": "is", "have": "has", "need": "needs", "require": "requires"}


@contextmanager
def report_errors(debug: bool) -> Iterator[None]:
    """Prints the errors of a verb in one line, or their traceback with `debug`, and exits."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = functools.partial(_show_warning, warnings.showwarning)
            yield
    except BrokenPipeError:
        raise typer.Exit(1) from None  # the reader of the output has ended
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, typer.Exit):  # a RuntimeError too
            raise
        out_of_memory = not isinstance(error, ValueError | OSError)
        if isinstance(error, RuntimeError):
            from fewtokens.train.memory import is_out_of_memory  # torch raised it, so torch is imported already

            if not is_out_of_memory(error):
                raise
        if debug:
            traceback.print_exc(file=sys.stderr)
        else:
            fail("out of memory; use fewer or smaller frames, or a smaller --batch" if out_of_memory else error)
        raise typer.Exit(2) from None
    except KeyboardInterrupt as stop:
        if debug:
            traceback.print_exc(file=sys.stderr)
        # Training adds the step at which it stopped, and an exit code (`fewtokens.train.stopping.Stopped`).
        log.print(escape(str(stop) or "stopped; files written so far are complete"), soft_wrap=True, highlight=False)
        raise typer.Exit(getattr(stop, "code", 130)) from None


def _show_warning(
    default: Callable[..., None], message: Warning | str, kind: type[Warning], file: str, *args: Any
) -> None:
    """Shows a warning of this package in one line, without the source code, and others as usual."""
    if Path(file).is_relative_to(Path(__file__).parents[1]):
        note("note:", message)
    else:
        default(message, kind, file, *args)


def check_numbers(arguments: Mapping[str, Any]) -> None:
    """Checks the numbers of all options.

    Raises:
        ValueError: a number that is not finite, or beyond the limits of its parameter.
    """
    for name, value in arguments.items():
        flag = "--" + name.replace("_", "-")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{flag} must be a finite number, got {number}")
            if isinstance(number, int) and number > (limit := _LIMITS.get(name, 2**63 - 1)):
                raise ValueError(f"{flag} must be at most {limit}, got {number}")
            if isinstance(number, int) and number < -(2**63):
                raise ValueError(f"{flag} must be at least {-(2**63)}, got {number}")


def check_exists(*paths: Path | None, problem: str = "no such file or folder") -> None:
    """Checks paths before torch is imported, so that a wrong one is reported at once.

    Raises:
        ValueError: a path does not exist.
    """
    for path in paths:
        if path is not None and not path.exists():
            raise ValueError(f"{path}: {problem}")


def check_folder(target: Path | None, needed: str = "a folder") -> None:
    """Raises a ValueError if --out is a file, or has the suffix of a file, but must be a folder."""
    if target is None or target.is_dir():
        return
    if target.exists():
        raise ValueError(f"--out must be {needed}, got the file {target}")
    # "v1.2" is the name of a folder.
    if re.fullmatch(r"\.[A-Za-z]\w{0,11}", target.suffix):
        raise ValueError(
            f"--out must be {needed}, got {target}; to write a folder of this name, create it first (mkdir {target})"
        )


def refuse(context: typer.Context, names: Sequence[str], why: str) -> None:
    """Rejects options that have no effect, instead of ignoring them.

    Args:
        context: click context of the verb.
        names: parameters that have no effect.
        why: end of the message, in the plural: "require --chunked".

    Raises:
        ValueError: the command line sets one of them.
    """
    flags = {param.name: param.opts[0] for param in context.command.params}
    unused = [flags[name] for name in names if is_given(context, name)]
    if len(unused) == 1:
        start, _, rest = why.partition(" ")
        why = f"{_SINGULAR.get(start, start)} {rest}"
    if unused:
        raise ValueError(f"{' and '.join(unused)} {why}")


def is_given(context: typer.Context, name: str) -> bool:
    """Whether the command line sets a parameter."""
    source = context.get_parameter_source(name)
    assert source is not None, f"no parameter {name}"
    return source.name not in ("DEFAULT", "DEFAULT_MAP")
