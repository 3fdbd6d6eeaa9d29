"""`tokenize --select`: which frames are read, what is saved, errors in one line."""

from __future__ import annotations

import json

import pytest

import fewtokens
from fewtokens import Tokens
from fewtokens.encoders import VitEncoder
from fewtokens.encoders.vit import ViT, ViTConfig
from fewtokens.selection.scorers import EncoderScorer
from tests.cli.test_command import error_line, quick
from tests.helpers.footage import write_scenes


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("select") / "clip.mp4"
    write_scenes(path, 80, 50)
    return path


def test_selected_frames_are_tokenized_and_shown(clip, tmp_path):
    out = tmp_path / "a.safetensors"
    words = ("tokenize", clip, "--select", "aks(keep=3, rate=8)", "--scorer", "features", "--size", 48, "--out", out)
    (row,) = json.loads(quick(*words, "--json").stdout)["done"]
    assert row["frames"] == 3
    tokens = Tokens.load(out)
    video = fewtokens.read(clip, select="aks(keep=3, rate=8)", scorer="features", size=48)
    assert tokens.grid.times.tolist() == video.times.tolist()
    saved = tokens.meta["reading"]
    assert saved["select"].startswith("aks(keep=3") and (saved["question"], saved["scorer"]) == (None, "features")
    assert "skipped" in quick(*words).stderr
    near = error_line(quick(*words, "--near", 1, code=2))
    assert "near (0.0" in near
    other = error_line(quick("tokenize", clip, "--frames", 3, "--size", 48, "--out", out, code=2))
    assert str(out) in other and 'select ("aks(keep=3' in other
    quick("show", out, "--out", tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--select", "aks"), "aks selects by relevance and requires a scorer"),
        (("--select", "aks", "--question", "a"), "aks selects by relevance and requires a scorer"),
        (("--select", "aks", "--scorer", "clip:models/clip"), "aks selects by a question"),
        (("--select", "aks(keep=0)", "--scorer", "features"), "aks: keep must be a count of frames of at least 1"),
        (("--select", "uniform_frames", "--scorer", "features"), "--scorer has no effect"),
        (("--select", "tome"), "--select must be one method of the stage frames"),
        (("--select", "aks | tome"), "--select must be one method of the stage frames"),
        (("--select", "ak"), "no method called 'ak'; did you mean aks"),
        (("--select", "uniform_frames", "--frames", "3"), "--frames cannot be combined with --select"),
        (("--select", "uniform_frames", "--chunked"), "--chunked cannot be combined with --select"),
        (("--question", "a"), "--question requires --select"),
        (("--near", "1"), "--near requires --select"),
        (("--select", "aks", "--question", "a", "--scorer", "blip"), "scorer must be 'clip:FOLDER'"),
        (("--with", "uniform_frames | tome"), "uniform_frames selects frames; give it as --select"),
    ],
)
def test_errors(clip, tmp_path, words, message):
    assert message in error_line(quick("tokenize", clip, *words, "--out", tmp_path / "o.safetensors", code=2))


def test_two_encoders_without_files_have_their_features_apart():
    encoders = [VitEncoder(ViT(ViTConfig(dim=8, depth=1, num_heads=2, patch_size=8))) for _ in range(2)]
    first, second, again = (EncoderScorer(encoder) for encoder in (*encoders, encoders[0]))
    assert len({first.id, second.id, again.id}) == 3 and not first.lasting
