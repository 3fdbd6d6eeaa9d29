"""The training loop for every objective: one process or several, float32 or half precision, exact resuming.

    fit(model, objective, data, settings, out)

The data and the random numbers of a step depend only on the seed and the index of the step. So a resumed run ends
bit-equal to an uninterrupted one (on a CPU; sums on a GPU have no fixed order).

A checkpoint is written every `save_every` steps, every `save_minutes`, and on SIGINT, SIGTERM and SIGHUP, after which
`Stopped` is raised. There is one checkpoint, replaced atomically; a damaged one is refused.

A run resumes with the same settings, network and data. With more epochs or steps it is trained longer: the learning
rate then follows the schedule of the new total, so that only a constant schedule gives the same result as a run of
that length from the start.

The output directory contains:

    settings.json    the settings
    state.safetensors  the last checkpoint: parameters, averages, optimizer, step
    metrics.jsonl    one line every `log_every` steps and after each evaluation; a resumed run appends to it
    model/           the trained network, at the end (`fewtokens.networks.load`)
    curves.png       loss and scores over the steps, if matplotlib is installed
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
from fewtokens.data.clips import combine_seeds
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
    """A function to minimize.

    Its loss is a mean over the samples of a batch, unless it has a function `weight(batch)`: the number of what it is a
    mean of, such as the tokens of all answers. Parts of a batch, and those of several processes, count by it.
    """

    def __call__(
        self, model: nn.Module, batch: dict[str, Any], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the mean loss of a batch (on its device), and named numbers to log."""


# Returns scores of the network (with the averaged weights, if any).
Evaluate = Callable[[nn.Module], dict[str, float]]
# Called with (step, total, latest numbers).
Progress = Callable[[int, int, dict[str, float]], None]


@dataclass
class Report:
    """The result of a run.

    Attributes:
        steps: the total number of steps done.
        resumed_at: the step at which this call started.
        scores: the scores of the last evaluation.
        metrics: the lines of metrics.jsonl.
        broken: files that could not be read, each once.
        enlarged: the number of images that are smaller than the crop and were scaled up.
        seconds: the duration of this call.
        waiting: the part of `seconds` spent waiting for data.
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
        model: a network in any dtype; its `checkpointing` is set if requested. Parameters in half precision are trained
            in float32 and rounded at the end.
        objective: the loss.
        data: indexed by (epoch, index), with a length. Batches are dicts; "broken" lists files that could not be read,
            and a batch with nothing else is skipped.
        settings: see `Settings`.
        out: output directory.
        collate: combines samples into a batch.
        evaluate: returns scores; called as often as the settings specify and at the end.
        inputs: the inputs of a run other than its settings, by name, see `fewtokens.train.inputs`; a resumed run must
            have the same. If not given, only the number of items is compared.
        resume: whether to resume from the last checkpoint in `out`; otherwise start from scratch.
        progress: called after each step.
        device: "cpu" to force the CPU even if a GPU is available.

    Raises:
        ValueError: `out` contains another run, a parameter gets no gradient, the loss is not finite, or data cannot be
            loaded.
        OSError: the disk is full; the last checkpoint is unchanged.
        Stopped: a signal arrived and the state is saved; a KeyboardInterrupt.
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

        self.network, self.objective, self.data, self.settings, self.out = model, objective, data, settings, out
        self.collate, self.evaluate, self.inputs, self.progress = collate, evaluate, inputs, progress
        # Its state is global to the process; a second run may have another precision.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            cpu=device == "cpu",
            mixed_precision=settings.precision,
            gradient_accumulation_steps=1,
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self.device = self.accelerator.device
        self.is_main = self.accelerator.is_main_process
        self.single_process = self.accelerator.num_processes == 1
        self.signals = Signals(self.single_process)
        items = len(data)  # type: ignore[arg-type]
        if items < 1:
            raise ValueError("the training data is empty")
        self.items, self.total = items, settings.total(items)
        self.broken: dict[str, None] = {}
        self.enlarged: set[int] = set()
        # Steps done, those of the last checkpoint and when it was written; scores, and whether an evaluation is due.
        self.step = self.saved_step = 0
        self.saved_at = time.monotonic()
        self.scores: dict[str, float] = {}
        self.due = False
        # Totals since the last line of the log.
        self.sums: dict[str, float] = {}
        self.counted = 0
        self.checked = False
        # The dtype of each parameter that had another one.
        self.dtypes: dict[str, torch.dtype] = {}
        self._prepare()

    def _prepare(self) -> None:
        settings, model = self.settings, self.network
        if settings.checkpointing:
            if not hasattr(model, "checkpointing"):
                raise ValueError(f"{type(model).__name__} does not support activation checkpointing")
            model.checkpointing = True  # type: ignore[assignment]
        model.to(self.device)
        freeze(model, settings)
        self._widen()
        if settings.shard:
            shard(model, settings.precision, self.device.type)
        self.names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise ValueError("the network has no trainable parameters")
        self.average = Average(self.names, self.parameters, settings.ema)
        self.optimizer = make_optimizer(model, settings)
        wrapped: Any = model
        self.own_forward = {name: value for name, value in vars(model).items() if name == "forward"}
        if settings.compile:
            wrapped = torch.compile(wrapped)
        if settings.shard:
            self.wrapped_model = wrapped
        else:
            # accelerate replaces the function `forward` of the network by one under autocast.
            self.wrapped_model, self.optimizer = self.accelerator.prepare(wrapped, self.optimizer)

    def _widen(self) -> None:
        """Converts parameters in half precision to float32, in which small updates are not lost.

        Frozen ones stay as they are if autocast converts what they are used with.
        """
        every = self.settings.precision == "no" or self.settings.shard
        for name, parameter in self.network.named_parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16) and (parameter.requires_grad or every):
                self.dtypes[name] = parameter.dtype
                parameter.data = parameter.data.float()

    def _train_mode(self) -> None:
        """Training mode, but for parts that are frozen: they neither drop values nor update statistics."""
        self.wrapped_model.train()
        for module in self.network.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()

    @property
    def _torch_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer itself, without accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def train(self, resume: bool) -> Report:
        start = self._begin(resume)
        start_time, self.waiting = time.perf_counter(), 0.0
        try:
            self._steps(start)
            if self.step == start == self.total and self.evaluate is not None and not self.scores:
                self._score()
        except (Break, LoadingError) as error:
            # It is raised between steps, so the state is that of the steps done.
            if self.single_process:
                self._save()
            if not self.signals.number:
                raise LoadingError(f"{error}. {self._last_checkpoint()}; rerun the same command to resume") from None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ValueError(
                f"out of memory at step {self.step + 1}; use a smaller batch, or a larger accumulate, which computes "
                f"it in parts. {self._last_checkpoint()}"
            ) from None
        finally:
            # Otherwise the network would run in the precision of this run from now on.
            for name in ("forward", "_original_forward"):
                vars(self.network).pop(name, None)
            vars(self.network).update(self.own_forward)
        self._check_signals()
        self.metrics.finish()
        broken = self._finish(self.out)
        self._check_signals()
        seconds = time.perf_counter() - start_time
        return Report(
            self.total, start, self.scores, self.metrics.lines, broken, len(self.enlarged), seconds, self.waiting
        )

    def _last_checkpoint(self) -> str:
        return f"The last checkpoint is of step {self.saved_step}" if self.saved_step else "There is no checkpoint yet"

    def _check_signals(self) -> None:
        """Raises `Stopped` if a signal arrived; the state is saved."""
        if self.signals.number:
            raise Stopped(f"stopped at step {self.step}; rerun the same command to resume", self.signals.number)

    def _steps(self, start: int) -> None:
        settings = self.settings
        sampler = Steps(
            self.items, settings, self.total, start, self.accelerator.process_index, self.accelerator.num_processes
        )
        pin = self.device.type == "cuda"
        batches = load_batches(self.data, workers=settings.workers, collate=self.collate, sampler=sampler, pin=pin)
        per_epoch = max(1, round(self.items / settings.batch))
        save_every = settings.save_every or per_epoch
        eval_every = max(1, round(settings.eval_every * per_epoch)) if settings.eval_every else 0
        self._train_mode()
        if self.due:
            self._score()
            self._save(again=True)
        with closing(batches):  # type: ignore[type-var]
            for step in range(start, self.total):
                numbers = self._step(step, self._parts(batches))
                for name, value in numbers.items():
                    self.sums[name] = self.sums.get(name, 0.0) + value
                self.counted += bool(numbers)
                self.step = done = step + 1
                if done % settings.log_every == 0 or done == self.total:
                    self._log_sums()
                if self.evaluate is not None and (done == self.total or (eval_every and done % eval_every == 0)):
                    self.due = True
                    self._score()
                stop, save_due = self._stop_or_save()
                if done % save_every == 0 or done == self.total or stop or save_due:
                    self._save()
                if stop:
                    return
                if self.progress is not None and self.is_main:
                    self.progress(done, self.total, numbers | self.scores)

    def _stop_or_save(self) -> tuple[bool, bool]:
        """Returns whether to stop, and whether a checkpoint is due by time; the same for all processes."""
        minutes = self.settings.save_minutes
        save_due = bool(minutes) and time.monotonic() - self.saved_at >= 60 * minutes
        if self.single_process:
            return bool(self.signals.number), save_due
        flags = torch.tensor([bool(self.signals.number), save_due], device=self.device).int()
        stop, save_due = (self.accelerator.reduce(flags, "sum") > 0).tolist()
        if stop and not self.signals.number:
            self.signals.number = signal.SIGTERM  # another process got a signal
        return stop, save_due

    def _begin(self, resume: bool) -> int:
        """Restores the last checkpoint, if there is one; returns the step to start from."""
        state, log = self.out / "state.safetensors", self.out / "metrics.jsonl"
        self.accelerator.wait_for_everyone()
        if resume and state.exists():
            tensors, head = checkpoint.read(state)
            messages = checkpoint.check_same_run(head, self.settings, self.items, self.out)
            messages += check_inputs(head.get("inputs"), self.inputs, self.out)
            extra = checkpoint.restore(tensors, state, self.network, self._torch_optimizer, self.average.values)
            if self.accelerator.scaler is not None and "scale" in extra:
                saved: dict[str, Any] = {"scale": float(extra["scale"])}
                if "growth" in extra:
                    saved["_growth_tracker"] = int(extra["growth"])
                self.accelerator.scaler.load_state_dict({**self.accelerator.scaler.state_dict(), **saved})
            self.step = self.saved_step = head["step"]
            self.scores, self.due = head["scores"], head.get("due", False)
            self.sums, self.counted = head["sums"], head["counted"]
            self.broken = dict.fromkeys(head.get("broken", ()))
            self.enlarged = set(extra["enlarged"].tolist()) if "enlarged" in extra else set()
            if self.is_main:
                for message in messages:
                    warnings.warn(message, stacklevel=4)
        if self.is_main:
            self.out.mkdir(parents=True, exist_ok=True)
            if not resume:
                for file in (state, log, self.out / "broken.txt"):
                    file.unlink(missing_ok=True)
            write_settings(self.settings, self.out / "settings.json")
        self.metrics = Metrics(log, self.step, writes=self.is_main)
        self.accelerator.wait_for_everyone()
        return self.step

    def _parts(self, batches: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns the parts of the next batch; a signal may interrupt this."""
        parts: list[dict[str, Any]] = []
        start = time.perf_counter()
        with self.signals.interruptible():
            for _ in range(self.settings.accumulate):
                parts.append(next(batches))
        self.waiting += time.perf_counter() - start
        for part in parts:
            for line in part.pop("broken", ()):
                self.broken[line] = None
            self.enlarged.update(part.pop("enlarged", ()))
        return parts

    def _step(self, step: int, parts: list[dict[str, Any]]) -> dict[str, float]:
        """Runs one optimizer step; returns the numbers to log."""
        settings, accelerator = self.settings, self.accelerator
        seed = combine_seeds(settings.seed, step, accelerator.process_index)
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(combine_seeds(seed, 1))
        sizes = [_batch_size(batch) for batch in parts]
        fractions = self._fractions(parts, sizes)
        numbers: dict[str, float] = {}
        for index, (batch, size) in enumerate(zip(parts, sizes, strict=True)):
            last = index == len(parts) - 1
            if not size and self.single_process:
                continue
            if not size:
                raise ValueError(
                    "a process got only unreadable files; remove them from the data, or use a larger batch"
                )
            with self._no_sync(not last), accelerator.autocast():
                loss, metrics = self.objective(self.wrapped_model, _to_device(batch, self.device), generator)
                fraction = fractions[index]
                accelerator.backward(loss * fraction)
            for name, value in {"loss": loss, **metrics}.items():
                numbers[name] = numbers.get(name, 0.0) + float(value.detach()) * fraction
        if not any(sizes):
            return {}
        if not all(map(math.isfinite, numbers.values())):
            raise ValueError(
                f"the loss is not finite at step {step + 1}; lower lr, or use precision=no. {self._last_checkpoint()}"
            )
        if not self.checked:
            self._check_gradients()
        if settings.clip:
            norm = self._clip(settings.clip)
            if math.isfinite(norm):
                numbers["grad_norm"] = norm
            elif accelerator.scaler is None or not accelerator.scaler.is_enabled():
                raise ValueError(
                    f"the gradient is not finite at step {step + 1}; lower lr, or use precision=no. "
                    f"{self._last_checkpoint()}"
                )
            # Otherwise the scaler skips this step and lowers its scale.
        rate = settings.lr_at(step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(step)
        return numbers

    def _fractions(self, parts: list[dict[str, Any]], sizes: list[int]) -> list[float]:
        """The weight of each part in the loss of the batch, see `Objective`."""
        weigh = getattr(self.objective, "weight", None)
        if weigh is None:
            return [size / max(1, sum(sizes)) for size in sizes]
        weights = [weigh(part) if size else 0 for part, size in zip(parts, sizes, strict=True)]
        total, count = float(sum(weights)), 1
        if not self.single_process:
            # Gradients are averaged over the processes.
            count = self.accelerator.num_processes
            total = float(self.accelerator.reduce(torch.tensor(total, device=self.device), "sum"))
        return [weight * count / max(1.0, total) for weight in weights]

    def _no_sync(self, enabled: bool) -> Any:
        """Skips the synchronization of gradients, which only the last part of a batch needs."""
        return self.accelerator.no_sync(self.wrapped_model) if enabled and not self.settings.shard else nullcontext()

    def _clip(self, limit: float) -> float:
        if self.settings.shard:
            norm = nn.utils.clip_grad_norm_(self.parameters, limit)
            return float(checkpoint.full_tensor(norm))
        return float(self.accelerator.clip_grad_norm_(self.parameters, limit))

    def _check_gradients(self) -> None:
        self.checked = True
        names = [name for name, p in zip(self.names, self.parameters, strict=True) if p.grad is None]
        if names:
            listing = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
            raise ValueError(f"these parameters get no gradient and would never be trained: {listing}")

    def _score(self) -> None:
        """Evaluates and logs; a signal may interrupt this, and the evaluation then stays due."""
        assert self.evaluate is not None
        trained_weights = self.average.swap()
        self.network.eval()
        try:
            with self.signals.interruptible(), torch.no_grad(), self.accelerator.autocast():
                scores = self.evaluate(self.network)
        finally:
            self._train_mode()
            self.average.swap(trained_weights)
        self.scores, self.due = scores, False
        self._log(self.step, scores)

    def _mean_over_processes(self, numbers: dict[str, float]) -> dict[str, float]:
        """Returns the mean of each number over the processes."""
        if self.accelerator.num_processes == 1 or not numbers:
            return numbers
        mean = self.accelerator.reduce(torch.tensor(list(numbers.values()), device=self.device), "mean")
        return dict(zip(numbers, mean.tolist(), strict=True))

    def _log_sums(self) -> None:
        """Logs the means since the last line."""
        done = self.step
        line = self._mean_over_processes({name: value / self.counted for name, value in self.sums.items()})
        rate = self.settings.lr_at(done - 1, self.total)
        self._log(done, line | {"lr": rate, "epoch": done * self.settings.batch / self.items})
        self.sums, self.counted = {}, 0

    def _log(self, step: int, numbers: dict[str, float]) -> None:
        if not self.is_main:
            return
        self.metrics.add(step, numbers)
        if self.settings.tensorboard:
            if not hasattr(self, "board"):
                from torch.utils.tensorboard.writer import SummaryWriter

                self.board = SummaryWriter(str(self.out / "tensorboard"))
            for name, value in numbers.items():
                self.board.add_scalar(name, value, step)

    def _save(self, again: bool = False) -> None:
        """Writes a checkpoint of the steps done; with `again` even if there is one of this step."""
        if not self.step or (self.step == self.saved_step and not again):
            return
        extra = {}
        if self.accelerator.scaler is not None and self.accelerator.scaler.is_enabled():
            extra["scale"] = torch.tensor(self.accelerator.scaler.get_scale())
            # The number of steps since the scale last changed, after which it grows.
            extra["growth"] = torch.tensor(self.accelerator.scaler.state_dict()["_growth_tracker"])
        if self.enlarged:
            extra["enlarged"] = torch.tensor(sorted(self.enlarged))
        tensors = checkpoint.collect_state(self.network, self._torch_optimizer, self.average.values, extra)
        broken = self._all_broken()
        if self.is_main:
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
                    error.errno, f"{error.strerror}; step {self.step} could not be saved. {self._last_checkpoint()}; "
                    "free space and rerun the same command to resume", error.filename,
                ) from None  # fmt: skip
        self.saved_step, self.saved_at = self.step, time.monotonic()
        self.accelerator.wait_for_everyone()

    def _all_broken(self) -> list[str]:
        """The errors of unreadable files, from all processes."""
        from accelerate.utils import gather_object

        return list(dict.fromkeys(gather_object(list(self.broken))))

    def _finish(self, out: Path) -> list[str]:
        """Puts the averaged weights in the network; returns the errors of unreadable files, from all processes."""
        self.average.swap()
        for name, parameter in self.network.named_parameters():
            if name in self.dtypes and not self.settings.shard:
                parameter.data = parameter.data.to(self.dtypes[name])
        self.network.eval()
        broken = self._all_broken()
        if self.is_main and broken:
            write_text(out / "broken.txt", "".join(line + "\n" for line in broken))
        if self.is_main and hasattr(self, "board"):
            self.board.close()
        self.accelerator.wait_for_everyone()
        return broken


def _batch_size(batch: dict[str, Any]) -> int:
    return max((len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim), default=0)


def _to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
