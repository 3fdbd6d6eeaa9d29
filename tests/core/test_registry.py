"""Spec strings and method names."""

from __future__ import annotations

import inspect
import sys
import warnings
from importlib import import_module
from importlib.metadata import EntryPoint

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewtokens.core import entry_points, registry
from fewtokens.core.budget import Budget
from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.syntax import own_names, parameters


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


@given(st.sampled_from(registry.every_name()), st.data())
@settings(max_examples=400, deadline=None)
def test_any_arguments_build_or_raise_a_value_error(name, data):
    parameters = list(inspect.signature(registry.get(name)).parameters)
    arguments = data.draw(st.dictionaries(st.sampled_from(parameters), _VALUES, max_size=3))
    spec = f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
    with torch.device("meta"):  # random weights take most of the time
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


def test_a_package_is_found_as_soon_as_it_is_installed(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    before = entry_points.installed()
    folder = tmp_path / "later-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: later\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[fewtokens.methods]\nlater = later_package:Method\n")
    (new,) = set(entry_points.installed()) - set(before)
    assert (new.name, new.value, entry_points.package_of(new)) == ("later", "later_package:Method", "later")


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Writes modules and registers entry points, as an installed package does."""
    monkeypatch.setattr(entry_points, "_warned", set())
    monkeypatch.syspath_prepend(tmp_path)
    points = []
    monkeypatch.setattr(entry_points, "installed", lambda: points)

    def write(module: str, code: str, **named: str) -> None:
        path = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
        points.extend(EntryPoint(name, value, "fewtokens.methods") for name, value in named.items())

    yield write
    for name in [name for name in sys.modules if name.partition(".")[0].startswith("external")]:
        del sys.modules[name]


EXTERNAL = "from fewtokens.methods.baselines.random import Random\nclass External(Random):\n    '''External.'''\n"


def test_methods_of_other_packages(install):
    install("external", EXTERNAL, external="external:External")
    registry.get("tome")
    registry.build("tome")
    assert "external" not in sys.modules
    assert registry.names()[-1] == "external"
    (method,) = registry.build("external(0.5)")
    assert method.name == "external"


def test_a_class_of_another_package_has_the_name_of_its_entry_point_at_once(install, tmp_path):
    install("external_a", EXTERNAL, pair_average="external_a:External")
    method = import_module("external_a").External(keep=0.5)
    assert method.name == "pair_average"
    assert method.spec == "pair_average(keep=0.5, seed=0)"
    assert registry.is_registered(method)
    pipeline = Pipeline(method)
    pipeline.save_pretrained(tmp_path / "saved")
    assert Pipeline.from_pretrained(tmp_path / "saved").spec == method.spec
    # The entry point may name what the package exports, while the class is in one of its modules.
    install("external_b.inner", EXTERNAL.replace("External(", "Other("), other="external_b:Other")
    install("external_b.__init__", "from external_b.inner import Other\n")
    assert import_module("external_b.inner").Other().name == "other"


def test_a_class_without_an_entry_point_has_its_own_name(install, tmp_path):
    install("external_c", EXTERNAL)
    method = import_module("external_c").External()
    assert method.name == "External" and not registry.is_registered(method)
    with pytest.raises(ValueError, match="External is not registered"):
        Pipeline([method]).save_pretrained(tmp_path / "saved")


def test_a_broken_entry_point_is_skipped_with_one_warning(install):
    install("external_d", EXTERNAL, good="external_d:External", bad="external_nowhere:Bad", function="os:getcwd")
    with pytest.warns(UserWarning, match="the entry point") as caught:
        assert registry.names()[-1] == "good"
    messages = sorted(str(warning.message) for warning in caught)
    assert messages[0].startswith("the entry point bad = 'external_nowhere:Bad' of external_nowhere cannot be loaded")
    assert "function = 'os:getcwd' of os must be a class" in messages[1]
    assert len(messages) == 2 and "\n" not in "".join(messages)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert registry.names()[-1] == "good"
        assert registry.build("good | tome")[0].name == "good"
    with pytest.raises(ValueError, match=r"bad = .* cannot be loaded \(ModuleNotFoundError"):
        registry.build("bad")


def test_an_entry_point_with_the_name_of_a_built_in_method_is_ignored(install):
    install("external_e", EXTERNAL, tome="external_e:External", good="external_e:External")
    with pytest.warns(UserWarning, match="tome = .* of external_e is ignored: fewtokens has a method 'tome'"):
        assert registry.names().count("tome") == 1
    assert registry.get("tome").__module__ == "fewtokens.methods.merging.tome"
    assert import_module("external_e").External().name == "good"


def test_arguments_of_another_package_must_have_defaults(install):
    code = EXTERNAL + "    def __init__(self, keep):\n        super().__init__(keep)\n"
    install("external_f", code, required="external_f:External")
    with pytest.raises(ValueError, match="its argument keep must have a default"):
        registry.get("required")


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


@pytest.mark.parametrize("name", own_names())
def test_parameters_read_from_the_source_are_those_of_the_constructor(name):
    assert parameters(name) == tuple(inspect.signature(registry.get(name)).parameters)
