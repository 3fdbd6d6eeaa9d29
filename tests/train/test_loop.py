"""The loop: resumed runs, several processes, every option."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from fewtokens import networks as models
from fewtokens.core import files
from fewtokens.train import checkpoint, loop
from fewtokens.train.loop import fit
from fewtokens.train.optimizer import make_optimizer
from fewtokens.train.settings import PRESETS, Settings, make_recipe, parse_setting
from tests.train.runs import network, run, settings


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class Stop(Exception):
    pass


def stop_at(step: int):
    def progress(done: int, total: int, numbers: dict) -> None:
        if done == step:
            raise Stop

    return progress


@pytest.mark.parametrize("stop", [1, 4, 6, 11])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_resumed_run_is_bit_equal(tmp_path, stop, optimizer):
    options = {"optimizer": optimizer, "log_every": 5}  # so that lines of the log span checkpoints
    expected, _ = run(tmp_path / "whole", **options)
    with pytest.raises(Stop):
        run(tmp_path / "parts", progress=stop_at(stop), **options)
    resumed, report = run(tmp_path / "parts", **options)
    assert report.resumed_at == 4 * (stop // 4)
    assert same(expected, resumed)
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    a, b = (files.load(tmp_path / name / "state.safetensors", "run")[0] for name in ("whole", "parts"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(tmp_path, workers):
    expected, _ = run(tmp_path / "a")
    actual, _ = run(tmp_path / "b", workers=workers)
    assert same(expected, actual)


def test_killed_in_the_middle_of_a_checkpoint(tmp_path, monkeypatch):
    """A checkpoint is written to a temporary file, so the previous one stays readable."""
    whole, _ = run(tmp_path / "whole")
    save, calls = files.save_file, []

    def killed(tensors, path, **options):
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half of a checkpoint")
            raise KeyboardInterrupt
        return save(tensors, path, **options)

    monkeypatch.setattr(files, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts")
    monkeypatch.undo()
    # A killed process leaves its temporary file behind, which is ignored.
    (tmp_path / "parts" / ".state.left.safetensors").write_bytes(b"half of a checkpoint")
    resumed, report = run(tmp_path / "parts")
    assert report.resumed_at == 4
    assert same(whole, resumed)


def test_a_killed_process_can_be_resumed(tmp_path):
    whole, _ = run(tmp_path / "whole")
    program = (
        "import os\nfrom tests.train.runs import run\n"
        "def progress(done, total, numbers):\n    if done == 7: os.kill(os.getpid(), 9)\n"
        f"run({str(tmp_path / 'parts')!r}, progress=progress)"
    )
    process = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=False)
    assert process.returncode == -9
    resumed, report = run(tmp_path / "parts")
    assert report.resumed_at == 4
    # Another process sums in the same order.
    assert same(whole, resumed)
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_a_finished_run_is_unchanged(tmp_path):
    whole, _ = run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    again, report = run(tmp_path)
    assert report.resumed_at == report.steps == 12
    assert same(whole, again)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_fresh_run_starts_from_scratch(tmp_path):
    run(tmp_path, steps=8)
    with pytest.raises(ValueError, match=r"other settings \(lr\)"):
        run(tmp_path, lr=1e-4)
    _, report = run(tmp_path, resume=False)
    assert (report.resumed_at, report.steps) == (0, 12)


def test_a_network_learns(tmp_path):
    from fewtokens.train.loop import fit
    from fewtokens.train.objectives import Classification
    from tests.train.runs import Blobs, collate

    model = network(stochastic_depth=0.0)
    report = fit(
        model, Classification(), Blobs(), settings(steps=100, lr=1e-2, ema=0.0), tmp_path, collate=collate, device="cpu"
    )
    assert report.metrics[-1]["accuracy"] == 1.0
    assert report.metrics[-1]["loss"] < 0.5 < 1.0 < report.metrics[0]["loss"]


def test_accumulated_gradients_are_those_of_the_full_batch(tmp_path):
    from fewtokens.train.loop import fit
    from fewtokens.train.objectives import Classification
    from tests.train.runs import Blobs, collate

    models = []
    for accumulate in (1, 4):
        model = network(stochastic_depth=0.0)
        fit(
            model, Classification(), Blobs(), settings(accumulate=accumulate, steps=3, optimizer="sgd"),
            tmp_path / str(accumulate), collate=collate, device="cpu",
        )  # fmt: skip
        models.append(model)
    for a, b in zip(*(model.state_dict().values() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16"])
def test_half_precision(tmp_path, precision):
    _, report = run(tmp_path, precision=precision)
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in report.metrics if "loss" in line)


def test_checkpointing_and_compile(tmp_path):
    baseline, _ = run(tmp_path / "a", steps=2)
    recomputed, _ = run(tmp_path / "b", steps=2, checkpointing=True)
    for a, b in zip(baseline.state_dict().values(), recomputed.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_compiled(tmp_path, monkeypatch):
    """With the graphs of torch.compile, but without kernels, whose compilation takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    baseline, _ = run(tmp_path / "a", steps=2, ema=0.0)
    model, _ = run(tmp_path / "b", steps=2, ema=0.0, compile=True)
    assert baseline.state_dict().keys() == model.state_dict().keys()
    for a, b in zip(baseline.state_dict().values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_averaged_weights_are_evaluated(tmp_path):
    evaluated = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        evaluated.append([p.detach().clone() for p in model.parameters()])
        return {"top1": 1.0}

    model, report = run(tmp_path, evaluate=evaluate)
    tensors, _ = checkpoint.read(tmp_path / "state.safetensors")
    for (name, parameter), value in zip(model.named_parameters(), evaluated[-1], strict=True):
        assert torch.equal(parameter, value), name
        assert torch.equal(tensors[f"ema.{name}"], value), name
        assert not torch.equal(tensors[f"model.{name}"], value) or value.numel() < 20, name
    assert report.scores == {"top1": 1.0}
    assert lines(tmp_path)[-1] == {"step": 12, "top1": 1.0}


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    run(tmp_path, tensorboard=True)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_parameter_without_gradient_is_named(tmp_path):
    model = network()
    model.unused = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"no gradient.*unused\.weight"):
        run(tmp_path, model=model)


def test_a_loss_that_explodes_is_named(tmp_path):
    with pytest.raises(ValueError, match="not finite"):
        run(tmp_path, lr=1e30, clip=0.0, optimizer="sgd", steps=12)


def test_another_network_in_the_folder(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match="contains another network"):
        run(tmp_path, model=network(dim=32))


def test_a_truncated_checkpoint(tmp_path):
    run(tmp_path)
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ValueError, match="truncated"):
        run(tmp_path)


def test_every_item_occurs_once_per_epoch():
    config = Settings(batch=8, epochs=3, workers=0)
    for world in (1, 2, 4):
        parts = [list(loop.Steps(20, config, config.total(20), 0, rank, world)) for rank in range(world)]
        keys = [key for step in zip(*parts, strict=True) for part in step for key in part]
        assert len(keys) == 8 * config.total(20)
        for epoch in range(2):
            assert sorted(index for e, index in keys if e == epoch) == list(range(20))
        # A run that starts later has the same remaining steps.
        late = [key for step in loop.Steps(20, config, config.total(20), 3, 0, world) for key in step]
        assert late == [key for step in parts[0][3:] for key in step]
    with pytest.raises(ValueError, match="cannot be divided among 3 processes"):
        loop.Steps(20, config, 5, 0, 0, 3)


def test_learning_rates():
    config = Settings(lr=1.0, warmup=4, schedule="cosine", lr_end=0.1)
    rates = [config.lr_at(step, 20) for step in range(21)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[20] == pytest.approx(0.1)
    assert rates[12] == pytest.approx(0.55)
    assert Settings(lr=1.0, warmup=0, schedule="linear").lr_at(5, 20) == pytest.approx(0.75)
    assert Settings(lr=1.0, warmup=0.5, schedule="constant").lr_at(4, 20) == pytest.approx(0.5)


def launch(out: Path, processes: int, **changes) -> dict:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*command, "tests/train/runs.py", str(out), json.dumps(changes)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_two_processes_train_as_one(tmp_path):
    """DDP: every step uses both processes, and only one saves."""
    result = launch(tmp_path / "two", 2, steps=2, ema=0.0, optimizer="sgd")
    assert result["steps"] == 2
    tensors, header = checkpoint.read(tmp_path / "two" / "state.safetensors")
    assert header["step"] == 2
    assert all(bool(value.isfinite().all()) for value in tensors.values())
    assert not any(name.startswith("model.module.") for name in tensors)


def test_two_processes_stop_together_although_one_gets_the_signal(tmp_path):
    result = launch(tmp_path, 2, stop_rank=1, eval_every=1, save_every=100)
    assert result == {"message": "stopped at step 3; rerun the same command to resume", "code": 143}
    assert checkpoint.read(tmp_path / "state.safetensors")[1]["step"] == 3
    assert launch(tmp_path, 2, eval_every=1, save_every=100)["steps"] == 12


def test_sharded_over_two_processes(tmp_path):
    """FSDP2 on a mesh of two gloo processes: every parameter is sharded, and a run resumes from full tensors."""
    result = launch(tmp_path, 2, shard=True, steps=4)
    assert result["every parameter sharded"]
    assert result["mesh"] == 2
    assert result["local"] <= 0.6 * result["full"]
    tensors, _ = checkpoint.read(tmp_path / "state.safetensors")
    model = network()
    expected = {f"model.{name}": value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in tensors.items() if name.startswith("model.")} == expected
    saved = models.load(tmp_path / "model").state_dict()  # as every trainer saves its network
    averages = {name.removeprefix("ema."): value for name, value in tensors.items() if name.startswith("ema.")}
    assert averages and all(torch.equal(saved[name], value) for name, value in averages.items())
    again = launch(tmp_path, 2, shard=True, steps=4)
    assert again["loss"] == result["loss"]


class Tokens(Dataset):
    """Samples with different numbers of answers."""

    counts = (1, 2, 8, 16)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, key):
        generator = torch.Generator().manual_seed(key[1])
        labels = torch.randn(16, generator=generator)
        return {"x": torch.randn(16, 8, generator=generator), "y": labels, "n": self.counts[key[1]]}


def mean_over_tokens(model, batch, generator):
    real = torch.arange(16) < batch["n"][:, None]
    return (model(batch["x"])[..., 0] - batch["y"])[real].square().mean(), {}


def collate_counts(samples):
    return {name: torch.stack([torch.as_tensor(sample[name]) for sample in samples]) for name in samples[0]}


def fit_line(out, *, dtype=torch.float32, model=None, objective=mean_over_tokens, **changes):
    torch.manual_seed(0)
    model = nn.Linear(8, 1).to(dtype) if model is None else model
    values = {"steps": 3, "batch": 4, "lr": 0.5, "optimizer": "sgd", "workers": 0, "ema": 0.0, "clip": 0.0}
    fit(model, objective, Tokens(), Settings(**(values | changes)), out, collate=collate_counts, device="cpu")
    return model


@pytest.mark.parametrize("accumulate", [2, 4])
def test_parts_of_a_batch_count_by_the_tokens_of_their_loss(tmp_path, accumulate):
    def objective(*words):
        return mean_over_tokens(*words)

    objective.weight = lambda batch: int(batch["n"].sum())
    whole = fit_line(tmp_path / "a")
    parts = fit_line(tmp_path / "b", objective=objective, accumulate=accumulate)
    torch.testing.assert_close(parts.weight, whole.weight)
    unweighted = fit_line(tmp_path / "c", accumulate=accumulate)
    assert not torch.allclose(unweighted.weight, whole.weight, atol=1e-3)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_parameters_in_half_precision_are_trained_in_float32(tmp_path, precision):
    """An update below the spacing of bfloat16 is not lost; the result is rounded once."""
    changes = {"optimizer": "adamw", "lr": 1e-4, "steps": 60, "weight_decay": 0.0, "precision": precision}
    half = fit_line(tmp_path / "half", dtype=torch.bfloat16, **changes)
    torch.manual_seed(0)
    full = fit_line(tmp_path / "full", model=nn.Linear(8, 1).bfloat16().float(), **changes)
    assert half.weight.dtype == torch.bfloat16
    assert torch.equal(half.weight, full.weight.bfloat16())
    tensors, _ = checkpoint.read(tmp_path / "half" / "state.safetensors")
    assert tensors["model.weight"].dtype == torch.float32


def test_the_precision_of_a_run_ends_with_it(tmp_path):
    model = fit_line(tmp_path / "a", precision="bf16")
    assert model(torch.randn(2, 8)).dtype == torch.float32 and "forward" not in vars(model)
    dtypes = []
    model.register_forward_hook(lambda module, args, out: dtypes.append(out.dtype))
    fit_line(tmp_path / "b", model=model, precision="no")
    assert {*dtypes} == {torch.float32}


def test_a_gradient_that_is_not_finite_is_an_error(tmp_path):
    """Not a checkpoint that cannot be read."""

    def objective(model, batch, generator):
        loss, numbers = mean_over_tokens(model, batch, generator)
        if len(calls) == 1:
            loss = loss + (loss * 0).sqrt()  # 0, with an infinite gradient
        calls.append(loss)
        return loss, numbers

    calls = []
    with pytest.raises(ValueError, match="the gradient is not finite at step 2"):
        fit_line(tmp_path, objective=objective, clip=1.0, save_every=1)
    assert checkpoint.read(tmp_path / "state.safetensors")[1]["step"] == 1


def test_frozen_parts_do_not_change(tmp_path):
    """Batch norms of frozen parts neither update their statistics nor use those of the batch."""
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(16), nn.Dropout(0.5)), nn.Linear(8, 1))
    model[0].requires_grad_(False)
    before = {name: value.clone() for name, value in model[0].state_dict().items()}
    modes = []
    model[0].register_forward_hook(lambda module, args, out: modes.append([part.training for part in module]))
    fit_line(tmp_path, model=model)
    assert all(torch.equal(value, before[name]) for name, value in model[0].state_dict().items())
    assert modes and not any(map(any, modes))


def test_sharding_in_one_process_is_refused(tmp_path):
    with pytest.raises(ValueError, match="several processes"):
        run(tmp_path, shard=True)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_complete(name):
    recipe = make_recipe(name)
    assert recipe.note
    assert recipe.total(100_000) > 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lr=0.01", ("lr", 0.01)), ("epochs=3", ("epochs", 3.0)), ("keep=true", ("keep", True)),
        ("area=0.5,1", ("area", (0.5, 1.0))), ("label-smoothing=0.1", ("label_smoothing", 0.1)),
    ],
)  # fmt: skip
def test_settings_of_the_command_line(text, value):
    assert parse_setting(text) == value


@pytest.mark.parametrize("text", ["lr", "color_of_the_sky=3", "batch=many", "keep=perhaps", "area=1"])
def test_settings_that_cannot_be_read(text):
    with pytest.raises(ValueError, match=r"setting is written|must be of type"):
        parse_setting(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 10, "accumulate": 3}, "multiple"), ({"optimizer": "magic"}, "optimizer"), ({"lr": 0}, "lr"),
        ({"epochs": 0}, "epochs"), ({"precision": "int8"}, "precision"), ({"shard": True, "precision": "fp16"}, "fp16"),
        ({"ema": 1.0}, "ema"), ({"workers": -1}, "workers"),
    ],
)  # fmt: skip
def test_impossible_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        Settings(**changes)


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_the_optimizer_is_that_of_torch_step_by_step(kind):
    """Fused kernels compute the same step, up to rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    optimizer = make_optimizer(model, Settings(optimizer=kind, lr=0.1))
    assert optimizer.defaults["fused"]
    other = copy.deepcopy(model)
    plain = make_optimizer(other, Settings(optimizer=kind, lr=0.1))
    for group in plain.param_groups:
        group["fused"] = group["foreach"] = False
    for _ in range(5):
        x = torch.randn(6, 5)
        for net, solver in ((model, optimizer), (other, plain)):
            net(x).square().sum().backward()
            solver.step()
            solver.zero_grad()
    for ours, expected in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)
