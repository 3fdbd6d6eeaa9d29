"""Text and faces in reconstructions: distances by hand, fake recognizers, rendered text, real text and faces."""

from __future__ import annotations

import json
import string
from itertools import groupby

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewtokens.evaluation.reconstruction.codecs import encode_video
from fewtokens.evaluation.reconstruction.glyphs import GlyphReader, rendered_text
from fewtokens.evaluation.reconstruction.tokbench import (
    FACE_BINS,
    TEXT_BINS,
    Mark,
    Sample,
    face_scores,
    normalized_edit_distance,
    text_scores,
)
from fewtokens.video import read
from tests.helpers.data import data_path

WORDS = st.text("ab1 ", max_size=6)


def blur(factor: int):
    """A reconstruction that keeps a mean of every `factor` x `factor` pixels."""

    def reconstruct(frames: Tensor) -> Tensor:
        if factor == 1:
            return frames
        return F.interpolate(F.avg_pool2d(frames, factor, ceil_mode=True), size=frames.shape[-2:], mode="bilinear")

    return reconstruct


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("kitten", "sitting", 3 / 7),
        ("", "", 0),
        ("", "abc", 1),
        ("Stop", "stop", 1 / 4),
        ("ab", "ba", 1),
        ("a", "a", 0),
    ],
)
def test_edit_distance(a, b, expected):
    assert normalized_edit_distance(a, b) == pytest.approx(expected)


@settings(max_examples=50)
@given(WORDS, WORDS, WORDS)
def test_edit_distance_is_a_distance(a, b, c):
    def distance(x: str, y: str) -> float:
        return normalized_edit_distance(x, y) * max(len(x), len(y))

    assert normalized_edit_distance(a, b) == normalized_edit_distance(b, a)
    assert 0 <= normalized_edit_distance(a, b) <= 1
    assert (normalized_edit_distance(a, b) == 0) == (a == b)
    assert distance(a, c) <= distance(a, b) + distance(b, c) + 1e-9


def test_bins_are_those_of_the_benchmark():
    assert TEXT_BINS == {256: (0.02, 0.03, 0.04, 1), 512: (0.01, 0.02, 0.03, 1), 1024: (0.005, 0.01, 0.02, 1)}
    assert FACE_BINS == {256: (0.1, 0.2, 0.3, 1), 512: (0.05, 0.1, 0.2, 1), 1024: (0.02, 0.05, 0.1, 1)}


def sample(*ratios: float, frames: int = 1, frame: int | None = None) -> Sample:
    box = (0, 0, 8, 8)
    return Sample(torch.zeros(frames, 3, 256, 256), tuple(Mark(box, f"{r}", frame, r) for r in ratios))


def test_the_mean_is_over_bins_not_over_texts():
    # Only the text "0.02" is read: 1 of 1 in its bin, 1 of 3 in the next, none of 1.
    items = [("0.02", 0.02), ("0.02", 0.03), ("0.99", 0.035), ("0.99", 0.0399), ("0.99", 0.5), ("0.02", 0.0199)]
    marks = [Mark((0, 0, 8, 8), text, ratio=ratio) for text, ratio in [*items, ("9", 0.001)]]
    report = text_scores([Sample(torch.zeros(1, 3, 256, 256), marks)], blur(1), lambda image, box: "0.02")
    scores = report.reconstruction
    assert scores.counts == (1, 3, 1) and report.too_small == 2 and scores.edges == TEXT_BINS[256]
    assert scores.bins["t_acc"] == pytest.approx((1, 1 / 3, 0))
    assert scores.means["t_acc"] == pytest.approx(4 / 9)
    assert scores.bins["t_ned"] == pytest.approx((1, (1 + 2 * 0.5) / 3, 0.5))
    empty = text_scores([sample(0.5)], blur(1), lambda image, box: "0.5").reconstruction
    assert empty.bins["t_acc"] == (None, None, 1) and empty.means == {"t_acc": 1, "t_ned": 1}
    whole = text_scores([sample(1.0)], blur(1), lambda image, box: "1.0").reconstruction
    assert whole.counts == (0, 0, 1)


def test_relative_sizes():
    assert Mark((10, 20, 74, 36), "word").relative_size(100, 200) == pytest.approx(16 / 200)
    assert Mark((0, 0, 30, 30)).relative_size(100, 60) == pytest.approx(0.3)
    assert Mark((0, 0, 30, 30), ratio=0.7).relative_size(100, 60) == 0.7


def test_a_video_is_the_mean_over_frames_not_the_mean_frame():
    """Half of the frames are black after reconstruction: half of the readings fail."""
    video = Sample(torch.ones(4, 3, 256, 256), [Mark((0, 0, 200, 50), "seen")])

    def half(frames: Tensor) -> Tensor:
        return frames * torch.tensor([1.0, 0, 1, 0])[:, None, None, None]

    def ocr(image: Tensor, box) -> str:
        return "seen" if image.mean() > 0.4 else ""  # 0.5 for the mean frame

    report = text_scores([video], half, ocr)
    assert report.reconstruction.means == {"t_acc": 0.5, "t_ned": 0.5}
    assert report.resize_only.means == {"t_acc": 1, "t_ned": 1}
    one = Sample(video.frames, [Mark((0, 0, 200, 50), "seen", frame=2)])
    assert text_scores([one], half, ocr).reconstruction.means["t_acc"] == 1


def test_the_tokenizer_sees_the_reduced_image_and_the_reader_the_full_one():
    shapes = []

    def ocr(image: Tensor, box) -> str:
        shapes.append(tuple(image.shape))
        return "a"

    def reconstruct(frames: Tensor) -> Tensor:
        shapes.append(tuple(frames.shape))
        return frames + 7  # clamped

    image = Sample(torch.rand(1, 3, 300, 640), [Mark((0, 0, 100, 100), "a")])
    text_scores([image], reconstruct, ocr)
    assert shapes == [(1, 3, 120, 256), (3, 300, 640), (3, 300, 640)]


def test_rendered_text_is_read_and_blur_lowers_the_scores():
    samples = rendered_text(1, alphabet=string.digits, length=3)
    read = GlyphReader(string.digits)
    reports = [text_scores(samples, blur(factor), read) for factor in (1, 2, 4, 16)]
    assert reports[0].reconstruction.means == {"t_acc": 1, "t_ned": 1}
    assert min(reports[0].reconstruction.counts) >= 1
    for name in ("t_acc", "t_ned"):
        means = [report.reconstruction.means[name] for report in reports]
        assert means == sorted(means, reverse=True) and means[0] > means[1] > means[3]
    assert all(report.resize_only == reports[0].reconstruction for report in reports)
    assert reports[3].reconstruction.means["t_ned"] < 0.4


def test_the_reader_distinguishes_all_characters_dark_and_light():
    for each in rendered_text(2, size=384, seed=3):
        for mark in each.marks:
            assert GlyphReader()(each.frames[0], mark.box) == mark.text
    assert GlyphReader()(torch.zeros(3, 20, 3), (0, 0, 3, 20)) == ""  # narrower than any character


def test_resizing_only_is_the_most_that_a_reconstruction_reaches():
    """A pattern of single pixels is gray at half the size, whatever the tokenizer does."""
    pattern = (torch.arange(512)[:, None] + torch.arange(512)) % 2
    image = Sample(pattern.float().expand(1, 3, -1, -1), [Mark((0, 0, 100, 100), "a")])

    def ocr(image: Tensor, box) -> str:
        return "a" if image.std() > 0.2 else ""

    half, full = (text_scores([image], lambda x: x, ocr, size=size) for size in (256, 512))
    assert half.resize_only.means["t_acc"] == half.reconstruction.means["t_acc"] == 0
    assert full.resize_only.means["t_acc"] == full.reconstruction.means["t_acc"] == 1
    blurred = text_scores([image], blur(2), ocr, size=512)
    assert blurred.resize_only.means["t_acc"] == 1 and blurred.reconstruction.means["t_acc"] == 0


def texture(face: Tensor) -> Tensor:
    """The differences between neighbors of a face of 32x32 gray pixels: a stand-in for a face recognizer."""
    gray = F.interpolate(face.mean(0)[None, None], size=(32, 32), mode="bilinear", antialias=True)
    return torch.cat([gray.diff(dim=2).flatten(), gray.diff(dim=3).flatten()])


def test_faces_are_compared_with_the_original():
    faces = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    marks = [Mark((10, 10, 50, 50)), Mark((100.5, 20, 170, 90.2)), Mark((0, 0, 256, 256), frame=1), Mark((0, 0, 9, 9))]
    reports = [face_scores([Sample(faces, marks)], blur(factor), texture) for factor in (1, 2, 4, 8)]
    assert reports[0].reconstruction.counts == (1, 1, 1) and reports[0].too_small == 1
    means = [report.reconstruction.means["f_sim"] for report in reports]
    assert means[0] == pytest.approx(1) and means == sorted(means, reverse=True)
    assert face_scores([Sample(faces, marks)], lambda x: 1 - x, texture).reconstruction.means["f_sim"] == pytest.approx(
        -1
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: text_scores([sample(0.5)], blur(1), lambda *_: "", size=300), "size must be one of 256, 512, 1024"),
        (lambda: text_scores([sample(0.001)], blur(1), lambda *_: ""), "at least 0.02"),
        (lambda: text_scores([], blur(1), lambda *_: ""), "no text or face"),
        (lambda: text_scores([sample(0.5)], lambda x: x[..., :9], lambda *_: ""), "the reconstruction must have shape"),
        (lambda: text_scores([Sample(torch.zeros(1, 3, 9, 9), [Mark((0, 0, 9, 9))])], blur(1), str), "has no text"),
        (lambda: Sample(torch.zeros(1, 3, 9, 9), [Mark((0, 0, 10, 9))]), "not inside an image of 9x9"),
        (lambda: Sample(torch.zeros(1, 3, 9, 9), [Mark((0, 0, 9, 9), frame=1)]), r"frame must be in 0..0"),
        (lambda: Sample(torch.zeros(3, 9, 9), []), r"float \[T,3,H,W\]"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def terminal(name: str, top: int) -> Sample:
    """A recorded terminal with a mark per word: cells of 14x29 pixels, from the position and text of each line."""
    truth = json.loads(data_path("real", "text", "text_gt.json").read_text(encoding="utf-8"))[name]
    frames = read(data_path("real", "text", name), pick=lambda _: np.array([truth["frame"]])).frames
    marks = []
    for row, line in enumerate(truth["lines"]):
        y = max(0, top + 29 * row)
        for space, run in groupby(enumerate(line), key=lambda cell: cell[1] == " "):
            cells = list(run)
            if not space and top + 29 * row + 29 <= frames.shape[-2]:
                left, word = 2 + 14 * cells[0][0], "".join(character for _, character in cells)
                marks.append(Mark((left, y, left + 14 * len(word), top + 29 * row + 29), word))
    return Sample(frames.float() / 255, marks)


class CellReader:
    """Reads cells of 14 pixels by the nearest mean cell of another recording of the same terminal."""

    def __init__(self, known: Sample) -> None:
        cells: dict[str, list[np.ndarray]] = {}
        for mark in known.marks:
            for character, cell in zip(mark.text, self.cells(known.frames[0], mark.box), strict=True):
                cells.setdefault(character, []).append(cell)
        self.characters = list(cells)
        self.means = np.stack([np.mean(each, 0) for each in cells.values()])

    @staticmethod
    def cells(image: Tensor, box) -> np.ndarray:
        left, _, right, bottom = map(int, box)
        line = image[:, bottom - 27 : bottom, left:right].mean(0).numpy()
        return np.stack(np.split(line, line.shape[1] // 14, axis=1)).reshape(line.shape[1] // 14, -1)

    def __call__(self, image: Tensor, box) -> str:
        distance = ((self.cells(image, box)[:, None] - self.means[None]) ** 2).sum(-1)
        return "".join(self.characters[index] for index in distance.argmin(1))


@pytest.mark.data
def test_real_text_is_read_worse_at_fewer_bits():
    known, other = terminal("videollava_imagecli.gif", -2), terminal("videollava_videocli.gif", 1)
    read = CellReader(known)
    exact = text_scores([other], blur(1), read, size=1024)
    assert exact.resize_only.means["t_ned"] > 0.9  # a mouse pointer covers two words
    scores = [
        text_scores([other], lambda x, crf=crf: encode_video(x, crf=crf).frames, read, size=1024).reconstruction.means
        for crf in (20, 40, 50)
    ]
    assert scores[0]["t_ned"] > 0.9 > scores[2]["t_ned"]
    assert scores[0]["t_ned"] >= scores[1]["t_ned"] >= scores[2]["t_ned"]
    half = text_scores([other], blur(4), read, size=512)
    assert half.reconstruction.means["t_ned"] < 0.9 < half.resize_only.means["t_ned"]


@pytest.mark.data
def test_real_faces_are_less_similar_at_fewer_bits():
    frames = (
        read(data_path("real", "faces", "liveportrait_d0.mp4"), pick=lambda _: np.array([0, 5])).frames.float() / 255
    )
    face = Sample(frames, [Mark((120, 60, 375, 410))])
    similar = [
        face_scores([face], lambda x, crf=crf: encode_video(x, crf=crf).frames, texture).reconstruction.means["f_sim"]
        for crf in (10, 35, 51)
    ]
    assert 1 > similar[0] > similar[1] > similar[2] > 0
    assert similar[0] > 0.95
