"""The state of a run in one safetensors file: written whole or not at all, never pickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from fewtokens import files
from fewtokens.train.settings import Settings, plain

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


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
    states: Any = get_optimizer_state_dict(model, optimizer, options=_WHOLE)
    for name, entry in states.get("state", {}).items():
        for key, value in entry.items():
            tensors[f"optimizer.{name}.{key}"] = torch.as_tensor(value)
    for name, value in (ema or {}).items():
        tensors[f"ema.{name}"] = whole(value)
    return tensors | {f"extra.{name}": value for name, value in extra.items()}


def save(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    files.save(path, "run", tensors, header)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header; a ValueError where the file is missing, cut or another kind."""
    return files.load(path, "run")


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
        parts[part][rest] = value
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in parts["model"].items()}
    if wanted != found:
        strange = sorted(set(wanted.items()) ^ set(found.items()))[:3]
        raise ValueError(
            f"{where}: holds another network than the one to be trained; they differ in "
            f"{', '.join(dict.fromkeys(name for name, _ in strange))}. Take another --out, or --fresh to begin anew"
        )
    set_model_state_dict(model, dict(parts["model"]), options=_WHOLE)
    if parts["optimizer"]:
        state: dict[str, dict[str, Tensor]] = {}
        for name, value in parts["optimizer"].items():
            parameter, _, key = name.rpartition(".")
            state.setdefault(parameter, {})[key] = value
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = [{**group, "params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
        set_optimizer_state_dict(
            model,
            optimizer,
            optim_state_dict={"state": state, "param_groups": groups},  # type: ignore[dict-item]
            options=_WHOLE,
        )
    if ema is not None:
        for name, value in ema.items():
            fill(value, parts["ema"][name])
    return parts["extra"]


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
_MAY_CHANGE = ("workers", "save_every", "eval_every", "log_every", "tensorboard", "clips", "crops", "keep", "note")


def check_same_run(header: dict[str, Any], settings: Settings, items: int, out: Path) -> None:
    """Raises a ValueError where a checkpoint is of a run with other settings or other data."""
    told = {k: v for k, v in header["settings"].items() if k not in _MAY_CHANGE}
    asked = {k: v for k, v in plain(settings).items() if k not in _MAY_CHANGE}
    if told != asked:
        names = ", ".join(sorted(k for k in asked.keys() | told.keys() if told.get(k) != asked.get(k)))
        raise ValueError(f"{out}: holds a run with other settings ({names}); take another --out, or --fresh")
    if header["items"] != items:
        raise ValueError(
            f"{out}: holds a run over {header['items']} items, there are {items} now; take another --out, or --fresh"
        )


def trim_metrics(path: Path, step: int) -> None:
    """Takes the lines after a step out of metrics.jsonl: they will be written again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            said = json.loads(line)
        except json.JSONDecodeError:
            continue  # the last line of a run that was killed
        if said["step"] <= step:
            kept.append(line)
    files.write_text(path, "".join(line + "\n" for line in kept))
