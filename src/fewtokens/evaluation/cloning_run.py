"""Behaviour cloning from beginning to end: demonstrations, features kept in a folder, seeds, episodes in video."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from fewtokens.core import files
from fewtokens.core.encoder import Encoder
from fewtokens.core.identity import with_current_names
from fewtokens.core.keys import current_keys
from fewtokens.data.demonstrations import Demonstration, read
from fewtokens.evaluation.behaviour_cloning import clone, features_of, inputs_of, interval
from fewtokens.evaluation.cloning_protocol import Cloning
from fewtokens.evaluation.rollouts import Eye, filmstrip
from fewtokens.evaluation.simulate import Environment, make, record
from fewtokens.video import write

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Source:
    """What is cloned, and where the clone acts.

    Attributes:
        task: of a simulator, see `simulate.make`; None: the score is the error on a fifth of the demonstrations.
        data: a file of demonstrations; None: the task's scripted expert gives them.
        camera, horizon: of the task.
        hold: steps recorded after an expert's success; to the horizon where None.
    """

    task: str | None = None
    data: Path | None = None
    camera: str | None = None
    horizon: int | None = None
    hold: int | None = None


@dataclass
class Report:
    """What the seeds said.

    Attributes:
        request: protocol, encoder, source: everything that a score depends on.
        seeds: of each: seed, best score, the step it was at, evaluations, seconds.
        mean, half: over the seeds' best, and half the width of its 95 % interval (None for one seed).
        baseline: the error of always acting like the mean of the demonstrations, where the score is an error.
    """

    request: dict[str, Any]
    seeds: list[dict[str, Any]]
    mean: float | None
    half: float | None
    baseline: float | None


def run(
    protocol: Cloning,
    encoder: Encoder | None,
    source: Source,
    *,
    seeds: int = 3,
    side_by_side: int = 1,
    film: int = 4,
    folder: Path | None = None,
    fresh: bool = False,
    own_states: bool = True,
    batch: int = 32,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Report:
    """Clones with several seeds.

    Args:
        protocol: of the cloning.
        encoder: frozen; None for the feature "none".
        source: of demonstrations, and the task.
        seeds: 0, 1, ...
        side_by_side: episodes that go on at once; more need memory and encode faster.
        film: episodes of each seed's best evaluation that are written as video.
        folder: where features, scores, policies and videos are kept; a stopped run goes on there.
        fresh: begin anew there.
        own_states: `protocol.proprio`, where above 0, becomes the number of the robot's own states that the task or the
            file names; False takes it as it stands.
        batch: frames that the encoder sees at once.
        device: of the policy.
        progress: called with (what is done, done, in all).

    Raises:
        ValueError: neither task nor file, a file that does not fit the task, other settings in the folder, or what
            `read`, `make` and `record` raise.
    """
    if source.task is None and source.data is None:
        raise ValueError("nothing to clone: say a task, or a file of demonstrations")
    if seeds < 1 or side_by_side < 1:
        raise ValueError(f"seeds and episodes side by side must be at least 1, got {seeds} and {side_by_side}")
    source, demonstrations, protocol = _settle(source, protocol, own_states)
    environments: list[Environment] = []
    if source.task is not None:
        many = min(side_by_side, max(1, protocol.rollouts))
        environments = [make(source.task, camera=source.camera, horizon=source.horizon) for _ in range(many)]
        source = replace(source, camera=environments[0].camera, horizon=environments[0].horizon)
        if own_states and protocol.proprio:
            protocol = replace(protocol, proprio=environments[0].proprio)
    request = _request(protocol, encoder, source)
    if folder is not None:
        _same_request(folder, request, fresh)
    # An episode is rendered as large as the demonstrations are, so that both are shrunk alike.
    eye = Eye(encoder, protocol, batch=batch, size=demonstrations[0].images.shape[1] if demonstrations else None)
    try:
        rows = _rows(folder, eye, demonstrations, environments, source, progress)
        _check_fit(rows, environments)
        held_out = None
        if not environments:
            # The last demonstrations, the same ones for every encoder and seed.
            cut = len(rows) - max(1, len(rows) // 5)
            held_out = _joined(rows[cut:])
            rows = rows[:cut]
        x, actions = _joined(rows)
        found = []
        for seed in range(seeds):
            said = _kept(folder, seed)
            if said is None:
                said = _clone_one(
                    x, actions, protocol, seed, held_out, environments, eye, film, folder, device, progress
                )  # fmt: skip
            found.append(said)
    finally:
        for environment in environments:
            environment.close()
    best = [one["best"] for one in found if one["best"] is not None]
    mean, half = interval(best) if best else (None, None)
    baseline = None if held_out is None else float((held_out[1] - actions.mean(0)).square().mean())
    return Report(request, found, mean, half, baseline)


def _settle(source: Source, protocol: Cloning, own_states: bool) -> tuple[Source, list[Demonstration], Cloning]:
    """Demonstrations of a file, with what it says of itself filled in; none yet where an expert gives them."""
    if source.data is None:
        return source, [], protocol
    demonstrations, about = read(source.data, protocol.demos)
    if source.task is not None and about.get("task", source.task) != source.task:
        raise ValueError(f"{source.data}: demonstrations of {about['task']}, not of {source.task}")
    camera = about.get("camera")
    if source.task is not None and camera is not None and source.camera not in (None, camera):
        raise ValueError(f"{source.data}: seen by camera {camera}, the policy would see by {source.camera}")
    sides = {side for one in demonstrations for side in one.images.shape[1:3]}
    if source.task is not None and len(sides) > 1:
        raise ValueError(
            f"{source.data}: frames of {sorted(sides)} pixels; where a policy acts they must be squares of one size"
        )
    source = replace(source, camera=source.camera or camera)
    if source.task is None:
        if len(demonstrations) < 2:
            raise ValueError(f"{source.data}: one demonstration leaves none to hold out; give two, or a task")
        if own_states and protocol.proprio and "proprio" in about:
            protocol = replace(protocol, proprio=int(about["proprio"]))
    return source, demonstrations, protocol


def _request(protocol: Cloning, encoder: Encoder | None, source: Source) -> dict[str, Any]:
    data = None
    if source.data is not None:
        with source.data.open("rb") as file:
            data = {"name": source.data.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    told = {**asdict(protocol), "encoder": None if encoder is None else encoder.describe(), **asdict(source)}
    return json.loads(json.dumps(told | {"data": data}, default=str))


def _same_request(folder: Path, request: dict[str, Any], fresh: bool) -> None:
    """Writes what is asked for; raises where the folder holds a run of something else."""
    path = folder / "protocol.json"
    if path.is_file() and not fresh:
        try:
            there = with_current_names(files.read_json(path, dict[str, Any]))
        except ValueError as error:
            raise ValueError(f"{error}; --fresh begins again") from None
        if other := sorted(name for name in request if there.get(name) != request[name]):
            raise ValueError(f"{folder} holds a run with other settings ({', '.join(other)}); --fresh begins anew")
        return
    for old in (*folder.glob("seed_*"), *folder.glob("features.safetensors")):
        old.unlink()
    files.write_json(path, request)


def _rows(
    folder: Path | None, eye: Eye, demonstrations: Sequence[Demonstration], environments: Sequence[Environment],
    source: Source, progress: Progress | None,
) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
    """Inputs and actions of each demonstration, kept in the folder."""
    path = None if folder is None else folder / "features.safetensors"
    if path is not None and path.is_file():
        try:
            tensors, header = files.load(path, "cloning features")
            return [(tensors[f"{n}.inputs"], tensors[f"{n}.actions"]) for n in range(header["count"])]
        except (files.Damaged, KeyError, TypeError):
            path.unlink()  # damaged: made again below

    def told(title: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(title, done, total)

    if not demonstrations:
        demonstrations = record(
            environments[0], eye.protocol.demos, eye.size, hold=source.hold, progress=told("demonstrations")
        )  # fmt: skip
    seen = features_of(eye, demonstrations, told("encoding frames"))
    rows = [inputs_of([one], [demo], eye.protocol) for one, demo in zip(seen, demonstrations, strict=True)]
    if path is not None:
        tensors = {f"{n}.{name}": part for n, row in enumerate(rows) for name, part in zip(_NAMES, row, strict=True)}
        files.save(path, "cloning features", tensors, {"count": len(rows)})
    return rows


_NAMES = ("inputs", "actions")


def _check_fit(rows: Sequence[tuple[Tensor, Tensor]], environments: Sequence[Environment]) -> None:
    wide = rows[0][1].shape[1]
    for environment in environments[:1]:
        if wide != environment.actions:
            raise ValueError(
                f"the demonstrations have actions of {wide} numbers, {environment.task} takes {environment.actions}"
            )


def _joined(rows: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in rows]), torch.cat([actions for _, actions in rows])


class _Seed(TypedDict):
    """What is asked for of a seed's file."""

    seed: int
    best: Any
    loss: Any


def _kept(folder: Path | None, seed: int) -> dict[str, Any] | None:
    """What an earlier run found with this seed."""
    path = None if folder is None else folder / f"seed_{seed}.json"
    if path is None or not path.is_file():
        return None
    try:
        return current_keys(files.read_json(path, _Seed))
    except ValueError:
        return None  # damaged: made again


def _clone_one(
    x: Tensor, actions: Tensor, protocol: Cloning, seed: int, held_out: tuple[Tensor, Tensor] | None,
    environments: Sequence[Environment], eye: Eye, film: int, folder: Path | None, device: str | torch.device,
    progress: Progress | None,
) -> dict[str, Any]:  # fmt: skip
    def told(done: int, total: int, numbers: dict[str, float]) -> None:
        if progress is not None:
            parts = [f"{name} {numbers[name]:.3g}" for name in ("best", "episode") if name in numbers]
            progress(", ".join([f"seed {seed}", *parts]), done, total)

    made = clone(
        x, actions, protocol, seed=seed, held_out=held_out, environments=environments, eye=eye,
        film=film if folder is not None else 0, device=device, progress=told,
    )  # fmt: skip
    at = next((one.step for one in made.evaluations if one.score == made.best), None)
    said = {
        "seed": seed, "best": made.best, "best_step": at, "loss": made.evaluations[-1].loss,
        "evaluations": [asdict(one) for one in made.evaluations],
        "episodes": [{"seed": one.seed, "steps": one.steps, "ever": one.ever, "last": one.last, "return": one.total}
                     for one in made.rollouts],
    }  # fmt: skip
    if folder is not None:
        tensors = {name: value.cpu() for name, value in made.policy.state_dict().items()}
        files.save(folder / f"seed_{seed}.safetensors", "cloned policy", tensors, {"seed": seed})
        if any(one.frames for one in made.rollouts):
            write(folder / f"seed_{seed}.mp4", filmstrip(made.rollouts), fps=20)
        # Last, for it says that the seed is done.
        files.write_json(folder / f"seed_{seed}.json", said)
    return said
