"""Keys of result files: headings, and keys of earlier versions."""

from __future__ import annotations

import json

import pytest

from fewtokens.core.keys import HEADINGS, current_keys, delta_key, heading, with_headings
from fewtokens.evaluation.summary import compare_runs


def test_headings():
    assert with_headings({"method": "tome", "psnr_db": 1.0, "total_ms": 2.0}) == {
        "method": "tome", "PSNR dB": 1.0, "total ms": 2.0,
    }  # fmt: skip
    assert heading(delta_key("j_and_f")) == "Δ J&F"
    assert all(key == key.lower() and " " not in key for key in HEADINGS)
    assert len(set(HEADINGS.values())) == len(HEADINGS)


def test_keys_of_earlier_versions():
    before = [{"J&F": 0.5, "rel. error": 0.1, "clip": "J&F", "nested": {"found 0.1": [1]}}]
    assert current_keys(before) == [
        {"j_and_f": 0.5, "relative_error": 0.1, "clip": "J&F", "nested": {"found_0_1": [1]}}
    ]
    assert current_keys(current_keys(before)) == current_keys(before)


def test_comparing_results_of_an_earlier_version(tmp_path):
    line = {"keep": 0.1, "method": "tome", "rare cosine": 0.5, "total ms": 2.0}
    (tmp_path / "old.json").write_text(json.dumps({"settings": {"davis size": 480}, "summary": [line], "rows": [line]}))
    line = {"keep": 0.1, "method": "tome", "rare_cosine": 0.75, "total_ms": 2.0}
    (tmp_path / "new.json").write_text(json.dumps({"settings": {"davis_size": 480}, "summary": [line], "rows": [line]}))
    (difference,), notes = compare_runs(tmp_path / "old.json", tmp_path / "new.json")
    assert difference["delta_rare_cosine"] == pytest.approx(0.25)
    assert not notes
