"""What the user can mend becomes one line and exit code 2; everything else keeps its traceback."""

from __future__ import annotations

import functools
import math
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

# Parameters by their names, and more than anybody means; memory or patience would end far below.
_MOST = {
    "frames": 1_000_000, "size": 16_384, "davis_size": 16_384, "resize": 16_384, "patch": 1024, "number": 1_000_000,
    "repeats": 100_000, "batch": 1_000_000, "chunk": 1_000_000, "clips": 10_000, "crops": 10_000, "text": 10_000_000,
    "classes": 1_000_000, "workers": 1024, "seeds": 10_000, "side_by_side": 10_000, "rollouts": 1_000_000,
}  # fmt: skip
_SINGULAR = {"are": "is", "belong": "belongs", "have": "has", "need": "needs"}


@contextmanager
def reported(debug: bool) -> Iterator[None]:
    """Runs a verb. With `debug` a traceback stands in place of the one line."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = functools.partial(_show_warning, warnings.showwarning)
            yield
    except BrokenPipeError:
        raise typer.Exit(1) from None  # whoever read the output has gone
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, typer.Exit):  # a RuntimeError too
            raise
        lacking = not isinstance(error, ValueError | OSError)
        if isinstance(error, RuntimeError):
            from fewtokens.train.memory import is_out_of_memory  # such errors are torch's, so it is there already

            if not is_out_of_memory(error):
                raise
        if debug:
            traceback.print_exc(file=sys.stderr)
        else:
            fail("not enough memory; fewer or smaller frames, or a smaller --batch, need less" if lacking else error)
        raise typer.Exit(2) from None
    except KeyboardInterrupt as stop:
        if debug:
            traceback.print_exc(file=sys.stderr)
        # Training says where it stopped, and with which status (`fewtokens.train.stopping.Stopped`).
        log.print(escape(str(stop) or "stopped; what was written is whole"), soft_wrap=True, highlight=False)
        raise typer.Exit(getattr(stop, "code", 130)) from None


def _show_warning(
    default: Callable[..., None], message: Warning | str, kind: type[Warning], file: str, *args: Any
) -> None:
    """Shows a warning of ours as one line, without the line of code, and others as usual."""
    if Path(file).is_relative_to(Path(__file__).parents[1]):
        note("note:", message)
    else:
        default(message, kind, file, *args)


def check_numbers(arguments: Mapping[str, Any]) -> None:
    """Refuses numbers of any option that cannot be meant.

    Raises:
        ValueError: not finite, or larger than everything of this name may be.
    """
    for name, value in arguments.items():
        flag = "--" + name.replace("_", "-")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{flag} must be a finite number, got {number}")
            if isinstance(number, int) and number > (most := _MOST.get(name, 2**63 - 1)):
                raise ValueError(f"{flag} is at most {most}, got {number}")
            if isinstance(number, int) and number < -(2**63):
                raise ValueError(f"{flag} is at least {-(2**63)}, got {number}")


def check_exists(*paths: Path | None, what: str = "such file or folder") -> None:
    """Answers a wrong path at once, before torch is loaded.

    Raises:
        ValueError: nothing is there.
    """
    for path in paths:
        if path is not None and not path.exists():
            raise ValueError(f"{path}: no {what}")


def check_folder(target: Path | None) -> None:
    """Raises a ValueError if --out is a file where a folder is written."""
    if target is not None and target.exists() and not target.is_dir():
        raise ValueError(f"--out {target} is a file; give a folder")


def refuse(context: typer.Context, names: Sequence[str], why: str) -> None:
    """Refuses options that mean nothing, rather than ignoring them.

    Args:
        context: of the verb.
        names: of the parameters; those that were not given are passed over.
        why: ends the message, after several options: "belong to --chunked".

    Raises:
        ValueError: some of them were given.
    """
    flags = {param.name: param.opts[0] for param in context.command.params}
    given = [flags[name] for name in names if is_given(context, name)]
    if len(given) == 1:
        start, _, rest = why.partition(" ")
        why = f"{_SINGULAR.get(start, start)} {rest}"
    if given:
        raise ValueError(f"{' and '.join(given)} {why}")


def is_given(context: typer.Context, name: str) -> bool:
    """Whether the command line sets a parameter."""
    source = context.get_parameter_source(name)
    assert source is not None, f"no parameter {name}"
    return source.name not in ("DEFAULT", "DEFAULT_MAP")
