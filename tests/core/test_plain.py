"""`conform` returns valid values unchanged, and names the path of invalid ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, TypedDict

import pytest

from fewtokens.core.plain import conform


@dataclasses.dataclass
class Settings:
    steps: int
    rate: float = 0.1
    name: str | None = None


class Entry(TypedDict):
    path: str
    times: list[float]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (3, int), (3, float), (0.5, float), ("a", str), (True, bool), (None, None), (None, int | None),
        ([1, 2], list[int]), ((1, 2), list[int]), ([1, "a"], tuple[int, str]), ([], tuple[int, ...]),
        ((1, 2.5), Sequence[float]),
        ({"a": 1}, dict[str, int]), ([[1], ["a"]], list[list[int] | list[str]]), ("x", Literal["x", "y"]),
        ({"a": [None, 1.5, {"b": "c"}]}, Any), ({"steps": 3}, Settings), ({"steps": 3, "name": "n"}, Settings),
        ({"path": "p", "times": [0, 1.5]}, Entry), ({"path": "p", "times": [], "more": 1}, Entry),
    ],
)  # fmt: skip
def test_valid_values_are_returned_unchanged(value, kind):
    assert conform(value, kind, "file") is value


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (True, int, "file must be a whole number, got True"),
        (True, float, "a finite number"),
        (3.0, int, "a whole number"),
        (math.nan, float, "a finite number"),
        (math.inf, float | None, "a finite number or null"),
        (10**400, float, "a finite number"),
        ("3", int, "got .3."),
        ({"a": {"b": [1, "x"]}}, dict[str, dict[str, list[int]]], r"file: a\.b\[1\] must be a whole number, got .x."),
        ([1], tuple[int, int], "a list of 2"),
        ("ab", Sequence[str], "a list, got .ab."),
        ({1: 2}, dict[str, int], "key must be a string"),
        ("z", Literal["x", "y"], "'x' or 'y'"),
        (1, Literal[True], "True"),
        ({}, Settings, "lacks steps"),
        ({"steps": 1, "stepz": 2}, Settings, "unknown key stepz; known keys: steps, rate, name"),
        ({"steps": None}, Settings, "file: steps must be a whole number"),
        ({"path": "p"}, Entry, "lacks times"),
        ([b"x"], Any, "a plain value"),
        ({1: 2}, Any, "must be a string"),
        (list(range(10**5)), int, "a whole number"),
    ],
)
def test_errors_name_the_path(value, kind, message):
    with pytest.raises(ValueError, match=message) as error:
        conform(value, kind, "file")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_deep_nesting_is_a_one_line_error():
    value: Any = []
    for _ in range(900):
        value = [value]
    for kind in (Any, list[Any], int):
        with pytest.raises(ValueError, match=r"deeply|whole number"):
            conform(value, kind, "file")
