"""`fewtokens eval davis`, `jhmdb` and `vip` as a user runs them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fewtokens.cli import app
from fewtokens.data.masks import read_masks
from fewtokens.evaluation.davis import mean_numbers, score
from fewtokens.video import read
from tests.cli.test_bench import refused
from tests.helpers.dense import make_davis, make_jhmdb, make_vip, save_mask

NATIVE = ("--set", "size=native", "--device", "cpu")


def run(*words: object, code: int = 0) -> str:
    """Returns what a command prints; runs in this process, which is faster."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output + result.stderr
    return result.stdout


def test_davis(tmp_path):
    root, out = make_davis(tmp_path / "D"), tmp_path / "out"
    words = ("eval", "davis", "--data", root, "--score-size", "both", "--out", out, "--write-videos", *NATIVE)
    text = run(*words)
    for part in (
        "J&F-Mean",
        "J-Decay",
        "F-Recall",
        "protocol A with size=native",
        "softmax of the top 7",
        "list: 2017/val",
    ):
        assert part in text
    assert "boundaries match within 1 px at 64x96" in text and "within 9 px at 480x880" in text
    assert "not comparable" in text
    report = json.loads((out / "results.json").read_text())
    assert [line["sequence"] for line in report["sequences"]] == ["one", "two"]
    # The written masks have the reported score.
    predicted = read_masks(sorted((out / "masks" / "one").iterdir()))
    truth = read_masks(sorted((root / "Annotations" / "480p" / "one").iterdir()))
    assert 100 * mean_numbers(score(predicted, truth))["j_and_f"] == pytest.approx(
        report["sequences"][0]["j_and_f_mean"]
    )
    assert (predicted[0] == truth[0]).all()
    with Image.open(out / "masks" / "one" / "00001.png") as image:
        assert image.mode == "P" and image.size == (96, 64)
    with Image.open(out / "sheet.png") as image:
        assert image.size[0] > 1000
    assert read(out / "videos" / "one.mp4").frames.shape == (5, 3, 64, 96)
    # The same command again only reads; another protocol in the same folder is an error.
    before = (out / "rows.jsonl").read_text()
    assert run(*words) == text
    assert (out / "rows.jsonl").read_text() == before
    assert "other settings: protocol" in refused(*map(str, (*words, "--set", "top=3")))
    # A run that stopped after the first sequence resumes with the second.
    (out / "rows.jsonl").write_text(before.splitlines()[0] + '\n{"sequence": "tw')
    assert run(*words) == text


def test_a_reducer_lowers_the_score(tmp_path):
    root = make_davis(tmp_path / "D")
    words = ("eval", "davis", "--data", root, "--only", "one", "--json", *NATIVE)
    full = json.loads(run(*words))
    few = json.loads(run(*words, "--with", "downsample", "--keep", "0.1"))
    assert full["retention"] == 1 and few["retention"] <= 0.1
    assert few["settings"]["spec"].startswith("downsample(")
    assert few["scores"]["native"]["j_and_f_mean"] < full["scores"]["native"]["j_and_f_mean"]
    b = json.loads(run(*words, "--protocol", "B"))
    assert b["settings"]["protocol"]["temperature"] == 0.1
    assert b["about"][0].startswith("protocol B with size=native: ")


def test_a_broken_sequence_is_reported_and_skipped(tmp_path):
    root = make_davis(tmp_path / "D")
    (root / "Annotations" / "480p" / "two" / "00000.png").unlink()
    result = CliRunner().invoke(app, ["eval", "davis", "--data", str(root), "--json", *NATIVE])
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert [line["sequence"] for line in report["sequences"]] == ["one"]
    assert "first frame 00000 has no mask" in report["failed"][0]["error"]
    assert "1 of 2 sequences failed" in result.stderr
    assert "no mask" in refused("eval", "davis", "--data", str(root), "--only", "two", *NATIVE)
    save_mask(root / "Annotations" / "480p" / "one" / "00000.png", np.zeros((9, 9), dtype=np.uint8))
    assert "none of 2" in CliRunner().invoke(app, ["eval", "davis", "--data", str(root), *NATIVE]).stderr


def test_jhmdb(tmp_path):
    pytest.importorskip("scipy")
    root, out = make_jhmdb(tmp_path / "jhmdb"), tmp_path / "out"
    report = json.loads(run("eval", "jhmdb", "--data", root, "--out", out, "--json", "--device", "cpu"))
    assert report["scores"]["joints_counted"] == 2 * 3 * 15
    assert 0 < report["scores"]["pck_0_1"] <= report["scores"]["pck_0_2"] <= 100
    assert "joints as maps" in report["about"][0] and "20x20" in report["about"][1]
    joints = json.loads((out / "joints" / "jump" / "first.json").read_text())
    assert np.array(joints).shape == (4, 15, 2)
    assert (out / "sheet.png").is_file()
    mat = root / "joint_positions" / "run" / "second" / "joint_positions.mat"
    mat.write_bytes(mat.read_bytes()[:70])
    text = run("eval", "jhmdb", "--data", root, "--device", "cpu", code=1)
    assert "PCK@0.1" in text and "1 of 2 sequences" in text


def test_vip(tmp_path):
    root, out = make_vip(tmp_path / "VIP"), tmp_path / "out"
    report = json.loads(run("eval", "vip", "--data", root, "--out", out, "--json", *NATIVE))
    assert report["scores"]["mean_iou"] > 50
    assert report["settings"]["protocol"]["top"] == 10
    masks = read_masks(sorted((out / "masks" / "videos2").iterdir()))
    assert masks.unique().tolist() == [0, 5, 13]
    assert (out / "sheet.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["davis", "--data", "nowhere"], "not a DAVIS folder"),
        (["jhmdb", "--data", "nowhere"], "not a JHMDB folder"),
        (["vip", "--data", "nowhere"], "not a VIP folder"),
        (["davis", "--data", "D", "--score-size", "large"], "native, 880 or both"),
        (["davis", "--data", "D", "--protocol", "C"], "must be one of A, B, B-rsp"),
        (["davis", "--data", "D", "--set", "top=0"], "top and multiple at least 1"),
        (["davis", "--data", "D", "--only", "three"], "--only: no sequence three"),
        (["davis", "--data", "D", "--split", "2016/val"], "no such list"),
        (["davis", "--data", "D", "--write-videos"], "--out FOLDER"),
        (["davis", "--data", "D", "--with", "rlt", "--out", "D/ImageSets/2017/val.txt"], "--out must be a folder"),
        (["davis", "--data", "D", "--encoder", "./none"], "no such folder"),
    ],
)
def test_errors(words, message, tmp_path, monkeypatch):
    make_davis(tmp_path / "D")
    monkeypatch.chdir(tmp_path)
    assert message in refused("eval", *words)


def test_a_missing_sequence_is_reported_before_any_work(tmp_path):
    root = make_davis(tmp_path / "D")
    shutil.rmtree(root / "JPEGImages" / "480p" / "two")
    assert "two not found in" in refused("eval", "davis", "--data", str(root))


def test_help_has_two_examples():
    for name in ("davis", "jhmdb", "vip"):
        assert run("eval", name, "--help").count(f"fewtokens eval {name} --data") == 2
