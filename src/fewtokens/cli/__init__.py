"""The `fewtokens` command: one verb a file, each imported when it is called."""

from __future__ import annotations

import io
import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

# verb -> what `fewtokens --help` says of it, so that listing the verbs imports none of them.
VERBS = {
    "demo": "See videos turned into few tokens by every method: a table, a picture, a page. No weights needed.",
    "methods": "List the methods, or explain one.",
    "models": "List the networks, or explain one.",
    "cost": "Count what a network costs: operations, parameters, memory, time.",
    "tokenize": "Turn videos into files of few tokens.",
    "ask": "Ask a video language model about a video, with few visual tokens.",
    "words": "Fit the vocabulary of the method visual_words.",
    "bench": "Compare methods on your videos and your encoder: what they keep, what they cost.",
    "show": "Draw which region of the video each token stands for.",
    "train": "Train a network on your images or videos; stopped runs go on where they were.",
    "eval": "Score a trained network or a frozen encoder.",
    "doctor": "Say what this installation has, and what is missing.",
}


class Verbs(TyperGroup):
    """Finds a verb in the module of its name."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        command = typer.main.get_command(import_module(f"fewtokens.cli.{cmd_name}").app)
        command.name = cmd_name
        command.short_help = VERBS[cmd_name]
        return command


app = typer.Typer(
    name="fewtokens",
    cls=Verbs,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from fewtokens.version import __version__

        typer.echo(f"fewtokens {__version__}")
        raise typer.Exit


@app.callback()
def fewtokens(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Turns an image or a video into very few tokens, and shows what that keeps and what it costs.

    [bold]Start with[/bold]  fewtokens demo
    [bold]then[/bold]        fewtokens tokenize clip.mp4 --with "tome(keep=0.1)" --out clip.safetensors
    """


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        # A file name that is not UTF-8 is printed escaped rather than being the end of a run.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except SystemExit as ended:
        # Only training runs in a group of processes.
        if not ended.code and "fewtokens.train.loop" in sys.modules:
            from fewtokens.train.processes import end_process

            end_process()
        raise
