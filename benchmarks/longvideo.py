"""What memories still know of videos of 1 minute, 1 hour and 10 hours, decoded from their tokens alone.

    taskset -c 1 python benchmarks/longvideo.py [--only MEMORY,...] [NAME ...]   # settings; default: all, 35 minutes

Scenes of 32 codes and 8 frames that occur once (2 in a minute), with noise, at 1 frame per second; three videos each,
pushed as a batch. The trained memories have their initial parameters. With `--only`, the rows of all
other memories stay. `longvideo_pixels.py` has the same questions
about rendered frames; `longvideo_real.py` finds scenes in real video.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from typing import Any

import torch

import fewtokens
from common import RESULTS, write
from fewtokens.core.memory import Memory
from fewtokens.core.tokens import Tokens
from fewtokens.evaluation.longvideo.questions import DISTANCES, Recall, ask, ask_by_distance
from fewtokens.evaluation.longvideo.script import Script, stream
from fewtokens.show import method_styles
from fewtokens.show.plots import save_plot

SEEDS = (0, 1, 2)
BASELINES = ("ring(1)", "ring({cap})", "reservoir({cap})", "halving({cap})", "tome_cap({cap})",
    "kmeans_cap({cap}, recent={large})")  # fmt: skip
PLAIN = ("ring", "reservoir", "halving", "tome_cap", "kmeans_cap")
UNTRAINED = ("videollamb({cap}, dim={dim})", "tdc({cap}, dim={dim})", "videostreaming({cap}, dim={dim})",
    "video_xl_pro({cap}, dim={dim})", "vidcompress({cap}, dim={dim})")  # fmt: skip
# Its cost per frame grows with its memory, so that this has at most 64 tokens.
TURING = "token_turing_memory({small}, tokens={small}, dim={dim})"
ALL = (
    *BASELINES, "moviechat({cap})", "moviechat({cap}, short=1, slots=1)",
    "moviechat({cap}, short=1, slots=1, variant='paper')", "videoscan({cap})", "videoscan({cap}, rule='merge')",
    "ma_lmm({cap})", "lion_fs({cap}, dim={dim})", *UNTRAINED, TURING,
)  # fmt: skip
FEW = (ALL[2], *ALL[7:10])
# Name: seconds, cap, noise, memories.
SETTINGS = {
    "1 min": (60, 16, 0.6, ALL),
    "1 h": (3600, 64, 0.6, ALL),
    "10 h": (36_000, 512, 0.6, ALL),
    "10 h, cap 256": (36_000, 256, 0.6, FEW),
    "10 h, noise 1.5": (36_000, 512, 1.5, FEW),
}
CURVE, CAPS = "1 h, by slots", (16, 32, 64, 128, 256)
CURVES = tuple(spec for spec in ALL if "paper" not in spec and spec not in ("ring(1)", TURING))
KINDS = ("far", "near", "order", "first", "last", "back", "needle")
COLUMNS = (*KINDS, "count error", *(name for name, *_ in DISTANCES))
CAPTION = (
    "One hour at 1 frame per second, three videos, scenes of 32 codes and 8 frames that occur once; 16 to 256 slots. "
    "Score: mean accuracy of seven kinds of question. Baselines are dashed; the dotted line is a guess without the "
    "video. moviechat(short=1) and videoscan(merge) have the same scores."
)
NOTES = (
    "Score: mean of the seven accuracies from far to needle, mean of three videos; middle: the same asked after half "
    "of the video. Count error: scenes of a code. Tokens: read for a question. Bytes: state of one video. "
    "Microseconds: CPU time per frame of a batch of three. Last tenth: time per frame of the last tenth of the video "
    "divided by that of the sixth, fastest half of the chunks. Text only: without the video. Not trained: "
    "videollamb, tdc, videostreaming, video_xl_pro, vidcompress, and token_turing_memory, whose network is then random."
)


def build(template: str, cap: int, dim: int) -> tuple[str, Memory]:
    """The spec of a memory, and the memory."""
    spec = template.format(cap=cap, large=max(16, cap // 4), small=min(cap, 64), dim=dim)
    torch.manual_seed(0)
    (memory,) = fewtokens.build(spec)
    return spec.replace(f", dim={dim}", ""), memory


def score(answers: dict[str, Any]) -> float:
    """The mean accuracy over kinds of question."""
    values = [answers[kind] for kind in KINDS if answers[kind] is not None and not math.isnan(answers[kind])]
    return sum(values) / len(values)


def mean_over(videos: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The mean over videos of each column; None where no video has a value."""
    result: dict[str, float | None] = {}
    for name in videos[0]:
        values = [row[name] for row in videos if row[name] is not None and not math.isnan(row[name])]
        result[name] = sum(values) / len(values) if values else None
    return result


def questions(
    tokens: Tokens | None, half: Tokens | None, scripts: Sequence[Script], frame: int = 1, project: Any = None
) -> dict[str, float | None]:
    """Answers of what was read at the end and after half of the videos; None for answers without the video."""
    rows = []
    for b, script in enumerate(scripts):
        middle = script.until(script.seconds // 2)
        end, before = (
            None if read is None else Recall.from_tokens(read, part, b, frame=frame, project=project)
            for read, part in ((tokens, script), (half, middle))
        )
        answers = ask(end, script) | ask_by_distance(end, script)
        scores = {"score": score(answers), "middle": score(ask(before, middle))}
        rows.append(scores | {name: answers[name] for name in COLUMNS})
    return mean_over(rows)


@torch.inference_mode()
def measure(template: str | None, cap: int, scripts: list[Script]) -> dict[str, Any]:
    """Answers, bytes and times of one memory; None for answers without the video."""
    cost: dict[str, Any] = {"tokens": 0, "bytes": 0, "microseconds": 0.0, "last tenth": None}
    if template is None:
        return {"memory": "text only"} | cost | questions(None, None, scripts)
    spec, memory = build(template, cap, scripts[0].codes.shape[1])
    memory.push(next(stream(scripts, 36)))  # the first call of an operation is slow
    state, half, seconds, sizes = None, None, [], set()
    parts = 36 if scripts[0].seconds % 36 == 0 else 30
    for index, chunk in enumerate(stream(scripts, scripts[0].seconds // parts)):
        start = time.process_time()
        state = memory.push(chunk, state)
        seconds.append((time.process_time() - start) / chunk.grid.T)
        sizes.add(state.nbytes)
        if index == parts // 2 - 1:
            half = memory.read(state)
    assert len(sizes) == 1
    tokens = memory.read(state)
    tenth = parts // 10
    cost = {
        "tokens": round(float(tokens.mask.sum(1).double().mean())),
        "bytes": sizes.pop() // len(scripts),
        "microseconds": 1e6 * sum(seconds) / len(seconds),
        # The memory is full after half of the video at the latest.
        "last tenth": sum(sorted(seconds[-tenth:])[: tenth // 2 + 1])
        / sum(sorted(seconds[parts // 2 : parts // 2 + tenth])[: tenth // 2 + 1]),
    }
    return {"memory": spec} | cost | questions(tokens, half, scripts)


def sample(seconds: int, noise: float) -> list[Script]:
    needles = min(8, seconds // 30)
    return [Script.sample(seconds, seed=seed, noise=noise, num_needles=needles) for seed in SEEDS]


def draw(rows: list[dict[str, Any]], guess: float) -> None:
    """The score against the bytes of the state."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["method"] for row in rows))
    styles = method_styles(names)
    figure, axis = plt.subplots(figsize=(10, 5.6), layout="constrained")
    for name in names:
        points = [row for row in rows if row["method"] == name]
        style = styles[name] | ({"linestyle": "--"} if name in PLAIN else {})
        axis.plot([p["bytes"] for p in points], [p["score"] for p in points], label=name, **style)
    axis.axhline(guess, color="#1b1b1b", linewidth=0.8, linestyle=":")
    axis.set(xscale="log", xlabel="bytes of the state", ylabel="score (mean accuracy)", ylim=(0, 1.03))
    axis.grid(alpha=0.25, which="both")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    title = "What memories know of one hour, by the bytes of their state"
    save_plot(figure, RESULTS / "longvideo.png", title=title, caption=CAPTION)
    plt.close(figure)


def selected(template: str | None, only: Sequence[str]) -> bool:
    return not only or (template or "text only").partition("(")[0] in only


def curve(before: list[dict[str, Any]], only: Sequence[str]) -> list[dict[str, Any]]:
    """Scores of one hour for several numbers of slots."""
    rows = []
    scripts = sample(3600, 0.6)
    for template in CURVES:
        name = template.partition("(")[0]
        if "short=1" in template or "merge" in template:
            name += "(short=1)" if "short=1" in template else "(merge)"
        if not selected(template, only):
            rows += [row for row in before if row["method"] == name]
            continue
        for cap in CAPS:
            row = measure(template, cap, scripts)
            rows.append(
                {"method": name, "slots": cap} | {key: row[key] for key in ("bytes", "tokens", "score", *KINDS)}
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[*SETTINGS, CURVE], metavar="NAME")
    parser.add_argument("--only", default="", help="names of memories, comma-separated")
    options = parser.parse_args()
    names, only = options.names, options.only.split(",") if options.only else ()
    path = RESULTS / "longvideo.json"
    tables: dict[str, Any] = {}
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))["rows"]
        tables = before if isinstance(before, dict) else {}
    for name in names:
        if name == CURVE:
            tables[name] = curve(tables.get(name, []), only)
        else:
            seconds, cap, noise, specs = SETTINGS[name]
            scripts = sample(seconds, noise)
            rows = {row["memory"]: row for row in tables.get(name, ())}
            tables[name] = []
            for template in (None, *specs):
                if not selected(template, only):
                    spec = "text only" if template is None else build(template, cap, scripts[0].codes.shape[1])[0]
                    tables[name] += [rows[spec]] if spec in rows else []
                    continue
                tables[name].append(measure(template, cap, scripts))
                print(name, tables[name][-1], flush=True)
        tables = {key: tables[key] for key in (*SETTINGS, CURVE) if key in tables}
        if CURVE in tables and "1 h" in tables:
            draw(tables[CURVE], tables["1 h"][0]["score"])
        images = ("longvideo.png",) if CURVE in tables else ()
        write(
            "longvideo",
            "What memories hold of a long video",
            "python benchmarks/longvideo.py",
            tables,
            NOTES,
            images,
            4,
        )


if __name__ == "__main__":
    main()
