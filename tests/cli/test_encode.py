"""`encode` and `decode`: round trips on the command line, what they report, and what they refuse."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewtokens.methods.ops.codes import codes_to_signs
from fewtokens.tokenizers import Tokenizer, create_tokenizer, load_tokenizer
from fewtokens.tokenizers.files import read_encoded, read_header
from fewtokens.tokenizers.tokenizer import pad
from fewtokens.video import read, synthetic, write
from tests.cli.test_command import error_line, quick
from tests.jobs.test_jobs import contents

SPEC = "tubelet(24, stride=(2, 8, 8)) | lfq(10) > tubelet(stride=(2, 8, 8))"


def run(*words: object):
    return json.loads(quick(*words, "--device", "cpu", "--json").stdout)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    video = synthetic("pan", frames=11, size=(40, 56))
    return write(tmp_path_factory.mktemp("clips") / "clip.mp4", video.frames, 10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(1)
    return Tokenizer.from_spec(SPEC).save_pretrained(tmp_path_factory.mktemp("run") / "tokenizer")


@pytest.fixture(scope="module")
def encoded(clip, folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("codes") / "clip.safetensors"
    quick("encode", clip, "--tokenizer", folder, "--size", 24, "--fps", 5, "--out", out, "--device", "cpu")
    return out


def test_a_trained_tokenizer(clip, folder, tmp_path):
    out = tmp_path / "clip.safetensors"
    report = run("encode", clip, "--tokenizer", folder, "--packed", "--out", out)
    (row,) = report["done"]
    assert (row["frames"], row["height"], row["width"], row["tokens"]) == (11, 40, 56, 6 * 5 * 7)
    assert row["bits"] == 2100 and row["bytes"] == -(-2100 // 8)
    header = read_header(out)
    assert header["fps"] == 10 and header["meta"]["source"]["name"] == "clip.mp4"
    (decoded,) = run("decode", out, "--out", tmp_path / "clip.mp4")["done"]
    assert (decoded["frames"], decoded["fps"]) == (11, 10)
    again = read(tmp_path / "clip.mp4")
    assert again.frames.shape == (11, 3, 40, 56) and again.interval == pytest.approx(0.1)
    tokenizer = load_tokenizer(folder, device="cpu")
    stored = read_encoded(out, tokenizer)
    # Libraries choose algorithms by size, so chunks may round differently, and a bit differs where its value is near 0.
    frames = read(clip).frames
    values = tokenizer.quantizer.project_in(tokenizer.encoder(pad(frames[None], (12, 40, 56)))[0].features)
    differ = codes_to_signs(stored.codes, 10) != values.sign()
    assert values[differ].abs().lt(1e-5).all() and differ.float().mean() < 0.01
    expected = tokenizer.decode(stored)[0]
    brightness = torch.stack([again.frames.float().mean(1).flatten(), expected.mean(1).flatten()])
    assert torch.corrcoef(brightness)[0, 1] > 0.7  # the codec is lossy, and the video is like noise


class TestCompare:
    def test_video_and_png(self, clip, folder, encoded, tmp_path):
        (row,) = run("decode", encoded, "--compare", clip, "--out", tmp_path / "a.mp4")["done"]
        # 6 x 24 x 34 pixels are 3 x 3 x 5 cells of 2 x 8 x 8, with 10 bits each.
        assert row["bits_per_pixel"] == pytest.approx(3 * 3 * 5 * 10 / (6 * 24 * 34))
        frames = read(clip, fps=5, size=24).frames
        tokenizer = load_tokenizer(folder, device="cpu")
        decoded = (tokenizer.decode(tokenizer.encode(frames))[0] * 255).round()
        error = ((decoded - frames.float()) / 255).square().mean((1, 2, 3))
        assert row["psnr_db"] == pytest.approx(float((-10 * error.log10()).mean()), abs=1e-3)
        drawn = read(tmp_path / "a.mp4")
        assert len(drawn) == 6 and drawn.fps == 5 and drawn.size[1] > 3 * 256
        (row,) = run("decode", encoded, "--compare", clip, "--out", tmp_path / "a.png")["done"]
        assert Image.open(tmp_path / "a.png").size[0] > 6 * 128

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"size": (40, 40)}, "frames of 24x24, but"),
            ({"frames": 7}, "has 4 frames, but"),
            ({"frames": 23}, "has more than the 6 frames that"),
        ],
    )
    def test_another_video(self, encoded, tmp_path, changes, message):
        video = synthetic("pan", **({"frames": 11, "size": (40, 56)} | changes))
        other = write(tmp_path / "other.mp4", video.frames, 10)
        out = tmp_path / "a.mp4"
        line = error_line(quick("decode", encoded, "--compare", other, "--out", out, "--device", "cpu", code=2))
        assert message in line and "other.mp4" in line
        assert not out.exists()

    def test_refusals(self, clip, encoded, tmp_path):
        for out in (tmp_path, tmp_path / "a.jpg"):
            line = error_line(quick("decode", encoded, "--compare", clip, "--out", out, code=2))
            assert "--compare writes one .png or video" in line
        assert "would be overwritten" in error_line(quick("decode", encoded, "--compare", clip, "--out", clip, code=2))


def test_the_source_is_never_overwritten(folder, tmp_path):
    videos, codes = tmp_path / "videos", tmp_path / "codes"
    for name in ("a", "b"):
        write(videos / f"{name}.mp4", synthetic("pan", frames=3, size=(16, 24)).frames, 5)
    before = {path.name: path.read_bytes() for path in videos.iterdir()}
    run("encode", *sorted(videos.iterdir()), "--tokenizer", folder, "--out", codes)
    quick(
        "tokenize", videos / "a.mp4", "--with", "uniform(keep=0.5)", "--size", 32, "--out", tmp_path / "a.safetensors"
    )
    for words, code in (
        (("decode", codes / "a.safetensors", "--device", "cpu", "--out", videos / "a.mp4"), 2),
        (("decode", codes / "a.safetensors", codes / "b.safetensors", "--device", "cpu", "--out", videos), 1),
        (("show", tmp_path / "a.safetensors", "--out", videos / "a.mp4"), 2),
        (("show", codes / "a.safetensors", "--out", videos / "a.mp4"), 2),
        (("show", videos / "a.mp4", "--tokenizer", SPEC, "--out", videos / "a.mp4"), 2),
    ):
        assert "would be overwritten" in " ".join(quick(*words, code=code).stderr.split())
    assert {name: (videos / name).read_bytes() for name in before} == before


def test_random_parameters_are_reported_and_found_again(clip, tmp_path):
    out = tmp_path / "clip.safetensors"
    done = quick("encode", clip, "--tokenizer", SPEC, "--frames", 4, "--size", 16, "--out", out, "--device", "cpu")
    assert "has random weights" in done.stderr
    assert read_header(out)["tokenizer"]["origin"] == {"name": SPEC, "tiny": False, "seed": 0}
    quick("decode", out, "--out", tmp_path / "a.mp4", "--device", "cpu")
    assert read(tmp_path / "a.mp4").frames.shape == (4, 3, 16, 22)


def test_fps_and_the_whole_video(clip, tmp_path):
    whole = "tubelet_transformer(16, stride=(2, 8, 8), layers=(('full', 1),), heads=2) > tubelet(stride=(2, 8, 8))"
    out = tmp_path / "a.safetensors"
    (row,) = run("encode", clip, "--tokenizer", whole, "--half", "--fps", 5, "--out", out)["done"]
    assert row["frames"] == 6 and read_header(out)["fps"] == 5
    assert row["bytes"] == row["tokens"] * 16 * 2


def test_a_folder_of_images_and_videos_with_a_tar(clip, folder, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (33, 47, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.one.png")
    words = ("encode", clip, tmp_path / "photo.one.png", "--tokenizer", folder, "--out", tmp_path / "codes")
    rows = run(*words, "--wds", tmp_path / "codes.tar")["done"]
    assert [row["frames"] for row in rows] == [11, 1]
    with tarfile.open(tmp_path / "codes.tar") as tar:
        assert sorted(tar.getnames()) == ["clip.json", "clip.npy", "photo_one.json", "photo_one.npy"]
    assert all(row["skipped"] for row in run(*words)["done"])
    done = run("decode", *(row["out"] for row in rows), "--out", tmp_path / "decoded")["done"]
    assert [Path(row["out"]).name for row in done] == ["clip.mp4", "photo.one.png"]
    decoded = torch.from_numpy(np.array(Image.open(tmp_path / "decoded" / "photo.one.png")))
    tokenizer = load_tokenizer(folder, device="cpu")
    expected = tokenizer.decode(tokenizer.encode(torch.from_numpy(pixels).permute(2, 0, 1)))[0, 0]
    assert (decoded.permute(2, 0, 1) - 255 * expected).abs().max() <= 0.51  # rounded to bytes


def test_names_that_differ_in_a_dot_are_distinct_in_a_tar(folder, tmp_path):
    images = [tmp_path / "a.b.png", tmp_path / "a_b.png"]
    for image in images:
        Image.new("RGB", (32, 32)).save(image)
    run("encode", *images, "--tokenizer", folder, "--out", tmp_path / "codes", "--wds", tmp_path / "codes.tar")
    with tarfile.open(tmp_path / "codes.tar") as tar:
        assert len(set(tar.getnames())) == 4


def test_failures_of_one_of_several(clip, folder, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    done = quick(
        "encode", broken, clip, "--tokenizer", folder, "--out", tmp_path / "codes", "--device", "cpu", "--json", code=1
    )
    report = json.loads(done.stdout)
    assert len(report["done"]) == 1 and report["failed"][0]["video"] == str(broken)
    assert json.loads((tmp_path / "codes" / "failed.jsonl").read_text())["video"] == str(broken)
    other = tmp_path / "codes" / "other.safetensors"
    other.write_bytes(b"")
    done = quick(
        "decode", other, report["done"][0]["out"], "--out", tmp_path / "d", "--device", "cpu", "--json", code=1
    )
    assert json.loads(done.stdout)["failed"][0]["file"] == str(other)


class TestErrors:
    def test_existing_results(self, clip, folder, encoded):
        words = ("encode", clip, "--tokenizer", folder, "--out", encoded, "--device", "cpu")
        line = error_line(quick(*words, "--frames", 5, code=2))
        assert "made with other settings: frames (null, now 5)" in line
        assert "skipped" in quick(*words, "--size", 24, "--fps", 5).stderr

    def test_options_without_effect(self, clip, folder, tmp_path):
        words = ("encode", clip, "--tokenizer", folder, "--out", tmp_path / "a.safetensors", "--device", "cpu")
        assert "half has no effect" in error_line(quick(*words, "--half", code=2))
        assert not list(tmp_path.iterdir())

    def test_a_tokenizer_of_another_signal_is_refused_before_it_is_built(self, clip, tmp_path, monkeypatch):
        saved = create_tokenizer("wavtokenizer", tiny=True).save_pretrained(tmp_path / "audio")
        monkeypatch.setattr("fewtokens.tokenizers.load.open_tokenizer", None)
        for name in ("wavtokenizer", saved):
            line = error_line(quick("encode", clip, "--tokenizer", name, "--out", tmp_path / "a.safetensors", code=2))
            assert "encodes audio, not videos" in line

    def test_other_weights(self, encoded, tmp_path):
        other = Tokenizer.from_spec(SPEC).save_pretrained(tmp_path / "other")
        words = ("decode", encoded, "--tokenizer", other, "--out", tmp_path / "a.mp4", "--device", "cpu")
        assert "encoded with other weights" in error_line(quick(*words, code=2))
        assert "encoded by another tokenizer" in error_line(
            quick(*words[:3], SPEC.replace("10", "9"), *words[4:], code=2)
        )

    def test_a_tokenizer_that_has_moved(self, clip, folder, tmp_path):
        moved, out = tmp_path / "moved", tmp_path / "a.safetensors"
        Tokenizer.from_spec(SPEC).save_pretrained(tmp_path / "here")
        quick("encode", clip, "--tokenizer", tmp_path / "here", "--frames", 2, "--out", out, "--device", "cpu")
        (tmp_path / "here").rename(moved)
        words = ("decode", out, "--out", tmp_path / "a.mp4", "--device", "cpu")
        assert "if it has moved, give its folder as --tokenizer" in error_line(quick(*words, code=2))
        quick(*words, "--tokenizer", moved)

    def test_files_of_another_kind(self, clip, encoded, tmp_path):
        tokens = tmp_path / "tokens.safetensors"
        quick("tokenize", clip, "--frames", 2, "--size", 32, "--with", "", "--out", tokens)
        line = error_line(quick("decode", tokens, "--out", tmp_path / "a.mp4", code=2))
        assert "contains tokens, not encoded video" in line
        assert "no such file" in error_line(quick("decode", tmp_path / "b", "--out", tmp_path / "a.mp4", code=2))
        line = error_line(quick("decode", encoded, "--out", tmp_path / "a.png", "--device", "cpu", code=2))
        assert "has 6 frames; --out must be a video" in line
        line = error_line(quick("decode", encoded, encoded.parent / "x", "--out", tmp_path / "a.mp4", code=2))
        assert "2 files cannot be decoded into one file" in line


def test_a_job_writes_the_files_of_the_plain_command(clip, folder, tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (clips / name).write_bytes(clip.read_bytes())
    (clips / "c.mp4").write_text("no video", encoding="utf-8")
    words = ("--tokenizer", folder, "--fps", 5, "--packed", "--device", "cpu")
    quick("encode", clips / "a.mp4", clips / "b.mp4", *words, "--out", tmp_path / "plain")
    job = ("encode", clips, *words, "--workers", 1, "--out", tmp_path / "job", "--json")
    report = json.loads(quick(*job, code=1).stdout)
    assert (report["videos"], report["new"], len(report["failed"])) == (2, 3, 1)
    plain, written = contents(tmp_path / "plain"), contents(tmp_path / "job")
    assert len(plain) == 2 and plain == {name: written[name] for name in written if name.endswith(".safetensors")}
    header = read_header(tmp_path / "job/a.safetensors")
    row = json.loads((tmp_path / "job/manifest/000000.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert row["tokens"] == header["total_tokens"] and row["bytes"] == clip.stat().st_size
    assert json.loads(quick(*job, code=1).stdout)["new"] == 0  # nothing is done twice
    other = [word for word in job if word != "--packed"]
    assert "other settings: packed (true, now false)" in error_line(quick(*other, code=2))
    assert "no such option: --format" in error_line(quick(*job, "--format", "parquet", code=2))
