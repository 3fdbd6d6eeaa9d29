"""`fewtokens eval bc`: what a robot can do by what a frozen encoder sees."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.common import (
    BatchOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    log,
    out,
    print_json,
    progress,
    table,
    unused,
    verb,
)

if TYPE_CHECKING:
    from fewtokens.evaluation.cloning_protocol import Cloning
    from fewtokens.evaluation.cloning_run import Report

app = typer.Typer(add_completion=False)

_SCORES = {"any": "success, %", "last": "success at the end, %", "return": "return"}


@app.callback()
def _several() -> None:
    """Clone behaviour."""


@app.command(
    epilog="Examples:  [bold]fewtokens eval bc --task metaworld/bin-picking --encoder run/model --out robots/[/bold]"
    "   |   [bold]fewtokens eval bc --task metaworld/hammer --encoder facebook/dinov2-small --preset cortexbench --out "
    "hammer/[/bold]   |   [bold]fewtokens eval bc --data demos.pickle --encoder run/model --preset r3m[/bold]   |   "
    "[bold]fewtokens eval bc --task metaworld/hammer --write-demos hammer.safetensors --demos 25[/bold]"
)
@verb
def bc(
    context: typer.Context,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="A trained network's folder, any encoder's, a hub id, or patches.")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="metaworld/TASK or kitchen/TASK; needs the extra sim.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Demonstrations: what --write-demos wrote, or a pickle as R3M's. Without --task "
            "the error on a fifth of them is the score.",
        ),
    ] = None,
    preset: Annotated[str, typer.Option("--preset", help="small, r3m, cortexbench or cortexbench_dmc.")] = "small",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting of the protocol, printed below the score."),
    ] = None,
    demos: Annotated[int | None, typer.Option("--demos", help="Demonstrations.")] = None,
    rollouts: Annotated[int | None, typer.Option("--rollouts", help="Episodes of each evaluation.")] = None,
    feature: Annotated[
        str | None,
        typer.Option(
            "--feature",
            help="class (the bottleneck), prefix, mean, cells; none: the robot's own states "
            "alone. class, or mean where there is no class token, if not said.",
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", help="Side of what the encoder sees; frames in proportion.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Policies that are trained: seeds 0, 1, ...")] = 3,
    camera: Annotated[str | None, typer.Option("--camera", help="Of the task, such as corner2 or topview.")] = None,
    horizon: Annotated[int | None, typer.Option("--horizon", help="Steps of an episode.")] = None,
    hold: Annotated[
        int | None, typer.Option("--hold", min=0, help="Steps recorded after an expert's success; all if not said.")
    ] = None,
    side_by_side: Annotated[int, typer.Option("--side-by-side", help="Episodes at once; faster on a GPU.")] = 1,
    film: Annotated[int, typer.Option("--film", min=0, help="Episodes of each seed in the video.")] = 4,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Scores, policies, videos; a stopped run goes on.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew in a folder that holds a run.")] = False,
    demos_file: Annotated[
        Path | None, typer.Option("--write-demos", help="Write the expert's demonstrations there, and do no more.")
    ] = None,
    batch: BatchOption = 32,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Behaviour cloning: a small policy on frozen features, trained on demonstrations, judged by what it does.

    The score is the best of the evaluations during training, in mean over seeds with its 95 % interval, as R3M and
    CortexBench report it. The simulators are not those of the papers, so compare encoders here with each other only.
    """
    from fewtokens.evaluation.cloning_protocol import make_protocol, parse_change

    changes = dict(parse_change(text) for text in settings or ())
    flags = {"demos": demos, "rollouts": rollouts, "feature": feature}
    changes |= {name: value for name, value in flags.items() if value is not None}
    if size is not None:
        base = make_protocol(preset)
        changes |= {"crop": size, "render": max(size, round(size * base.render / base.crop))}
    protocol = make_protocol(preset, **changes)
    if task is None and (camera, horizon, hold, rollouts, demos_file) != (None,) * 5:
        raise ValueError("--camera, --horizon, --hold, --rollouts and --write-demos belong to a --task")
    if data is not None and (hold is not None or demos_file is not None):
        raise ValueError("--hold and --write-demos are of a scripted expert; --data brings demonstrations along")
    if demos_file is not None:
        cloning = (
            "encoder",
            "rollouts",
            "feature",
            "seeds",
            "side_by_side",
            "film",
            "folder",
            "fresh",
            "batch",
            "device",
            "dtype",
        )
        unused(context, "have no meaning with --write-demos, which clones nothing", *cloning)
    if folder is None:
        unused(context, "need a folder to write to: --out FOLDER", "film", "fresh")
    if task is None:
        unused(context, "belong to a --task", "side_by_side", "film")
    if demos_file is not None:
        assert task is not None
        _write_demos(demos_file, task, protocol, camera, horizon, hold, as_json)
        return
    report = _run(
        encoder, protocol, "feature" not in changes, "proprio" not in changes, task, data, camera, horizon, hold, seeds,
        side_by_side, film, folder, fresh, batch, device, dtype,
    )  # fmt: skip
    pictures = _sheets(folder, seeds) if folder is not None else []
    _tell(report, task, pictures, as_json)


def _write_demos(
    path: Path, task: str, protocol: Cloning, camera: str | None, horizon: int | None, hold: int | None, as_json: bool
) -> None:
    from fewtokens.data.demonstrations import write
    from fewtokens.evaluation.simulate import make, record

    environment = make(task, camera=camera, horizon=horizon)
    try:
        with progress("demonstrations", protocol.demos) as advance:
            made = record(environment, protocol.demos, protocol.render, hold=hold, progress=advance)
    finally:
        environment.close()
    about = {"task": task, "camera": environment.camera, "proprio": environment.proprio, "horizon": environment.horizon}
    write(path, made, **about, hold=hold)
    steps = sum(map(len, made))
    if as_json:
        print_json({"out": str(path), "demonstrations": len(made), "steps": steps, **about})
        return
    out.print(
        f"{len(made)} demonstrations of {task}, {steps} steps at {protocol.render} px, camera {environment.camera}"
    )
    out.print(f"[bold]Written[/bold]  {escape(str(path))}", highlight=False)


def _run(
    name: str | None, protocol: Cloning, open_feature: bool, open_proprio: bool, task: str | None, data: Path | None,
    camera: str | None, horizon: int | None, hold: int | None, seeds: int, side_by_side: int, film: int,
    folder: Path | None, fresh: bool, batch: int, device: str, dtype: str | None,
) -> Report:  # fmt: skip
    from dataclasses import replace

    import torch

    from fewtokens.encoders import load_encoder, pick_device
    from fewtokens.evaluation.cloning_run import Source, run

    if (name is None) != (protocol.feature == "none"):
        raise ValueError("say --encoder; only with --feature none there is none to say")
    encoder = None if name is None else load_encoder(name, device=device, dtype=dtype, batch=batch)
    if encoder is not None and open_feature and protocol.feature == "class":
        side = protocol.crop
        with torch.no_grad():
            tokens, _ = encoder(torch.zeros(1, 1, 3, side, side))
        if tokens.prefix is None:
            log.print(f"{escape(str(name))} has no class token; the mean of its tokens is the feature", style="dim")
            protocol = replace(protocol, feature="mean")
    with progress("behaviour cloning", None) as advance:
        return run(
            protocol, encoder, Source(task, data, camera, horizon, hold), seeds=seeds, side_by_side=side_by_side,
            film=film, folder=folder, fresh=fresh, batch=batch, device=pick_device(device),
            own_states=open_proprio,
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
                draw_contact_sheet(film.frames, [f"step {20 * float(t):.0f}" for t in film.times], path, columns=2)
            made.append(path)
    return made


def _tell(report: Report, task: str | None, pictures: list[Path], as_json: bool) -> None:
    from fewtokens.evaluation.simulate import NOTE

    score = "held-out error" if task is None else _SCORES[report.request["criterion"]]
    summary: dict[str, Any] = {"score": score, "mean": report.mean, "ci95": report.half}
    if report.baseline is not None:
        summary["error of the mean action"] = report.baseline
    if as_json:
        note = {"note": NOTE} if task is not None else {}
        print_json(
            {**summary, **note, "seeds": report.seeds, "protocol": report.request, "pictures": list(map(str, pictures))}
        )
        return
    rows = [
        {"seed": one["seed"], f"best {score}": one["best"], "at step": one["at step"], "training error": one["loss"]}
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
