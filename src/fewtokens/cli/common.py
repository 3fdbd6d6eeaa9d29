"""What the verbs share: options, errors of one line, progress, tables."""

from __future__ import annotations

import functools
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperGroup

if TYPE_CHECKING:
    from fewtokens.core.encoder import Encoder
    from fewtokens.core.method import Method
    from fewtokens.core.pipeline import Pipeline
    from fewtokens.train.loop import Report
    from fewtokens.video import Video

out = Console()
log = Console(stderr=True)

EncoderOption = Annotated[
    str, typer.Option("--encoder", help="patches (no weights), a folder, or a hub id such as facebook/dinov2-small.")
]
SpecOption = Annotated[str, typer.Option("--with", metavar="SPEC", help='Methods, such as "rlt | tome(keep=0.1)".')]
KeepOption = Annotated[
    str | None,
    typer.Option("--keep", metavar="K", help="Budget for the methods that take one: 0.1 is a share, 32 a count."),
]
FramesOption = Annotated[int | None, typer.Option("--frames", help="Frames, spread evenly over the video.")]
FpsOption = Annotated[float | None, typer.Option("--fps", help="Frames each second, instead of --frames.")]
SizeOption = Annotated[int, typer.Option("--size", help="Short side of the frames, in pixels.")]
StartOption = Annotated[float, typer.Option("--start", help="Begin at this second.")]
EndOption = Annotated[float | None, typer.Option("--end", help="Stop at this second.")]
StreamOption = Annotated[
    int | None, typer.Option("--video-stream", help="Which of several video streams, counted from 0.")
]
TruncatedOption = Annotated[bool, typer.Option("--allow-truncated", help="Use what can be decoded of a cut file.")]
BatchOption = Annotated[int, typer.Option("--batch", help="Frames that the encoder sees at once; bounds memory.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", help="float32, float16 or bfloat16; float32 where not said.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="For the methods that draw.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def with_others(default: str, modules: dict[str, tuple[str, ...]]) -> type[TyperGroup]:
    """A verb whose first word may name a command of other modules (module: commands); it is that of `default` else."""
    others = {name: module for module, names in modules.items() for name in names}

    class Others(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return list(others)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            if cmd_name in others:
                group: Any = typer.main.get_command(import_module(others[cmd_name]).app)
                return group.get_command(ctx, cmd_name)
            return super().get_command(ctx, default)

        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            return super().parse_args(ctx, args if args and args[0] in others else [default, *args])

    return Others


def unused(context: typer.Context, why: str, *names: str) -> None:
    """Refuses options that mean nothing in the chosen mode, rather than ignoring them.

    Args:
        context: of the verb.
        why: ends the message, after the options: "belong to --stream".
        names: the parameters; those that were not given are passed over.

    Raises:
        ValueError: some of them were given.
    """
    flags = {param.name: param.opts[0] for param in context.command.params}
    given = [flags[name] for name in names if _was_given(context, name)]
    if given:
        raise ValueError(f"{' and '.join(given)} {why}")


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    assert source is not None, f"no parameter {name}"
    return source.name not in ("DEFAULT", "DEFAULT_MAP")


def fail(message: object) -> None:
    """One line on stderr."""
    said = " ".join(str(message).split())
    said = said if len(said) <= 1000 else f"{said[:1000]} ..."
    log.print(f"[red]error:[/red] {escape(said)}", soft_wrap=True, highlight=False)


# Parameters by their names, and more than anybody means; memory or patience would end far below.
_MOST = {
    "frames": 1_000_000, "size": 16_384, "davis_size": 16_384, "resize": 16_384, "patch": 1024, "number": 1_000_000,
    "repeats": 100_000, "batch": 1_000_000, "chunk": 1_000_000, "clips": 10_000, "crops": 10_000, "text": 10_000_000,
    "classes": 1_000_000, "workers": 1024, "seeds": 10_000, "side_by_side": 10_000, "rollouts": 1_000_000,
}  # fmt: skip


def check_numbers(arguments: dict[str, Any]) -> None:
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


def verb(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turns what a user can mend into one line and exit code 2; everything else keeps its traceback."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            check_numbers(kwargs)
            with warnings.catch_warnings():
                warnings.showwarning = functools.partial(_note, warnings.showwarning)
                return function(*args, **kwargs)
        except BrokenPipeError:
            raise typer.Exit(1) from None  # whoever read the output has gone
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError):
                from fewtokens.train.memory import is_out_of_memory  # such errors are torch's, so it is there already

                if not is_out_of_memory(error):
                    raise
            lacking = not isinstance(error, ValueError | OSError)
            fail("not enough memory; fewer or smaller frames, or a smaller --batch, need less" if lacking else error)
            raise typer.Exit(2) from None
        except KeyboardInterrupt as stopped:
            # Training says where it stopped, and with which status (`fewtokens.train.stopping.Stopped`).
            log.print(escape(str(stopped) or "stopped; what was written is whole"), soft_wrap=True, highlight=False)
            raise typer.Exit(getattr(stopped, "code", 130)) from None

    return run


def _note(usual: Callable[..., None], message: Warning | str, kind: type[Warning], file: str, *args: Any) -> None:
    """Shows a warning of ours as one line, without the line of code, and others as usual."""
    if Path(file).is_relative_to(Path(__file__).parents[1]):
        log.print(f"[yellow]note:[/yellow] {escape(' '.join(str(message).split()))}", soft_wrap=True, highlight=False)
    else:
        usual(message, kind, file, *args)


class _Lines:
    """Progress where there is no terminal: a line each half minute, and each 5 % if that takes a second or more."""

    def __init__(self, title: str) -> None:
        self.title, self.told_at, self.told = title, time.monotonic(), 0
        self.first: tuple[float, int] | None = None

    def __call__(self, done: int, in_all: int | None) -> None:
        now = time.monotonic()
        if self.first is None or done < self.first[1]:
            self.first = now, done  # a run that is resumed does not begin at 0
            return
        twentieths = 20 * done // in_all if in_all else 0
        if now - self.told_at < (1 if twentieths > self.told else 30):
            return
        self.told_at, self.told = now, twentieths
        rate = (done - self.first[1]) / max(now - self.first[0], 1e-9)
        left = f", {timedelta(seconds=round((in_all - done) / rate))} left" if in_all and rate else ""
        counted = f"{done} of {in_all}" if in_all else str(done)
        log.print(f"{self.title}  {counted}, {rate:.3g} a second{left}", soft_wrap=True, highlight=False, markup=False)


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Callable[..., None]]:
    """A bar on a terminal, now and then a line elsewhere; gives the function that sets (done, in all, title)."""
    lines = _Lines(title)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=log,
        transient=True,
        disable=not log.is_terminal,
    )
    with bar:
        task = bar.add_task(title, total=total)

        def advance(done: int, in_all: int | None = total, title: str | None = None) -> None:
            bar.update(task, completed=done, total=in_all, description=title)
            lines.title = title or lines.title
            if not log.is_terminal:
                lines(done, in_all)

        yield advance


def table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """A table of rows with equal keys; numbers to the right."""
    made = Table(title=title, title_justify="left", header_style="bold")
    for name in rows[0] if rows else ():
        is_number = any(isinstance(row[name], int | float) for row in rows)
        # On a narrow terminal names are wrapped, numbers are not.
        width = max([len(name), *(len(text(name, row[name])) for row in rows)]) if is_number else 12
        short = name == "method" and all(len(str(row[name])) <= 24 for row in rows)
        made.add_column(name, justify="right" if is_number else "left", no_wrap=is_number or short, min_width=width)
    for row in rows:
        made.add_row(*(escape(text(name, value)) for name, value in row.items()))
    return made


def text(name: str, value: Any) -> str:
    """A value as the tables print it."""
    if value is None:
        return "-"
    if name == "share":
        return f"{100 * value:.2f} %"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1 else f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def to_json(value: Any) -> str:
    """JSON, indented; numbers that it has no word for (the PSNR of a perfect copy) become null."""

    def plain(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: plain(entry) for name, entry in part.items()}
        if isinstance(part, list | tuple):
            return [plain(entry) for entry in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(plain(value), indent=2, default=str) + "\n"


def print_json(value: Any) -> None:
    """`to_json` on stdout."""
    sys.stdout.write(to_json(value))


def run_values(folder: Path, report: Report) -> dict[str, Any]:
    """What --json says of every training run."""
    return {
        "out": str(folder), "steps": report.steps, "resumed_at": report.resumed_at, "scores": report.scores,
        "seconds": report.seconds, "waiting": report.waiting, "broken": report.broken,
    }  # fmt: skip


def tell_run(report: Report, scores: Table) -> None:
    """What is printed of every training run: where it went on, its scores, its time."""
    if report.resumed_at:
        out.print(f"went on from step {report.resumed_at} of {report.steps}")
    if report.scores:
        out.print(scores)
    out.print(
        f"{report.steps - report.resumed_at} steps in {report.seconds:.1f} s, "
        f"{100 * report.waiting / max(report.seconds, 1e-9):.0f} % of that waiting for data"
    )


def parse_keep(keep: str | None) -> float | int | str | None:
    """0.1 is a share, 32 a count, 8/frame a count for each frame, as in a spec string."""
    from fewtokens.core.budget import Budget

    if keep is None:
        return None
    value: Any = keep
    for number in (int, float):
        with suppress(ValueError):
            value = number(keep)
            break
    try:
        return Budget.parse(value).keep
    except ValueError as error:
        raise ValueError(f"--{error}") from None


def make_pipeline(
    spec: str, keep: str | None, seed: int, encoder: str, device: str, dtype: str | None, batch: int
) -> Pipeline:
    """The pipeline that the options describe.

    Raises:
        ValueError: also where --keep would reach no method.
    """
    import torch

    from fewtokens.core import registry
    from fewtokens.core.pipeline import Pipeline
    from fewtokens.encoders import load_encoder, pick_device

    budget = parse_keep(keep)
    if budget is not None and not takes_keep(spec):
        raise ValueError(f"--keep {keep} would change nothing: no method in {spec!r} leaves its budget open")
    defaults: dict[str, Any] = {"seed": seed} | ({} if budget is None else {"keep": budget})
    loaded: Encoder = load_encoder(encoder, device=device, dtype=dtype, batch=batch)
    defaults["dim"] = loaded.dim
    torch.manual_seed(seed)
    known = {name: value for name, value in defaults.items() if value is not None}
    methods = registry.build(spec, **known) if spec.strip() else []
    warn_untrained(methods)
    pipeline = Pipeline(methods, loaded)
    pipeline.methods.eval().to(pick_device(device))
    return pipeline


def warn_untrained(methods: Sequence[Method]) -> None:
    """Says which methods have random weights and would give nonsense."""
    for method in methods:
        if getattr(method, "untrained", False):
            log.print(f"[yellow]{method.name} has random weights:[/yellow] give it trained ones by checkpoint='FILE'")


def takes_keep(spec: str) -> bool:
    """Whether some method of the chain takes keep and does not say it itself."""
    from fewtokens.core import registry

    links = registry.parse(spec)
    return any(
        registry.leaves_keep_open(name, arguments, last=number == len(links) - 1)
        for number, (name, arguments) in enumerate(links)
    )


@dataclass
class Reading:
    """How a video is read, as a token file notes it: the arguments of `read_video`."""

    frames: int | None
    fps: float | None
    size: int
    start: float
    end: float | None
    stream: int | None
    allow_truncated: bool


def read_video(
    path: str | Path,
    *,
    frames: int | None,
    fps: float | None,
    size: int,
    start: float = 0.0,
    end: float | None = None,
    stream: int | None = None,
    allow_truncated: bool = False,
) -> Video:
    """Reads as the options say; 16 frames where nothing is said."""
    from fewtokens.video import read

    if frames is not None and fps is not None:
        raise ValueError("say --frames or --fps, not both")
    return read(
        path,
        frames=16 if frames is None and fps is None else frames,
        fps=fps,
        size=size,
        start=start,
        end=end,
        stream=stream,
        allow_truncated=allow_truncated,
    )
