"""The root of the `fewtokens` command."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Any

import typer

from fewtokens.cli.console import fail
from fewtokens.cli.verbs import Verbs
from fewtokens.version import __version__

# Raised by the parser. typer does not export it, and bundles its own copy of click in later versions.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


class Root(Verbs):
    examples = ("fewtokens demo", 'fewtokens tokenize clip.mp4 --with "tome(keep=0.1)" --out clip.safetensors')

    def main(
        self, args: Sequence[str] | None = None, prog_name: str | None = None, complete_var: str | None = None,
        standalone_mode: bool = True, windows_expand_args: bool = True, **extra: Any,
    ) -> Any:  # fmt: skip
        """Reports a wrong command line in one line, like every other error."""
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except _UsageError as error:
            text = error.format_message().strip().rstrip(".")  # type: ignore[attr-defined]
            context = getattr(error, "ctx", None)
            more_at = f"{context.command_path if context else 'fewtokens'} --help"
            fail(f"{text[:1].lower()}{text[1:]}{'' if text.endswith('?') else ';'} see {more_at}")
            code = 2
        if not standalone_mode:
            return code
        sys.exit(code or 0)


app = typer.Typer(
    name="fewtokens",
    cls=Root,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"fewtokens {__version__}")
        raise typer.Exit


@app.callback()
def fewtokens(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Turn an image or a video into very few tokens; measure what is preserved and what it costs."""


def main() -> None:
    """The entry point."""
    for stream in (sys.stdout, sys.stderr):
        # A file name that is not UTF-8 is printed escaped instead of raising an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except SystemExit as error:
        # Only training runs in several processes.
        if not error.code and "fewtokens.train.loop" in sys.modules:
            from fewtokens.train.processes import end_process

            end_process()
        raise
