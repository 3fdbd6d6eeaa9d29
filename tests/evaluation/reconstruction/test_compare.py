"""The comparison of tokenizers: clips, bits, and that codecs have the bits of the tokenizer."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from fewtokens.data.footage import find_footage, find_images
from fewtokens.data.packed import write_frames
from fewtokens.evaluation.reconstruction.compare import (
    ClipProtocol,
    Measures,
    compare,
    read_clips,
    score_tokenizer,
)
from fewtokens.evaluation.reconstruction.frechet import Random3D, frechet_distance
from fewtokens.evaluation.reconstruction.metrics import psnr, seam_flicker
from fewtokens.tokenizers import Tokenizer
from fewtokens.tokenizers.chunks import chunk_frames
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


def test_chunks_of_a_causal_tokenizer_have_one_frame_more_at_the_start(folder):
    spec = "causal_conv(width=8, stride=(1, 8, 8), depth=1) | lfq(6) > causal_conv(width=8, stride=(1, 8, 8), depth=1)"
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_spec(spec).eval()
    first, later = chunk_frames(tokenizer)
    assert (first, later) == (4 + tokenizer.encoder.first_frame, 4)
    read, _ = clips(folder, frames=9)
    scores = score_tokenizer(tokenizer, read)
    expected = [
        seam_flicker(clip.frames[None] / 255, tokenizer.decode(tokenizer.encode(clip.frames)), later, first=first)
        for clip in read
    ]
    assert scores["flicker"] == pytest.approx(float(sum(expected)) / 2)


def test_distances_and_their_record(folder):
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_spec(SPEC).eval()
    read, _ = clips(folder)
    measures = Measures(random3d=True, shrinkage=0.5, split="test")
    result = compare([("small", tokenizer)], read, ClipProtocol(4, 32), codecs=(), curves=False, measures=measures)
    features = Random3D()
    decoded = torch.cat([tokenizer.decode(tokenizer.encode(clip.frames)) for clip in read])
    originals = torch.stack([clip.frames for clip in read]) / 255
    expected = frechet_distance(features(originals), features((decoded * 255).round() / 255), shrinkage=0.5)
    row = result["rows"][0]
    assert row["frechet_random3d"] == pytest.approx(expected, rel=1e-4)
    (distance,) = row["distances"]
    record = distance["protocol"]
    assert (record["split"], record["clips"], record["frames"], record["height"]) == ("test", 2, 4, 32)
    assert distance["shrinkage"] == 0.5 and len(record["extractor_hash"]) == 64
    assert all("frechet_random3d" in row for row in result["rows"])


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

    def test_images(self, folder, tmp_path):
        photos = tmp_path / "photos"
        photos.mkdir()
        for seed in range(3):
            Image.fromarray(moving_frames(1, 40, 56, seed)[0]).save(photos / f"{seed}.png")
        words = ["--images", "--tokenizers", folder / "run/tokenizer", "--size", 32, "--out", tmp_path / "out"]
        result = json.loads(run("eval", "reconstruction", photos, *words, "--json").stdout)
        rows = {(row["name"], row["at"]): row for row in result["rows"]}
        assert result["protocol"]["frames"] == 1 and result["protocol"]["num_clips"] == 3
        assert ("jpeg", "run") in rows and ("jpeg", "quality=50") in rows
        assert not {"x264", "mean_frame"} & {name for name, _ in rows}
        read, _ = read_clips(find_images(photos).items, ClipProtocol(1, 32))
        for clip, row in zip(read, rows["jpeg", "quality=50"]["clips"], strict=True):
            buffer = io.BytesIO()
            pixels = clip.frames[0].permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=50)
            error = np.asarray(Image.open(buffer), float) - pixels
            assert row["psnr"] == pytest.approx(10 * math.log10(255**2 / (error**2).mean()), abs=0.01)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--tokenizers", ""], "--tokenizers must name at least one"),
            (["--tokenizers", "x", "--codecs", "av1"], "--codecs must be of x264, x265, jpeg, got av1"),
            (["--tokenizers", "{}/run/tokenizer", "--lpips", "a"], "--lpips must be two files"),
            (
                ["--tokenizers", "{}/run/tokenizer", "--lpips", "a,b"],
                "LPIPS requires the weights of torchvision's alex",
            ),
            (["--tokenizers", "{}/run/tokenizer", "--rfid", "a.pth"], "rfid requires"),
            (["--tokenizers", "{}/run/tokenizer", "--rfvd", "a.pt"], "rfvd requires"),
            (["--tokenizers", "x", "--shrinkage", 0.1], "--shrinkage"),
            (["--tokenizers", "x", "--images", "--frames", 3], "no effect on images"),
            (["--tokenizers", "{}/run/tokenizer", "--frames", 4, "--random3d"], "a Fréchet distance needs"),
            (["--tokenizers", "no/such/folder"], "no such folder"),
            (["--tokenizers", "{}/run/tokenizer", "--frames", 50], "no video has a clip of 50 frames"),
        ],
    )
    def test_refusals(self, folder, words, message):
        words = [str(word).format(folder) for word in words]
        assert message in run("eval", "reconstruction", folder / "0.npy", *words, code=2).stderr
