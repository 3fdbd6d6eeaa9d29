"""Spec strings and names."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from fewtokens import registry
from fewtokens.grid import Grid
from fewtokens.method import Method, check_keep, planned_count


def test_every_name_is_its_module_and_its_class():
    for name in registry.names():
        kind = registry.get(name)
        assert issubclass(kind, Method)
        assert kind().name == name


def test_chains_read_left_to_right():
    chain = registry.build("rlt(tau=0.2) | evs | tome(0.25)")
    assert [method.name for method in chain] == ["rlt", "evs", "tome"]
    assert chain[0].tau == 0.2
    assert chain[2].keep == 0.25


def test_literals_of_every_kind():
    (method,) = registry.build("tome(r=(8, -1), stage='encoder')")
    assert method.r == (8, -1)
    assert registry.parse("tome(r=[1, 2], stage='encoder')") == [("tome", {"r": [1, 2], "stage": "encoder"})]


def test_defaults_reach_whoever_takes_them():
    a, b, c = registry.build("random | dtd | uniform(0.5)", keep=7)
    assert (a.keep, c.keep) == (7, 0.5)
    assert b.keep is None  # it works by a threshold, unless it stands last
    (last,) = registry.build("dtd", keep=7)
    assert last.keep == 7
    (said,) = registry.build("dtd(0.3)", keep=7)
    assert (said.keep, said.tau) == (None, 0.3)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("tomee(0.5)", "did you mean tome"),
        ("zzzz", "known: random"),
        ("tome(", "cannot read"),
        ("", "cannot read"),
        ("tome(keep=__import__('os').getcwd())", "plain values"),
        ("tome(keep=open)", "plain values"),
        ("os.system('x')", "cannot read"),
        ("tome()()", "cannot read"),
        ("tome(0.5, 3)", "name the arguments"),
        ("tome(0.5, keep=3)", "only once"),
        ("tome(kept=3)", "tome takes keep, r, stage; not kept"),
        ("tome(**{'keep': 3})", "takes"),
        ("tome + evs", "cannot read"),
        ("tome(keep=0)", "keep must be"),
        ("lambda: 1", "cannot read"),
    ],
)
def test_what_is_wrong_is_said(spec, says):
    with pytest.raises(ValueError, match=says) as caught:
        registry.build(spec)
    assert "\n" not in str(caught.value)


def test_methods_of_other_packages(monkeypatch, tmp_path):
    (tmp_path / "theirs.py").write_text(
        "from fewtokens.reduce.random import Random\nclass Theirs(Random):\n    '''Theirs.'''\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("theirs", "theirs:Theirs", "fewtokens.methods")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "fewtokens.methods" else [])
    assert registry.names()[-1] == "theirs"
    assert "theirs" not in sys.modules
    (method,) = registry.build("theirs(0.5)")
    assert method.name == "theirs"


class TestPlannedCount:
    def test_a_share_of_the_cells(self):
        grid = Grid(1, 10, 10)
        assert planned_count(grid, 0.29) == 29  # 0.29 * 100 is 28.999999999999996
        assert planned_count(grid, 0.299) == 29
        assert planned_count(grid, 1.0) == 100
        assert planned_count(grid, 0.0001) == 1
        assert all(planned_count(grid, n / 100) == n for n in range(1, 101))

    def test_a_count(self):
        grid = Grid(2, 3, 4)
        assert planned_count(grid, 1) == 1
        assert planned_count(grid, 32) == 24

    def test_not_a_budget(self):
        for wrong in (0, -3, 0.0, 1.2, True, "0.5", None, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="keep must be"):
                check_keep(wrong)
