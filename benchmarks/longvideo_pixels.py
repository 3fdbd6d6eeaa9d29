"""The questions of `longvideo.py` about rendered frames: memories behind an encoder of pixels.

    taskset -c 1 python benchmarks/longvideo_pixels.py [--data shared/data] [NAME ...]   # default: all settings

The same scripts as frames of 56 x 56 pixels (`fewtokens.evaluation.longvideo.pictures`): places with moving shapes,
distractors, a still or moving camera, cuts, frames that occur once. Frames are rendered and encoded a minute at a time
and pushed to all memories; nothing else is held. A slot is decoded as the place with the nearest mean features. The
real encoder is `weights/dinov2-small` of the data folder.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fewtokens
from common import RESULTS, write
from fewtokens.core.encoder import Encoder
from fewtokens.core.tokens import Tokens
from fewtokens.evaluation.longvideo.pictures import Pictures, Prototypes
from fewtokens.evaluation.longvideo.questions import Recall, ask, ask_by_distance
from fewtokens.evaluation.longvideo.script import Script
from longvideo import ALL, COLUMNS, TURING, UNTRAINED, build, mean_over, questions, sample, score

SIZE, CHUNK = 56, 60
# The tokens of a slot of MA-LMM are of different seconds, so that their mean is of no place.
SKIPPED = ("ma_lmm({cap})", TURING, *UNTRAINED)
LEARNED_FREE = tuple(spec for spec in ALL if spec not in SKIPPED and "paper" not in spec)
# Name: encoder, seconds, seconds from frame to frame, cap, memories.
SETTINGS = {
    "1 min, patches": ("patches", 60, 1, 16, LEARNED_FREE),
    "10 min, patches": ("patches", 600, 1, 32, LEARNED_FREE),
    "1 h, patches": ("patches", 3600, 4, 64, LEARNED_FREE),
    "1 min, ViT-S/14": ("dinov2-small", 60, 1, 16, (*LEARNED_FREE, *UNTRAINED)),
    "10 min, ViT-S/14": ("dinov2-small", 600, 1, 32, (*LEARNED_FREE, *UNTRAINED)),
    "1 h, ViT-S/14": ("dinov2-small", 3600, 4, 64, (*LEARNED_FREE, *UNTRAINED)),
}
NOTES = (
    "Three videos of 56 x 56 pixels at 1 frame per second, of an hour one every 4 s, 16 tokens of 588 (patches: "
    "pixels) or 384 channels per frame. Columns as in longvideo.md; milliseconds: CPU time of a memory per frame of a"
    " batch of three, without rendering and encoding, whose own are in the row of all frames, for a single frame. All"
    " frames: every frame decoded on its own, which bounds what the encoder and the nearest prototype allow. Not "
    "trained: videollamb, tdc, videostreaming, video_xl_pro, vidcompress."
)


def load(name: str, data: Path) -> Encoder:
    if name == "patches":
        return fewtokens.load_encoder("patches", device="cpu", patch_size=14)
    return fewtokens.load_encoder(data / "weights" / name, device="cpu", batch=180)


def mean_features(encoder: Encoder, frames: Tensor) -> Tensor:
    return encoder(frames[:, None])[0].features.mean(1)


class Running:
    """A memory that is pushed, with its costs."""

    def __init__(self, template: str, cap: int, dim: int) -> None:
        self.spec, self.memory = build(template, cap, dim)
        self.state: Any = None
        self.half: Tokens | None = None
        self.seconds, self.sizes = 0.0, set[int]()

    def push(self, tokens: Tokens) -> None:
        start = time.process_time()
        self.state = self.memory.push(tokens, self.state)
        self.seconds += time.process_time() - start
        self.sizes.add(self.state.nbytes)


@torch.inference_mode()
def table(
    encoder: Encoder, prototypes: Prototypes, seconds: int, every: int, cap: int, specs: tuple[str, ...]
) -> list[Any]:
    """One pass over three videos with all memories."""
    given = sample(seconds, 0.0)
    films = [Pictures(script, SIZE) for script in given]
    scripts: list[Script] = [prototypes.script(script) for script in given]
    runs = [Running(template, cap, encoder.dim) for template in specs]
    codes: list[list[Tensor]] = [[] for _ in scripts]
    chunk, rendering, encoding, frame = min(CHUNK, seconds // 2), 0.0, 0.0, 1
    for start in range(0, seconds, chunk):
        began = time.process_time()
        frames = torch.stack([film.frames(start, start + chunk)[::every] for film in films])
        rendered = time.process_time()
        tokens, _ = encoder(frames, torch.arange(start, start + chunk, every, dtype=torch.float64))
        rendering, encoding = rendering + rendered - began, encoding + time.process_time() - rendered
        frame = tokens.grid.cells_per_frame
        for b, script in enumerate(scripts):
            single = tokens.features[b].unflatten(0, (-1, frame)).mean(1)
            codes[b].append(
                (torch.nn.functional.normalize(prototypes.project(single), dim=1) @ script.codes.T).argmax(1)
            )
        for run in runs:
            run.push(tokens)
            if start + chunk == seconds // 2:
                run.half = run.memory.read(run.state)
    number = seconds // every * len(scripts)
    rows = [
        {"memory": "text only", "tokens": 0, "bytes": 0, "milliseconds": 0.0} | questions(None, None, scripts),
        {
            "memory": f"all frames (render {1e3 * rendering / number:.2f} ms, encode {1e3 * encoding / number:.2f} ms)",
            "tokens": seconds // every * frame, "bytes": seconds // every * frame * encoder.dim * 4,
            "milliseconds": 0.0,
        } | every_frame(codes, scripts, every),
    ]  # fmt: skip
    for run in runs:
        assert len(run.sizes) == 1
        read = run.memory.read(run.state)
        row = {
            "memory": run.spec, "tokens": round(float(read.mask.sum(1).double().mean())),
            "bytes": run.sizes.pop() // len(scripts), "milliseconds": 1e3 * run.seconds * every / seconds,
        } | questions(read, run.half, scripts, frame, prototypes.project)  # fmt: skip
        rows.append(row)
        print(row, flush=True)
    return rows


def every_frame(codes: list[list[Tensor]], scripts: list[Script], every: int) -> dict[str, float | None]:
    """Answers of a memory of all frames, from the code of each."""
    rows = []
    for script, parts in zip(scripts, codes, strict=True):
        second = torch.arange(0, script.seconds, every, dtype=torch.float64)
        recall = Recall(torch.cat(parts), second, second, second, script.num_scenes)
        half = script.seconds // 2
        before = Recall(*(value[: half // every] for value in (recall.code, second, second, second)), script.num_scenes)
        answers = ask(recall, script) | ask_by_distance(recall, script)
        scores = {"score": score(answers), "middle": score(ask(before, script.until(half)))}
        rows.append(scores | {name: answers[name] for name in COLUMNS})
    return mean_over(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(SETTINGS), metavar="NAME")
    parser.add_argument("--data", type=Path, default=Path("shared/data"))
    given = parser.parse_args()
    path = RESULTS / "longvideo_pixels.json"
    tables: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else {}
    fitted: dict[str, tuple[Encoder, Prototypes]] = {}
    for name in given.names:
        kind, *setting = SETTINGS[name]
        if kind not in fitted:
            encoder = load(kind, given.data)
            with torch.inference_mode():
                prototypes = Prototypes.fit(lambda frames, e=encoder: mean_features(e, frames), 40, SIZE)
            fitted[kind] = encoder, prototypes
        tables[name] = table(*fitted[kind], *setting)
        tables = {key: tables[key] for key in SETTINGS if key in tables}
        command = "python benchmarks/longvideo_pixels.py"
        write("longvideo_pixels", "What memories hold of rendered video", command, tables, NOTES, digits=4)


if __name__ == "__main__":
    main()
