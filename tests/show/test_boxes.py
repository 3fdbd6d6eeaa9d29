"""A folder for FiftyOne: frames and boxes where the tokens are, read back also by the importer of FiftyOne itself."""

from __future__ import annotations

import json

import pytest
import torch

from fewtokens.show import Clip, Result, write_boxes
from fewtokens.video import read, synthetic, write
from tests.helpers.command import run
from tests.show.test_recording import planted


def clip() -> Clip:
    frames = torch.arange(4).mul(60).byte().reshape(4, 1, 1, 1).expand(4, 3, 8, 12).contiguous()
    result = Result("planted(x=1)", "planted(x=1)", planted(), None, {"tokens": 2})
    return Clip("clip.mp4", frames, torch.tensor([1.0, 1.5, 2.0, 2.75]), [result])


def test_boxes(tmp_path):
    folder = write_boxes(clip(), tmp_path / "kept.fiftyone")
    assert {path.name for path in folder.iterdir()} == {"data", "labels.json"}
    labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    assert labels["classes"] is None and list(labels["labels"]) == ["000000", "000001", "000002", "000003"]
    for number, name in enumerate(labels["labels"]):
        assert abs(read(folder / "data" / f"{name}.jpg").frames.int() - 60 * number).max() <= 2
    first, second = labels["labels"]["000001"]
    assert first["label"] == "planted(x=1)"
    # The first row of the grid; the last cell of both its frames.
    assert first["bounding_box"] == pytest.approx([0, 0, 1, 0.5])
    assert first["attributes"] == {"token": 0, "cells": 3, "size": 3, "time": 1.5}
    assert second["bounding_box"] == pytest.approx([2 / 3, 0.5, 1 / 3, 0.5])
    assert second["attributes"] == {"token": 1, "cells": 1, "size": 2, "time": 1.5}
    assert [box["attributes"]["token"] for box in labels["labels"]["000003"]] == [1]


def test_fiftyone_imports_the_folder(tmp_path):
    """Its importer runs without its database."""
    data = pytest.importorskip("fiftyone.utils.data", exc_type=ImportError)
    folder = write_boxes(clip(), tmp_path / "kept.fiftyone")
    with data.FiftyOneImageDetectionDatasetImporter(str(folder)) as importer:
        samples = list(importer)
    assert [path for path, _, _ in samples] == [str(folder / "data" / f"{n:06}.jpg") for n in range(4)]
    first, second = samples[1][2].detections
    assert first.label == second.label == "planted(x=1)"
    assert first.bounding_box == pytest.approx([0, 0, 1, 0.5]) and second["token"] == 1 and second["time"] == 1.5


def test_from_the_command(tmp_path):
    write(tmp_path / "clip.mp4", synthetic("static", frames=4, size=(32, 48)).frames, 4)
    words = ("--with", "evs(keep=0.5)", "--with", "tome(keep=0.25)", "--frames", 4, "--size", 32)
    run("show", tmp_path / "clip.mp4", *words, "--out", tmp_path / "a.fiftyone")
    labels = json.loads((tmp_path / "a.fiftyone" / "labels.json").read_text(encoding="utf-8"))["labels"]
    boxes = [box for frame in labels.values() for box in frame if box["label"] == "evs(keep=0.5)"]
    # Half of 4 frames of 2 x 3 cells, one box for each.
    assert len(boxes) == 12 and all(box["attributes"]["cells"] == 1 for box in boxes)
    assert {box["label"] for frame in labels.values() for box in frame} == {"evs(keep=0.5)", "tome(keep=0.25)"}
