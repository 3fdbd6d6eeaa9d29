"""Damaged, concatenated, headless, rotated, transparent and animated files: every way of reading agrees."""

from __future__ import annotations

import gc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from fewtokens.core import files
from fewtokens.video import Video, VideoError, read, stream, write
from fewtokens.video.decode import every_frame
from fewtokens.video.images import load_image
from fewtokens.video.scale import Scaler
from tests.video.makers import make_video, moving_frames, numbered_frames


def read_in_chunks(path: Path, chunk: int = 7, **options) -> Video:
    parts = list(stream(path, chunk=chunk, **options))
    return Video(torch.cat([p.frames for p in parts]), torch.cat([p.times for p in parts]), parts[-1].duration)


def equal(a: Video, b: Video) -> bool:
    return torch.equal(a.frames, b.frames) and torch.equal(a.times, b.times) and a.duration == b.duration


FORMATS = {
    "a.mp4": {"gop": 12, "options": {"bf": "3"}},
    "a.mkv": {"gop": 12, "options": {"bf": "2", "x264-params": "open-gop=1"}},
    "a.ts": {"gop": 12, "options": {"bf": "3"}},
    "a.flv": {"gop": 12},
    "b.avi": {"codec": "mpeg4", "gop": 12, "options": {"bf": "2"}},
    "a.mpg": {"codec": "mpeg2video", "gop": 10, "fps": 25},
    "b.ts": {"codec": "mpeg2video", "gop": 10, "fps": 25},
    "a.webm": {"codec": "libvpx-vp9", "gop": 12, "options": {"cpu-used": "8", "deadline": "realtime"}},
    "b.mov": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "a.h264": {"gop": 12},
    "a.gif": {"codec": "gif", "pixels": "rgb8"},
}


@pytest.fixture(scope="module")
def files_by_name(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("formats")
    paths = {name: make_video(folder / name, moving_frames(40), **options) for name, options in FORMATS.items()}
    data = paths["a.ts"].read_bytes()
    paths["concatenated.ts"], paths["middle.ts"] = folder / "concatenated.ts", folder / "middle.ts"
    paths["concatenated.ts"].write_bytes(data + data)
    paths["middle.ts"].write_bytes(data[188 * (len(data) // 188 // 5) :])
    return paths


class TestConsistency:
    @pytest.mark.parametrize("name", [*FORMATS, "concatenated.ts", "middle.ts"])
    def test_chunks_and_parts_equal_the_full_video(self, files_by_name, name):
        full = read(files_by_name[name])
        assert len(full) == {"concatenated.ts": 80}.get(name, len(full)) >= 20
        assert float(full.times[0]) == 0
        assert bool((full.times[1:] > full.times[:-1]).all())
        for options in ({}, {"start": 0.9, "end": 1.4}, {"fps": 3.0, "start": 0.7}, {"start": 1.1}):
            part = read(files_by_name[name], **options)
            assert equal(part, read_in_chunks(files_by_name[name], **options)), options
            indices = [int((full.times == t).nonzero()) for t in part.times]
            assert torch.equal(full.frames[indices], part.frames), options
        assert len(read(files_by_name[name], start=0.9, end=1.4)) > 3

    def test_concatenated_files_continue_at_the_median_step(self, files_by_name):
        steps = torch.diff(read(files_by_name["concatenated.ts"]).times)
        torch.testing.assert_close(steps, torch.full_like(steps, 0.1), atol=1e-6, rtol=0)

    def test_results_do_not_depend_on_the_number_of_threads(self, files_by_name):
        before = torch.get_num_threads()
        try:
            videos = [(torch.set_num_threads(n), read(files_by_name["a.mp4"]))[1] for n in (1, 3)]
        finally:
            torch.set_num_threads(before)
        assert equal(*videos)

    @pytest.mark.parametrize("threads", [1, 2, 4])
    @pytest.mark.parametrize("name", ["a.mp4", "b.avi"])
    def test_frames_equal_those_converted_sequentially(self, files_by_name, name, threads, monkeypatch):
        scaler = Scaler(20, name)
        frames = [scaler.frame(frame) for frame in every_frame(files_by_name[name], None)]
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        assert np.array_equal(read(files_by_name[name], size=20).frames, np.stack(frames))

    def test_an_error_during_conversion(self, files_by_name, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        convert, calls = Scaler.frame, []

        def fail(self, frame, out=None):
            calls.append(frame)
            if len(calls) == 5:
                raise VideoError("cannot convert")
            return convert(self, frame, out)

        monkeypatch.setattr(Scaler, "frame", fail)
        with pytest.raises(VideoError, match="cannot convert"):
            read(files_by_name["a.mp4"])

    @pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.webm", "b.avi", "a.mpg"])
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_reading_damaged_files_is_deterministic(self, files_by_name, tmp_path, name, seed):
        rng = np.random.default_rng(seed)
        data = bytearray(files_by_name[name].read_bytes())
        for offset in rng.integers(len(data) // 6, len(data) - 60, 1 + seed):
            data[offset : offset + 40] = rng.bytes(40)
        path = tmp_path / name
        path.write_bytes(data)

        def result(reader, **options):
            try:
                video = reader(path, **options)
            except VideoError as error:
                return " ".join(str(error).splitlines())
            return video.frames.numpy().tobytes(), video.times.tolist()

        for options in ({}, {"allow_truncated": True}, {"fps": 4.0, "start": 0.3, "allow_truncated": True}):
            results = [result(read, **options) for _ in range(4)] + [result(read_in_chunks, **options)]
            assert all(other == results[0] for other in results)

    def test_frames_after_the_damage_are_read(self, tmp_path):
        path = make_video(tmp_path / "a.mp4", moving_frames(75, 160, 96), gop=20)
        data = bytearray(path.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 400] = np.random.default_rng(0).bytes(400)
        path.write_bytes(data)
        with pytest.raises(VideoError, match="damaged"):
            read(path)
        video = read(path, allow_truncated=True)
        assert len(video) >= 65
        assert float(video.times[-1]) == pytest.approx(7.4)

    def test_an_invalid_segment_length(self, tmp_path):
        path = make_video(tmp_path / "a.mkv", numbered_frames(4))
        data = bytearray(path.read_bytes())
        data[data.find(b"\x18\x53\x80\x67") + 4] = 0
        path.write_bytes(data)
        assert len(read(path)) == 4


class TestTimes:
    @pytest.mark.parametrize("first", [7500, 0, -300])
    def test_the_duration_is_that_of_the_frames(self, tmp_path, first):
        times = [first + 100 * n for n in range(30)]
        video = read(make_video(tmp_path / "a.mkv", numbered_frames(30), times=times, options={"bf": "0"}))
        assert video.times.tolist() == pytest.approx([n / 10 for n in range(30)], abs=1e-3)
        assert video.duration == pytest.approx(3.0, abs=2e-3)
        assert video.fps == pytest.approx(10, rel=1e-3)

    def test_the_interval_is_that_of_the_selected_frames(self, tmp_path):
        path = make_video(tmp_path / "a.mp4", numbered_frames(60))
        assert read(path, fps=2, start=2, end=4).interval == pytest.approx(0.5)
        assert read(path).interval == pytest.approx(0.1)
        assert read(path, frames=1).interval == pytest.approx(0.1)
        assert [round(part.interval, 6) for part in stream(path, chunk=20)] == [0.1] * 3
        assert Video(torch.zeros(1, 3, 4, 4), torch.zeros(1)).interval is None

    def test_a_gap_of_years_takes_no_memory(self, tmp_path):
        path = make_video(
            tmp_path / "a.mkv", numbered_frames(4), times=[0, 100, 10**12, 10**12 + 100], options={"bf": "0"}
        )
        for video in (read(path, fps=2), read_in_chunks(path, fps=2)):
            assert len(video) == 3
            assert float(video.times[-1]) == pytest.approx(1e9, abs=1)


def set_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Writes a display matrix into the track header of an MP4."""
    data = bytearray(path.read_bytes())
    offset = data.find(b"tkhd") + 44
    matrix = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    data[offset : offset + 36] = np.array(matrix, ">i4").tobytes()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "matrix",
    [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1), (0, 1, 1, 0), (0, 1, -1, 0), (0, -1, 1, 0),
     (0, -1, -1, 0)],
)  # fmt: skip
def test_every_display_matrix(tmp_path, matrix):
    path = make_video(tmp_path / "a.mp4", moving_frames(2))
    stored = read(path).frames[0]
    a, b, c, d = matrix
    # A point (x, y) moves to (a x + c y, b x + d y); the image is shifted so that both are at least 0.
    y, x = np.mgrid[0:48, 0:64]
    columns, rows = a * x + c * y, b * x + d * y
    expected = torch.zeros(3, *((64, 48) if b else (48, 64)), dtype=torch.uint8)
    expected[:, rows - rows.min(), columns - columns.min()] = stored[:, y, x]
    assert torch.equal(read(set_display_matrix(path, *matrix)).frames[0], expected)
    assert read(path, size=24).size == ((32, 24) if b else (24, 32))


@pytest.mark.parametrize("codec", ["libvpx-vp9", "libvpx"])
def test_transparent_webm_is_composited_over_black(tmp_path, codec):
    image = np.full((48, 64, 4), 200, dtype=np.uint8)
    image[:, 32:, 3] = 0
    path = tmp_path / "a.webm"
    with av.open(str(path), "w") as out:
        track = out.add_stream(codec, rate=5)
        track.width, track.height, track.pix_fmt = 64, 48, "yuva420p"
        track.options = {"crf": "10", "b:v": "1M", "auto-alt-ref": "0"}
        track.metadata["alpha_mode"] = "1"
        for n in range(3):
            frame = av.VideoFrame.from_ndarray(image, format="rgba").reformat(format="yuva420p")
            frame.pts, frame.time_base = n, Fraction(1, 5)
            out.mux(track.encode(frame))
        out.mux(track.encode())
    video = read(path)
    assert len(video) == 3
    assert int(video.frames[..., 36:].max()) <= 2
    assert int(video.frames[..., :28].min()) > 140
    assert equal(video, read_in_chunks(path, 2))


class TestAnimations:
    @pytest.mark.parametrize(
        ("name", "options", "times"),
        [
            ("a.webp", {"duration": [100, 300, 50, 100], "lossless": True}, [0, 0.1, 0.4, 0.45]),
            ("a.png", {"duration": [100, 300, 50, 100]}, [0, 0.1, 0.4, 0.45]),
            ("a.tiff", {}, [0, 0.04, 0.08, 0.12]),
        ],
    )
    def test_all_frames_with_their_times(self, tmp_path, name, options, times):
        images = [Image.fromarray(frame) for frame in moving_frames(4)]
        path = tmp_path / name
        images[0].save(path, save_all=True, append_images=images[1:], **options)
        video = read(path)
        assert torch.equal(video.frames.permute(0, 2, 3, 1), torch.from_numpy(moving_frames(4)))
        assert video.times.tolist() == pytest.approx(times)
        assert video.duration == pytest.approx(times[-1] + (0.1 if options else 0.04))
        assert equal(video, read_in_chunks(path, 3))
        part = read(path, frames=2, size=24)
        assert (part.frames.shape, part.times.tolist()) == ((2, 3, 24, 32), pytest.approx([0, times[-1]]))

    def test_the_default_image_of_an_animation_is_not_a_frame(self, tmp_path):
        images = [Image.fromarray(frame) for frame in moving_frames(4)]
        images[0].save(tmp_path / "a.png", save_all=True, append_images=images[1:], default_image=True, duration=40)
        assert torch.equal(read(tmp_path / "a.png").frames.permute(0, 2, 3, 1), torch.from_numpy(moving_frames(4)[1:]))

    def test_streaming_a_folder(self, tmp_path):
        for n, frame in enumerate(moving_frames(5)):
            Image.fromarray(frame).save(tmp_path / f"{n}.png")
        assert equal(read(tmp_path), read_in_chunks(tmp_path, 2))

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_every_exif_orientation(self, tmp_path, orientation):
        image = Image.fromarray(moving_frames(1)[0])
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(tmp_path / "a.png", exif=exif)
        x = moving_frames(1)[0]
        expected = {
            1: x, 2: x[:, ::-1], 3: x[::-1, ::-1], 4: x[::-1], 5: x.transpose(1, 0, 2), 6: np.rot90(x, -1),
            7: x[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(x),
        }[orientation]  # fmt: skip
        assert np.array_equal(read(tmp_path / "a.png").frames[0].permute(1, 2, 0).numpy(), expected)


class TestFileNames:
    @pytest.mark.parametrize(
        "name", ["take: 2.mp4", "concat:x.mp4", "http://x.mp4".replace("/", "_"), "50%d.mp4", "é\udcff.mp4", "X.MP4"]
    )
    def test_round_trip(self, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        write(name, numbered_frames(3), 10)
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert len(read(name)) == len(read_in_chunks(Path(name))) == 3
        with pytest.raises(VideoError, match="no such file"):
            read("no" + name)

    def test_tokens_with_a_name_that_is_not_utf_8(self, tmp_path):
        path = files.save(tmp_path / "é\udcff.safetensors", "tokens", {"x": torch.arange(3)}, {"name": "é\udcff"})
        tensors, header = files.load(path, "tokens")
        assert (tensors["x"].tolist(), header["name"]) == ([0, 1, 2], "é\udcff")

    def test_names_with_unusual_digits(self, tmp_path):
        for name in ("1²2.png", "10.png", "9.png", "٣.png"):
            Image.new("RGB", (8, 8)).save(tmp_path / name)
        (tmp_path / "folder.png").mkdir()
        assert len(read(tmp_path)) == 4

    def test_a_playlist_is_not_followed(self, tmp_path):
        make_video(tmp_path / "a.mp4", numbered_frames(3))
        (tmp_path / "b.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/{tmp_path}/a.ts\n")
        with pytest.raises(VideoError):
            read(tmp_path / "b.mp4")


def test_frames_are_freed_without_the_garbage_collector(tmp_path):
    """Holes in damaged frames show previous contents of the decoder's memory, which must be deterministic."""
    path = make_video(tmp_path / "a.mp4", moving_frames(12))
    scaler = Scaler(None, "a.mp4")
    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(item, av.VideoFrame) for item in gc.get_objects())
        for frame in every_frame(path, None):
            scaler.frame(frame)
        del frame
        assert sum(isinstance(item, av.VideoFrame) for item in gc.get_objects()) == before + 1, (
            "only the first frame is kept"
        )
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0, 257, 65535]], np.uint16), [0, 1, 255]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[0.0, 200.0]], np.float32), None),
        (np.array([[-0.5, 1.0]], np.float32), None),
        (np.array([[0, 70000]], np.int32), None),
    ],
)
def test_images_of_more_than_8_bits(tmp_path, values, expected):
    """Floats are in 0..1, as everywhere here; other ranges are refused, not guessed."""
    Image.fromarray(values).save(tmp_path / "a.tiff")
    if expected is None:
        with pytest.raises(VideoError, match=r"a\.tiff: has (float|integer) values outside 0\.\."):
            load_image(tmp_path / "a.tiff", "a.tiff")
    else:
        assert load_image(tmp_path / "a.tiff", "a.tiff")[0, :, 0].tolist() == expected
