"""The comparison of tokenizers: clips, bits, and that codecs have the bits of the tokenizer."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from fewtokens.data.footage import find_footage
from fewtokens.data.packed import write_frames
from fewtokens.evaluation.reconstruction.compare import ClipProtocol, compare, read_clips, score_tokenizer
from fewtokens.evaluation.reconstruction.metrics import psnr
from fewtokens.tokenizers import Tokenizer
from tests.helpers.command import run
from tests.video.makers import moving_frames

SPEC = "tubelet(24, stride=(2, 8, 8)) | fsq((8, 5, 5)) > tubelet(stride=(2, 8, 8))"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos")
    for seed, length in enumerate((9, 12, 3)):
        pixels = torch.from_numpy(np.ascontiguousarray(moving_frames(length, 40, 56, seed)))
        write_frames(path / f"{seed}.npy", [pixels.permute(0, 3, 1, 2)])
    torch.manual_seed(0)
    Tokenizer.from_spec(SPEC).save_pretrained(path / "run" / "tokenizer")
    return path


def clips(folder, **changes):
    return read_clips(find_footage(folder).items, ClipProtocol(**({"frames": 4, "size": 32} | changes)))


class TestClips:
    def test_the_middle_of_a_video(self, folder):
        read, broken = clips(folder, size=40)
        assert [clip.frames.shape for clip in read] == [(4, 3, 40, 40)] * 2
        pixels = np.load(folder / "1.npy")
        assert torch.equal(read[1].frames, torch.from_numpy(pixels[4:8, 8:48]).permute(0, 3, 1, 2))
        assert broken == [f"{folder}/2.npy: a clip requires 4 frames, the video has 3"]

    def test_several_clips_with_a_gap(self, folder):
        read, _ = clips(folder, size=40, clips=2, gap=2)
        assert [clip.name[-7:] for clip in read] == ["0.npy#0", "0.npy#1", "1.npy#0", "1.npy#1"]
        pixels = np.load(folder / "1.npy")
        # 5 positions are free; the clips start at a quarter and three quarters of them.
        assert torch.equal(read[3].frames[:, 0], torch.from_numpy(pixels[4:12:2, 8:48, :, 0]))


def test_codecs_have_at_most_the_bits_of_the_tokenizer(folder):
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_spec(SPEC).eval()
    read, _ = clips(folder)
    result = compare([("small", tokenizer)], read, ClipProtocol(4, 32), codecs=("x264",), curves=False)
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == ["small", "x264", "area_pooling", "mean_frame", "mean_color"]
    bits = 2 * 4 * 4 * math.log2(200)
    assert rows["small"]["bits"] == pytest.approx(bits)
    assert rows["small"]["bits_per_pixel"] == pytest.approx(bits / (4 * 32 * 32))
    assert rows["small"]["entropy_bits_per_pixel"] <= rows["small"]["bits_per_pixel"]
    for name in ("x264", "area_pooling"):
        assert rows[name]["at"] == "small"
        for clip in rows[name]["clips"]:
            assert clip["bits"] <= bits or (name == "x264" and clip["above_target"])
    decoded = [tokenizer.decode(tokenizer.encode(clip.frames)) for clip in read]
    expected = [float(psnr(clip.frames[None] / 255, frames)) for clip, frames in zip(read, decoded, strict=True)]
    assert rows["small"]["psnr"] == pytest.approx(sum(expected) / 2)


def test_windows_are_scored_at_their_seams(folder):
    tokenizer = Tokenizer.from_spec(SPEC, window=2).eval()
    read, _ = clips(folder)
    assert "flicker" in score_tokenizer(tokenizer, read)


class TestCommand:
    def test_json_and_files(self, folder):
        words = [folder / "0.npy", "--tokenizers", folder / "run/tokenizer", "--frames", 4, "--size", 32]
        done = run("eval", "reconstruction", *words, "--json", "--out", folder / "out", "--codecs", "x264")
        result = json.loads(done.stdout)
        assert result["protocol"]["num_clips"] == 1
        assert result["rows"][0]["name"] == "run"
        assert [row["at"] for row in result["rows"] if row["name"] == "x264"][:2] == ["run", "crf=20"]
        assert json.loads((folder / "out/results.json").read_text()) == result
        for name in ("rate_distortion.png", "clips.png"):
            assert (folder / "out" / name).stat().st_size > 1000

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--tokenizers", ""], "--tokenizers must name at least one"),
            (["--tokenizers", "x", "--codecs", "av1"], "--codecs must be of x264, x265, got av1"),
            (["--tokenizers", "no/such/folder"], "no such folder"),
            (["--tokenizers", "{}/run/tokenizer", "--frames", 50], "no video has a clip of 50 frames"),
        ],
    )
    def test_refusals(self, folder, words, message):
        words = [str(word).format(folder) for word in words]
        assert message in run("eval", "reconstruction", folder / "0.npy", *words, code=2).stderr
