"""The training loop, for every objective: one process or many, float32 or half, resumed without a trace.

    fit(model, objective, data, settings, out)

The data of a step, and everything drawn in it, follow from the seed and the number of the step alone. So a run that
was stopped and resumed ends bit-equal to one that was not (on a CPU; a GPU's sums have no fixed order).

A checkpoint is written every `save_every` steps, every `save_minutes`, and on SIGINT, SIGTERM and SIGHUP, after which
`Stopped` is raised. There is one, replaced as a whole; one that is damaged is refused, never guessed at.

A run goes on with the same settings, network and data. With more epochs or steps it is trained longer: the learning
rate then follows the schedule of the new total from there on, so that only a constant schedule gives what a run of
that length from the start would have given.

A run is a folder:

    settings.json    what was asked for
    state.safetensors  the last checkpoint: parameters, averages, optimizer, step
    metrics.jsonl    a line every `log_every` steps and after each evaluation; appended to, also by a resumed run
    model/           the trained network, at the end (`fewtokens.networks.load`)
    curves.png       loss and scores over the steps, where matplotlib is installed
    broken.txt       files that could not be read
"""

from __future__ import annotations

import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fewtokens.core.files import write_text
from fewtokens.data.clips import mix
from fewtokens.data.loading import LoadingError, load_batches
from fewtokens.train import checkpoint
from fewtokens.train.average import Average
from fewtokens.train.inputs import Input, check_inputs
from fewtokens.train.memory import is_out_of_memory
from fewtokens.train.metrics import Metrics
from fewtokens.train.optimizer import freeze, make_optimizer, shard
from fewtokens.train.settings import Settings, plain, write_settings
from fewtokens.train.steps import Steps
from fewtokens.train.stopping import Break, Signals, Stopped


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
    inputs: Mapping[str, Input] | None = None,
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
        inputs: what a run is made from beside its settings, by name, see `fewtokens.train.inputs`; one that resumes
            must be made from the same. Where nothing is given, only the number of items is compared.
        resume: go on from the folder's last checkpoint; otherwise start over.
        progress: called after each step.
        device: "cpu" to stay there although there is a GPU.

    Raises:
        ValueError: the folder holds another run, a parameter that gets no gradient, a loss that is not finite, data
            that cannot be loaded.
        OSError: the disk is full; the last checkpoint stands.
        Stopped: a KeyboardInterrupt: a signal came, and the state is saved.
    """
    run = _Run(model, objective, data, settings, Path(out), collate, evaluate, inputs or {}, progress, device)
    devices = [run.device] if run.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), run.signals:
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
        inputs: Mapping[str, Input],
        progress: Progress | None,
        device: str | None,
    ) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import DistributedDataParallelKwargs

        self.bare, self.objective, self.data, self.settings, self.out = model, objective, data, settings, out
        self.collate, self.evaluate, self.inputs, self.progress = collate, evaluate, inputs, progress
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
        self.alone = self.accelerator.num_processes == 1
        self.signals = Signals(self.alone)
        items = len(data)  # type: ignore[arg-type]
        if items < 1:
            raise ValueError("there is nothing to train on")
        self.items, self.total = items, settings.total(items)
        self.broken: dict[str, None] = {}
        self.enlarged: set[int] = set()
        # Steps done, those of the last checkpoint and when it was written; scores, and whether an evaluation is due.
        self.step = self.saved = 0
        self.saved_at = time.monotonic()
        self.scores: dict[str, float] = {}
        self.due = False
        # Added up since the last line of the log.
        self.sums: dict[str, float] = {}
        self.counted = 0
        self.checked = False
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
        start = self._begin(resume)
        began, self.waited = time.perf_counter(), 0.0
        try:
            self._steps(start)
            if self.step == start == self.total and self.evaluate is not None and not self.scores:
                self._score()
        except (Break, LoadingError) as error:
            # Nothing of a step was begun when it came, so the state is that of the steps done.
            if self.alone:
                self._save()
            if not self.signals.number:
                raise LoadingError(f"{error}. {self._standing()}; the same command resumes") from None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ValueError(
                f"out of memory at step {self.step + 1}; take a smaller batch, or a larger accumulate, which computes "
                f"it in parts. {self._standing()}"
            ) from None
        self._heed()
        self.metrics.finish()
        broken = self._finish(self.out)
        self._heed()
        seconds = time.perf_counter() - began
        return Report(
            self.total, start, self.scores, self.metrics.lines, broken, len(self.enlarged), seconds, self.waited
        )

    def _standing(self) -> str:
        return f"The checkpoint of step {self.saved} stands" if self.saved else "There is no checkpoint yet"

    def _heed(self) -> None:
        """Raises `Stopped` where a signal came; the state is saved."""
        if self.signals.number:
            raise Stopped(f"stopped at step {self.step}; the same command resumes", self.signals.number)

    def _steps(self, start: int) -> None:
        settings = self.settings
        sampler = Steps(
            self.items, settings, self.total, start, self.accelerator.process_index, self.accelerator.num_processes
        )
        pin = self.device.type == "cuda"
        loaded = load_batches(self.data, workers=settings.workers, collate=self.collate, sampler=sampler, pin=pin)
        per_epoch = max(1, round(self.items / settings.batch))
        save_every = settings.save_every or per_epoch
        eval_every = max(1, round(settings.eval_every * per_epoch)) if settings.eval_every else 0
        self.trained.train()
        if self.due:
            self._score()
            self._save(again=True)
        with closing(loaded):  # type: ignore[type-var]
            for step in range(start, self.total):
                numbers = self._step(step, self._parts(loaded))
                for name, value in numbers.items():
                    self.sums[name] = self.sums.get(name, 0.0) + value
                self.counted += bool(numbers)
                self.step = done = step + 1
                if done % settings.log_every == 0 or done == self.total:
                    self._log_sums()
                if self.evaluate is not None and (done == self.total or (eval_every and done % eval_every == 0)):
                    self.due = True
                    self._score()
                stop, late = self._agreed()
                if done % save_every == 0 or done == self.total or stop or late:
                    self._save()
                if stop:
                    return
                if self.progress is not None and self.main:
                    self.progress(done, self.total, numbers | self.scores)

    def _agreed(self) -> tuple[bool, bool]:
        """Whether a process was told to stop, and whether a checkpoint is due by time: the same answers in all."""
        minutes = self.settings.save_minutes
        late = bool(minutes) and time.monotonic() - self.saved_at >= 60 * minutes
        if self.alone:
            return bool(self.signals.number), late
        said = self.accelerator.reduce(torch.tensor([bool(self.signals.number), late], device=self.device).int(), "sum")
        stop, late = (said > 0).tolist()
        if stop and not self.signals.number:
            self.signals.number = signal.SIGTERM  # another process was told
        return stop, late

    def _begin(self, resume: bool) -> int:
        """Restores the last checkpoint, where there is one; the step to begin with."""
        state, log = self.out / "state.safetensors", self.out / "metrics.jsonl"
        self.accelerator.wait_for_everyone()
        if resume and state.exists():
            tensors, head = checkpoint.read(state)
            said = checkpoint.check_same_run(head, self.settings, self.items, self.out)
            said += check_inputs(head.get("inputs"), self.inputs, self.out)
            extra = checkpoint.restore(tensors, state, self.bare, self._inner, self.average.values)
            if self.accelerator.scaler is not None and "scale" in extra:
                self.accelerator.scaler.load_state_dict(
                    {**self.accelerator.scaler.state_dict(), "scale": float(extra["scale"])}
                )
            self.step = self.saved = head["step"]
            self.scores, self.due = head["scores"], head.get("due", False)
            self.sums, self.counted = head["sums"], head["counted"]
            self.broken = dict.fromkeys(head.get("broken", ()))
            self.enlarged = set(extra["enlarged"].tolist()) if "enlarged" in extra else set()
            if self.main:
                for line in said:
                    warnings.warn(line, stacklevel=4)
        if self.main:
            self.out.mkdir(parents=True, exist_ok=True)
            if not resume:
                for file in (state, log, self.out / "broken.txt"):
                    file.unlink(missing_ok=True)
            write_settings(self.settings, self.out / "settings.json")
        self.metrics = Metrics(log, self.step, writes=self.main)
        self.accelerator.wait_for_everyone()
        return self.step

    def _parts(self, batches: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
        """The parts of the next batch; a signal may break in here."""
        parts: list[dict[str, Any]] = []
        begun = time.perf_counter()
        with self.signals.open():
            for _ in range(self.settings.accumulate):
                parts.append(next(batches))
        self.waited += time.perf_counter() - begun
        for part in parts:
            for line in part.pop("broken", ()):
                self.broken[line] = None
            self.enlarged.update(part.pop("enlarged", ()))
        return parts

    def _step(self, step: int, parts: list[dict[str, Any]]) -> dict[str, float]:
        """One optimizer step; the numbers to log."""
        settings, accelerator = self.settings, self.accelerator
        seed = mix(settings.seed, step, accelerator.process_index)
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(mix(seed, 1))
        sizes = [_size(batch) for batch in parts]
        numbers: dict[str, float] = {}
        for number, (batch, size) in enumerate(zip(parts, sizes, strict=True)):
            last = number == len(parts) - 1
            if not size and self.alone:
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
            return {}
        if not all(map(math.isfinite, numbers.values())):
            raise ValueError(
                f"the loss is not finite at step {step + 1}; lower lr, or take precision=no. The last checkpoint stands"
            )
        if not self.checked:
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
        return numbers

    def _unsynced(self, wanted: bool) -> Any:
        """While parts of a batch are added up, processes need not agree on their gradients."""
        return self.accelerator.no_sync(self.trained) if wanted and not self.settings.shard else nullcontext()

    def _clip(self, limit: float) -> float:
        if self.settings.shard:
            norm = nn.utils.clip_grad_norm_(self.parameters, limit)
            return float(checkpoint.whole(norm))
        return float(self.accelerator.clip_grad_norm_(self.parameters, limit))

    def _check_gradients(self) -> None:
        self.checked = True
        without = [name for name, p in zip(self.names, self.parameters, strict=True) if p.grad is None]
        if without:
            some = ", ".join(without[:5]) + (" ..." if len(without) > 5 else "")
            raise ValueError(f"these parameters get no gradient, so they would never learn: {some}")

    def _score(self) -> None:
        """Evaluates and logs; a signal may break in, and the evaluation stays due."""
        assert self.evaluate is not None
        kept = self.average.swap()
        self.bare.eval()
        try:
            with self.signals.open(), torch.no_grad(), self.accelerator.autocast():
                scores = self.evaluate(self.bare)
        finally:
            self.bare.train()
            self.average.swap(kept)
        self.scores, self.due = scores, False
        self._log(self.step, scores)

    def _over_processes(self, numbers: dict[str, float]) -> dict[str, float]:
        """Each number's mean over the processes."""
        if self.accelerator.num_processes == 1 or not numbers:
            return numbers
        mean = self.accelerator.reduce(torch.tensor(list(numbers.values()), device=self.device), "mean")
        return dict(zip(numbers, mean.tolist(), strict=True))

    def _log_sums(self) -> None:
        """The means since the last line."""
        done = self.step
        line = self._over_processes({name: value / self.counted for name, value in self.sums.items()})
        rate = self.settings.lr_at(done - 1, self.total)
        self._log(done, line | {"lr": rate, "epoch": done * self.settings.batch / self.items})
        self.sums, self.counted = {}, 0

    def _log(self, step: int, numbers: dict[str, float]) -> None:
        if not self.main:
            return
        self.metrics.add(step, numbers)
        if self.settings.tensorboard:
            if not hasattr(self, "board"):
                from torch.utils.tensorboard.writer import SummaryWriter

                self.board = SummaryWriter(str(self.out / "tensorboard"))
            for name, value in numbers.items():
                self.board.add_scalar(name, value, step)

    def _save(self, again: bool = False) -> None:
        """Writes a checkpoint of the steps done; `again` also where there is one of that step."""
        if not self.step or (self.step == self.saved and not again):
            return
        extra = {}
        if self.accelerator.scaler is not None and self.accelerator.scaler.is_enabled():
            extra["scale"] = torch.tensor(self.accelerator.scaler.get_scale())
        if self.enlarged:
            extra["enlarged"] = torch.tensor(sorted(self.enlarged))
        tensors = checkpoint.state_of(self.bare, self._inner, self.average.values, extra)
        broken = self._all_broken()
        if self.main:
            head: checkpoint.Head = {
                "step": self.step,
                "items": self.items,
                "settings": plain(self.settings),
                "inputs": {name: list(value) for name, value in self.inputs.items()},
                "scores": self.scores,
                "due": self.due,
                "sums": self.sums,
                "counted": self.counted,
                "broken": broken,
            }
            try:
                checkpoint.save(self.out / "state.safetensors", tensors, head)
            except OSError as error:
                raise OSError(
                    error.errno, f"{error.strerror}; step {self.step} could not be saved. {self._standing()}; once "
                    "there is room the same command resumes", error.filename,
                ) from None  # fmt: skip
        self.saved, self.saved_at = self.step, time.monotonic()
        self.accelerator.wait_for_everyone()

    def _all_broken(self) -> list[str]:
        """What is wrong with the files of all processes."""
        from accelerate.utils import gather_object

        return list(dict.fromkeys(gather_object(list(self.broken))))

    def _finish(self, out: Path) -> list[str]:
        """Leaves the averaged weights in the network; what is wrong with the files of all processes."""
        self.average.swap()
        self.bare.eval()
        broken = self._all_broken()
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
