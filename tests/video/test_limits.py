"""Invalid or too large requests are rejected before memory is allocated; resizing is accurate."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fewtokens.video import VideoError, read, stream, write
from fewtokens.video.images import load_image
from fewtokens.video.select import MAX_PIXELS, select_frames
from tests.video.makers import make_video, moving_frames, numbered_frames


class TestLimits:
    def test_thin_images_have_the_same_size_limit(self, tmp_path):
        Image.new("RGB", (1, 20_000)).save(tmp_path / "thin.png")
        assert read(tmp_path / "thin.png").size == (20_000, 1)
        assert read(tmp_path / "thin.png", size=(8, 8)).size == (8, 8)
        for source in (tmp_path / "thin.png", tmp_path, np.zeros((20_000, 1, 3), dtype=np.uint8)):
            with pytest.raises(VideoError, match="becomes 224x4480000 at this size"):
                read(source, size=224)

    def test_a_small_file_that_declares_a_large_image(self, tmp_path):
        side = int(MAX_PIXELS**0.5) + 1
        rows = zlib.compress(bytes((side // 8 + 2) * side), 9)

        def png_chunk(kind: bytes, body: bytes) -> bytes:
            return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

        header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
        data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
        (tmp_path / "a.png").write_bytes(data)
        for call in (
            lambda: read(tmp_path / "a.png", size=8),
            lambda: read(tmp_path, frames=1, size=8),
            lambda: next(stream(tmp_path / "a.png", size=8)),
            lambda: load_image(io.BytesIO(data), "in.tar::a.png"),
        ):
            with pytest.raises(VideoError, match=r"a\.png: .*more than"):
                call()

    def test_the_size_limit_applies_to_chunks(self, tmp_path, monkeypatch):
        path = make_video(tmp_path / "a.mp4", moving_frames(20))
        monkeypatch.setattr("fewtokens.video.select.MAX_BYTES", 48 * 64 * 3 * 10)
        assert sum(len(part) for part in stream(path, chunk=10)) == 20
        with pytest.raises(VideoError, match="20 frames of 64x48"):
            next(stream(path, chunk=1000))
        with pytest.raises(VideoError, match="11 frames of 64x48"):
            read(path, pick=lambda times: np.zeros(11, dtype=np.int64))

    @pytest.mark.parametrize(
        "request_options",
        [
            {"fps": 1e308},
            {"fps": float("nan")},
            {"fps": float("inf")},
            {"fps": "2"},
            {"start": float("nan")},
            {"start": float("inf")},
            {"end": float("nan")},
            {"start": None},
            {"frames": 2.5},
            {"size": 2.5},
            {"size": (4,)},
            {"size": (4, 4, 4)},
            {"size": "224"},
            {"size": {}},
            {"pick": lambda times: np.array([99])},
            {"pick": lambda times: np.array([-1])},
        ],
    )
    def test_invalid_requests(self, tmp_path, request_options):
        path = make_video(tmp_path / "a.mp4", numbered_frames(5))
        with pytest.raises(ValueError, match=r"frames|fps|size|start|pick"):
            read(path, **request_options)
        for source in (path, tmp_path / "a.png", np.zeros((3, 4, 4, 3), dtype=np.uint8)):
            Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
            with pytest.raises(ValueError, match=r"frames|fps|size|start|pick"):
                read(source, **request_options)

    def test_numpy_integers_and_lists_are_accepted(self, tmp_path):
        path = make_video(tmp_path / "a.mp4", numbered_frames(5))
        assert read(path, frames=np.int64(2), size=[8, np.int32(9)], start=np.float32(0)).frames.shape == (2, 3, 8, 9)

    @pytest.mark.parametrize("fps", [0, 1e-9, 1e308, float("nan"), float("inf")])
    @pytest.mark.parametrize("name", ["a.mp4", "a.GIF"])
    def test_invalid_frame_rates_are_not_written(self, tmp_path, fps, name):
        with pytest.raises(ValueError, match="fps must"):
            write(tmp_path / name, numbered_frames(2), fps)
        with pytest.raises(ValueError, match="quality"):
            write(tmp_path / name, numbered_frames(2), 5, quality=99)
        with pytest.raises(ValueError, match="uint8"):
            write(tmp_path / name, numbered_frames(2).astype(np.int64), 5)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("fps", [0.01, 29.97, 10_000])
    def test_valid_frame_rates_are_written(self, tmp_path, fps):
        assert read(write(tmp_path / "a.mkv", numbered_frames(2), fps)).frames.shape[0] == 2

    def test_a_size_that_the_codec_does_not_support(self, tmp_path):
        with pytest.raises(ValueError, match="libx264 does not support 40000x2"):
            write(tmp_path / "a.mp4", torch.zeros(1, 3, 2, 40_000), 5)
        assert list(tmp_path.iterdir()) == []


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=15),
    st.sampled_from([0.3, 1.0, 2.0, 7.0, 23.976, 60.0]),
    st.floats(0, 3),
)
def test_sampling_at_a_rate(steps, fps, start):
    """Compared with enumerating every sampling time."""
    times = np.cumsum([0, *steps]) / 1000
    span = np.flatnonzero(times >= start - 1e-9)
    if not len(span):
        return
    selected, tick = set(), 0
    while times[span[0]] + tick / fps <= times[-1] + 1e-6 / fps:
        shown = span[times[span] <= times[span[0]] + tick / fps + 1e-6]
        selected.add(int(shown[-1]))
        tick += 1
    assert select_frames(times, None, fps, start, None, "x").tolist() == sorted(selected)


def resize_by_area(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Averages the area that each output pixel covers, in float64."""

    def overlaps(old: int, new: int) -> np.ndarray:
        left = np.arange(new)[:, None] * old / new
        pixel = np.arange(old)[None]
        return (np.minimum(left + old / new, pixel + 1) - np.maximum(left, pixel)).clip(0) * new / old

    rows = np.tensordot(overlaps(image.shape[0], height), image.astype(float), 1)
    return np.tensordot(overlaps(image.shape[1], width), rows, (1, 1)).transpose(1, 0, 2)


class TestScaling:
    @pytest.mark.parametrize("size", [(56, 100), (25, 50), (90, 160)])
    def test_resizing_preserves_brightness_for_every_source(self, tmp_path, size):
        coarse = torch.rand(1, 3, 23, 40, generator=torch.Generator().manual_seed(0))
        image = torch.nn.functional.interpolate(coarse, (180, 320), mode="bicubic").clamp(0, 1)
        image = (image * 255).round().byte()[0].permute(1, 2, 0).numpy()
        path = make_video(tmp_path / "a.mkv", image[None], codec="ffv1", pixels="yuv444p")
        Image.fromarray(image).save(tmp_path / "a.png")
        expected = resize_by_area(image, *size)
        results = {}
        for name, source, decibels in (("file", path, 46), ("image", tmp_path / "a.png", 50), ("array", image, 50)):
            results[name] = read(source, size=size).frames[0].permute(1, 2, 0).numpy()
            error = results[name] - expected
            assert abs(error.mean()) < 0.3, name
            assert 10 * np.log10(255**2 / (error**2).mean()) > decibels, name
        assert np.array_equal(results["image"], results["array"])
        assert np.abs(results["file"].astype(int) - results["array"]).mean() < 1

    def test_frames_that_are_not_resized_keep_their_pixels(self):
        assert np.array_equal(read(moving_frames(2)).frames.permute(0, 2, 3, 1).numpy(), moving_frames(2))
        enlarged = read(moving_frames(2), size=96).frames
        assert enlarged.shape == (2, 3, 96, 128)
        assert abs(float(enlarged.float().mean()) - moving_frames(2).mean()) < 1
