"""Selecting 32 frames of one hour of 720p video, against decoding all; and scene cuts against known ones.

    python benchmarks/select_speed.py [--data shared/data] [--without-hour] [--dino]

Needs real/long/real_mix.mp4 of the data folder: 670 s of 123 real scenes with known starts. The hour is its first
minute at 1280x720 and 30 frames per second (H.264, a keyframe every 2 s), whose packets are repeated 60 times; it is
kept in the system's temporary folder. Seconds are of the processor, so that other work counts little; about four
minutes of them. Expected: selectors on keyframes, or on one candidate per second whose thumbnail is that of a keyframe
within 1 s (`near`), at least 10 times faster than decoding all; with a separate thumbnail for each candidate two to
three times, since half of the frames of the codec lead to them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import torch
import torch.nn.functional as F

from common import RESULTS, write
from fewtokens import read
from fewtokens.core.registry import create_method
from fewtokens.methods.ops.scene_tilling import scene_cuts
from fewtokens.selection import Oracle, Scorer, load_scorer, select_among
from fewtokens.selection.choose import FEATURES, SCORES
from fewtokens.selection.store import VARIABLE
from fewtokens.video.footage import SmallFrames

FOLDER = Path(tempfile.gettempdir()) / "fewtokens-bench"
COPIES, SECONDS, RATE = 60, 60, 30
SIZE = 224
MINUTE = FOLDER / "minute720.mp4"
THUMBNAILS: list[int] = []  # decoded at each access
CACHED = "aks(keep=32), the second time"
HOUR = "32 frames of one hour, 1280x720, H.264"
NOTES = (
    "The hour is one minute of real footage, 60 times, with a keyframe every 2 s. Seconds are of the processor, one "
    "run; decoding all of the hour is 60 times decoding the minute, measured before each row. `thumbnails` are decoded "
    f"with a short side of 64 pixels, the 32 frames with {SIZE}; `near` is how far a keyframe may be whose thumbnail "
    "stands for a candidate. Without `rate`, there is one candidate per second. The second time, scores are on disk. "
    "A cut is right if a scene starts between its two candidates."
)
# Candidates per second of the cuts.
CUT_RATE = 4


def make_hour(source: Path) -> Path:
    """Writes the hour: one minute is encoded once, and its packets are repeated."""
    path = FOLDER / "hour720.mp4"
    if path.exists():
        return path
    FOLDER.mkdir(exist_ok=True)
    part = FOLDER / "hour720.part.mp4"
    with av.open(str(source)) as given, av.open(str(MINUTE), "w") as out:
        stream = out.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        stream.codec_context.gop_size = 2 * RATE
        stream.options = {"preset": "veryfast", "crf": "28", "sc_threshold": "0"}
        n = 0
        for frame in given.decode(video=0):
            large = frame.reformat(1280, 720, "yuv420p")
            large.pict_type = 0  # otherwise a keyframe of the source becomes one here
            for _ in range(RATE // 15):  # the source has 15 frames per second
                large.pts, large.time_base = n, Fraction(1, RATE)
                out.mux(stream.encode(large))
                n += 1
            if n >= SECONDS * RATE:
                break
        out.mux(stream.encode())
    with av.open(str(part), "w") as out:
        target = None
        for copy in range(COPIES):
            with av.open(str(MINUTE)) as given:
                stream = given.streams.video[0]
                target = target or out.add_stream_from_template(stream)
                shift = round(copy * SECONDS / stream.time_base)
                for packet in given.demux(stream):
                    if packet.size:
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, target
                        out.mux(packet)
    part.rename(path)
    return path


def decode_all(path: Path) -> int:
    """Decodes every frame, without converting any; returns their number."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def speed(hour: Path) -> list[dict[str, Any]]:
    """Processor seconds of each way to get 32 frames."""
    oracle = Oracle(lambda times: torch.exp(-((times - times[-1] / 2) ** 2) / 100))
    ways: list[tuple[Path, str, str, Scorer | str | None, float]] = [
        (hour, "1 h", "uniform_frames(keep=32)", None, 0),
        (hour, "1 h", "keyframes(keep=32)", None, 0),
        (hour, "1 h", "aks(keep=32, rate='keyframes')", oracle, 0),
        (hour, "1 h", "scene_changes(keep=32, rate='keyframes')", None, 0),
        (hour, "1 h", "scene_changes(keep=32)", None, 1),
        (hour, "1 h", "aks(keep=32)", "features", 1),
        (hour, "1 h", CACHED, "features", 1),
        (MINUTE, "1 min", "scene_changes(keep=32)", None, 0),
        (MINUTE, "1 min", "scene_changes(keep=32)", None, 1),
        (MINUTE, "1 min", "scene_changes(keep=32, rate='keyframes')", None, 0),
    ]
    rows = []
    for path, length, select, scorer, near in ways:
        # Next to each row, since other work slows the processor down by times.
        whole = timed(lambda: decode_all(MINUTE)) * (COPIES if path == hour else 1)
        options: dict[str, Any] = {"select": select.removesuffix(", the second time")}
        with TemporaryDirectory() as cache:
            if select == CACHED:
                os.environ[VARIABLE] = cache
                read(path, **options, scorer=scorer, near=near, size=SIZE)
            before = sum(THUMBNAILS)
            seconds = timed(
                lambda path=path, options=options, scorer=scorer, near=near: read(
                    path, **options, scorer=scorer, near=near, size=SIZE
                )
            )
            os.environ[VARIABLE] = ""
        rows.append(
            {
                "video": length,
                "select": select,
                "scorer": "oracle" if isinstance(scorer, Oracle) else scorer or "-",
                "near, s": near,
                "thumbnails": sum(THUMBNAILS) - before,
                "seconds": seconds,
                "decode all, seconds": whole,
                "times faster": whole / seconds,
            }
        )
        print(rows[-1], flush=True)
    return rows


def timed(run: Callable[[], Any]) -> float:
    """Seconds of the processor, in all threads of this process."""
    FEATURES.clear()
    SCORES.clear()
    start = time.process_time()
    run()
    return time.process_time() - start


def cut_rows(data: Path, dino: bool) -> list[dict[str, Any]]:
    """Precision and recall of SceneTilling's cuts, for features and thresholds."""
    path, starts = known_starts(data)
    rows = []
    runs = [("features", CUT_RATE), ("features", 15)]
    if dino:
        runs.append((f"features:{data / 'weights' / 'dinov2-small'}", CUT_RATE))
    for name, rate in runs:
        scorer = load_scorer(name, device="cpu")
        video = read(path, fps=rate, size=scorer.size)
        x = F.normalize(torch.cat([scorer.features(part) for part in video.frames.split(64)]), dim=1)
        similarity = (x[1:] * x[:-1]).sum(1)
        for rule, options in (
            ("mean + 0.5 std (published)", {}),
            ("mean + 1 std", {"alpha": 1.0}),
            ("mean + 2 std", {"alpha": 2.0}),
            (f"the {len(starts)} deepest", {"count": len(starts)}),
        ):
            cuts = scene_cuts(similarity, **options)
            # A cut after candidate i is right if a scene starts after i and not after i + 1.
            inside = (starts > video.times[cuts][:, None]) & (starts <= video.times[cuts + 1][:, None])
            precision, recall = float(inside.any(1).double().mean()), float(inside.any(0).double().mean())
            rows.append(
                {
                    "features": "pixels, 8x8" if name == "features" else "DINOv2-small",
                    "per second": rate,
                    "threshold": rule,
                    "cuts": len(cuts),
                    "precision": precision,
                    "recall": recall,
                    "F1": 2 * precision * recall / max(1e-9, precision + recall),
                }
            )
            print(rows[-1], flush=True)
    return rows


def known_starts(data: Path) -> tuple[Path, torch.Tensor]:
    """The video, of 15 frames per second, and the second of each scene change: between two frames."""
    folder = data / "real" / "long"
    segments = json.loads((folder / "real_mix.json").read_text())["segments"]
    return folder / "real_mix.mp4", torch.tensor(
        [(segment["first_frame"] - 0.5) / 15 for segment in segments[1:]], dtype=torch.float64
    )


def scene_rows(data: Path) -> list[dict[str, Any]]:
    """How many of the scenes have a selected frame, with as many frames as scenes and half as many."""
    path, starts = known_starts(data)
    video = read(path, size=64, fps=CUT_RATE)
    rows = []
    total = len(starts) + 1
    for name in ("uniform_frames", "random_frames", "scene_changes", "max_min_frames", "dcode", "kffocus"):
        row: dict[str, Any] = {"selector": name}
        for keep in (total, total // 2):
            arguments = {"rate": "all"} if name not in ("uniform_frames", "random_frames") else {}
            selector = create_method(name, keep=keep, **arguments)
            index = select_among(selector, video.frames, video.times).index
            scene = torch.searchsorted(starts, video.times[index], right=True)
            row[f"scenes, {keep} frames"] = len(scene.unique())
        rows.append(row)
        print(row, flush=True)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("shared/data"))
    parser.add_argument("--without-hour", action="store_true", help="keep the speeds of the last run")
    parser.add_argument("--dino", action="store_true", help="cuts by DINOv2-small too, fifteen more minutes")
    given = parser.parse_args()
    os.environ[VARIABLE] = ""  # only the row of the cache reads it
    decode = SmallFrames.__getitem__

    def counted(frames: SmallFrames, part: slice) -> torch.Tensor:
        small = decode(frames, part)
        THUMBNAILS.append(len(small))
        return small

    SmallFrames.__getitem__ = counted  # type: ignore[method-assign]
    report = RESULTS / "select_speed.json"
    tables = json.loads(report.read_text())["rows"] if given.without_hour and report.exists() else {}
    if not given.without_hour:
        tables[HOUR] = speed(make_hour(known_starts(given.data)[0]))
    tables["Scenes of 123 with a selected frame, features of pixels"] = scene_rows(given.data)
    tables["Cuts of SceneTilling against the 122 known ones"] = cut_rows(given.data, given.dino)
    write(
        "select_speed",
        "Selecting frames: speed on an hour of 720p, and scenes that are found",
        "python benchmarks/select_speed.py",
        tables,
        notes=NOTES,
        digits=4,
    )
