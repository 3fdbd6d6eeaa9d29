"""`fewtokens eval bc`: scores a frozen encoder by behavior cloning of robot tasks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.command import Mode, verb
from fewtokens.cli.console import log, out
from fewtokens.cli.errors import check_exists
from fewtokens.cli.options import (
    ENCODER,
    INPUT,
    OUTPUT,
    PROTOCOL,
    RUN,
    BatchOption,
    Check,
    DeviceOption,
    DtypeOption,
    JsonOption,
    SettingsOption,
    check_model,
    find_model,
    names_of,
)
from fewtokens.cli.progress import progress
from fewtokens.cli.tables import print_json, table

if TYPE_CHECKING:
    from fewtokens.evaluation.cloning_protocol import Cloning
    from fewtokens.evaluation.cloning_run import Report

_SCORES = {"any": "success, %", "last": "success at the end, %", "return": "return"}


@dataclass(frozen=True)
class TaskOptions:
    """The task, and the demonstrations to clone."""

    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="metaworld/TASK or kitchen/TASK; requires the extra sim (see fewtokens doctor).",
            rich_help_panel=INPUT,
        ),
    ] = None
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Demonstrations: a file written by --write-demos, a pickle in R3M's format, or a LeRobot dataset. "
            "Without --task, the score is the error on a held-out fifth of them.",
            rich_help_panel=INPUT,
        ),
    ] = None
    camera: Annotated[
        str | None,
        typer.Option(
            "--camera",
            help="Camera of the task, such as corner2 or topview, or of a LeRobot dataset with several. Default: "
            "depends on the task.",
            rich_help_panel=INPUT,
        ),
    ] = None
    horizon: Annotated[
        int | None,
        typer.Option(
            "--horizon", help="Steps per episode. Default: 500 (metaworld), 280 (kitchen).", rich_help_panel=INPUT
        ),
    ] = None
    hold: Annotated[
        int | None,
        typer.Option(
            "--hold",
            min=0,
            help="Number of steps to record after the expert succeeds. Default: all.",
            rich_help_panel=INPUT,
        ),
    ] = None


@dataclass(frozen=True)
class FeatureOptions:
    """The features that the policy receives."""

    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            help="patches (pixels, no weights), a folder (also of a trained network), or a hub id.",
            rich_help_panel=ENCODER,
        ),
        Check(check_model, find_model),
    ] = None
    feature: Annotated[
        str | None,
        typer.Option(
            "--feature",
            help="class (the bottleneck), prefix, mean, cells, or none for the robot's state only. Default: class, or "
            "mean without a class token.",
            rich_help_panel=ENCODER,
        ),
    ] = None
    dtype: DtypeOption = None
    batch: BatchOption = 32


@dataclass(frozen=True)
class ProtocolOptions:
    """How policies are trained and evaluated."""

    preset: Annotated[
        str,
        typer.Option(
            "--preset", help="Preset of settings: small, r3m, cortexbench or cortexbench_dmc.", rich_help_panel=PROTOCOL
        ),
    ] = "small"
    settings: SettingsOption = None
    demos: Annotated[
        int | None,
        typer.Option(
            "--demos", help="Number of demonstrations. Default: that of the preset.", rich_help_panel=PROTOCOL
        ),
    ] = None
    rollouts: Annotated[
        int | None,
        typer.Option(
            "--rollouts", help="Episodes per evaluation. Default: those of the preset.", rich_help_panel=PROTOCOL
        ),
    ] = None
    size: Annotated[
        int | None,
        typer.Option(
            "--size",
            help="Side of the encoder's input, in pixels; scales rendering in proportion.",
            rich_help_panel=PROTOCOL,
        ),
    ] = None
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds", help="Number of policies to train, with random seeds 0, 1, ...", rich_help_panel=PROTOCOL
        ),
    ] = 3
    side_by_side: Annotated[
        int,
        typer.Option("--side-by-side", help="Episodes to simulate in parallel; faster on a GPU.", rich_help_panel=RUN),
    ] = 1


@dataclass(frozen=True)
class RunFolder:
    """Output files."""

    folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Output folder for scores, policies and videos. Resumes if it already contains a run.",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    film: Annotated[
        int,
        typer.Option("--film", min=0, help="Number of episodes per seed in the videos.", rich_help_panel=OUTPUT),
    ] = 4
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Start from scratch in a folder that contains a run.", rich_help_panel=OUTPUT),
    ] = False
    demos_file: Annotated[
        Path | None,
        typer.Option(
            "--write-demos", help="Record expert demonstrations to this file and exit.", rich_help_panel=OUTPUT
        ),
    ] = None


@verb(
    "fewtokens eval bc --task metaworld/bin-picking --encoder run/model --out robots/",
    "fewtokens eval bc --task metaworld/hammer --encoder facebook/dinov2-small --preset cortexbench --out hammer/",
    "fewtokens eval bc --data demos.pickle --encoder run/model --preset r3m",
    "fewtokens eval bc --data aloha_sim/ --encoder run/model",
    "fewtokens eval bc --task metaworld/hammer --write-demos hammer.safetensors --demos 25",
    modes=(
        Mode(
            "no task", lambda values: values["task"] is None,
            ("horizon", "hold", "rollouts", "demos_file", "side_by_side", "film"), "require --task",
        ),
        Mode(
            "no camera", lambda values: values["task"] is None and not (values["data"] and values["data"].is_dir()),
            ("camera",), "require --task or a LeRobot dataset",
        ),
        Mode(
            "existing demonstrations", lambda values: values["data"] is not None, ("hold", "demos_file"),
            "have no effect with --data, which provides the demonstrations",
        ),
        Mode(
            "recording", lambda values: values["demos_file"] is not None,
            (*names_of(FeatureOptions), "rollouts", "seeds", "side_by_side", "film", "folder", "fresh", "device"),
            "have no effect with --write-demos, which trains no policy",
        ),
        Mode(
            "nothing written", lambda values: values["folder"] is None and values["demos_file"] is None,
            ("film", "fresh"), "require --out FOLDER",
        ),
    ),
)  # fmt: skip
def bc(
    source: TaskOptions,
    features: FeatureOptions,
    training: ProtocolOptions,
    files: RunFolder,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Score a frozen encoder by behavior cloning: train a small policy on its features, run the policy on a robot task.

    The score is the best evaluation during training, averaged over seeds, with a 95 % confidence interval, as in R3M
    and CortexBench. The simulators differ from those of the papers, so scores are not comparable with published ones.
    """
    check_exists(source.data)
    from fewtokens.evaluation.cloning_protocol import make_protocol, parse_change

    changes = dict(parse_change(text) for text in training.settings or ())
    flags = {"demos": training.demos, "rollouts": training.rollouts, "feature": features.feature}
    changes |= {name: value for name, value in flags.items() if value is not None}
    if training.size is not None:
        base = make_protocol(training.preset)
        changes |= {"crop": training.size, "render": max(training.size, round(training.size * base.render / base.crop))}
    protocol = make_protocol(training.preset, **changes)
    if files.demos_file is not None:
        _write_demos(files.demos_file, source, protocol, as_json)
        return
    report = _run(protocol, changes, source, features, training, files, device)
    sheets = _write_sheets(files.folder, training.seeds) if files.folder is not None else []
    _print_report(report, source.task, sheets, as_json)


def _write_demos(path: Path, source: TaskOptions, protocol: Cloning, as_json: bool) -> None:
    from fewtokens.data.demonstrations import write
    from fewtokens.evaluation.simulate import make_environment, record

    task, hold = source.task, source.hold
    assert task is not None
    environment = make_environment(task, camera=source.camera, horizon=source.horizon)
    try:
        with progress("demonstrations", protocol.demos) as advance:
            episodes = record(environment, protocol.demos, protocol.render, hold=hold, progress=advance)
    finally:
        environment.close()
    about = {"task": task, "camera": environment.camera, "proprio": environment.proprio, "horizon": environment.horizon}
    write(path, episodes, **about, hold=hold)
    steps = sum(map(len, episodes))
    if as_json:
        print_json({"out": str(path), "demonstrations": len(episodes), "steps": steps, **about})
        return
    out.print(
        f"{len(episodes)} demonstrations of {task}, {steps} steps at {protocol.render} px, camera {environment.camera}"
    )
    out.print(f"[bold]Written[/bold]  {escape(str(path))}", highlight=False)


def _run(
    protocol: Cloning, changes: dict[str, Any], source: TaskOptions, features: FeatureOptions,
    training: ProtocolOptions, files: RunFolder, device: str,
) -> Report:  # fmt: skip
    import torch

    from fewtokens.encoders import load_encoder, pick_device
    from fewtokens.evaluation.cloning_run import Source, run

    name = features.encoder
    if (name is None) != (protocol.feature == "none"):
        raise ValueError("give --encoder, or --feature none without an encoder")
    encoder = None if name is None else load_encoder(name, device=device, dtype=features.dtype, batch=features.batch)
    if encoder is not None and "feature" not in changes and protocol.feature == "class":
        side = protocol.crop
        with torch.no_grad():
            tokens, _ = encoder(torch.zeros(1, 1, 3, side, side))
        if tokens.prefix is None:
            log.print(f"{escape(str(name))} has no class token; using the mean of its tokens", style="dim")
            protocol = replace(protocol, feature="mean")
    with progress("behavior cloning", None) as advance:
        return run(
            protocol, encoder, Source(source.task, source.data, source.camera, source.horizon, source.hold),
            seeds=training.seeds, side_by_side=training.side_by_side, film=files.film, folder=files.folder,
            fresh=files.fresh, batch=features.batch, device=pick_device(device), own_states="proprio" not in changes,
            progress=lambda title, done, total: advance(done, total, title),
        )  # fmt: skip


def _write_sheets(folder: Path, seeds: int) -> list[Path]:
    """Writes a contact sheet of each video, with frames from start to end; returns the paths."""
    from fewtokens.show.sheet import draw_contact_sheet
    from fewtokens.video import read

    sheets = []
    for seed in range(seeds):
        video, path = folder / f"seed_{seed}.mp4", folder / f"seed_{seed}.png"
        if video.is_file():
            if not path.is_file():
                film = read(video, frames=12)
                draw_contact_sheet(
                    film.frames,
                    [f"step {20 * float(t):.0f}" for t in film.times],
                    path,
                    title=f"Episodes of the cloned policy, seed {seed}",
                    caption=f"{len(film.frames)} frames of {video.name}, uniformly sampled.",
                    columns=2,
                )
            sheets.append(path)
    return sheets


def _print_report(report: Report, task: str | None, sheets: list[Path], as_json: bool) -> None:
    from fewtokens.evaluation.simulate import NOTE

    score = "held-out error" if task is None else _SCORES[report.request["criterion"]]
    summary: dict[str, Any] = {"score": score, "mean": report.mean, "ci95": report.half_width}
    if report.baseline is not None:
        summary["mean_action_error"] = report.baseline
    if as_json:
        note = {"note": NOTE} if task is not None else {}
        print_json(
            {**summary, **note, "seeds": report.seeds, "protocol": report.request, "sheets": list(map(str, sheets))}
        )
        return
    rows = [
        {"seed": row["seed"], f"best {score}": row["best"], "at step": row["best_step"], "training error": row["loss"]}
        for row in report.seeds
    ]
    out.print(table(task or "held-out demonstrations", rows))
    if report.mean is not None:
        spread = (
            "one seed, no interval"
            if report.half_width is None
            else f"± {report.half_width:.3g} (95 %, {len(rows)} seeds)"
        )
        out.print(f"{score}: [bold]{report.mean:.4g}[/bold] {spread}", highlight=False)
    if report.baseline is not None:
        out.print(f"baseline, the mean action of the demonstrations: {report.baseline:.4g}", highlight=False)
    if task is not None:
        out.print(NOTE, style="yellow")
    settings = {name: value for name, value in report.request.items() if name not in ("encoder", "data")}
    out.print(
        "  ".join(f"{name}={value}" for name, value in settings.items()), style="dim", highlight=False, markup=False
    )
    for sheet in sheets:
        out.print(f"[bold]Episodes[/bold]  {escape(str(sheet))}, {sheet.with_suffix('.mp4').name}", highlight=False)
