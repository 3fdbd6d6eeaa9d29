"""What memories still know of videos of 1 minute, 1 hour and 10 hours, decoded from their tokens alone.

    taskset -c 1 python benchmarks/longvideo.py [NAME ...]   # names of settings; default: all. About 15 minutes.

Scenes of 32 codes and 8 frames that occur once (2 in a minute), with noise, at 1 frame per second; three videos each,
pushed as a batch.
"""

from __future__ import annotations

import argparse
import json
import math
import time

import torch

import fewtokens
from common import RESULTS, write
from fewtokens.evaluation.longvideo.questions import Recall, ask
from fewtokens.evaluation.longvideo.script import Script, stream

SEEDS = (0, 1, 2)
ALL = (
    "ring({cap})", "reservoir({cap})", "halving({cap})", "tome_cap({cap})", "kmeans_cap({cap}, recent={large})",
    "moviechat({cap})", "moviechat({cap}, short=1, slots=1)", "moviechat({cap}, short=1, slots=1, variant='paper')",
    "videoscan({cap})", "ring(1)",
)  # fmt: skip
FEW = (ALL[1], *ALL[6:9])
# Name: seconds, cap, noise, memories.
SETTINGS = {
    "1 min": (60, 16, 0.6, ALL),
    "1 h": (3600, 64, 0.6, ALL),
    "10 h": (36_000, 512, 0.6, ALL),
    "10 h, cap 256": (36_000, 256, 0.6, FEW),
    "10 h, noise 1.5": (36_000, 512, 1.5, FEW),
}
KINDS = ("far", "near", "order", "first", "last", "back", "needle", "count error")


@torch.inference_mode()
def measure(spec: str | None, scripts: list[Script]) -> dict[str, float | None]:
    """Answers, bytes and times of one memory; None for answers without the video."""
    recalls: list[Recall | None] = [None] * len(scripts)
    cost: dict[str, float | None] = {"bytes": 0, "microseconds": 0.0, "last tenth": None}
    if spec is not None:
        (memory,) = fewtokens.build(spec)
        state, seconds, sizes = None, [], set()
        memory.push(next(stream(scripts, 36)))  # the first call of an operation is slow
        for chunk in stream(scripts, max(1, scripts[0].seconds // 36)):
            start = time.process_time()
            state = memory.push(chunk, state)
            seconds.append((time.process_time() - start) / chunk.grid.T)
            sizes.add(state.nbytes)
        assert len(sizes) == 1
        tokens = memory.read(state)
        recalls = [Recall.from_tokens(tokens, script, b) for b, script in enumerate(scripts)]
        tenth = len(seconds) // 10
        cost = {
            "bytes": sizes.pop() // len(scripts),
            "microseconds": 1e6 * sum(seconds) / len(seconds),
            # The memory is full after half of the video at the latest.
            "last tenth": sum(sorted(seconds[-tenth:])[: tenth // 2 + 1])
            / sum(sorted(seconds[18 : 18 + tenth])[: tenth // 2 + 1]),
        }
    answers = [ask(recall, script) for recall, script in zip(recalls, scripts, strict=True)]
    kinds: dict[str, float | None] = {}
    for kind in KINDS:
        values = [row[kind] for row in answers if not math.isnan(row[kind])]
        kinds[kind] = sum(values) / len(values) if values else None
    return kinds | cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(SETTINGS), metavar="NAME")
    names = parser.parse_args().names
    path = RESULTS / "longvideo.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    rows = [row for row in rows if row["video"] not in names]
    for name in names:
        seconds, cap, noise, specs = SETTINGS[name]
        num_needles = min(8, seconds // 30)
        scripts = [Script.sample(seconds, seed=seed, noise=noise, num_needles=num_needles) for seed in SEEDS]
        for template in (None, *specs):
            spec = template and template.format(cap=cap, large=max(16, cap // 4))
            row = {"video": name, "memory": spec or "text only", **measure(spec, scripts)}
            rows.append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
            print(rows[-1], flush=True)
        rows.sort(key=lambda row: list(SETTINGS).index(row["video"]))
        write(
            "longvideo",
            "What memories hold of a long video",
            "python benchmarks/longvideo.py",
            rows,
            "Accuracy by kind of question, mean of three videos; count error: scenes of a code; bytes of the state of "
            "one video; microseconds of CPU per frame of a batch of three; last tenth: time per frame of the last "
            "tenth of the video divided by that of the sixth, fastest half of chunks. Text only: without the video.",
        )


if __name__ == "__main__":
    main()
