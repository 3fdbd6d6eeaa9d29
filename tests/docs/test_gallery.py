"""The numbers of docs/gallery.md are those of its JSON, of the methods, and of the committed comparison."""

from __future__ import annotations

import json
import re
import runpy

import pytest

from fewtokens.core import registry
from fewtokens.encoders import Patches
from fewtokens.evaluation.compare import compare
from fewtokens.video import synthetic
from tests.helpers.pages import ROOT

GALLERY = runpy.run_path(str(ROOT / "docs" / "figures" / "gallery.py"))
NUMBERS = json.loads((ROOT / "docs" / "figures" / "gallery.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
ROWS = {row["label"]: row for row in NUMBERS["rows"]}


def test_the_page_is_that_of_its_json():
    assert GALLERY["page"](PAGE, NUMBERS) == PAGE
    assert {label.split("(")[0] for label in ROWS} <= {*registry.names()}


def test_the_numbers_are_those_of_the_methods():
    names = ("random", "evs", "mean_pool", "hourglass", "dtd(threshold)")
    for clip in ("static", "pan"):
        video = synthetic(clip, frames=16, size=(256, 256))
        patches = Patches(16)
        tokens, cues = patches(video.frames[None], video.times, needs=("pixels",))
        methods = [method for name in names for method in registry.build(ROWS[name]["spec"])]
        rows = compare(tokens, methods, cues=cues, decode=patches.decode, repeats=1)
        for name, row in zip(names, rows, strict=True):
            assert row.count == ROWS[name][clip]["tokens"]
            assert row.psnr == pytest.approx(ROWS[name][clip]["psnr_db"], abs=0.05)


def test_the_columns_of_the_comparison():
    results = json.loads((ROOT / "benchmarks" / "results" / "family.json").read_text(encoding="utf-8"))
    (tome,) = (row for row in results["all"] if row["keep"] == 0.1 and row["label"] == "tome")
    cells = re.search(r"^\| `tome` \| (.*) \|$", PAGE, re.M)[1].split(" | ")
    expected = [f"{tome['cosine']:.3f}", f"{tome['rare_cosine']:.3f}", f"{100 * tome['j_and_f']:.1f}"]
    assert cells[-4:] == [*expected, f"{tome['method_ms']:.0f}"]
    assert results["machine"]["date"] in PAGE
    # It runs at another budget there, together with tome.
    assert re.search(r"^\| `dycoke\(default\)` \|.*\|  \|  \|  \|  \|$", PAGE, re.M)
