"""Committed reports of the benchmarks agree with their JSON and with the code that renders them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture
def common(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import common

    return common


def test_committed_reports_are_those_of_their_json(common, tmp_path, monkeypatch):
    for path in RESULTS.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    common.render_again([])
    pages = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.md")}
    assert len(pages) > 15
    for name, text in pages.items():
        assert text == (RESULTS / name).read_text(encoding="utf-8"), name


def test_the_fidelity_page_is_that_of_its_json(common):
    import fidelity

    results = json.loads((RESULTS / "fidelity.json").read_text(encoding="utf-8"))
    assert results["notes"] == fidelity.NOTES
    page = fidelity.page(results["rows"], results["machine"])
    # The last line lists the registered methods without a row, so a new method changes it until the next measurement.
    last = "Methods without a row: "
    assert page.partition(last)[:2] == (RESULTS / "fidelity.md").read_text(encoding="utf-8").partition(last)[:2]
    rows = {(row["method"], row["reference"], row["settings"]) for row in results["rows"]}
    assert {(row.method, row.repository, row.settings) for row in fidelity.collect()} == rows


def test_the_page_of_speed_is_that_of_its_json(common):
    import peers

    results = json.loads((RESULTS / "peers.json").read_text(encoding="utf-8"))
    assert results["notes"] == peers.NOTES
    assert peers.page(results["rows"], results["machine"]) == (RESULTS / "peers.md").read_text(encoding="utf-8")
    rows = {(row.method, row.task, row.reference) for row in peers.collect()}
    assert {(row["method"], row["task"], row["reference"]) for row in results["rows"]} <= rows


def test_rows_that_are_slower_or_differ_state_a_reason():
    for row in json.loads((RESULTS / "peers.json").read_text(encoding="utf-8"))["rows"]:
        assert row["ratio"] >= 1 or row["reason"], row
        assert row["equal_tokens"] in (None, 1.0) or row["unequal"], row


def test_the_page_of_videoqa_is_that_of_its_json(common, tmp_path):
    import videoqa_report

    (tmp_path / "videoqa.png").touch()
    videoqa_report.write_page(json.loads((RESULTS / "videoqa.json").read_text(encoding="utf-8")), tmp_path)
    assert (tmp_path / "videoqa.md").read_text(encoding="utf-8") == (RESULTS / "videoqa.md").read_text(encoding="utf-8")


def test_images_of_reports_exist(common):
    for path in RESULTS.glob("*.json"):
        for image in json.loads(path.read_text(encoding="utf-8")).get("images", ()):
            assert (RESULTS / image).is_file(), image
