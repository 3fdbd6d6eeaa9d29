"""The sound of a video that is written: it starts where that of its source does."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from fewtokens.video import synthetic, write
from fewtokens.video.sound import Sound, has_sound
from tests.helpers.command import run

RATE = 44_100


def add_tone(path, seconds: float, onset: float) -> None:
    """Writes a video of 10 frames/s whose tone starts at `onset` seconds."""
    frames = synthetic("pan", frames=round(10 * seconds), size=(48, 64)).frames
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("libx264", rate=10), container.add_stream("aac", rate=RATE)
        video.height, video.width, video.pix_fmt, audio.layout = 48, 64, "yuv420p", "mono"
        for frame in frames:
            image = av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            container.mux(video.encode(image))
        container.mux(video.encode())
        time = np.arange(round(RATE * seconds)) / RATE
        samples = (np.sin(2 * np.pi * 440 * time) * (time >= onset)).astype(np.float32)[None]
        for start in range(0, samples.shape[1], 1024):
            part = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[:, start : start + 1024]), "fltp", "mono")
            part.sample_rate, part.pts, part.time_base = RATE, start, Fraction(1, RATE)
            container.mux(audio.encode(part))
        container.mux(audio.encode())


def onset_of(path) -> tuple[float, float]:
    """Seconds of the first loud sound, and of the end."""
    with av.open(str(path)) as container:
        frames = [(frame.time, frame.to_ndarray(), frame.sample_rate) for frame in container.decode(audio=0)]
    loud = [time + np.abs(x[0] > 0.3).argmax() / rate for time, x, rate in frames if x.max() > 0.3]
    return loud[0], frames[-1][0]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "tone.mp4"
    add_tone(path, 2, onset=1)
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_a_part_starts_where_it_did(source, tmp_path, suffix):
    frames = torch.zeros(12, 3, 16, 16, dtype=torch.uint8)
    onset, end = onset_of(write(tmp_path / f"a{suffix}", frames, 10, sound=Sound(source, 0.6, 1.2)))
    # A frame of AAC has 23 ms, one of Opus 20.
    assert onset == pytest.approx(0.4, abs=0.03) and end == pytest.approx(1.2, abs=0.05)


def test_what_has_no_sound(source, tmp_path):
    write(tmp_path / "mute.mp4", torch.zeros(2, 3, 16, 16, dtype=torch.uint8), 10)
    (tmp_path / "text.mp4").write_text("nothing", encoding="utf-8")
    assert has_sound(source)
    assert not any(map(has_sound, [tmp_path / "mute.mp4", tmp_path / "text.mp4", tmp_path, tmp_path / "absent"]))
    with pytest.raises(ValueError, match="a GIF has no sound"):
        write(tmp_path / "a.gif", torch.zeros(2, 3, 16, 16, dtype=torch.uint8), 10, sound=Sound(source, 0, 1))


def test_show_keeps_sound_and_size(source, tmp_path):
    one, two = tmp_path / "one.mp4", tmp_path / "two.mp4"
    words = ("show", source, "--size", 32, "--frames", 10, "--with", "tome(keep=0.2)")
    run(*words, "--out", one)
    run(*words, "--with", "evs(keep=0.2)", "--out", two)
    for path in (one, two):
        assert onset_of(path)[0] == pytest.approx(1, abs=0.05)
    with av.open(str(one)) as container:
        assert (container.streams.video[0].height, container.streams.video[0].width) == (48, 64)
