"""Spec strings and method names."""

from __future__ import annotations

import inspect
import sys
from importlib.metadata import EntryPoint

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewtokens.core import registry
from fewtokens.core.budget import Budget
from fewtokens.core.grid import Grid
from fewtokens.core.method import Method


def test_every_name_is_that_of_its_class():
    for name in registry.names():
        kind = registry.get(name)
        assert issubclass(kind, Method)
        assert kind().name == name


def test_chains_are_built_left_to_right():
    chain = registry.build("rlt(tau=0.2) | evs | tome(0.25)")
    assert [method.name for method in chain] == ["rlt", "evs", "tome"]
    assert chain[0].tau == 0.2
    assert chain[2].keep == 0.25


def test_literals_of_every_type():
    (method,) = registry.build("tome_in_encoder(r=(8, -1))")
    assert method.r == (8, -1)
    assert registry.parse("tome_in_encoder(r=[1, 2])") == [("tome_in_encoder", {"r": [1, 2]})]


def test_defaults_are_passed_to_methods_that_accept_them():
    a, b, c = registry.build("random | dtd | uniform(0.5)", keep=7)
    assert (a.keep, c.keep) == (7, 0.5)
    assert b.keep is None  # uses a threshold, except as the last method
    (last,) = registry.build("dtd", keep=7)
    assert last.keep == 7
    (with_tau,) = registry.build("dtd(0.3)", keep=7)
    assert (with_tau.keep, with_tau.tau) == (None, 0.3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tomee(0.5)", "did you mean tome"),
        ("zzzz", "run 'fewtokens methods' to list all"),
        ("pyramiddrop", "did you mean pyramid_drop"),
        ("tome(", "cannot read"),
        ("", "cannot read"),
        ("tome(keep=__import__('os').getcwd())", "must be numbers, strings"),
        ("tome(keep=open)", "must be numbers, strings"),
        ("tome(keep=8/frame)", 'write keep="8/frame" in quotes'),
        ("os.system('x')", "cannot read"),
        ("tome()()", "cannot read"),
        ("tome(0.5, 3)", "must be named"),
        ("tome(0.5, keep=3)", "only once"),
        ("tome(kept=3)", "tome has no argument kept; it accepts keep"),
        ("tome(**{'keep': 3})", "has no argument None"),
        ("tome + evs", "cannot read"),
        ("tome(keep=0)", "keep must be"),
        ("lambda: 1", "cannot read"),
        ("tome(keep=1, keep=2)", "only once"),
        ("tome({[]:1})", "must be numbers, strings"),
        ("rlt(tau='x')", "rlt: tau must be a finite number or null, got 'x'"),
        ("evs(tau=True)", "tau must be a finite number"),
        ("tome(keep=1e999)", "keep must be"),
        ("tome(keep=1e308)", "keep must be a fraction"),
        (f"tome(keep={10**30})", "keep is too large"),
        (f"tome_in_encoder(r=[1, {10**30}])", "r is too large"),
        ("vid_tldr(r=(1, 'a'))", r"r: \[1\] must be a finite number"),
        ("tempme(joins=2)", "joins must be a list"),
        ("perceiver(num_layers=1000000000)", "num_layers must be in 1..1000"),
        ("perceiver(dim=-1)", "dim must be in 1..1048576"),
        ("qformer(dim=1000000)", "GiB of parameters, this machine"),
        ("tome(keep=" + "-" * 5000 + "1)", "nested too deeply"),
        ("tome(keep=" + "[" * 5000 + "]" * 4000 + ")", "cannot read"),
        ("tome" + "()" * 4000, "nested too deeply|cannot read"),
        (" | ".join(["uniform"] * 101), "at most 100 methods, got 101"),
        (" | ".join(["uniform"] * 3000), "at most 10000 characters"),
        ("tome(keep=" + "9" * 5000 + ")", "cannot read"),
    ],
)
def test_errors_are_one_line(spec, message):
    with pytest.raises(ValueError, match=message) as caught:
        registry.build(spec)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-3, 40), st.floats(), st.floats(0, 1), st.text(max_size=3),
    st.binary(max_size=2), st.complex_numbers(), st.sets(st.integers(0, 3)), st.lists(st.floats(0, 4), max_size=3),
    st.tuples(st.integers(0, 3), st.integers(0, 3)), st.dictionaries(st.text(max_size=1), st.none(), max_size=1),
)  # fmt: skip


@given(st.sampled_from([*registry.names(), *registry.layer_names()]), st.data())
@settings(max_examples=400, deadline=None)
def test_any_arguments_build_or_raise_a_value_error(name, data):
    parameters = list(inspect.signature(registry.get(name)).parameters)
    arguments = data.draw(st.dictionaries(st.sampled_from(parameters), _VALUES, max_size=3))
    spec = f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
    try:
        (method,) = registry.build(spec)
    except ValueError:
        return
    assert [again.spec for again in registry.build(method.spec)] == [method.spec]


def test_counting_parameters_does_not_change_the_random_state():
    torch.manual_seed(3)
    (method,) = registry.build("perceiver(4, dim=16, num_layers=1)")
    torch.manual_seed(3)
    direct = registry.get("perceiver")(4, dim=16, num_layers=1)
    for actual, expected in zip(method.parameters(), direct.parameters(), strict=True):
        assert torch.equal(actual, expected)


def test_methods_of_other_packages(monkeypatch, tmp_path):
    (tmp_path / "external.py").write_text(
        "from fewtokens.methods.baselines.random import Random\nclass External(Random):\n    '''External.'''\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("external", "external:External", "fewtokens.methods")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "fewtokens.methods" else [])
    assert registry.names()[-1] == "external"
    assert "external" not in sys.modules
    (method,) = registry.build("external(0.5)")
    assert method.name == "external"


def test_a_default_that_no_method_accepts_is_an_error():
    with pytest.raises(ValueError, match=r"no method of 'tome \| evs' has an argument keeep; they accept keep, q, tau"):
        registry.build("tome | evs", keeep=3)
    assert registry.build("tome", keep=3, seed=1, dim=24)[0].keep == 3


def count(grid: Grid, keep: float | int) -> int:
    return Budget.parse(keep).count(grid)


class TestBudget:
    def test_a_fraction_of_the_cells(self):
        grid = Grid(1, 10, 10)
        assert count(grid, 0.29) == 29  # 0.29 * 100 is 28.999999999999996
        assert count(grid, 0.299) == 29
        assert count(grid, 1.0) == 100
        assert count(grid, 0.0001) == 1
        assert all(count(grid, n / 100) == n for n in range(1, 101))

    def test_a_count(self):
        grid = Grid(2, 3, 4)
        assert count(grid, 1) == 1
        assert count(grid, 32) == 24

    def test_invalid_budgets(self):
        for keep in (0, -3, 0.0, 1.2, True, "0.5", None, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="keep must be"):
                Budget.parse(keep)
