"""Codecs at a rate: sizes of streams, order of frames, the search for a rate."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from fewtokens.evaluation.reconstruction.codecs import at_bits, encode_jpeg, encode_video, yuv420
from fewtokens.evaluation.reconstruction.metrics import psnr
from tests.evaluation.reconstruction.scenes import moving_texture

CODECS = ["x264", "x265"]


def decibels(original: torch.Tensor, reconstruction: torch.Tensor) -> float:
    return float(psnr(original[None], reconstruction[None]))


def clip(**sizes: int) -> torch.Tensor:
    """A moving texture with 8 bits."""
    return (moving_texture(**sizes) * 255).round() / 255


@pytest.mark.parametrize("codec", CODECS)
def test_frames_come_back_in_order_with_the_size_of_the_original(codec):
    frames = clip(frames=7, height=45, width=63)
    coded = encode_video(frames, codec, crf=10)
    assert coded.frames.shape == frames.shape and coded.frames.dtype == torch.float32
    errors = (coded.frames[:, None] - frames[None]).square().mean((2, 3, 4))
    assert errors.argmin(1).tolist() == list(range(7))  # B-frames are coded in another order
    assert decibels(frames, coded.frames) > 30
    assert coded.bits_per_pixel == coded.bits / (7 * 45 * 63)
    assert coded.name == f"{codec}(crf=10)" and coded.settings["chroma"] == "4:2:0"


@pytest.mark.parametrize("codec", CODECS)
def test_the_bits_are_those_of_a_file_without_its_headers(codec, tmp_path):
    """FFmpeg's muxer of raw streams as reference, and its bitstream filter that drops units by type."""
    frames = clip()
    coded = encode_video(frames, codec, crf=30)
    path = tmp_path / "clip.raw"
    name, form = {"x264": ("libx264", "h264"), "x265": ("libx265", "hevc")}[codec]
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(name, rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "30", "preset": "slow"}
        if codec == "x265":
            stream.options |= {"x265-params": "log-level=none:info=0:pools=none:frame-threads=1"}
        for index, image in enumerate((frames * 255).byte().permute(0, 2, 3, 1).numpy()):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    # The muxer's time base changes the decisions of x265 by a byte.
    assert (coded.bits + coded.header_bits) / 8 == pytest.approx(path.stat().st_size, abs=2)
    kinds = {"x264": "6-9", "x265": "32-35|39-40"}[codec]
    with av.open(str(path), format=form) as container:
        drop = av.BitStreamFilterContext(f"filter_units=remove_types={kinds}", container.streams.video[0])
        kept = sum(out.size for packet in container.demux() for out in drop.filter(packet))
    # The filter writes every start code with 3 or 4 bytes, as it likes.
    assert coded.bits / 8 == pytest.approx(kept, abs=len(frames) + 2)
    assert coded.header_bits > 8 * 40


def test_the_settings_of_x264_are_in_the_header_not_in_the_bits():
    frames = clip(height=16, width=16)
    coded = encode_video(frames, crf=51)
    assert coded.header_bits > 8 * 500  # SEI with the text of all settings
    assert coded.bits < 8 * 300


@pytest.mark.parametrize("codec", [*CODECS, "jpeg"])
def test_a_search_finds_the_closest_rate_not_above(codec):
    frames = clip(frames=5)
    pixels = frames.shape[0] * 64 * 64
    quality = []
    for bits in (0.4 * pixels, 0.6 * pixels, pixels):
        coded = at_bits(frames, bits, codec, preset="ultrafast")
        assert 0.7 * bits < coded.bits <= bits and not coded.above_target
        quality.append(decibels(frames, coded.frames))
    assert quality == sorted(quality) and quality[2] > quality[0] + 1
    assert at_bits(frames, 1e12, codec, preset="ultrafast").name in ("x264(crf=0)", "x265(crf=0)", "jpeg(quality=95)")
    low = at_bits(frames, 8, codec, preset="ultrafast")
    assert low.above_target and low.name in ("x264(crf=51)", "x265(crf=51)", "jpeg(quality=1)")


def test_the_search_equals_a_search_over_all_qualities():
    frames = clip(frames=1)
    rates = {quality: encode_jpeg(frames, quality).bits for quality in range(1, 96)}
    assert list(rates.values()) == sorted(rates.values())
    target = 7000
    best = max(quality for quality, bits in rates.items() if bits <= target)
    assert 1 < best < 95
    assert at_bits(frames, target, "jpeg").settings["quality"] == best
    whole = at_bits(frames, target, "jpeg", count_header=True)
    assert whole.bits + whole.header_bits <= target and whole.bits < rates[best]


def test_jpeg_as_pillow_writes_it():
    frames = clip(frames=2)
    coded = encode_jpeg(frames, 80)
    size = 0
    for index, image in enumerate((frames * 255).byte().permute(0, 2, 3, 1).numpy()):
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="JPEG", quality=80)
        size += len(file.getvalue())
        assert np.array_equal(np.asarray(Image.open(file)), (coded.frames[index].permute(1, 2, 0) * 255).round().byte())
    assert coded.bits + coded.header_bits == 8 * size
    assert 8 * 2 * 600 < coded.header_bits < 8 * 2 * 650  # standard tables


def test_chroma_at_half_resolution_is_the_limit_of_a_codec():
    generator = torch.Generator().manual_seed(0)
    gray = torch.rand(1, 1, 32, 32, generator=generator).expand(2, 3, -1, -1)
    # Limited range: 219 levels of brightness.
    assert decibels(gray, yuv420(gray)) > 45
    colors = torch.rand(2, 3, 33, 31, generator=generator)
    assert yuv420(colors).shape == colors.shape
    assert decibels(colors, yuv420(colors)) < 20
    frames = clip()
    assert decibels(frames, encode_video(frames, crf=1).frames) <= decibels(frames, yuv420(frames)) + 0.1


def test_bytes_and_floats_are_the_same_clip():
    frames = clip(frames=2)
    for codec in CODECS:
        coded, same = encode_video(frames, codec), encode_video((frames * 255).round().byte(), codec)
        assert torch.equal(coded.frames, same.frames) and coded.bits == same.bits


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: encode_video(x, "vp9"), "codec must be one of x264, x265, got 'vp9'"),
        (lambda x: encode_video(x, crf=52), "crf must be in 0..51"),
        (lambda x: encode_video(x, fps=0), "fps must be"),
        (lambda x: encode_video(x, preset="fastest"), "x264 does not encode 64x64 with preset 'fastest'"),
        (lambda x: encode_video(x[None]), r"frames must be \[T,3,H,W\]"),
        (lambda x: encode_video((x * 255).int()), "uint8, or float"),
        (lambda x: encode_video(x[:, :, :4, :4], "x265"), "x265 does not encode 4x4"),
        (lambda x: encode_jpeg(x, 96), "quality must be in 1..95"),
        (lambda x: at_bits(x, 0), "bits must be above 0"),
    ],
)
def test_bad_input(call, message, capfd):
    with pytest.raises(ValueError, match=message):
        call(clip(frames=2))
