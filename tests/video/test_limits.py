"""What is too large, or no number at all, is refused before memory is taken; and what scaling does to pixels."""

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
from fewtokens.video.images import load_picture
from fewtokens.video.select import MAX_PIXELS, choose
from tests.video.makers import make_video, moving_frames, numbered_frames


class TestLimits:
    def test_a_thin_picture_grows_no_further_than_others(self, tmp_path):
        Image.new("RGB", (1, 20_000)).save(tmp_path / "thin.png")
        assert read(tmp_path / "thin.png").size == (20_000, 1)
        assert read(tmp_path / "thin.png", size=(8, 8)).size == (8, 8)
        for source in (tmp_path / "thin.png", tmp_path, np.zeros((20_000, 1, 3), dtype=np.uint8)):
            with pytest.raises(VideoError, match="becomes 224x4480000 at this size"):
                read(source, size=224)

    def test_a_small_file_of_a_large_picture(self, tmp_path):
        side = int(MAX_PIXELS**0.5) + 1
        rows = zlib.compress(bytes((side // 8 + 2) * side), 9)

        def piece(kind: bytes, body: bytes) -> bytes:
            return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

        header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
        data = b"\x89PNG\r\n\x1a\n" + piece(b"IHDR", header) + piece(b"IDAT", rows) + piece(b"IEND", b"")
        (tmp_path / "a.png").write_bytes(data)
        for call in (
            lambda: read(tmp_path / "a.png", size=8),
            lambda: read(tmp_path, frames=1, size=8),
            lambda: next(stream(tmp_path / "a.png", size=8)),
            lambda: load_picture(io.BytesIO(data), "in.tar::a.png"),
        ):
            with pytest.raises(VideoError, match=r"a\.png: .*more than"):
                call()

    def test_a_chunk_is_counted_too(self, tmp_path, monkeypatch):
        path = make_video(tmp_path / "a.mp4", moving_frames(20))
        monkeypatch.setattr("fewtokens.video.select.MAX_BYTES", 48 * 64 * 3 * 10)
        assert sum(len(part) for part in stream(path, chunk=10)) == 20
        with pytest.raises(VideoError, match="20 frames of 64x48"):
            next(stream(path, chunk=1000))
        with pytest.raises(VideoError, match="11 frames of 64x48"):
            read(path, pick=lambda times: np.zeros(11, dtype=np.int64))

    @pytest.mark.parametrize(
        "wrong",
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
    def test_what_is_no_number_of_a_video(self, tmp_path, wrong):
        path = make_video(tmp_path / "a.mp4", numbered_frames(5))
        with pytest.raises(ValueError, match=r"frames|fps|size|start|pick"):
            read(path, **wrong)
        for source in (path, tmp_path / "a.png", np.zeros((3, 4, 4, 3), dtype=np.uint8)):
            Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
            with pytest.raises(ValueError, match=r"frames|fps|size|start|pick"):
                read(source, **wrong)

    def test_whole_numbers_of_numpy_and_lists_will_do(self, tmp_path):
        path = make_video(tmp_path / "a.mp4", numbered_frames(5))
        assert read(path, frames=np.int64(2), size=[8, np.int32(9)], start=np.float32(0)).frames.shape == (2, 3, 8, 9)

    @pytest.mark.parametrize("fps", [0, 1e-9, 1e308, float("nan"), float("inf")])
    @pytest.mark.parametrize("name", ["a.mp4", "a.GIF"])
    def test_rates_that_are_not_written(self, tmp_path, fps, name):
        with pytest.raises(ValueError, match="fps must"):
            write(tmp_path / name, numbered_frames(2), fps)
        with pytest.raises(ValueError, match="quality"):
            write(tmp_path / name, numbered_frames(2), 5, quality=99)
        with pytest.raises(ValueError, match="uint8"):
            write(tmp_path / name, numbered_frames(2).astype(np.int64), 5)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("fps", [0.01, 29.97, 10_000])
    def test_rates_that_are(self, tmp_path, fps):
        assert read(write(tmp_path / "a.mkv", numbered_frames(2), fps)).frames.shape[0] == 2

    def test_a_codec_that_does_not_take_the_size(self, tmp_path):
        with pytest.raises(ValueError, match="libx264 does not take 40000x2"):
            write(tmp_path / "a.mp4", torch.zeros(1, 3, 2, 40_000), 5)
        assert list(tmp_path.iterdir()) == []


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=15),
    st.sampled_from([0.3, 1.0, 2.0, 7.0, 23.976, 60.0]),
    st.floats(0, 3),
)
def test_the_law_of_rates(steps, fps, start):
    """Against looking at every tick."""
    times = np.cumsum([0, *steps]) / 1000
    span = np.flatnonzero(times >= start - 1e-9)
    if not len(span):
        return
    seen, tick = set(), 0
    while times[span[0]] + tick / fps <= times[-1] + 1e-6 / fps:
        shown = span[times[span] <= times[span[0]] + tick / fps + 1e-6]
        seen.add(int(shown[-1]))
        tick += 1
    assert choose(times, None, fps, start, None, "x").tolist() == sorted(seen)


def by_area(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """The mean of the area that each pixel covers, in floats."""

    def shares(old: int, new: int) -> np.ndarray:
        left = np.arange(new)[:, None] * old / new
        pixel = np.arange(old)[None]
        return (np.minimum(left + old / new, pixel + 1) - np.maximum(left, pixel)).clip(0) * new / old

    down = np.tensordot(shares(picture.shape[0], height), picture.astype(float), 1)
    return np.tensordot(shares(picture.shape[1], width), down, (1, 1)).transpose(1, 0, 2)


class TestScaling:
    @pytest.mark.parametrize("size", [(56, 100), (25, 50), (90, 160)])
    def test_pictures_keep_their_brightness_by_every_way(self, tmp_path, size):
        soft = torch.rand(1, 3, 23, 40, generator=torch.Generator().manual_seed(0))
        picture = torch.nn.functional.interpolate(soft, (180, 320), mode="bicubic").clamp(0, 1)
        picture = (picture * 255).round().byte()[0].permute(1, 2, 0).numpy()
        film = make_video(tmp_path / "a.mkv", picture[None], codec="ffv1", pixels="yuv444p")
        Image.fromarray(picture).save(tmp_path / "a.png")
        expected = by_area(picture, *size)
        ways = {}
        for name, source, decibels in (("file", film, 46), ("image", tmp_path / "a.png", 50), ("array", picture, 50)):
            ways[name] = read(source, size=size).frames[0].permute(1, 2, 0).numpy()
            off = ways[name] - expected
            assert abs(off.mean()) < 0.3, name
            assert 10 * np.log10(255**2 / (off**2).mean()) > decibels, name
        assert np.array_equal(ways["image"], ways["array"])
        assert np.abs(ways["file"].astype(int) - ways["array"]).mean() < 1

    def test_what_keeps_its_size_keeps_its_pixels(self):
        assert np.array_equal(read(moving_frames(2)).frames.permute(0, 2, 3, 1).numpy(), moving_frames(2))
        grown = read(moving_frames(2), size=96).frames
        assert grown.shape == (2, 3, 96, 128)
        assert abs(float(grown.float().mean()) - moving_frames(2).mean()) < 1
