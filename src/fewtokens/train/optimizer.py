"""The optimizer, and the sharding of parameters over processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fewtokens.train.settings import Settings


def shard(model: nn.Module, precision: str, device: str) -> None:
    """Shards a network over all processes (FSDP2): each of its blocks separately, if it has any itself, then the rest.

    Raises:
        ValueError: there is only one process.
    """
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if not dist.is_initialized() or dist.get_world_size() < 2:
        raise ValueError("sharding requires several processes: torchrun --nproc-per-node 2 -m fewtokens ...")
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16) if precision == "bf16" else MixedPrecisionPolicy()
    for name in ("blocks", "temporal_blocks", "stages"):
        for block in getattr(model, name, ()):
            fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


@torch.no_grad()
def unshard(model: nn.Module) -> None:
    """Replaces sharded parameters by full ones on the CPU, for saving; called by all processes, after training."""
    full: dict[int, nn.Parameter] = {}  # parameters may be shared
    sharded = list(model.parameters())  # keeps them, so that no identity is used twice
    if not any(hasattr(parameter, "full_tensor") for parameter in sharded):
        return
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and hasattr(parameter, "full_tensor"):
                if id(parameter) not in full:
                    value = parameter.full_tensor().cpu()
                    full[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
                module._parameters[name] = full[id(parameter)]


def freeze(model: nn.Module, settings: Settings) -> None:
    """Freezes the parts with rate 0.

    Raises:
        ValueError: a rate for a part that the network does not have.
    """
    # A part may have no parameters, such as a chain of methods without learned ones.
    parts = {name.partition(".")[0] for name, _ in [*model.named_parameters(), *model.named_children()]}
    if unknown := sorted(set(settings.rates) - parts):
        raise ValueError(
            f"unknown parts in rates: {', '.join(unknown)}; the parts of this network are {', '.join(sorted(parts))}"
        )
    for name, parameter in model.named_parameters():
        if settings.rates.get(name.partition(".")[0]) == 0:
            parameter.requires_grad_(False)


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Builds the optimizer of the settings. Parameters with one dimension are not decayed; rates apply to parts.

    The learning rate of a group is that of the step times its "rate". On CPUs and CUDA the step is one kernel per group
    of parameters, several times faster than one per operation; the result is the same to rounding.
    """
    parts: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = settings.rates.get(name.partition(".")[0], 1.0)
            parts.setdefault((rate, parameter.ndim > 1), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": params, "weight_decay": settings.weight_decay if decayed else 0.0, "rate": rate}
        for (rate, decayed), params in sorted(parts.items(), key=lambda part: part[0], reverse=True)
    ]
    fused = all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, settings.lr, momentum=settings.momentum, fused=fused)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, settings.lr, betas=(settings.beta1, settings.beta2), fused=fused)
