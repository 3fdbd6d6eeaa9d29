"""`read`, `stream` and `write`: exact frames and times from any file, or an error of one line."""

from __future__ import annotations

import shutil
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fewtokens.video import Video, VideoError, read, scale, stream, synthetic, write
from fewtokens.video.select import select_frames
from tests.helpers.data import data_path
from tests.video.makers import gray_levels, make_audio_only, make_video, moving_frames, numbered_frames


def close(actual: list[int], expected: list[int]) -> bool:
    return len(actual) == len(expected) and all(abs(a - b) <= 3 for a, b in zip(actual, expected, strict=True))


LEVELS = gray_levels(torch.from_numpy(numbered_frames(40).copy()).permute(0, 3, 1, 2))


class TestFrames:
    def test_all_frames(self, tmp_path):
        video = read(make_video(tmp_path / "a.mp4", numbered_frames(20)))
        assert close(gray_levels(video.frames), LEVELS[:20])
        torch.testing.assert_close(video.times, torch.arange(20, dtype=torch.float64) / 10)
        assert video.frames.dtype == torch.uint8
        assert (video.size, len(video), video.name) == ((48, 64), 20, "a.mp4")
        assert video.fps == pytest.approx(10)
        assert video.duration == pytest.approx(2.0, abs=0.15)
        assert video.source_size == (tmp_path / "a.mp4").stat().st_size

    def test_evenly_spaced_frames(self, tmp_path):
        video = read(make_video(tmp_path / "a.mp4", numbered_frames(20)), frames=5)
        indices = np.round(np.linspace(0, 19, 5)).astype(int)
        assert close(gray_levels(video.frames), [LEVELS[n] for n in indices])
        torch.testing.assert_close(video.times, torch.from_numpy(indices / 10))

    def test_more_frames_than_the_video_has(self, tmp_path):
        assert len(read(make_video(tmp_path / "a.mp4", numbered_frames(3)), frames=10)) == 3

    def test_frames_at_a_rate(self, tmp_path):
        video = read(make_video(tmp_path / "a.mp4", numbered_frames(20)), fps=4)
        assert video.times.tolist() == pytest.approx([0, 0.2, 0.5, 0.7, 1.0, 1.2, 1.5, 1.7])

    def test_a_higher_rate_returns_each_frame_once(self, tmp_path):
        assert len(read(make_video(tmp_path / "a.mp4", numbered_frames(5)), fps=100)) == 5

    def test_a_time_range(self, tmp_path):
        path = make_video(tmp_path / "a.mp4", numbered_frames(20))
        assert read(path, start=0.5, end=1.0).times.tolist() == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
        assert read(path, frames=2, start=1.0).times.tolist() == pytest.approx([1.0, 1.9])

    @given(st.integers(1, 500), st.integers(1, 60))
    def test_evenly_spaced_indices(self, available, requested):
        indices = select_frames(np.arange(available) / 25, requested, None, 0.0, None, "x")
        assert len(indices) == min(available, requested)
        assert (np.diff(indices) > 0).all()
        assert indices[0] == 0
        assert indices[-1] == (available - 1 if requested > 1 or available == 1 else 0)

    @pytest.mark.parametrize(
        "options",
        [
            {"gop": 250, "options": {"bf": "3"}},
            {"gop": 10, "options": {"bf": "2", "x264-params": "open-gop=1"}},
            {"gop": 5, "options": {"bf": "0"}},
            {"codec": "mpeg4", "gop": 20},
            {"codec": "libx265", "options": {"x265-params": "log-level=none:open-gop=1:keyint=15"}},
        ],
    )
    @pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts"])
    def test_selected_frames_equal_those_of_the_full_video(self, tmp_path, options, suffix):
        if suffix == ".avi" and options.get("codec") == "libx265":
            pytest.skip("no HEVC in AVI")
        path = make_video(tmp_path / f"a{suffix}", moving_frames(90), **options)
        full = read(path)
        assert len(full) == 90
        for n in (1, 2, 4, 13):
            part = read(path, frames=n)
            indices = [int((full.times == t).nonzero()) for t in part.times]
            assert torch.equal(full.frames[indices], part.frames)


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p"])
@pytest.mark.parametrize(
    ("size", "target"), [((64, 96), None), ((63, 96), None), ((64, 90), None), ((130, 210), 32), ((128, 96), (32, 80)),
                         ((96, 130), 60), ((64, 80), (64, 40)), ((64, 96), 130)]
)  # fmt: skip
def test_planar_conversion_equals_packed_conversion(pixel_format, size, target, monkeypatch):
    frame = av.VideoFrame(size[1], size[0], pixel_format)
    random = np.random.default_rng(0)
    for plane in frame.planes:
        plane.update(random.integers(0, 256, plane.buffer_size, dtype=np.uint8).tobytes())
    fast = scale.Scaler(target, "clip").frame(frame)
    monkeypatch.setattr(scale, "_PLANAR", frozenset())
    assert np.array_equal(fast, scale.Scaler(target, "clip").frame(frame))


class TestOddFiles:
    def test_variable_frame_rate(self, tmp_path):
        times = [0, 40, 100, 1000, 1040, 2500]
        video = read(make_video(tmp_path / "a.mkv", numbered_frames(6), times=times))
        assert video.times.tolist() == pytest.approx([t / 1000 for t in times], abs=1e-3)
        assert read(tmp_path / "a.mkv", fps=1).times.tolist() == pytest.approx([0, 1.0, 1.04], abs=1e-3)

    def test_times_start_at_zero(self, tmp_path):
        video = read(make_video(tmp_path / "a.mkv", numbered_frames(4), times=[700, 800, 900, 1000]))
        assert video.times.tolist() == pytest.approx([0, 0.1, 0.2, 0.3], abs=1e-3)

    def test_odd_sizes(self, tmp_path):
        path = make_video(tmp_path / "a.mkv", moving_frames(3, 63, 37), codec="ffv1", pixels="yuv444p")
        assert read(path).size == (37, 63)
        assert read(path, size=16).size == (16, 27)
        assert read(path, size=(10, 11)).size == (10, 11)

    def test_non_square_pixels(self, tmp_path):
        path = make_video(tmp_path / "a.mp4", moving_frames(2), aspect=Fraction(2, 1))
        assert read(path).size == (48, 128)
        assert read(path, size=24).size == (24, 64)

    @pytest.mark.parametrize("angle", [90, 180, -90])
    def test_rotation(self, tmp_path, angle):
        image = np.zeros((2, 48, 64, 3), dtype=np.uint8)
        image[:, :24, :32] = 250  # bright in the upper left corner of the stored image
        video = read(make_video(tmp_path / "a.mp4", image, rotation=angle))
        expected = np.rot90(image[0], angle // 90)
        assert video.size == expected.shape[:2]
        difference = video.frames[0].permute(1, 2, 0).int() - torch.from_numpy(expected.copy()).int()
        assert difference.abs().float().mean() < 6

    @pytest.mark.parametrize("pixels", ["yuv420p10le", "yuv444p12le", "gbrp10le"])
    def test_high_bit_depth(self, tmp_path, pixels):
        codec = "ffv1" if "gbr" in pixels or "12" in pixels else "libx265"
        options = {} if codec == "ffv1" else {"x265-params": "log-level=none"}
        video = read(make_video(tmp_path / "a.mkv", numbered_frames(4), codec=codec, pixels=pixels, options=options))
        assert close(gray_levels(video.frames), LEVELS[:4])

    def test_transparency_is_composited_over_black(self, tmp_path):
        import av

        path = tmp_path / "a.mkv"
        image = np.full((16, 16, 4), 200, dtype=np.uint8)
        image[:, 8:, 3] = 0
        with av.open(str(path), "w") as out:
            track = out.add_stream("ffv1", rate=5)
            track.width, track.height, track.pix_fmt = 16, 16, "bgra"
            out.mux(track.encode(av.VideoFrame.from_ndarray(image, format="rgba")))
            out.mux(track.encode())
        frame = read(path).frames[0]
        assert int(frame[:, :, 8:].max()) == 0
        assert int(frame[:, :, :8].max()) == pytest.approx(200 * 200 / 255, abs=2)

    def test_several_video_streams(self, tmp_path):
        import av

        path = tmp_path / "a.mkv"
        with av.open(str(path), "w") as out:
            tracks = []
            for side in (32, 64):
                track = out.add_stream("libx264", rate=5)
                track.width = track.height = side
                track.pix_fmt = "yuv420p"
                tracks.append(track)
            for track in tracks:
                image = np.full((track.height, track.width, 3), 90, dtype=np.uint8)
                for _ in range(3):
                    out.mux(track.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
                out.mux(track.encode())
        assert read(path, video_stream=0).size == (32, 32)
        assert read(path, video_stream=1).size == (64, 64)
        assert read(path).size in ((64, 64), (32, 32))
        with pytest.raises(VideoError, match=r"video_stream must be in 0\.\.1, got 2"):
            read(path, video_stream=2)

    def test_no_duration_and_no_frame_count(self, tmp_path):
        path = make_video(tmp_path / "a.h264", moving_frames(25))
        video = read(path, frames=4)
        assert len(video) == 4
        assert bool((video.times[1:] > video.times[:-1]).all())

    @pytest.mark.parametrize("fps", [8, 15, 24, 30, 40])
    def test_the_duration_of_a_gif(self, tmp_path, fps):
        """Durations are hundredths of a second, which do not add up if each is rounded alone."""
        times = read(write(tmp_path / "a.gif", numbered_frames(30), fps)).times
        assert len(times) == 30
        assert float(times[-1]) == pytest.approx(29 / fps, abs=0.011)

    def test_gif(self, tmp_path):
        path = write(tmp_path / "a.gif", numbered_frames(5), 10)
        video = read(path)
        assert close(gray_levels(video.frames), LEVELS[:5])
        assert video.times.tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])

    def test_audio_is_ignored(self, tmp_path):
        assert len(read(make_video(tmp_path / "a.mp4", numbered_frames(8), audio=True))) == 8

    def test_a_name_that_looks_like_a_protocol(self, tmp_path, monkeypatch):
        make_video(tmp_path / "a.mp4", numbered_frames(2))
        shutil.move(tmp_path / "a.mp4", tmp_path / "take:1 %d.mp4")
        monkeypatch.chdir(tmp_path)
        assert len(read(tmp_path / "take:1 %d.mp4")) == 2


class TestImagesAndArrays:
    def test_one_image(self, tmp_path):
        Image.fromarray(moving_frames(1)[0]).save(tmp_path / "a.png")
        video = read(tmp_path / "a.png")
        assert torch.equal(video.frames[0].permute(1, 2, 0), torch.from_numpy(moving_frames(1)[0]))
        assert video.times.tolist() == [0]
        assert read(tmp_path / "a.png", size=24).size == (24, 32)

    def test_image_modes(self, tmp_path):
        Image.fromarray((np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)).save(tmp_path / "deep.png")
        frame = read(tmp_path / "deep.png").frames[0]
        assert int(frame[0, 7, 7]) == round(63000 / 257)
        Image.new("RGBA", (4, 4), (255, 255, 255, 0)).save(tmp_path / "clear.png")
        assert int(read(tmp_path / "clear.png").frames.max()) == 0
        rotated = Image.fromarray(moving_frames(1)[0])
        exif = rotated.getexif()
        exif[0x0112] = 6
        rotated.save(tmp_path / "rotated.jpg", exif=exif)
        assert read(tmp_path / "rotated.jpg").size == (64, 48)

    def test_a_folder_in_natural_order(self, tmp_path):
        for n in (10, 9, 1, 2):
            Image.fromarray(np.full((8, 8, 3), n * 10, dtype=np.uint8)).save(tmp_path / f"im{n}.png")
        (tmp_path / "notes.txt").write_text("not an image")
        video = read(tmp_path)
        assert gray_levels(video.frames) == [10, 20, 90, 100]
        assert video.times.tolist() == pytest.approx([0, 0.04, 0.08, 0.12])
        assert gray_levels(read(tmp_path, frames=2).frames) == [10, 100]

    @pytest.mark.parametrize("layout", ["thwc", "tchw", "hwc"])
    @pytest.mark.parametrize("kind", ["uint8", "float"])
    def test_arrays(self, layout, kind):
        array = moving_frames(4) if layout != "hwc" else moving_frames(1)[0]
        array = array / 255.0 if kind == "float" else array
        array = array.transpose(0, 3, 1, 2) if layout == "tchw" else array
        video = read(array)
        expected = torch.from_numpy(moving_frames(1 if layout == "hwc" else 4)).permute(0, 3, 1, 2)
        assert torch.equal(video.frames, expected)
        assert torch.equal(read(torch.from_numpy(np.ascontiguousarray(array))).frames, expected)
        assert read(array, frames=1, size=12).frames.shape == (1, 3, 12, 16)

    def test_invalid_arrays(self):
        for array in (np.zeros((4, 4)), np.zeros((2, 4, 4, 2)), np.full((4, 4, 3), 7.0), np.zeros((0, 4, 4, 3))):
            with pytest.raises(VideoError, match="array"):
                read(array)
        with pytest.raises(VideoError, match="uint8"):
            read(np.zeros((4, 4, 3), dtype=np.int64))


class TestBadInput:
    @pytest.mark.parametrize(
        ("create", "message"),
        [
            (lambda p: p, "no such file"),
            (lambda p: p.write_bytes(b""), "empty"),
            (lambda p: p.write_text("hello " * 200), "cannot be opened as a video"),
            (lambda p: p.write_bytes(bytes(range(256)) * 40), "cannot be opened as a video"),
            (lambda p: make_audio_only(p), "only audio"),
            (lambda p: p.mkdir(), "without images"),
        ],
    )
    def test_errors_are_one_line(self, tmp_path, create, message):
        path = tmp_path / "a.mp4"
        create(path)
        with pytest.raises(VideoError, match=message) as caught:
            read(path, frames=4)
        assert "\n" not in str(caught.value)
        assert "a.mp4" in str(caught.value)

    def test_a_stream_without_frames(self, tmp_path):
        path = make_video(tmp_path / "a.avi", moving_frames(3), codec="mpeg4")
        data = path.read_bytes()
        # Frame chunks are renamed, so that the header declares a video without frames.
        path.write_bytes(data.replace(b"00dc", b"JUNK"))
        with pytest.raises(VideoError, match=r"no frames|none|cannot be opened") as caught:
            read(path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
    def test_truncated_files(self, tmp_path, suffix):
        extra = {"movflags": "faststart"} if suffix == ".mp4" else {}
        path = make_video(tmp_path / f"a{suffix}", moving_frames(60), container=extra)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
        with pytest.raises(VideoError, match=r"only \d+ of \d+ frames can be decoded.*--allow-truncated") as caught:
            read(path, frames=2)
        count = int(str(caught.value).split("only ")[1].split()[0])
        assert 5 < count < 60
        video = read(path, allow_truncated=True)
        assert len(video) == count
        assert len(read(path, frames=4, allow_truncated=True)) == 4
        assert sum(len(part) for part in stream(path, chunk=7, allow_truncated=True)) == count
        with pytest.raises(VideoError, match="only"):
            next(stream(path))

    def test_a_truncated_file_without_its_index(self, tmp_path):
        path = make_video(tmp_path / "a.mp4", moving_frames(60))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(VideoError, match=r"cannot|cut short"):
            read(path, allow_truncated=True)

    def test_damage_in_the_middle(self, tmp_path):
        path = make_video(tmp_path / "a.mkv", moving_frames(60), codec="ffv1", pixels="yuv420p")
        data = bytearray(path.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 4000] = b"\xff" * 4000
        path.write_bytes(data)
        with pytest.raises(VideoError, match=r"only \d+ of \d+ frames") as caught:
            read(path)
        count = int(str(caught.value).split("only ")[1].split()[0])
        assert len(read(path, allow_truncated=True)) == count < 60

    def test_a_huge_declared_size(self, tmp_path):
        path = tmp_path / "a.png"
        Image.new("L", (8, 8)).save(path)
        data = bytearray(path.read_bytes())
        data[16:24] = (90_000).to_bytes(4, "big") * 2
        import zlib

        data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
        path.write_bytes(data)
        with pytest.raises(VideoError, match=r"90000x90000|decompression bomb"):
            read(path)

    def test_too_large_requests(self, tmp_path, monkeypatch):
        path = make_video(tmp_path / "a.mp4", moving_frames(20))
        monkeypatch.setattr("fewtokens.video.select.MAX_BYTES", 20_000)
        with pytest.raises(VideoError, match="GiB"):
            read(path)

    @pytest.mark.parametrize(
        "options",
        [
            {"frames": 0},
            {"fps": 0},
            {"fps": -1.0},
            {"frames": 2, "fps": 2},
            {"size": 0},
            {"size": (0, 4)},
            {"start": -1.0},
            {"start": 2.0, "end": 1.0},
            {"start": 99.0},
        ],
    )
    def test_invalid_requests(self, tmp_path, options):
        path = make_video(tmp_path / "a.mp4", numbered_frames(5))
        with pytest.raises(ValueError, match=r"frames|fps|size|start|frame between"):
            read(path, **options)

    def test_damaged_images(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"")
        (tmp_path / "b.png").write_text("text")
        Image.fromarray(moving_frames(1)[0]).save(tmp_path / "c.png")
        (tmp_path / "c.png").write_bytes((tmp_path / "c.png").read_bytes()[:200])
        for name in "abc":
            with pytest.raises(VideoError, match=f"{name}.png"):
                read(tmp_path / f"{name}.png")


class TestStream:
    @pytest.mark.parametrize("chunk", [1, 7, 100])
    @pytest.mark.parametrize("options", [{}, {"fps": 3.0}, {"fps": 7.0, "start": 0.55}, {"start": 1.0, "end": 3.3}])
    def test_chunks_equal_the_full_video(self, tmp_path, chunk, options):
        path = make_video(tmp_path / "a.mp4", moving_frames(45), gop=10)
        full = read(path, size=24, **options)
        parts = list(stream(path, chunk=chunk, size=24, **options))
        assert all(len(part) == chunk for part in parts[:-1])
        assert torch.equal(torch.cat([part.times for part in parts]), full.times)
        assert torch.equal(torch.cat([part.frames for part in parts]), full.frames)

    def test_empty_and_invalid_requests(self, tmp_path):
        path = make_video(tmp_path / "a.mp4", numbered_frames(5))
        with pytest.raises(VideoError, match="no frame between"):
            list(stream(path, start=50))
        with pytest.raises(ValueError, match="chunk"):
            list(stream(path, chunk=0))
        with pytest.raises(VideoError, match="no such file"):
            list(stream(tmp_path / "no.mp4"))


class TestWrite:
    @pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.mkv"])
    def test_round_trip(self, tmp_path, name):
        frames = torch.from_numpy(numbered_frames(6, 64, 48).copy())
        video = read(write(tmp_path / name, frames, 10))
        assert close(gray_levels(video.frames), LEVELS[:6])
        assert [p.name for p in tmp_path.iterdir()] == [name]

    def test_layouts_and_odd_sizes(self, tmp_path):
        write(tmp_path / "a.mp4", torch.rand(3, 3, 21, 33), 5)
        assert read(tmp_path / "a.mp4").size == (22, 34)

    def test_invalid_writes(self, tmp_path):
        for frames, fps, name in (
            (torch.zeros(2, 3, 8, 8), 5, "a.xyz"),
            (torch.zeros(0, 3, 8, 8), 5, "a.mp4"),
            (torch.zeros(2, 8, 8), 5, "a.mp4"),
            (torch.zeros(2, 3, 8, 8), 0, "a.mp4"),
        ):
            with pytest.raises(ValueError, match=r"suffix must|frames must|fps must"):
                write(tmp_path / name, frames, fps)
        assert list(tmp_path.iterdir()) == []


class TestSynthetic:
    @pytest.mark.parametrize("kind", ["shapes", "digits", "glyphs", "static", "pan", "cuts", "noise"])
    def test_a_seed_determines_the_clip(self, kind):
        a = synthetic(kind, frames=5, size=(40, 56), seed=3)
        b = synthetic(kind, frames=5, size=(40, 56), seed=3)
        assert a.frames.shape == (5, 3, 40, 56)
        assert torch.equal(a.frames, b.frames)
        assert not torch.equal(a.frames, synthetic(kind, frames=5, size=(40, 56), seed=4).frames)
        assert a.times.tolist() == [0, 0.125, 0.25, 0.375, 0.5]
        assert synthetic(kind, frames=1, size=(9, 7)).frames.shape == (1, 3, 9, 7)

    def test_motion_of_each_kind(self):
        static = synthetic("static", frames=6).frames.float()
        changed = (static[1:] - static[:-1]).abs().amax(1) > 0
        assert 0 < changed.float().mean() < 0.2
        pan = synthetic("pan", frames=6).frames.float()
        assert ((pan[1:] - pan[:-1]).abs().amax(1) > 0).float().mean() > 0.5
        cuts = synthetic("cuts", frames=8).frames
        assert [torch.equal(cuts[n], cuts[n + 1]) for n in range(7)] == [True, False] * 3 + [True]

    def test_invalid_clips(self):
        for arguments in ({"kind": "clouds"}, {"kind": "pan", "frames": 0}, {"kind": "pan", "size": (0, 5)}):
            with pytest.raises(ValueError, match=r"kind must be one of|above 0"):
                synthetic(**arguments)


@pytest.mark.parametrize(
    "name",
    [
        "01_dog.mp4",
        "cutie_example.mp4",
        "mmaction_demo.mp4",
        "mmaction_test.avi",
        "nasa_13013.mp4",
        "sample_demo_3.mp4",
    ],
)
def test_real_clips(name):
    path = data_path("clips", name)
    full, part = read(path, size=64), read(path, frames=9, size=64)
    indices = [int((full.times == t).nonzero()) for t in part.times]
    assert torch.equal(full.frames[indices], part.frames)
    assert bool((full.times[1:] > full.times[:-1]).all())
    assert full.times[-1] == pytest.approx(full.duration, abs=0.2)


def test_properties_of_a_video():
    video = Video(torch.zeros(2, 3, 4, 5, dtype=torch.uint8), torch.zeros(2))
    assert (len(video), video.size, video.name) == (2, (4, 5), "array")
