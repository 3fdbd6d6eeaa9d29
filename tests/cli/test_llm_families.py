"""`fewtokens llm-families`."""

from __future__ import annotations

import json

from fewtokens.core.method import CUES
from fewtokens.llm.families import FAMILIES, TESTED
from tests.cli.test_command import error_line
from tests.cli.test_command import quick as run


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
    assert row["cues"] == ["attention", "keys", "shift", "pixels"] and row["skips"] and row["merges"]
    assert "<0.5 seconds>" in run("llm-families", "qwen3_vl").stdout


def test_what_the_vision_towers_provide():
    """The columns of the table: tests/llm/test_tower_families.py compares them with the models."""
    rows = {row["name"]: row for row in json.loads(run("llm-families", "--json").stdout)}
    assert rows["aria"]["cues"] == rows["instructblip"]["cues"] == []
    assert rows["gemma3"]["cues"] == ["attention", "keys", "shift"] and not rows["gemma3"]["skips"]
    assert all(set(row["cues"]) <= set(CUES) for row in rows.values())
    assert not any(row["skips"] and "pixels" not in row["cues"] for row in rows.values())
    listing = run("llm-families", "gemma3").stdout
    assert "attention keys shift" in listing and "merges" in listing


def test_what_the_language_models_allow():
    """The column of the table: tests/llm/test_inside_families.py compares it with the models."""
    rows = {row["name"]: row for row in json.loads(run("llm-families", "--json").stdout)}
    assert rows["gemma3"]["inside"] == "all"
    assert rows["lfm2_vl"]["inside"] == "scores only from layers with attention, not from conv"
    assert all(row["works"] for row in rows.values() if row["inside"])
    assert "not from conv" in run("llm-families", "lfm2_vl").stdout


def test_an_unknown_family():
    assert "did you mean qwen3_vl" in error_line(run("llm-families", "qwen3vl", code=2))
