"""The state of a run in one safetensors file: written whole or not at all, never pickled."""

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
from fewtokens.core.plain import conform
from fewtokens.encoders.config import current_names
from fewtokens.train.settings import Settings, plain, total_steps

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class _Later(TypedDict, total=False):
    """What older versions did not write."""

    inputs: dict[str, list[str]]
    due: bool
    broken: list[str]


class Head(_Later):
    """What stands in the header of a checkpoint.

    Keys:
        step: steps done.
        items: of the data.
        settings: see `Settings`.
        inputs: what else the run is made from, see `fewtokens.train.inputs`.
        scores: of the last evaluation; due: whether one of this step is still to be made.
        sums, counted: added up since the last line of metrics.jsonl.
        broken: files that could not be read.
    """

    step: int
    items: int
    settings: dict[str, Any]
    scores: dict[str, Any]
    sums: dict[str, float]
    counted: int


def state_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, ema: dict[str, Tensor] | None, extra: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Everything as named tensors on the CPU, put together from all processes; whole in the first one alone.

    Args:
        model: bare or sharded.
        optimizer: of it.
        ema: averaged parameters by name, or None.
        extra: more tensors, such as the scale of the loss.
    """
    tensors = {f"model.{name}": value for name, value in _parameters(model).items()}
    # Of an optimizer that has not made a step torch would make one, which is not without traces.
    states: Any = get_optimizer_state_dict(model, optimizer, options=_WHOLE) if optimizer.state else {}
    for name, entry in states.get("state", {}).items():
        for key, value in entry.items():
            tensors[f"optimizer.{name}.{key}"] = torch.as_tensor(value)
    for name, value in (ema or {}).items():
        tensors[f"ema.{name}"] = whole(value)
    return tensors | {f"extra.{name}": value for name, value in extra.items()}


def save(path: Path, tensors: dict[str, Tensor], head: Head) -> None:
    files.save(path, "run", tensors, dict(head))


def read(path: Path) -> tuple[dict[str, Tensor], Head]:
    """The tensors and the header.

    Raises:
        ValueError: the file is missing, cut, or of another kind; says what to do.
    """
    try:
        tensors, header = files.load(path, "run")
        head: Head = conform(
            {name: header.get(name) for name in Head.__annotations__ if name in header}, Head, str(path)
        )
        if not head["step"] >= 0 or head["items"] < 1 or head["counted"] < 0:
            raise ValueError(f"{path}: step, items or counted in its header is below its least")
        if wrong := [name for name, value in head["scores"].items() if not isinstance(value, int | float)]:
            raise ValueError(f"{path}: scores in its header are numbers, not {', '.join(wrong)}")
        return tensors, head
    except ValueError as error:
        raise ValueError(f"{error}. Remove this checkpoint to start from step 0, or take --fresh") from None


def restore(
    tensors: dict[str, Tensor],
    where: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: dict[str, Tensor] | None,
) -> dict[str, Tensor]:
    """Puts a state back, into a sharded network too; gives the extra tensors.

    Raises:
        ValueError: it is the state of another network.
    """
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "ema": {}, "extra": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise ValueError(f"{where}: holds {name!r}, which is no part of a checkpoint; take --fresh")
        parts[part][rest] = value
    learned = dict(parameter for parameter in model.named_parameters() if parameter[1].requires_grad)
    kept = {f"{name}.{key}": value for name in learned for key, value in _kept(optimizer, learned[name])}
    if not parts["optimizer"]:  # no step was made, or the optimizer remembers nothing
        kept = {}
    for part, wanted in (("model", model.state_dict()), ("optimizer", kept), ("ema", ema or {})):
        shapes, found = ({name: tuple(value.shape) for name, value in each.items()} for each in (wanted, parts[part]))
        if shapes != found:
            strange = sorted(set(shapes.items()) ^ set(found.items()))[:3]
            raise ValueError(
                f"{where}: holds another network than the one to be trained; they differ in "
                f"{', '.join(dict.fromkeys(name for name, _ in strange))}. Take another --out, or --fresh"
            )
    set_model_state_dict(model, dict(parts["model"]), options=_WHOLE)
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
            options=_WHOLE,
        )
    if ema is not None:
        for name, value in ema.items():
            fill(value, parts["ema"][name])
    return parts["extra"]


def _kept(optimizer: torch.optim.Optimizer, parameter: Tensor) -> list[tuple[str, Tensor]]:
    """What an optimizer of `make_optimizer` keeps of a parameter, in its shape."""
    if isinstance(optimizer, torch.optim.SGD):
        return [("momentum_buffer", parameter)]
    return [("step", torch.empty(())), ("exp_avg", parameter), ("exp_avg_sq", parameter)]


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, whole, on the CPU."""
    state: Any = get_model_state_dict(model, options=_WHOLE)
    return state


def whole(value: Any) -> Tensor:
    """A tensor on the CPU, put together where it is sharded."""
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().cpu()


def fill(value: Any, whole_value: Tensor) -> None:
    """Copies a whole tensor into one that may be sharded."""
    if hasattr(value, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        whole_value = distribute_tensor(
            whole_value.to(value.device_mesh.device_type), value.device_mesh, value.placements
        )
    value.copy_(whole_value)


# Settings that may differ when a run is resumed: they change nothing that is learned.
_MAY_CHANGE = (
    "workers", "save_every", "save_minutes", "eval_every", "log_every", "tensorboard", "clips", "crops", "keep", "note",
)  # fmt: skip
# They say how long a run is.
_LENGTH = ("epochs", "steps")


def check_same_run(head: Head, settings: Settings, items: int, out: Path) -> list[str]:
    """Compares a checkpoint with the run that is to go on from it.

    Returns:
        what the user should know of it.

    Raises:
        ValueError: it is of a run with other settings or other data, or is further than this run is to go.
    """
    before, now = head["settings"], plain(settings)
    if isinstance(before.get("network"), dict):
        before = before | {"network": current_names(before["network"])}
    skipped = {*_MAY_CHANGE, *_LENGTH}
    told, asked = ({k: v for k, v in each.items() if k not in skipped} for each in (before, now))
    if told != asked:
        names = ", ".join(sorted(k for k in asked.keys() | told.keys() if told.get(k) != asked.get(k)))
        raise ValueError(f"{out}: holds a run with other settings ({names}); take another --out, or --fresh")
    if head["items"] != items:
        raise ValueError(
            f"{out}: holds a run over {head['items']} items, there are {items} now; take another --out, or --fresh"
        )
    length = {name: conform(before.get(name), float, f"{out}: {name} of its run") for name in _LENGTH}
    old, new = total_steps(length["epochs"], int(length["steps"]), items, settings.batch), settings.total(items)
    if new == old:
        return []
    if new < head["step"]:
        raise ValueError(
            f"{out}: holds a run that has done {head['step']} steps, {new} are asked for; raise --steps or --epochs, "
            "take another --out, or --fresh"
        )
    schedule = (
        "the learning rate stays as it was"
        if settings.schedule == "constant" and settings.warmup_steps(old) == settings.warmup_steps(new)
        else f"from here on the learning rate follows the {settings.schedule} schedule of {new} steps, so the result "
        "is not that of a run which had them from the start"
    )
    return [f"{out}: a run of {old} steps goes on from step {head['step']} to {new}; {schedule}"]
