"""Runs behavior cloning end to end: demonstrations, saved features, seeds, and videos of episodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from fewtokens.core import files
from fewtokens.core.encoder import Encoder
from fewtokens.core.identity import rename_encoder_keys
from fewtokens.core.keys import current_keys
from fewtokens.data.demonstrations import Demonstration, read
from fewtokens.data.lerobot import open_dataset
from fewtokens.encoders.weights import hash_files
from fewtokens.evaluation.behavior_cloning import clone, confidence_interval, encode_demonstrations, policy_inputs
from fewtokens.evaluation.cloning_protocol import Cloning
from fewtokens.evaluation.rollouts import FrameEncoder, filmstrip
from fewtokens.evaluation.simulate import Environment, make_environment, record
from fewtokens.video import write

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Source:
    """The demonstrations to clone, and the task in which the clone acts.

    Attributes:
        task: a simulated task, see `simulate.make_environment`; None to score by the error on a fifth of the
            demonstrations.
        data: a file of demonstrations, or the folder of a LeRobot dataset; None to record them with the task's scripted
            expert.
        camera, horizon: camera and horizon of the task. The camera is also that of a LeRobot dataset with several.
        hold: steps recorded after the expert's success; None to record to the horizon.
    """

    task: str | None = None
    data: Path | None = None
    camera: str | None = None
    horizon: int | None = None
    hold: int | None = None


@dataclass
class Report:
    """The results of all seeds.

    Attributes:
        request: protocol, encoder and source: everything that a score depends on.
        seeds: for each seed: its number, best score and the step of it, loss, evaluations and episodes.
        mean, half_width: mean of the seeds' best scores, and half the width of its 95 % interval (None for one seed).
        baseline: error of always returning the mean action of the demonstrations; None if the score is not an error.
    """

    request: dict[str, Any]
    seeds: list[dict[str, Any]]
    mean: float | None
    half_width: float | None
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
    """Trains and evaluates policies with several seeds.

    Args:
        protocol: settings of training and evaluation.
        encoder: a frozen encoder; None for the feature "none".
        source: the demonstrations and the task.
        seeds: number of random seeds: 0, 1, ...
        side_by_side: number of episodes that run side by side; more need more memory and encode faster.
        film: number of episodes of each seed's best evaluation that are written as video.
        folder: output directory for features, scores, policies and videos; resumes an interrupted run. None to write
            nothing.
        fresh: start from scratch even if `folder` contains a run.
        own_states: replace a positive `protocol.proprio` with the number of robot states that the task or the file
            specifies.
        batch: frames per pass of the encoder.
        device: device of the policy.
        progress: called with (title of the current step, done, total).

    Raises:
        ValueError: neither task nor file, a file that does not fit the task, a folder with other settings, or an
            error of `read`, `make` or `record`.
    """
    if source.task is None and source.data is None:
        raise ValueError("no demonstrations: specify a task or a file of demonstrations")
    if seeds < 1 or side_by_side < 1:
        raise ValueError(f"seeds and side_by_side must be at least 1, got {seeds} and {side_by_side}")
    source, demonstrations, protocol = _resolve_source(source, protocol, own_states)
    environments: list[Environment] = []
    if source.task is not None:
        count = min(side_by_side, max(1, protocol.rollouts))
        environments = [
            make_environment(source.task, camera=source.camera, horizon=source.horizon) for _ in range(count)
        ]
        source = replace(source, camera=environments[0].camera, horizon=environments[0].horizon)
        if own_states and protocol.proprio:
            protocol = replace(protocol, proprio=environments[0].proprio)
    request = _request(protocol, encoder, source)
    if folder is not None:
        _check_request(folder, request, fresh)
    # Frames of episodes are rendered at the size of the demonstrations, so that both are resized in the same way.
    frame_encoder = FrameEncoder(
        encoder, protocol, batch=batch, size=demonstrations[0].images.shape[1] if demonstrations else None
    )
    try:
        rows = _policy_inputs(folder, frame_encoder, demonstrations, environments, source, progress)
        _check_action_dim(rows, environments)
        held_out = None
        if not environments:
            # The last demonstrations, the same for every encoder and seed.
            cut = len(rows) - max(1, len(rows) // 5)
            held_out = _concatenate(rows[cut:])
            rows = rows[:cut]
        x, actions = _concatenate(rows)
        results = []
        for seed in range(seeds):
            result = _read_seed(folder, seed)
            if result is None:
                result = _run_seed(
                    x, actions, protocol, seed, held_out, environments, frame_encoder, film, folder, device, progress
                )  # fmt: skip
            results.append(result)
    finally:
        for environment in environments:
            environment.close()
    best = [result["best"] for result in results if result["best"] is not None]
    mean, half_width = confidence_interval(best) if best else (None, None)
    baseline = None if held_out is None else float((held_out[1] - actions.mean(0)).square().mean())
    return Report(request, results, mean, half_width, baseline)


def _resolve_source(source: Source, protocol: Cloning, own_states: bool) -> tuple[Source, list[Demonstration], Cloning]:
    """Reads the file of demonstrations, if there is one, and completes source and protocol with its metadata.

    The list of demonstrations is empty if an expert is to record them.
    """
    if source.data is None:
        return source, [], protocol
    demonstrations, metadata = read(
        source.data, protocol.demos, camera=_dataset_camera(source), short=max(protocol.render, protocol.crop)
    )
    if source.task is not None and metadata.get("task", source.task) != source.task:
        raise ValueError(f"{source.data}: contains demonstrations of {metadata['task']}, not of {source.task}")
    camera = metadata.get("camera")
    if source.task is not None and camera is not None and source.camera not in (None, camera):
        raise ValueError(f"{source.data}: contains demonstrations from camera {camera}, not from {source.camera}")
    sides = {side for demonstration in demonstrations for side in demonstration.images.shape[1:3]}
    if source.task is not None and len(sides) > 1:
        raise ValueError(
            f"{source.data}: with a task, frames must be square and of one size, got sides {sorted(sides)}"
        )
    source = replace(source, camera=source.camera or camera)
    if source.task is None:
        if len(demonstrations) < 2:
            raise ValueError(f"{source.data}: at least 2 demonstrations are required without a task, got 1")
        if own_states and protocol.proprio and "proprio" in metadata:
            protocol = replace(protocol, proprio=int(metadata["proprio"]))
    return source, demonstrations, protocol


def _dataset_camera(source: Source) -> str | None:
    """The camera to read from a LeRobot dataset; with a task, the only one of a dataset may have another name."""
    assert source.data is not None
    only = source.task is not None and source.data.is_dir() and len(open_dataset(source.data).cameras) == 1
    return None if only else source.camera


def _request(protocol: Cloning, encoder: Encoder | None, source: Source) -> dict[str, Any]:
    data = None
    if source.data is not None:
        paths = [source.data]
        if source.data.is_dir():
            dataset = open_dataset(source.data)
            paths = dataset.files(protocol.demos, dataset.find_camera(_dataset_camera(source)))
        data = {"name": source.data.name, "sha256": hash_files(paths)}
    settings = {**asdict(protocol), "encoder": None if encoder is None else encoder.describe(), **asdict(source)}
    return json.loads(json.dumps(settings | {"data": data}, default=str))


def _check_request(folder: Path, request: dict[str, Any], fresh: bool) -> None:
    """Writes the request; raises ValueError if the folder contains a run with other settings."""
    path = folder / "protocol.json"
    if path.is_file() and not fresh:
        try:
            existing = rename_encoder_keys(files.read_json(path, dict[str, Any]))
        except ValueError as error:
            raise ValueError(f"{error}; start from scratch with --fresh") from None
        if names := sorted(name for name in request if existing.get(name) != request[name]):
            raise ValueError(
                f"{folder} contains a run with other settings ({', '.join(names)}); start from scratch with --fresh"
            )
        return
    for output in (*folder.glob("seed_*"), *folder.glob("features.safetensors")):
        output.unlink()
    files.write_json(path, request)


def _policy_inputs(
    folder: Path | None, frame_encoder: FrameEncoder, demonstrations: Sequence[Demonstration],
    environments: Sequence[Environment], source: Source, progress: Progress | None,
) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
    """Inputs and actions of each demonstration, read from the folder or computed and saved there."""
    path = None if folder is None else folder / "features.safetensors"
    if path is not None and path.is_file():
        try:
            tensors, header = files.load(path, "cloning features")
            return [(tensors[f"{n}.inputs"], tensors[f"{n}.actions"]) for n in range(header["count"])]
        except (files.CorruptFileError, KeyError, TypeError):
            path.unlink()  # damaged: computed again below

    def titled(title: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(title, done, total)

    protocol = frame_encoder.protocol
    if not demonstrations:
        demonstrations = record(
            environments[0], protocol.demos, frame_encoder.size, hold=source.hold, progress=titled("demonstrations")
        )
    features = encode_demonstrations(frame_encoder, demonstrations, titled("encoding frames"))
    rows = [
        policy_inputs([frames], [demonstration], protocol)
        for frames, demonstration in zip(features, demonstrations, strict=True)
    ]
    if path is not None:
        tensors = {f"{n}.{name}": part for n, row in enumerate(rows) for name, part in zip(_NAMES, row, strict=True)}
        files.save(path, "cloning features", tensors, {"count": len(rows)})
    return rows


_NAMES = ("inputs", "actions")


def _check_action_dim(rows: Sequence[tuple[Tensor, Tensor]], environments: Sequence[Environment]) -> None:
    dim = rows[0][1].shape[1]
    for environment in environments[:1]:
        if dim != environment.actions:
            raise ValueError(
                f"the demonstrations have actions of {dim} dimensions, {environment.task} expects {environment.actions}"
            )


def _concatenate(rows: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in rows]), torch.cat([actions for _, actions in rows])


class _Seed(TypedDict):
    """The keys that a seed's file must have."""

    seed: int
    best: Any
    loss: Any


def _read_seed(folder: Path | None, seed: int) -> dict[str, Any] | None:
    """The result of an earlier run with this seed; None if there is none."""
    path = None if folder is None else folder / f"seed_{seed}.json"
    if path is None or not path.is_file():
        return None
    try:
        return current_keys(files.read_json(path, _Seed))
    except ValueError:
        return None  # damaged: trained again


def _run_seed(
    x: Tensor, actions: Tensor, protocol: Cloning, seed: int, held_out: tuple[Tensor, Tensor] | None,
    environments: Sequence[Environment], frame_encoder: FrameEncoder, film: int, folder: Path | None,
    device: str | torch.device, progress: Progress | None,
) -> dict[str, Any]:  # fmt: skip
    def report(done: int, total: int, values: dict[str, float]) -> None:
        if progress is not None:
            parts = [f"{name} {values[name]:.3g}" for name in ("best", "episode") if name in values]
            progress(", ".join([f"seed {seed}", *parts]), done, total)

    trained = clone(
        x, actions, protocol, seed=seed, held_out=held_out, environments=environments, frame_encoder=frame_encoder,
        film=film if folder is not None else 0, device=device, progress=report,
    )  # fmt: skip
    best_step = next((evaluation.step for evaluation in trained.evaluations if evaluation.score == trained.best), None)
    result = {
        "seed": seed, "best": trained.best, "best_step": best_step, "loss": trained.evaluations[-1].loss,
        "evaluations": [asdict(evaluation) for evaluation in trained.evaluations],
        "episodes": [
            {"seed": rollout.seed, "steps": rollout.steps, "ever": rollout.any_success, "last": rollout.final_success,
             "return": rollout.total_reward}
            for rollout in trained.rollouts
        ],
    }  # fmt: skip
    if folder is not None:
        tensors = {name: value.cpu() for name, value in trained.policy.state_dict().items()}
        files.save(folder / f"seed_{seed}.safetensors", "cloned policy", tensors, {"seed": seed})
        if any(rollout.frames for rollout in trained.rollouts):
            write(folder / f"seed_{seed}.mp4", filmstrip(trained.rollouts), fps=20)
        # Written last: its existence means that the seed is done.
        files.write_json(folder / f"seed_{seed}.json", result)
    return result
