"""Shared by all training runs: options, progress and the final report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.markup import escape

from fewtokens.cli.console import log, out
from fewtokens.cli.options import INPUT, OUTPUT, RUN, TRAINING, JsonOption
from fewtokens.cli.progress import progress

if TYPE_CHECKING:
    from fewtokens.train.loop import Report


WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        help="Number of data-loading processes; 0: the main process. Default: see --dry-run.",
        rich_help_panel=RUN,
    ),
]
FootageArgument = Annotated[
    Path,
    typer.Argument(
        help="A folder of videos, .npy frames, image folders or tars; a LeRobot dataset; a video; or a list."
    ),
]
StepsOption = Annotated[
    int | None,
    typer.Option("--steps", help="Number of optimizer steps, instead of --epochs.", rich_help_panel=TRAINING),
]
CropOption = Annotated[
    int | None,
    typer.Option("--size", help="Side of the crops, in pixels. Default: that of the preset.", rich_help_panel=INPUT),
]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Start from scratch in a folder that contains a run.", rich_help_panel=OUTPUT)
]


@dataclass(frozen=True)
class _Folder:
    folder: Annotated[
        Path,
        typer.Option("--out", help="Output folder. Resumes if it already contains a run.", rich_help_panel=OUTPUT),
    ]


@dataclass(frozen=True)
class TrainOptions(_Folder):
    """Training settings, and the folder of the run."""

    epochs: Annotated[
        float | None,
        typer.Option(
            "--epochs", help="Number of passes over the data. Default: see --dry-run.", rich_help_panel=TRAINING
        ),
    ] = None
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch", help="Samples per step, over all processes. Default: see --dry-run.", rich_help_panel=TRAINING
        ),
    ] = None
    lr: Annotated[
        float | None, typer.Option("--lr", help="Learning rate. Default: see --dry-run.", rich_help_panel=TRAINING)
    ] = None
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Override a setting; can be repeated. --dry-run lists the settings.",
            rich_help_panel=TRAINING,
        ),
    ] = None
    fresh: FreshOption = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show settings and data without training.", rich_help_panel=OUTPUT)
    ] = False
    device: Annotated[str, typer.Option("--device", help="auto (a GPU if available) or cpu.", rich_help_panel=RUN)] = (
        "auto"
    )
    seed: Annotated[int | None, typer.Option("--seed", help="Random seed. Default: 0.", rich_help_panel=RUN)] = None
    as_json: JsonOption = False

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu"):
            raise ValueError(f"--device must be auto or cpu for training, got {self.device!r}")
        if self.epochs is not None and self.epochs <= 0:
            raise ValueError(f"--epochs must be above 0, got {self.epochs}")

    def changes(self, **more: Any) -> dict[str, Any]:
        """Returns the settings that options override."""
        flags = {"epochs": self.epochs, "batch": self.batch, "lr": self.lr, "seed": self.seed, **more}
        return {name: value for name, value in flags.items() if value is not None}


@contextmanager
def training_progress(title: str, total: int, shown: Sequence[str], main: bool) -> Iterator[Callable[..., None] | None]:
    """Returns the progress callback of a training loop, called with (done, total, numbers); None on other processes."""
    with progress(title, total) as advance:

        def step(done: int, total: int, numbers: dict[str, float]) -> None:
            text = "  ".join(f"{name} {value:.3g}" for name, value in numbers.items() if name in shown)
            advance(done, total, f"step {done}  {text}")

        yield step if main else None


def run_values(folder: Path, report: Report) -> dict[str, Any]:
    """Returns the values that --json prints for every training run."""
    return {
        "out": str(folder), "steps": report.steps, "resumed_at": report.resumed_at, "scores": report.scores,
        "seconds": report.seconds, "waiting_seconds": report.waiting, "broken": report.broken,
    }  # fmt: skip


def print_run(report: Report, scores: RenderableType) -> None:
    """Prints where a training run resumed, its scores and its time."""
    if report.resumed_at:
        out.print(f"resumed at step {report.resumed_at}/{report.steps}")
    if report.scores:
        out.print(scores)
    out.print(
        f"{report.steps - report.resumed_at} steps in {report.seconds:.1f} s, "
        f"{100 * report.waiting / max(report.seconds, 1e-9):.0f} % of it waiting for data"
    )


def print_some(label: str, lines: Sequence[str]) -> None:
    """Prints the number of lines, and the first three."""
    if lines:
        some = ", ".join(lines[:3]) + (" ..." if len(lines) > 3 else "")
        log.print(f"[yellow]{len(lines)} {label}:[/yellow] {escape(some)}", soft_wrap=True)
