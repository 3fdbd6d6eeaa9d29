"""Runs that are stopped, killed, out of disk or memory, or resumed with other settings or inputs."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset

from fewtokens.core import files
from fewtokens.data import loading
from fewtokens.data.loading import LoadingError, load_batches
from fewtokens.train import checkpoint
from fewtokens.train.average import Average
from fewtokens.train.curves import draw_curves
from fewtokens.train.loop import _Run, fit
from fewtokens.train.objectives import Classification
from fewtokens.train.settings import Settings, make_recipe, parse_setting
from fewtokens.train.stopping import Stopped
from tests.train.runs import Blobs, collate, network, run, settings
from tests.train.test_loop import Stop, lines, same, stop_at

ROOT = Path(__file__).parents[2]


def raise_at(step: int, number: int):
    def progress(done: int, total: int, numbers: dict) -> None:
        if done == step:
            signal.raise_signal(number)

    return progress


class TestSignals:
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
    def test_a_signal_saves_and_the_resumed_run_is_bit_equal(self, tmp_path, number, code):
        """The signal arrives before the first checkpoint, which would be at step 12."""
        expected, _ = run(tmp_path / "whole", save_every=100)
        before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
        with pytest.raises(Stopped, match="stopped at step 3; rerun the same command to resume") as stopped:
            run(tmp_path / "parts", save_every=100, progress=raise_at(3, number))
        assert stopped.value.code == code
        assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before
        resumed, report = run(tmp_path / "parts", save_every=100)
        assert report.resumed_at == 3
        assert same(expected, resumed)
        assert lines(tmp_path / "whole") == lines(tmp_path / "parts")

    def test_in_the_middle_of_a_step_the_step_is_finished(self, tmp_path, monkeypatch):
        original = Average.update

        def update(self, step):
            if step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            original(self, step)

        monkeypatch.setattr(Average, "update", update)
        with pytest.raises(Stopped, match="at step 5;"):
            run(tmp_path)

    def test_an_interrupted_evaluation_is_repeated(self, tmp_path):
        evaluated = []

        def evaluate(model):
            evaluated.append([p.detach().clone() for p in model.parameters()])
            if len(evaluated) == 2:
                signal.raise_signal(signal.SIGINT)
                time.sleep(60)
            return {"top1": float(len(evaluated))}

        options = {"evaluate": evaluate, "eval_every": 1, "batch": 8, "save_every": 100}
        with pytest.raises(Stopped, match="at step 6;"):
            run(tmp_path, **options)
        assert [line for line in lines(tmp_path) if "top1" in line] == [{"step": 3, "top1": 1.0}]
        run(tmp_path, **options)
        assert all(torch.equal(a, b) for a, b in zip(evaluated[1], evaluated[2], strict=True))
        scores = [line for line in lines(tmp_path) if "top1" in line]
        assert [line["step"] for line in scores] == [3, 6, 9, 12]
        assert [line["top1"] for line in scores] == [1, 3, 4, 5]

    def test_ignored_signals_stay_ignored_and_threads_run_without(self, tmp_path):
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            _, report = run(tmp_path / "a", progress=raise_at(2, signal.SIGHUP))
        finally:
            signal.signal(signal.SIGHUP, before)
        assert report.steps == 12
        results = []
        thread = threading.Thread(target=lambda: results.append(run(tmp_path / "b", steps=2)))
        thread.start()
        thread.join()
        assert results[0][1].steps == 2

    def test_a_second_interrupt_raises_immediately(self, tmp_path):
        def progress(done, total, numbers):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt) as error:
            run(tmp_path, progress=progress)
        assert not isinstance(error.value, Stopped)

    def test_nothing_global_is_changed(self, tmp_path):
        pyplot = pytest.importorskip("matplotlib.pyplot")

        torch.manual_seed(5)
        expected = torch.rand(3)
        model = network()
        torch.manual_seed(5)
        _, report = run(tmp_path, steps=3, model=model)
        assert torch.equal(torch.rand(3), expected)
        pyplot.switch_backend("svg")
        figures = pyplot.get_fignums()
        assert draw_curves(report.metrics, tmp_path / "curves.png", title="a run")
        assert pyplot.get_backend() == "svg"
        assert pyplot.get_fignums() == figures


class TestCheckpoints:
    def test_by_time(self, tmp_path, monkeypatch):
        steps = []
        original = checkpoint.save
        monkeypatch.setattr(checkpoint, "save", lambda path, tensors, head: steps.append(head["step"]))
        # A module of our own: other threads read the clock of the real one.
        clock = iter(range(0, 10_000, 100))  # seconds; the loop reads it after each step and after each saving
        fake = SimpleNamespace(monotonic=lambda: next(clock), perf_counter=time.perf_counter)
        monkeypatch.setattr("fewtokens.train.loop.time", fake)
        run(tmp_path / "a", save_every=100, save_minutes=5)
        assert steps == [3, 6, 9, 12]
        steps.clear()
        run(tmp_path / "b", save_every=100, save_minutes=0)
        assert steps == [12]
        assert Settings().save_minutes == 5
        assert original is not checkpoint.save

    def test_errors_of_a_damaged_checkpoint_contain_a_remedy(self, tmp_path):
        run(tmp_path, steps=4)
        path = tmp_path / "state.safetensors"
        tensors, head = checkpoint.read(path)
        for change, message in (
            ({"step": "4"}, "step must be a whole number"),
            ({"step": -4}, "below its minimum"),
            ({"settings": []}, "settings must be an object"),
            ({"scores": {"a": []}}, "scores"),
            ({"sums": {"loss": None}}, "sums.loss must be a finite number"),
            ({"broken": [1]}, r"broken\[0\] must be a string"),
            ({"inputs": {"data": "x"}}, "inputs.data must be a list"),
        ):
            files.save(path, "run", tensors, {**head, **change})
            with pytest.raises(ValueError, match=rf"{message}.*remove this checkpoint or use --fresh"):
                run(tmp_path, steps=4)
        names = list(tensors)
        optimizer_name = next(name for name in names if name.startswith("optimizer."))
        for changed, message in (
            ({name: value for name, value in tensors.items() if name != optimizer_name}, "another network"),
            ({**tensors, optimizer_name: torch.zeros(7, 7)}, "another network"),
            ({name: value for name, value in tensors.items() if not name.startswith("ema.")}, "another network"),
            ({**tensors, "more.a": torch.zeros(1)}, "not part of a checkpoint"),
        ):
            files.save(path, "run", changed, dict(head))
            with pytest.raises(ValueError, match=message):
                run(tmp_path, steps=4)
        files.save(path, "run", tensors, dict(head))
        assert run(tmp_path, steps=4)[1].resumed_at == 4

    def test_an_optimizer_without_state(self, tmp_path):
        options = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.1}
        whole, _ = run(tmp_path / "whole", **options)
        with pytest.raises(Stop):
            run(tmp_path / "parts", progress=stop_at(5), **options)
        resumed, report = run(tmp_path / "parts", **options)
        assert report.resumed_at == 4
        assert same(whole, resumed)

    def test_a_checkpoint_before_any_gradient_changes_nothing(self, tmp_path):
        """The first batch has no readable item, and a checkpoint is written anyway."""

        class Gap(Blobs):
            def __getitem__(self, key):
                return super().__getitem__(key) | {"order": key}

        def collate_with_gap(samples):
            batch = collate([{n: v for n, v in sample.items() if n != "order"} for sample in samples])
            if len(first_key) == 0 or samples[0]["order"] == first_key[0]:
                first_key[:] = [samples[0]["order"]]
                return {"broken": ["nothing here"]}
            return batch

        models = []
        for save_every in (1, 100):
            first_key: list = []
            options = settings(optimizer="sgd", weight_decay=0.1, save_every=save_every, steps=4)
            model = network()
            report = fit(
                model,
                Classification(),
                Gap(),
                options,
                tmp_path / str(save_every),
                collate=collate_with_gap,
                device="cpu",
            )
            assert report.broken == ["nothing here"]
            models.append(model)
        assert same(*models)

    def test_broken_files_of_earlier_steps_are_reported(self, tmp_path):
        run(tmp_path, steps=4)
        path = tmp_path / "state.safetensors"
        tensors, head = checkpoint.read(path)
        checkpoint.save(path, {**tensors, "extra.enlarged": torch.tensor([3, 5])}, {**head, "broken": ["a.png: cut"]})
        _, report = run(tmp_path, steps=8)
        assert (report.broken, report.enlarged) == (["a.png: cut"], 2)
        assert (tmp_path / "broken.txt").read_text() == "a.png: cut\n"


class TestMetrics:
    def test_no_line_is_lost_by_a_run_that_starts_over(self, tmp_path):
        """Killed after 9 steps, before the first checkpoint, and again after 3."""
        whole, _ = run(tmp_path / "whole", save_every=100, log_every=1)
        with pytest.raises(Stop):
            run(tmp_path / "parts", save_every=100, log_every=1, progress=stop_at(9))
        with pytest.raises(Stop):
            run(tmp_path / "parts", save_every=100, log_every=1, progress=stop_at(3))
        assert lines(tmp_path / "parts") == lines(tmp_path / "whole")[:9]
        resumed, report = run(tmp_path / "parts", save_every=100, log_every=1)
        assert report.resumed_at == 0
        assert same(whole, resumed)
        assert report.metrics == lines(tmp_path / "parts") == lines(tmp_path / "whole")
        run(tmp_path / "parts", save_every=100, log_every=1, steps=4, resume=False)
        assert [line["step"] for line in lines(tmp_path / "parts")] == [1, 2, 3, 4]

    @pytest.mark.parametrize("line", ['{"step": 5, "lo', '{"step": 5}', "{"])
    def test_a_truncated_last_line(self, tmp_path, line):
        with pytest.raises(Stop):
            run(tmp_path, progress=stop_at(4))
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write(line)
        run(tmp_path)
        run(tmp_path / "whole")
        assert lines(tmp_path) == lines(tmp_path / "whole")

    @pytest.mark.parametrize("line", ["[]", '{"step": "1"}', '{"loss": 1}', "x", '{"step": 1, "loss": "much"}', "null"])
    def test_an_invalid_line(self, tmp_path, line):
        run(tmp_path, steps=2)
        (tmp_path / "metrics.jsonl").write_text(line + '\n{"step": 2, "loss": 1.0}\n')
        with pytest.raises(ValueError, match=r"metrics.jsonl: line 1"):
            run(tmp_path, steps=2)


class TestLonger:
    def test_with_a_constant_rate_it_equals_a_run_of_this_length(self, tmp_path):
        options = {"schedule": "constant", "warmup": 2.0}
        whole, _ = run(tmp_path / "whole", steps=12, **options)
        run(tmp_path / "parts", steps=6, **options)
        with pytest.warns(
            UserWarning, match=r"resumed at step 6/12 \(previously 6 steps\); the learning rate is unchanged"
        ):
            longer, report = run(tmp_path / "parts", steps=12, **options)
        assert (report.resumed_at, report.steps) == (6, 12)
        assert same(whole, longer)

    def test_otherwise_the_schedule_is_that_of_the_new_length(self, tmp_path):
        run(tmp_path, steps=6)
        with pytest.warns(UserWarning, match="follows the cosine schedule of 12 steps"):
            _, report = run(tmp_path, epochs=4, steps=0)
        assert (report.resumed_at, report.steps) == (6, 12)
        expected = [settings().lr_at(step, 12) for step in (7, 9, 11)]
        assert [line["lr"] for line in lines(tmp_path) if line["step"] > 6] == pytest.approx(expected)
        assert json.loads((tmp_path / "settings.json").read_text())["epochs"] == 4

    def test_a_stopped_run_may_be_shortened_but_not_below_its_step(self, tmp_path):
        with pytest.raises(Stop):
            run(tmp_path, progress=stop_at(8))
        with pytest.raises(ValueError, match="with 8 steps done, but 6 are requested"):
            run(tmp_path, steps=6)
        with pytest.warns(UserWarning, match=r"resumed at step 8/10 \(previously 12 steps\)"):
            assert run(tmp_path, steps=10)[1].steps == 10


class TestInputs:
    def test_other_inputs_are_refused(self, tmp_path):
        run(tmp_path, steps=2, inputs={"data": ("/data/A (3 items)", "1a"), "--with": ("", "")})
        assert run(tmp_path, steps=2, inputs={"data": ("A", "1a"), "--with": ("", "")})[1].resumed_at == 2
        for inputs, message in (
            ({"data": ("/data/B (3 items)", "2b"), "--with": ("", "")},
             r"in which data is /data/A \(3 items\), now /data/B \(3 items\); use another --out, or --fresh"),
            ({"data": ("/data/A (3 items)", "2b"), "--with": ("", "")}, "/data/A .* has changed since"),
            ({"data": ("/data/A (3 items)", "1a"), "--with": ("tome", "tome")}, "in which --with is empty, now tome"),
            ({"data": ("/data/A (3 items)", "1a")}, "in which --with is empty, now none"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=message):
                run(tmp_path, steps=2, inputs=inputs)

    def test_a_checkpoint_of_an_older_version(self, tmp_path):
        run(tmp_path, steps=2)
        path = tmp_path / "state.safetensors"
        tensors, head = checkpoint.read(path)
        old = {name: value for name, value in head.items() if name not in ("inputs", "due", "broken")}
        del old["settings"]["save_minutes"]
        files.save(path, "run", tensors, old)
        with pytest.warns(UserWarning, match="did not record its data"):
            assert run(tmp_path, steps=2, inputs={"data": ("A", "1a")})[1].resumed_at == 2


class Numbers(Dataset[dict[str, torch.Tensor]]):
    """Tensors of 1 MB; in a data-loading process, `spoil` is called before the fifth."""

    def __init__(self, spoil=None) -> None:
        self.spoil = spoil

    def __len__(self) -> int:
        return 12

    def __getitem__(self, key):
        number = key[1] if isinstance(key, tuple) else key
        if number == 4 and self.spoil is not None and torch.utils.data.get_worker_info() is not None:
            self.spoil()
        return {"x": torch.full((250_000,), float(number))}


def full_shared_memory():
    # Allocation fails as on a full /dev/shm.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def no_memory():
    torch.empty(2**60)


def no_python_memory():
    raise MemoryError


def stuck():
    threading.Event().wait()


class TestLoading:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_batches_in_order(self, workers):
        before = signal.getsignal(signal.SIGCHLD)
        batches = [batch["x"][:, 0].tolist() for batch in load_batches(Numbers(), workers=workers, batch=5)]
        assert batches == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
        assert workers or signal.getsignal(signal.SIGCHLD) == before

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [(full_shared_memory, "shared memory"), (killed, "was killed"), (no_memory, "out of memory for"),
         (no_python_memory, "out of memory for"), (stuck, "no data for")],
    )  # fmt: skip
    def test_one_line_and_no_hang(self, spoil, message, monkeypatch):
        # Only a stuck process waits for the timeout, which is half an hour by default.
        if spoil is stuck:
            monkeypatch.setattr(loading, "TIMEOUT", 6.0)
        start = time.monotonic()
        with pytest.raises(LoadingError, match=message) as error:
            for _ in load_batches(Numbers(spoil), workers=1):
                pass
        assert "\n" not in str(error.value)
        assert time.monotonic() - start < 900

    def test_errors_of_the_data_set_keep_their_traceback(self):
        def mistake():
            raise TypeError("a mistake")

        with pytest.raises(TypeError, match=r"(?s)a mistake.*|Traceback.*a mistake"):
            list(load_batches(Numbers(mistake), workers=1))

    def test_a_run_is_saved_when_a_data_loading_process_dies(self, tmp_path):
        class Deadly(Blobs):
            def __getitem__(self, key):
                if key[0] == 2 and armed:
                    killed()
                return super().__getitem__(key)

        armed = [True]
        options = settings(workers=1, save_every=100)
        model = network()
        with pytest.raises(
            LoadingError, match=r"was killed.* The last checkpoint is of step [456]; rerun the same command to resume"
        ):
            fit(model, Classification(mixup=0.5), Deadly(), options, tmp_path / "parts", collate=collate, device="cpu")
        armed.clear()
        resumed = network()
        fit(resumed, Classification(mixup=0.5), Deadly(), options, tmp_path / "parts", collate=collate, device="cpu")
        expected, _ = run(tmp_path / "whole", workers=0, save_every=100)
        assert same(expected, resumed)


class TestFullDisk:
    def test_a_checkpoint_that_does_not_fit(self, tmp_path):
        """In a separate process, whose files may not be larger than 20 kB."""
        whole, _ = run(tmp_path / "whole")
        call = f"run({str(tmp_path / 'parts')!r})"
        program = (
            "import resource\nfrom tests.train.runs import run\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
            f"try:\n    {call}\nexcept OSError as error:\n    print(error)"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, env=environment
        )
        message = done.stdout.strip()
        assert "File too large" in message
        assert "step 4 could not be saved. There is no checkpoint yet" in message
        assert "rerun the same command to resume" in message
        assert "\n" not in message
        assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["metrics.jsonl", "settings.json"]
        resumed, _ = run(tmp_path / "parts")
        assert same(whole, resumed)
        assert lines(tmp_path / "whole") == lines(tmp_path / "parts")

    def test_out_of_memory(self, tmp_path, monkeypatch):
        def step(self, number, parts):
            if number == 5:
                torch.empty(2**60)
            return original(self, number, parts)

        original = _Run._step
        monkeypatch.setattr(_Run, "_step", step)
        with pytest.raises(ValueError, match=r"out of memory at step 6; .*The last checkpoint is of step 4"):
            run(tmp_path)


def test_a_setting_that_may_be_a_fraction():
    changes = dict(parse_setting(text) for text in ("save_minutes=0.5", "eval_every=0.25", "epochs=1.5"))
    recipe = make_recipe(**changes)
    assert (recipe.save_minutes, recipe.eval_every, recipe.epochs) == (0.5, 0.25, 1.5)


@pytest.mark.parametrize(
    "text",
    ["lr=nan", "lr=inf", "lr=-1", "epochs=nan", "epochs=inf", "epochs=1e300", "batch=0", f"batch={10**15}",
     "momentum=-1",
     "beta1=1", "beta2=nan", "warmup=inf", "warmup=-1", "clip=nan", "ema=1", "seed=1e99", f"seed={2**80}", "workers=-1",
     f"workers={10**9}", "log_every=0", "save_minutes=nan", "save_every=-1", "eval_every=nan", "rates=head=nan",
     "rates=head=inf", "size=0", f"size={10**9}", "resize=-1", "frames=0", f"frames={10**9}", "stride=0", "fps=nan",
     "fps=-1", "flip=2", "color=nan", "gray=-1", "scale=nan,nan", "scale=2,1", "area=0,2", "label_smoothing=nan",
     "mixup=inf", "cutmix=-1", "head_bias=nan", "clips=0", "crops=0", f"steps={10**30}", "lr_end=-inf", "accumulate=0"],
)  # fmt: skip
def test_settings_out_of_range(text):
    name = text.partition("=")[0]
    with pytest.raises(ValueError, match=name) as error:
        make_recipe(**dict([parse_setting(text)]))
    assert "\n" not in str(error.value)
