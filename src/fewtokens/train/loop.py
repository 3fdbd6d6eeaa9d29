"""The training loop, for every objective: one process or many, float32 or half, resumed without a trace.

    fit(model, objective, data, settings, out)

The data of a step, and everything drawn in it, follow from the seed and the number of the step alone. So a run that
was stopped and resumed ends bit-equal to one that was not (on a CPU; a GPU's sums have no fixed order).

A run is a folder:

    settings.json    what was asked for
    state.safetensors  the last checkpoint: parameters, averages, optimizer, step
    metrics.jsonl    a line every `log_every` steps and after each evaluation
    model/           the trained network, at the end (`fewtokens.models.load`)
    curves.png       loss and scores over the steps, where matplotlib is installed
    broken.txt       files that could not be read
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fewtokens.data.clips import mix
from fewtokens.files import write_text
from fewtokens.train import checkpoint
from fewtokens.train.average import Average
from fewtokens.train.optimizer import freeze, make_optimizer, shard
from fewtokens.train.settings import Settings, plain, write_settings
from fewtokens.train.steps import Steps


class Objective(Protocol):
    """What is minimised."""

    def __call__(
        self, model: nn.Module, batch: dict[str, Any], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss of a batch (on its device), and named numbers to log."""


# Scores of the network (its averaged weights, where there are some).
Evaluate = Callable[[nn.Module], dict[str, float]]
# Called with (step, total, last numbers).
Progress = Callable[[int, int, dict[str, float]], None]


@dataclass
class Report:
    """What came of a run.

    Attributes:
        steps: done in all, and `resumed_at` where this call began.
        scores: of the last evaluation.
        metrics: the lines of metrics.jsonl.
        broken: files that could not be read, each once.
        enlarged: pictures that are smaller than the crop and were scaled up.
        seconds: of this call; waiting: of them, for data.
    """

    steps: int
    resumed_at: int
    scores: dict[str, float]
    metrics: list[dict[str, Any]]
    broken: list[str] = field(default_factory=list)
    enlarged: int = 0
    seconds: float = 0.0
    waiting: float = 0.0


def fit(
    model: nn.Module,
    objective: Objective,
    data: Dataset[Any],
    settings: Settings,
    out: str | Path,
    *,
    collate: Callable[[Sequence[Any]], dict[str, Any]] | None = None,
    evaluate: Evaluate | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    device: str | None = None,
) -> Report:
    """Trains a network in place.

    Args:
        model: in any dtype; its `checkpointing` and `save_pretrained` are used where it has them.
        objective: the loss.
        data: indexed by (epoch, number), with a length. Batches are dicts; "broken" lists files that could not be
            read, and a batch of nothing else is passed over.
        settings: see `Settings`.
        out: the run's folder.
        collate: samples to a batch.
        evaluate: scores, as often as the settings say and at the end.
        resume: go on where the folder's last checkpoint stands; otherwise begin anew.
        progress: called after each step.
        device: "cpu" to stay there although there is a GPU.

    Raises:
        ValueError: the folder holds another run, a parameter that gets no gradient, a loss that is not finite.
    """
    run = _Run(model, objective, data, settings, Path(out), collate, evaluate, progress, device)
    return run.train(resume)


class _Run:
    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        data: Dataset[Any],
        settings: Settings,
        out: Path,
        collate: Any,
        evaluate: Evaluate | None,
        progress: Progress | None,
        device: str | None,
    ) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import DistributedDataParallelKwargs

        self.bare, self.objective, self.data, self.settings, self.out = model, objective, data, settings, out
        self.collate, self.evaluate, self.progress = collate, evaluate, progress
        # Its state is one for the whole process; a second run may want another precision.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            cpu=device == "cpu",
            mixed_precision=settings.precision,
            gradient_accumulation_steps=1,
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self.device = self.accelerator.device
        self.main = self.accelerator.is_main_process
        items = len(data)  # type: ignore[arg-type]
        if items < 1:
            raise ValueError("there is nothing to train on")
        self.items, self.total = items, settings.total(items)
        self.broken: dict[str, None] = {}
        self.enlarged: set[int] = set()
        self.metrics: list[dict[str, Any]] = []
        # Added up since the last line of the log.
        self.sums: dict[str, float] = {}
        self.counted = 0
        self._prepare()

    def _prepare(self) -> None:
        settings, model = self.settings, self.bare
        if settings.checkpointing:
            if not hasattr(model, "checkpointing"):
                raise ValueError(f"{type(model).__name__} has no activation checkpointing")
            model.checkpointing = True  # type: ignore[assignment]
        model.to(self.device)
        freeze(model, settings)
        if settings.shard:
            shard(model, settings.precision, self.device.type)
        self.names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise ValueError("the network has no parameter to train")
        self.average = Average(self.names, self.parameters, settings.ema)
        self.optimizer = make_optimizer(model, settings)
        trained: Any = model
        if settings.compile:
            trained = torch.compile(trained)
        if settings.shard:
            self.trained = trained
        else:
            self.trained, self.optimizer = self.accelerator.prepare(trained, self.optimizer)

    @property
    def _inner(self) -> torch.optim.Optimizer:
        """The optimizer itself, without accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def train(self, resume: bool) -> Report:
        settings, out = self.settings, self.out
        start, scores = self._begin(resume)
        sampler = Steps(
            self.items, settings, self.total, start, self.accelerator.process_index, self.accelerator.num_processes
        )
        loader = DataLoader(
            self.data,
            batch_sampler=sampler,
            num_workers=settings.workers,
            collate_fn=self.collate,
            pin_memory=self.device.type == "cuda",
            persistent_workers=False,
        )
        batches = iter(loader)
        began, waited = time.perf_counter(), 0.0
        per_epoch = max(1, round(self.items / settings.batch))
        save_every = settings.save_every or per_epoch
        eval_every = max(1, round(settings.eval_every * per_epoch)) if settings.eval_every else 0
        self.trained.train()
        for step in range(start, self.total):
            numbers, wait = self._step(step, batches)
            waited += wait
            for name, value in numbers.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            self.counted += bool(numbers)
            done = step + 1
            if done % settings.log_every == 0 or done == self.total:
                line = self._over_processes({name: value / self.counted for name, value in self.sums.items()})
                self._log(
                    done, line | {"lr": settings.lr_at(step, self.total), "epoch": done * settings.batch / self.items}
                )
                self.sums, self.counted = {}, 0
            if self.evaluate is not None and (done == self.total or (eval_every and done % eval_every == 0)):
                scores = self._scores()
                self._log(done, scores)
            if done % save_every == 0 or done == self.total:
                self._save(done, scores)
            if self.progress is not None and self.main:
                self.progress(done, self.total, numbers | scores)
        if start == self.total and self.evaluate is not None and not scores:
            scores = self._scores()
        broken = self._finish(out)
        seconds = time.perf_counter() - began
        return Report(self.total, start, scores, self.metrics, broken, len(self.enlarged), seconds, waited)

    def _begin(self, resume: bool) -> tuple[int, dict[str, float]]:
        """The step to begin with, and the scores known by then."""
        state, log = self.out / "state.safetensors", self.out / "metrics.jsonl"
        start, scores = 0, {}
        self.accelerator.wait_for_everyone()
        if resume and state.exists():
            tensors, header = checkpoint.read(state)
            checkpoint.check_same_run(header, self.settings, self.items, self.out)
            extra = checkpoint.restore(tensors, state, self.bare, self._inner, self.average.values)
            if self.accelerator.scaler is not None and "scale" in extra:
                self.accelerator.scaler.load_state_dict(
                    {**self.accelerator.scaler.state_dict(), "scale": float(extra["scale"])}
                )
            start, scores = header["step"], header["scores"]
            self.sums, self.counted = header["sums"], header["counted"]
        if self.main:
            self.out.mkdir(parents=True, exist_ok=True)
            write_settings(self.settings, self.out / "settings.json")
            checkpoint.trim_metrics(log, start)
            if not start:
                log.unlink(missing_ok=True)
                state.unlink(missing_ok=True)
            elif log.exists():
                self.metrics = [json.loads(line) for line in log.read_text().splitlines()]
        self.accelerator.wait_for_everyone()
        return start, scores

    def _step(self, step: int, batches: Iterator[dict[str, Any]]) -> tuple[dict[str, float], float]:
        """One optimizer step; the numbers to log and the seconds waited for data."""
        settings, accelerator = self.settings, self.accelerator
        seed = mix(settings.seed, step, accelerator.process_index)
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(mix(seed, 1))
        parts, waited = [], 0.0
        for _ in range(settings.accumulate):
            begun = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - begun
            for line in batch.pop("broken", ()):
                self.broken[line] = None
            self.enlarged.update(batch.pop("enlarged", ()))
            parts.append(batch)
        sizes = [_size(batch) for batch in parts]
        numbers: dict[str, float] = {}
        for number, (batch, size) in enumerate(zip(parts, sizes, strict=True)):
            last = number == len(parts) - 1
            if not size and accelerator.num_processes == 1:
                continue
            if not size:
                raise ValueError("a process was given nothing but broken files; clean the list, or take a larger batch")
            with self._unsynced(not last), accelerator.autocast():
                loss, named = self.objective(self.trained, _to(batch, self.device), generator)
                share = size / sum(sizes)
                accelerator.backward(loss * share)
            for name, value in {"loss": loss, **named}.items():
                numbers[name] = numbers.get(name, 0.0) + float(value.detach()) * share
        if not any(sizes):
            return {}, waited
        if not all(map(_finite, numbers.values())):
            raise ValueError(
                f"the loss is not finite at step {step + 1}; lower lr, or take precision=no. The last checkpoint stands"
            )
        if step == 0:
            self._check_gradients()
        if settings.clip:
            norm = self._clip(settings.clip)
            numbers["grad_norm"] = norm
        rate = settings.lr_at(step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(step)
        return numbers, waited

    def _unsynced(self, wanted: bool) -> Any:
        """While parts of a batch are added up, processes need not agree on their gradients."""
        return self.accelerator.no_sync(self.trained) if wanted and not self.settings.shard else nullcontext()

    def _clip(self, limit: float) -> float:
        if self.settings.shard:
            norm = nn.utils.clip_grad_norm_(self.parameters, limit)
            return float(checkpoint.whole(norm))
        return float(self.accelerator.clip_grad_norm_(self.parameters, limit))

    def _check_gradients(self) -> None:
        without = [name for name, p in zip(self.names, self.parameters, strict=True) if p.grad is None]
        if without:
            some = ", ".join(without[:5]) + (" ..." if len(without) > 5 else "")
            raise ValueError(f"these parameters get no gradient, so they would never learn: {some}")

    def _scores(self) -> dict[str, float]:
        assert self.evaluate is not None
        kept = self.average.swap()
        self.bare.eval()
        with torch.no_grad(), self.accelerator.autocast():
            scores = self.evaluate(self.bare)
        self.bare.train()
        self.average.swap(kept)
        return scores

    def _over_processes(self, numbers: dict[str, float]) -> dict[str, float]:
        """Each number's mean over the processes."""
        if self.accelerator.num_processes == 1 or not numbers:
            return numbers
        mean = self.accelerator.reduce(torch.tensor(list(numbers.values()), device=self.device), "mean")
        return dict(zip(numbers, mean.tolist(), strict=True))

    def _log(self, step: int, numbers: dict[str, float]) -> None:
        if not self.main:
            return
        line = {"step": step} | numbers
        self.metrics.append(line)
        with (self.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self.settings.tensorboard:
            if not hasattr(self, "board"):
                from torch.utils.tensorboard.writer import SummaryWriter

                self.board = SummaryWriter(str(self.out / "tensorboard"))
            for name, value in numbers.items():
                self.board.add_scalar(name, value, step)

    def _save(self, step: int, scores: dict[str, float]) -> None:
        extra = {}
        if self.accelerator.scaler is not None and self.accelerator.scaler.is_enabled():
            extra["scale"] = torch.tensor(self.accelerator.scaler.get_scale())
        tensors = checkpoint.state_of(self.bare, self._inner, self.average.values, extra)
        if self.main:
            header = {
                "step": step,
                "items": self.items,
                "settings": plain(self.settings),
                "scores": scores,
                "sums": self.sums,
                "counted": self.counted,
            }
            checkpoint.save(self.out / "state.safetensors", tensors, header)
        self.accelerator.wait_for_everyone()

    def _finish(self, out: Path) -> list[str]:
        """Leaves the averaged weights in the network; what is wrong with the files of all processes."""
        from accelerate.utils import gather_object

        self.average.swap()
        self.bare.eval()
        broken = list(dict.fromkeys(gather_object(list(self.broken))))
        if self.main and broken:
            write_text(out / "broken.txt", "".join(line + "\n" for line in broken))
        if self.main and hasattr(self, "board"):
            self.board.close()
        self.accelerator.wait_for_everyone()
        return broken


def _size(batch: dict[str, Any]) -> int:
    return max((len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim), default=0)


def _to(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
