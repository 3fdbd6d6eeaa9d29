"""`fewtokens eval bc`: what a robot can do by what a frozen encoder sees."""

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
    DeviceOption,
    DtypeOption,
    JsonOption,
    SettingsOption,
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
    """The task, and the demonstrations that are cloned."""

    task: Annotated[
        str | None,
        typer.Option("--task", help="metaworld/TASK or kitchen/TASK; needs the extra sim.", rich_help_panel=INPUT),
    ] = None
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Demonstrations: what --write-demos wrote, or a pickle as R3M's. Without --task "
            "the error on a fifth of them is the score.",
            rich_help_panel=INPUT,
        ),
    ] = None
    camera: Annotated[
        str | None,
        typer.Option("--camera", help="Camera of the task, such as corner2 or topview.", rich_help_panel=INPUT),
    ] = None
    horizon: Annotated[int | None, typer.Option("--horizon", help="Steps of an episode.", rich_help_panel=INPUT)] = None
    hold: Annotated[
        int | None,
        typer.Option(
            "--hold",
            min=0,
            help="Steps recorded after an expert's success; default: all.",
            rich_help_panel=INPUT,
        ),
    ] = None


@dataclass(frozen=True)
class FeatureOptions:
    """What the policy sees."""

    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            help="patches, a folder (also a trained network's), or a hub id.",
            rich_help_panel=ENCODER,
        ),
    ] = None
    feature: Annotated[
        str | None,
        typer.Option(
            "--feature",
            help="class (the bottleneck), prefix, mean, cells; none: the robot's own states alone. Default: class, or "
            "mean if there is no class token.",
            rich_help_panel=ENCODER,
        ),
    ] = None
    dtype: DtypeOption = None
    batch: BatchOption = 32


@dataclass(frozen=True)
class ProtocolOptions:
    """How it is trained and judged."""

    preset: Annotated[
        str, typer.Option("--preset", help="small, r3m, cortexbench or cortexbench_dmc.", rich_help_panel=PROTOCOL)
    ] = "small"
    settings: SettingsOption = None
    demos: Annotated[
        int | None, typer.Option("--demos", help="Number of demonstrations.", rich_help_panel=PROTOCOL)
    ] = None
    rollouts: Annotated[
        int | None, typer.Option("--rollouts", help="Episodes of each evaluation.", rich_help_panel=PROTOCOL)
    ] = None
    size: Annotated[
        int | None,
        typer.Option("--size", help="Side of what the encoder sees; frames in proportion.", rich_help_panel=PROTOCOL),
    ] = None
    seeds: Annotated[
        int, typer.Option("--seeds", help="Number of policies trained: seeds 0, 1, ...", rich_help_panel=PROTOCOL)
    ] = 3
    side_by_side: Annotated[
        int, typer.Option("--side-by-side", help="Episodes at once; faster on a GPU.", rich_help_panel=RUN)
    ] = 1


@dataclass(frozen=True)
class RunFolder:
    """What is written."""

    folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Output folder for scores, policies, videos. Resumes if it already contains a run.",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    film: Annotated[
        int,
        typer.Option("--film", min=0, help="Episodes of each seed in the video.", rich_help_panel=OUTPUT),
    ] = 4
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over in a folder that contains a run.", rich_help_panel=OUTPUT)
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
    "fewtokens eval bc --task metaworld/hammer --write-demos hammer.safetensors --demos 25",
    modes=(
        Mode(
            "no task", lambda values: values["task"] is None,
            ("camera", "horizon", "hold", "rollouts", "demos_file", "side_by_side", "film"), "belong to a --task",
        ),
        Mode(
            "demonstrations at hand", lambda values: values["data"] is not None, ("hold", "demos_file"),
            "are of a scripted expert; --data brings demonstrations along",
        ),
        Mode(
            "demonstrations written", lambda values: values["demos_file"] is not None,
            (*names_of(FeatureOptions), "rollouts", "seeds", "side_by_side", "film", "folder", "fresh", "device"),
            "have no meaning with --write-demos, which clones nothing",
        ),
        Mode(
            "nothing written", lambda values: values["folder"] is None and values["demos_file"] is None,
            ("film", "fresh"), "need a folder to write to: --out FOLDER",
        ),
    ),
)  # fmt: skip
def bc(
    source: TaskOptions,
    features: FeatureOptions,
    how: ProtocolOptions,
    files: RunFolder,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Behavior cloning: a small policy on frozen features, trained on demonstrations, judged by what it does.

    The score is the best of the evaluations during training, in mean over seeds with its 95 % interval, as R3M and
    CortexBench report it. The simulators are not those of the papers, so compare encoders here with each other only.
    """
    check_exists(source.data)
    from fewtokens.evaluation.cloning_protocol import make_protocol, parse_change

    changes = dict(parse_change(text) for text in how.settings or ())
    flags = {"demos": how.demos, "rollouts": how.rollouts, "feature": features.feature}
    changes |= {name: value for name, value in flags.items() if value is not None}
    if how.size is not None:
        base = make_protocol(how.preset)
        changes |= {"crop": how.size, "render": max(how.size, round(how.size * base.render / base.crop))}
    protocol = make_protocol(how.preset, **changes)
    if files.demos_file is not None:
        _write_demos(files.demos_file, source, protocol, as_json)
        return
    report = _run(protocol, changes, source, features, how, files, device)
    pictures = _sheets(files.folder, how.seeds) if files.folder is not None else []
    _tell(report, source.task, pictures, as_json)


def _write_demos(path: Path, source: TaskOptions, protocol: Cloning, as_json: bool) -> None:
    from fewtokens.data.demonstrations import write
    from fewtokens.evaluation.simulate import make, record

    task, hold = source.task, source.hold
    assert task is not None
    environment = make(task, camera=source.camera, horizon=source.horizon)
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
    protocol: Cloning, changes: dict[str, Any], source: TaskOptions, features: FeatureOptions, how: ProtocolOptions,
    files: RunFolder, device: str,
) -> Report:  # fmt: skip
    import torch

    from fewtokens.encoders import load_encoder, pick_device
    from fewtokens.evaluation.cloning_run import Source, run

    name = features.encoder
    if (name is None) != (protocol.feature == "none"):
        raise ValueError("say --encoder; only with --feature none there is none to say")
    encoder = None if name is None else load_encoder(name, device=device, dtype=features.dtype, batch=features.batch)
    if encoder is not None and "feature" not in changes and protocol.feature == "class":
        side = protocol.crop
        with torch.no_grad():
            tokens, _ = encoder(torch.zeros(1, 1, 3, side, side))
        if tokens.prefix is None:
            log.print(f"{escape(str(name))} has no class token; the mean of its tokens is the feature", style="dim")
            protocol = replace(protocol, feature="mean")
    with progress("behavior cloning", None) as advance:
        return run(
            protocol, encoder, Source(source.task, source.data, source.camera, source.horizon, source.hold),
            seeds=how.seeds, side_by_side=how.side_by_side, film=files.film, folder=files.folder, fresh=files.fresh,
            batch=features.batch, device=pick_device(device), own_states="proprio" not in changes,
            progress=lambda title, done, total: advance(done, total, title),
        )  # fmt: skip


def _sheets(folder: Path, seeds: int) -> list[Path]:
    """A contact sheet of each video; frames from its beginning to its end."""
    from fewtokens.show.sheet import draw_contact_sheet
    from fewtokens.video import read

    made = []
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
                    caption=f"{len(film.frames)} frames of {video.name}, evenly spread.",
                    columns=2,
                )
            made.append(path)
    return made


def _tell(report: Report, task: str | None, pictures: list[Path], as_json: bool) -> None:
    from fewtokens.evaluation.simulate import NOTE

    score = "held-out error" if task is None else _SCORES[report.request["criterion"]]
    summary: dict[str, Any] = {"score": score, "mean": report.mean, "ci95": report.half}
    if report.baseline is not None:
        summary["mean_action_error"] = report.baseline
    if as_json:
        note = {"note": NOTE} if task is not None else {}
        print_json(
            {**summary, **note, "seeds": report.seeds, "protocol": report.request, "sheets": list(map(str, pictures))}
        )
        return
    rows = [
        {"seed": one["seed"], f"best {score}": one["best"], "at step": one["best_step"], "training error": one["loss"]}
        for one in report.seeds
    ]
    out.print(table(task or "held-out demonstrations", rows))
    if report.mean is not None:
        spread = "one seed, no interval" if report.half is None else f"± {report.half:.3g} (95 %, {len(rows)} seeds)"
        out.print(f"{score}: [bold]{report.mean:.4g}[/bold] {spread}", highlight=False)
    if report.baseline is not None:
        out.print(f"always acting like the mean of the demonstrations: {report.baseline:.4g}", highlight=False)
    if task is not None:
        out.print(NOTE, style="yellow")
    settings = {name: value for name, value in report.request.items() if name not in ("encoder", "data")}
    out.print(
        "  ".join(f"{name}={value}" for name, value in settings.items()), style="dim", highlight=False, markup=False
    )
    for picture in pictures:
        out.print(f"[bold]Episodes[/bold]  {escape(str(picture))}, .mp4 beside it", highlight=False)
