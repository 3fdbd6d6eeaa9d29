"""Small runs for tests: synthetic data, a network that trains in seconds. Also a program for several processes:

python -m torch.distributed.run --nproc-per-node 2 tests/train/runs.py OUT '{"shard": true}'
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fewtokens import networks as models
from fewtokens.train.loop import Report, fit
from fewtokens.train.objectives import Classification
from fewtokens.train.optimizer import unshard
from fewtokens.train.processes import end_process
from fewtokens.train.settings import Settings
from fewtokens.train.stopping import Stopped


class Blobs(Dataset[dict[str, Tensor]]):
    """Images in which the index of the bright quarter is the class."""

    def __init__(self, items: int = 24) -> None:
        self.items = items

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = key
        generator = torch.Generator().manual_seed(1000 * epoch + index)
        image = torch.rand(1, 1, 3, 16, 16, generator=generator) * 0.5
        label = index % 4
        image[..., 8 * (label // 2) : 8 * (label // 2) + 8, 8 * (label % 2) : 8 * (label % 2) + 8] += 0.5
        return {"clips": image, "targets": torch.tensor(label)}


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Any]:
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def network(**changes: Any) -> models.Model:
    torch.manual_seed(3)
    shape = {
        "dim": 16, "depth": 3, "num_heads": 2, "patch_size": 4, "image_size": (16, 16), "num_classes": 4,
        "stochastic_depth": 0.2,
    }  # fmt: skip
    config = models.VisionConfig(
        **{**shape, "learner": "tokenlearner('4/frame')", "at": 1, "fuser": "fuser", **changes}
    )
    return models.VisionTransformer(config)


def settings(**changes: Any) -> Settings:
    values: dict[str, Any] = {
        "steps": 12, "batch": 8, "lr": 3e-3, "workers": 0, "log_every": 2, "save_every": 4, "ema": 0.9, "eval_every": 0,
    }  # fmt: skip
    return Settings(**(values | changes))


def run(out: Any, *, model: models.Model | None = None, **changes: Any) -> tuple[models.Model, Report]:
    fit_options = {
        name: changes.pop(name) for name in ("resume", "evaluate", "progress", "device", "inputs") if name in changes
    }
    model = model or network()
    report = fit(
        model,
        Classification(mixup=0.5),
        Blobs(),
        settings(**changes),
        out,
        collate=collate,
        device="cpu",
        **fit_options,
    )
    return model, report


def main() -> None:
    import torch.distributed as dist

    out, changes = sys.argv[1], json.loads(sys.argv[2])
    stop_rank = changes.pop("stop_rank", None)  # the process that gets a signal, at its first evaluation
    torch.set_num_threads(1)
    shards = {}

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        parameters = list(model.parameters())
        if stop_rank == dist.get_rank():
            signal.raise_signal(signal.SIGTERM)
        if hasattr(parameters[0], "to_local"):
            shards["full"] = sum(p.numel() for p in parameters)
            shards["local"] = sum(p.to_local().numel() for p in parameters)
            shards["every parameter sharded"] = all(hasattr(p, "device_mesh") for p in parameters)
            shards["mesh"] = parameters[0].device_mesh.size()
        return {"zero": 0.0}

    try:
        model, report = run(out, evaluate=evaluate, **changes)
    except Stopped as stopped:
        # Both processes print: a line and its end in one write, which those of the other process cannot split.
        sys.stdout.write(json.dumps({"message": str(stopped), "code": stopped.code}) + "\n")
        end_process()
    unshard(model)
    if dist.get_rank() == 0:
        model.save_pretrained(Path(out) / "model")
        print(json.dumps({"steps": report.steps, "loss": report.metrics[0]["loss"], **shards}))
    end_process()


if __name__ == "__main__":
    main()
