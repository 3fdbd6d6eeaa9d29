"""`fewtokens llm-families`."""

from __future__ import annotations

import json

from fewtokens.llm.families import FAMILIES, TESTED
from tests.cli.test_command import error_line, run


def test_the_table():
    rows = json.loads(run("llm-families", "--json").stdout)
    assert [row["name"] for row in rows] == [family.name for family in FAMILIES]
    assert sum(row["works"] for row in rows) >= 30
    listing = run("llm-families").stdout
    assert all(row["name"] in listing for row in rows)
    assert f"transformers {TESTED}" in listing


def test_one_family():
    row = json.loads(run("llm-families", "qwen3_vl", "--json").stdout)
    assert row["works"] and row["video"] and row["prompts"] and row["axes"] == 3
    assert "<0.5 seconds>" in run("llm-families", "qwen3_vl").stdout


def test_an_unknown_family():
    assert "did you mean qwen3_vl" in error_line(run("llm-families", "qwen3vl", code=2))
