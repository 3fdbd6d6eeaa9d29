"""The state of a run in one safetensors file, written atomically and never pickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from fewtokens.core import files
from fewtokens.core.legacy import RENAMED_SETTINGS
from fewtokens.core.plain import conform
from fewtokens.encoders.config import current_names
from fewtokens.train.settings import Settings, plain, total_steps

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


class _Optional(TypedDict, total=False):
    """Keys that older versions did not write."""

    inputs: dict[str, list[str]]
    due: bool
    broken: list[str]


class Head(_Optional):
    """The header of a checkpoint.

    Keys:
        step: the number of steps done.
        items: the number of items of the data.
        settings: see `Settings`.
        inputs: the inputs of the run other than its settings, see `fewtokens.train.inputs`.
        scores: the scores of the last evaluation; due: whether an evaluation of this step is still due.
        sums, counted: totals since the last line of metrics.jsonl, and the number of steps in them.
        broken: files that could not be read.
    """

    step: int
    items: int
    settings: dict[str, Any]
    scores: dict[str, Any]
    sums: dict[str, float]
    counted: int


def collect_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, ema: dict[str, Tensor] | None, extra: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Returns the state as named CPU tensors, gathered from all processes; complete only in the first one.

    Args:
        model: the network, unwrapped or sharded.
        optimizer: its optimizer.
        ema: averaged parameters by name, or None.
        extra: additional tensors, such as the scale of the loss.
    """
    tensors = {f"model.{name}": value for name, value in _parameters(model).items()}
    # torch would make a step with an optimizer that has made none, which changes its state.
    states: Any = get_optimizer_state_dict(model, optimizer, options=_FULL) if optimizer.state else {}
    for name, entry in states.get("state", {}).items():
        for key, value in entry.items():
            tensors[f"optimizer.{name}.{key}"] = torch.as_tensor(value)
    for name, value in (ema or {}).items():
        tensors[f"ema.{name}"] = full_tensor(value)
    return tensors | {f"extra.{name}": value for name, value in extra.items()}


def save(path: Path, tensors: dict[str, Tensor], head: Head) -> None:
    files.save(path, "run", tensors, dict(head))


def read(path: Path) -> tuple[dict[str, Tensor], Head]:
    """Reads the tensors and the header.

    Raises:
        ValueError: the file is missing, truncated, or of another type; the message says what to do.
    """
    try:
        tensors, header = files.load(path, "run")
        head: Head = conform(
            {name: header.get(name) for name in Head.__annotations__ if name in header}, Head, str(path)
        )
        if not head["step"] >= 0 or head["items"] < 1 or head["counted"] < 0:
            raise ValueError(f"{path}: step, items or counted in its header is below its minimum")
        if invalid := [name for name, value in head["scores"].items() if not isinstance(value, int | float)]:
            raise ValueError(f"{path}: scores in its header must be numbers, but {', '.join(invalid)} is not")
        return tensors, head
    except ValueError as error:
        raise ValueError(f"{error}; remove this checkpoint or use --fresh to start from step 0") from None


def restore(
    tensors: dict[str, Tensor],
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: dict[str, Tensor] | None,
) -> dict[str, Tensor]:
    """Restores a state, also into a sharded network; returns the extra tensors.

    Raises:
        ValueError: it is the state of another network.
    """
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "ema": {}, "extra": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise ValueError(f"{path}: contains {name!r}, which is not part of a checkpoint; use --fresh")
        parts[part][rest] = value
    trainable = dict(parameter for parameter in model.named_parameters() if parameter[1].requires_grad)
    state = {f"{name}.{key}": value for name in trainable for key, value in _state(optimizer, trainable[name])}
    if not parts["optimizer"]:  # no step was made, or the optimizer has no state
        state = {}
    for part, expected in (("model", model.state_dict()), ("optimizer", state), ("ema", ema or {})):
        shapes, saved = (
            {name: tuple(value.shape) for name, value in tensors.items()} for tensors in (expected, parts[part])
        )
        if shapes != saved:
            different = sorted(set(shapes.items()) ^ set(saved.items()))[:3]
            raise ValueError(
                f"{path}: contains another network than the one to train; they differ in "
                f"{', '.join(dict.fromkeys(name for name, _ in different))}; use another --out, or --fresh"
            )
    set_model_state_dict(model, dict(parts["model"]), options=_FULL)
    if parts["optimizer"]:
        states: dict[str, dict[str, Tensor]] = {}
        for name, value in parts["optimizer"].items():
            parameter, _, key = name.rpartition(".")
            states.setdefault(parameter, {})[key] = value
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = [{**group, "params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
        set_optimizer_state_dict(
            model,
            optimizer,
            optim_state_dict={"state": states, "param_groups": groups},  # type: ignore[dict-item]
            options=_FULL,
        )
    if ema is not None:
        for name, value in ema.items():
            fill(value, parts["ema"][name])
    return parts["extra"]


def _state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> list[tuple[str, Tensor]]:
    """The names and shapes of the state that an optimizer of `make_optimizer` has for a parameter."""
    if isinstance(optimizer, torch.optim.SGD):
        return [("momentum_buffer", parameter)]
    return [("step", torch.empty(())), ("exp_avg", parameter), ("exp_avg_sq", parameter)]


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, unsharded, on the CPU."""
    state: Any = get_model_state_dict(model, options=_FULL)
    return state


def full_tensor(value: Any) -> Tensor:
    """Returns a tensor on the CPU, gathered if it is sharded."""
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().cpu()


def fill(value: Any, full_value: Tensor) -> None:
    """Copies a full tensor into one that may be sharded."""
    if hasattr(value, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        full_value = distribute_tensor(
            full_value.to(value.device_mesh.device_type), value.device_mesh, value.placements
        )
    value.copy_(full_value)


# Settings that may differ when a run is resumed, because they do not affect the training result.
_MAY_CHANGE = (
    "workers", "save_every", "save_minutes", "eval_every", "log_every", "tensorboard", "clips", "crops", "keep", "note",
)  # fmt: skip
# Settings that determine the length of a run.
_LENGTH = ("epochs", "steps")


def check_same_run(head: Head, settings: Settings, items: int, out: Path) -> list[str]:
    """Compares a checkpoint with the run that is to resume from it.

    Returns:
        Messages for the user.

    Raises:
        ValueError: it belongs to a run with other settings or other data, or has more steps than this run.
    """
    before, now = {RENAMED_SETTINGS.get(name, name): value for name, value in head["settings"].items()}, plain(settings)
    if isinstance(before.get("network"), dict):
        before = before | {"network": current_names(before["network"])}
    skipped = {*_MAY_CHANGE, *_LENGTH}
    old, new = ({k: v for k, v in values.items() if k not in skipped} for values in (before, now))
    if old != new:
        names = ", ".join(sorted(k for k in new.keys() | old.keys() if old.get(k) != new.get(k)))
        raise ValueError(f"{out}: contains a run with other settings ({names}); use another --out, or --fresh")
    if head["items"] != items:
        raise ValueError(
            f"{out}: contains a run on {head['items']} items, but the data has {items}; use another --out, or --fresh"
        )
    length = {name: conform(before.get(name), float, f"{out}: {name} of its run") for name in _LENGTH}
    old_total = total_steps(length["epochs"], int(length["steps"]), items, settings.batch)
    total = settings.total(items)
    if total == old_total:
        return []
    if total < head["step"]:
        raise ValueError(
            f"{out}: contains a run with {head['step']} steps done, but {total} are requested; raise --steps or "
            "--epochs, or use another --out, or --fresh"
        )
    schedule = (
        "the learning rate is unchanged"
        if settings.schedule == "constant" and settings.warmup_steps(old_total) == settings.warmup_steps(total)
        else f"the learning rate now follows the {settings.schedule} schedule of {total} steps, so the result differs "
        "from that of a run with this length from the start"
    )
    return [f"{out}: resumed at step {head['step']}/{total} (previously {old_total} steps); {schedule}"]
