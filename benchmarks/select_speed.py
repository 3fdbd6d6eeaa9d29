"""Selecting 32 frames of one hour of 720p video, against decoding all; and scene cuts against known ones.

    python benchmarks/select_speed.py [--data shared/data] [--without-hour]

Needs real/long/real_mix.mp4 of the data folder: 670 s of 123 real scenes with known starts. The hour is its first two
minutes at 1280x720 and 30 frames per second (H.264, a keyframe every 2 s), whose packets are repeated 30 times; it is
kept in the system's temporary folder. About ten minutes on one core. Expected: selectors on keyframes at least 10 times
faster than decoding all; selectors on one frame per second 2 to 4 times, because half of the frames of the codec lead
to them; cuts of pixels with a higher recall than precision.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import torch
import torch.nn.functional as F

from common import write
from fewtokens import read
from fewtokens.core.registry import create_method
from fewtokens.methods.ops.scene_tilling import scene_cuts
from fewtokens.selection import Oracle, Scorer, load_scorer, select_among
from fewtokens.selection.choose import FEATURES

FOLDER = Path(tempfile.gettempdir()) / "fewtokens-bench"
COPIES, SECONDS, RATE = 30, 120, 30
SIZE = 224
# Candidates per second of the cuts.
CUT_RATE = 4


def make_hour(source: Path) -> Path:
    """Writes the hour: two minutes are encoded once, and their packets are repeated."""
    path = FOLDER / "hour720.mp4"
    if path.exists():
        return path
    FOLDER.mkdir(exist_ok=True)
    short, part = FOLDER / "two_minutes720.mp4", FOLDER / "hour720.part.mp4"
    with av.open(str(source)) as given, av.open(str(short), "w") as out:
        stream = out.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        stream.codec_context.gop_size = 2 * RATE
        stream.options = {"preset": "veryfast", "crf": "28", "sc_threshold": "0"}
        n = 0
        for frame in given.decode(video=0):
            large = frame.reformat(1280, 720, "yuv420p")
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
            with av.open(str(short)) as given:
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
    """Decodes every frame, without converting any."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def speed(path: Path) -> list[dict[str, Any]]:
    """Seconds of each way to get 32 frames, in a file whose cache is cold for us and warm for the system."""
    oracle = Oracle(lambda times: torch.exp(-((times - 1800) ** 2) / 1e4))
    ways: dict[str, tuple[str, Scorer | str | None]] = {
        "uniform": ("uniform_frames(keep=32)", None),
        "keyframes": ("keyframes(keep=32)", None),
        "scene changes": ("scene_changes(keep=32, rate='keyframes')", None),
        "max-min": ("max_min_frames(keep=32, rate='keyframes')", None),
        "AKS, novelty": ("aks(keep=32, rate='keyframes')", "features"),
        "AKS, oracle": ("aks(keep=32, rate='keyframes')", oracle),
        "scene changes, 1 per second": ("scene_changes(keep=32)", None),
        "AKS, novelty, 1 per second": ("aks(keep=32)", "features"),
    }
    start = time.perf_counter()
    total = decode_all(path)
    everything = time.perf_counter() - start
    rows = [
        {"way": "decode all", "select": "-", "thumbnails": 0, "frames": total, "seconds": everything, "faster": 1.0}
    ]
    for name, (select, scorer) in ways.items():
        seconds = [timed(lambda select=select, scorer=scorer: read(path, select=select, scorer=scorer, size=SIZE))
                   for _ in range(2)]  # fmt: skip
        video, best = seconds[0][0], min(each for _, each in seconds)
        selector_needs = set(create_method(select.split("(")[0]).needs)
        small = 0
        if "features" in selector_needs or scorer == "features":
            small = 1800 if "keyframes" in select else 3600
        rows.append(
            {"way": name, "select": select, "thumbnails": small, "frames": len(video), "seconds": best,
             "faster": everything / best}
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    FEATURES.clear()
    start = time.perf_counter()
    return run(), time.perf_counter() - start


def cut_rows(data: Path) -> list[dict[str, Any]]:
    """Precision and recall of SceneTilling's cuts, for features and thresholds."""
    path, starts = known_starts(data)
    rows = []
    for name in ("features", f"features:{data / 'weights' / 'dinov2-small'}"):
        scorer = load_scorer(name, device="cpu")
        video = read(path, fps=CUT_RATE, size=scorer.size)
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
    """The video and the second of each scene change."""
    folder = data / "real" / "long"
    segments = json.loads((folder / "real_mix.json").read_text())["segments"]
    return folder / "real_mix.mp4", torch.tensor([segment["start"] for segment in segments[1:]], dtype=torch.float64)


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
    parser.add_argument("--without-hour", action="store_true", help="only cuts and scenes")
    given = parser.parse_args()
    tables = {
        f"Cuts of SceneTilling, {CUT_RATE} frames per second, against the 122 known ones": cut_rows(given.data),
        "Scenes of 123 with a selected frame, features of pixels": scene_rows(given.data),
    }
    if not given.without_hour:
        hour = make_hour(known_starts(given.data)[0])
        tables = {"32 frames of one hour, 1280x720, H.264": speed(hour)} | tables
    write(
        "select_speed",
        "Selecting frames: speed on an hour of 720p, and scenes that are found",
        "python benchmarks/select_speed.py",
        tables,
        notes="The hour is two minutes of real footage, 30 times, with a keyframe every 2 s; each way is the faster of "
        "two runs, decoding all one run, on a core that other work shared. `thumbnails` are decoded small, `frames` at "
        f"{SIZE} px. A cut is right if a scene starts between its two candidates.",
        digits=4,
    )
