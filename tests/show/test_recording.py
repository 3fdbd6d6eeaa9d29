"""Recordings for Rerun, read back by its own reader: what lies at which time."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

import fewtokens.core.checks as checks
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.show import Clip, Result, compare, draw, overlay, write_recording
from fewtokens.video import synthetic, write
from tests.helpers.command import run

RERUN = checks.find_spec("rerun") is not None
needs_rerun = pytest.mark.skipif(not RERUN, reason="rerun-sdk is not installed")


def rows_of(path) -> dict[str, list[dict]]:
    """The rows of each entity, in the order of the frames; static ones first."""
    from rerun.chunk import RrdReader

    entities: dict[str, list[dict]] = {}
    for chunk in RrdReader(path).stream():
        rows = chunk.to_record_batch().to_pylist()
        entities.setdefault(chunk.entity_path.replace("\\", ""), []).extend(rows)
    return {name: sorted(rows, key=lambda row: row.get("frame", -1)) for name, rows in entities.items()}


def image_of(row: dict, name: str = "EncodedImage:blob") -> np.ndarray:
    (data,) = row[name]
    return np.asarray(Image.open(io.BytesIO(bytes(data))))


def planted() -> Tokens:
    """Of 2 x 2 x 3 cells, token 0: the first row of frame 0; token 1: the last cell of both frames; else dropped."""
    assignment = torch.tensor([[0, 0, 0, -1, -1, 1, -1, -1, -1, -1, -1, 1]])
    tokens = Tokens.from_cells(torch.randn(1, 2, 2, 3, 4))
    return tokens.apply(Plan.group(assignment, tokens))


@needs_rerun
def test_what_a_recording_holds(tmp_path):
    frames = torch.arange(4).mul(60).byte().reshape(4, 1, 1, 1).expand(4, 3, 8, 12).contiguous()
    result = Result("planted(x=1)", "planted(x=1)", planted(), frames.flip(0), {"tokens": 2, "retention": 1 / 6})
    clip = Clip("clip.mp4", frames, torch.tensor([1.0, 1.5, 2.0, 2.75]), [result])
    rows = rows_of(write_recording(clip, tmp_path / "a.rrd"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.rrd"]
    folder = "/planted(x=1)"
    own = ("overlay", "regions", "centers", "tokens_in_frame", "reconstruction", "about")
    assert {name for name in rows if name != "/__properties"} == {"/frames", folder, *(f"{folder}/{n}" for n in own)}
    for name in ("/frames", f"{folder}/regions", f"{folder}/centers", f"{folder}/tokens_in_frame"):
        assert [row["frame"] for row in rows[name]] == [0, 1, 2, 3]
        assert [row["time"].total_seconds() for row in rows[name]] == [1, 1.5, 2, 2.75]
    for number in range(4):
        assert abs(image_of(rows["/frames"][number]).astype(int) - 60 * number).max() <= 2
        assert abs(image_of(rows[f"{folder}/reconstruction"][number]).astype(int) - 60 * (3 - number)).max() <= 2
    drawn = overlay(frames, planted())
    for row, image in zip(rows[f"{folder}/overlay"], drawn, strict=True):
        assert abs(image_of(row).astype(int).mean(-1) - image.float().mean(0).numpy()).mean() < 6
    # Two frames of the clip lie in one frame of the grid.
    first, second = ([[1] * 12] * 4 + [[0] * 8 + [2] * 4] * 4, [[0] * 12] * 4 + [[0] * 8 + [2] * 4] * 4)
    regions = [np.frombuffer(bytes(row["SegmentationImage:buffer"][0]), "<u2") for row in rows[f"{folder}/regions"]]
    assert [region.reshape(8, 12).tolist() for region in regions] == [first, first, second, second]
    assert [row["Scalars:scalars"] for row in rows[f"{folder}/tokens_in_frame"]] == [[2], [2], [1], [1]]
    centers = rows[f"{folder}/centers"]
    assert centers[0]["Points2D:positions"] == [[6, 2], [10, 6]] and centers[3]["Points2D:positions"] == [[10, 6]]
    # A sixteenth of 3 cells, and of one, of 4 x 4 pixels.
    assert centers[0]["Points2D:radii"] == pytest.approx([(3 / np.pi) ** 0.5, (1 / np.pi) ** 0.5])
    assert centers[0]["Points2D:labels"] == ["token 0: 3 cells", "token 1: 2 cells"]
    ((text,),) = (row["TextDocument:text"] for row in rows[f"{folder}/about"])
    assert "clip.mp4" in text and "`planted(x=1)`" in text and "| tokens | 2 |" in text
    (classes,) = rows[folder]
    labels = {each["class_description"]["info"]["label"] for each in classes["AnnotationContext:context"][0]}
    assert labels == {"dropped", "token 0", "token 1"}


@needs_rerun
def test_from_python_and_the_command(tmp_path):
    path = tmp_path / "clip.mp4"
    write(path, synthetic("static", frames=4, size=(32, 48)).frames, 4)
    compare(path, ["tome(keep=0.25)", "tome(keep=0.25)"], tmp_path / "a.rrd", frames=4, size=32)
    rows = rows_of(tmp_path / "a.rrd")
    assert {"/1 tome(keep=0.25)/regions", "/2 tome(keep=0.25)/reconstruction"} <= {*rows}
    run("tokenize", path, "--with", "evs(keep=0.5)", "--frames", 4, "--size", 32, "--out", tmp_path / "t.safetensors")
    draw(Tokens.load(tmp_path / "t.safetensors"), tmp_path / "b.rrd")
    run("show", tmp_path / "t.safetensors", "--out", tmp_path / "c.rrd")
    for name in ("b.rrd", "c.rrd"):
        counts = [row["Scalars:scalars"][0] for row in rows_of(tmp_path / name)["/evs(keep=0.5)/tokens_in_frame"]]
        # Each token of a pruning method lies in one frame.
        assert len(counts) == 4 and sum(counts) == int(Tokens.load(tmp_path / "t.safetensors").count[0])


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    for words in (["--with", "tome"], ["--with", "tome", "--with", "evs"]):
        done = run("show", tmp_path, *words, "--out", tmp_path / "a.rrd", code=2)
        assert "pip install 'fewtokens[rerun]'" in done.stderr.replace("\n", " ")
