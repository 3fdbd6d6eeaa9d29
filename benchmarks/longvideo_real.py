"""Real video: which scenes a memory still holds, and which a selector finds by an example picture.

    taskset -c 1 python benchmarks/longvideo_real.py [--data shared/data]   # about 6 minutes of one core

Needs real/long/real_mix.mp4 (670 s, 123 scenes with known starts) and weights/dinov2-small of the data folder. Frames
at 2 per second, 112 x 112 pixels, are encoded and averaged to 4 x 4 tokens, streamed, and pushed to all memories. The
example of a scene is a frame of it that is not among these, without its outer tenth on each side.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fewtokens
from common import write
from fewtokens.core.memory import Memory
from fewtokens.core.selection import FrameSelector, pixel_features
from fewtokens.core.tokens import Tokens
from fewtokens.evaluation.longvideo.pictures import SWEEP, Pictures, visit_frames
from fewtokens.methods.selection.videoitg import Videoitg
from longvideo import ALL, build, sample

RATE, SIDE, CAPS = 2, 112, (32, 123)
SPECS = tuple(spec for spec in ALL if "paper" not in spec)
BUDGETS = (2, 8)
# The head starts as the cosine, whose products it weights.
STEPS, LR, CONSTANT = 150, 0.02, 3.0
SEEDS = (0, 1, 2)
NOTES = (
    "Held: scenes with a slot whose frames are all from this scene. Found: scenes for which the slot most similar to "
    "the example (cosine of mean features, relative to the mean of all slots) is at a second of this scene; also those "
    "of the first and last half of the video, and without the 44 scenes of ultrasound, which are similar to one "
    "another. Selectors choose 2 or 8 of {frames} frames for each example; found: one of them is of its scene; in % of "
    "scenes in three random halves. The head of videoitg reads the products of the features of frame and example, and "
    "is trained on the other half of the scenes, or on ten minutes of rendered video (longvideo_pixels.md). Not "
    "trained: videollamb, tdc, videostreaming, video_xl_pro, vidcompress."
)


class Scenes:
    """The video: its candidates, the scene of each, and an example of each scene."""

    def __init__(self, data: Path, encoder: fewtokens.Encoder) -> None:
        folder = data / "real" / "long"
        segments = json.loads((folder / "real_mix.json").read_text(encoding="utf-8"))["segments"]
        self.starts = torch.tensor([(part["first_frame"] - 0.5) / 15 for part in segments], dtype=torch.float64)
        self.ultrasound = torch.tensor(["ultrasound" in part["clip"] for part in segments])
        self.path, self.encoder = folder / "real_mix.mp4", encoder
        pooled, pixels, times = [], [], []
        self.chunks: list[Tokens] = []
        pool = fewtokens.create_method("spatial_pool", stride=2)
        for video in fewtokens.stream(self.path, chunk=32, fps=RATE, size=(SIDE, SIDE)):
            tokens = pool(encoder(video.frames[None], video.times)[0])
            self.chunks.append(tokens)
            pooled.append(tokens.features[0].unflatten(0, (len(video.frames), -1)).mean(1))
            pixels.append(pixel_features(video.frames))
            times.append(video.times)
        self.times = torch.cat(times)
        examples = self._read_examples([part["first_frame"] + part["frames"] // 2 for part in segments])
        self.features = {
            "pixels": (torch.cat(pixels), pixel_features(examples)),
            "ViT-S/14": (torch.cat(pooled), encoder(examples[:, None])[0].features.mean(1)),
        }

    def __len__(self) -> int:
        return len(self.starts)

    def of(self, seconds: Tensor) -> Tensor:
        """The scene at each second."""
        return torch.searchsorted(self.starts, seconds, right=True) - 1

    def _read_examples(self, frames: list[int]) -> Tensor:
        """A frame of each scene that is no candidate, cropped; uint8 [n,3,SIDE,SIDE]."""

        def pick(times: Tensor) -> Tensor:
            near = [(times[frame] - self.times).abs().min() < 0.5 / 15 for frame in frames]
            return torch.tensor([frame + int(used) for frame, used in zip(frames, near, strict=True)])

        video = fewtokens.read(self.path, pick=pick, size=(140, 140))
        return video.frames[:, :, 14:126, 14:126].contiguous()


def memory_rows(scenes: Scenes, cap: int) -> list[dict[str, Any]]:
    """What memories hold of the video at its end, and which of it is found."""
    example = scenes.features["ViT-S/14"][1]
    rows = []
    for template in SPECS:
        spec, memory = build(template, cap, 384)
        assert isinstance(memory, Memory)
        state: Any = None
        for chunk in scenes.chunks:
            state = memory.push(chunk, state)
        read = memory.read(state)[0]
        slot = read.positions[0, :, 0].long()
        count = int(slot.max()) + 1
        features = torch.zeros(count, read.C).index_add(0, slot, read.features[0]) / slot.bincount()[:, None]
        mean = features.mean(0)
        similarity = F.normalize(example - mean, dim=1) @ F.normalize(features - mean, dim=1).T
        assert read.grid.times is not None
        spans = torch.tensor(memory.read(state).meta["spans"][0], dtype=torch.float64)
        first, last = scenes.of(spans[:, 0]), scenes.of(spans[:, 1])
        held = first[first == last].unique()
        found = scenes.of(read.grid.times.reshape(-1)[similarity.argmax(1)]) == torch.arange(len(scenes))
        half = len(scenes) // 2
        rows.append(
            {
                "memory": spec, "slots": count, "tokens": read.N, "bytes": state.nbytes, "held": len(held),
                "found": int(found.sum()), "found, first half": int(found[:half].sum()),
                "found, last half": int(found[half:].sum()),
                "found, no ultrasound": int(found[~scenes.ultrasound].sum()),
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def products(frames: Tensor, example: Tensor) -> Tensor:
    """What the head reads of each frame: products with the example, and a constant, so that their sum stays the cosine.

    Args:
        frames: [T,C].
        example: [C].
    """
    scaled = frames * example * frames.shape[1] ** 0.5
    return torch.cat([scaled, torch.full_like(scaled[:, :1], CONSTANT)], 1)


def relative(frames: Tensor, examples: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors relative to the mean frame."""
    mean = frames.mean(0)
    return F.normalize(frames - mean, dim=1), F.normalize(examples - mean, dim=1)


def train(pairs: list[tuple[Tensor, Tensor, Tensor]], dim: int, seed: int) -> Videoitg:
    """Trains the head on (frames [T,C], example [C], which frames are relevant [T])."""
    torch.manual_seed(seed)
    head = Videoitg(1, dim=dim + 1)
    with torch.no_grad():
        head.head.weight.fill_(dim**-0.5)
        head.head.weight[0, -1] = 0.0
        head.head.bias.zero_()
    optimizer = torch.optim.AdamW(head.parameters(), lr=LR, weight_decay=0.01)
    for _ in range(STEPS):
        batch = [pairs[n] for n in torch.randint(len(pairs), (16,)).tolist()]
        loss = torch.stack(
            [head.loss(products(frames, example), relevant) for frames, example, relevant in batch]
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head


def rendered_pairs(encoder: fewtokens.Encoder) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Examples of the places of ten minutes of rendered video, from other visits."""
    script = sample(600, 0.0)[0]
    film = Pictures(script, 56)
    with torch.no_grad():
        shown = torch.cat([encoder(film.frames(n, n + 60)[:, None])[0].features.mean(1) for n in range(0, 600, 60)])
    code = script.shown(0, 600)
    pairs = []
    for place in script.scenes.unique().tolist():
        frames = torch.cat([visit_frames(place, (10**6, visit), 0, SWEEP, 56)[:1] for visit in range(4)])
        with torch.no_grad():
            all_frames, examples = relative(shown, encoder(frames[:, None])[0].features.mean(1))
        pairs += [(all_frames, example, code == place) for example in examples]
    return pairs


def selector_rows(scenes: Scenes) -> list[dict[str, Any]]:
    """How often selectors find a scene by its example, in % of the scenes of three random halves."""
    truth, own = scenes.of(scenes.times), torch.arange(len(scenes))
    halves = [torch.randperm(len(scenes), generator=torch.Generator().manual_seed(seed)) for seed in SEEDS]
    halves = [order[: len(order) // 2] for order in halves]

    def percent(select: Callable[[int, int, int], Tensor]) -> dict[str, float]:
        """`select(scene, keep, seed)` returns candidates."""
        row = {}
        for keep in BUDGETS:
            hits = [
                bool((truth[select(scene, keep, seed)] == scene).any())
                for seed, half in zip(SEEDS, halves, strict=True)
                for scene in half.tolist()
            ]
            row[f"found with {keep}, %"] = 100 * sum(hits) / len(hits)
        return row

    rows: list[dict[str, Any]] = []

    def add(name: str, features: str, scorer: str, select: Callable[[int, int, int], Tensor]) -> None:
        rows.append({"selector": name, "features": features, "scorer": scorer} | percent(select))
        print(rows[-1], flush=True)

    def method(spec: str, keep: int, **options: Any) -> FrameSelector:
        selector = fewtokens.create_method(spec, keep=keep, **options)
        assert isinstance(selector, FrameSelector)
        return selector

    cache: dict[Any, Tensor] = {}

    def once(key: Any, make: Callable[[], Tensor]) -> Tensor:
        return cache[key] if key in cache else cache.setdefault(key, make())

    for name in ("uniform_frames", "random_frames"):
        add(
            name,
            "-",
            "-",
            lambda _, keep, seed, n=name: once((n, keep), lambda: method(n, keep).select(scenes.times).index),
        )
    for features, (frames, examples) in scenes.features.items():
        for name in ("scene_changes", "max_min_frames"):
            add(
                name, features, "-",
                lambda _, keep, seed, n=name, f=features, x=frames: once(
                    (n, f, keep), lambda: method(n, keep).select(scenes.times, features=x).index
                ),
            )  # fmt: skip
        x, e = relative(frames, examples)
        cosine = e @ x.T
        for name in ("aks", "f2c", "sevila"):
            add(
                name, features, "cosine",
                lambda s, keep, seed, n=name, c=cosine, f=frames: method(n, keep).select(
                    scenes.times, relevance=c[s], features=f
                ).index,
            )  # fmt: skip
        pairs = {}
        for seed, half in zip(SEEDS, halves, strict=True):
            others = own[~torch.isin(own, half)]
            seen = torch.isin(truth, others)
            pairs[seed] = [(x[seen], e[s], truth[seen] == s) for s in others.tolist()]
        heads = {"other scenes": {seed: train(pairs[seed], x.shape[1], seed) for seed in SEEDS}}
        if features == "ViT-S/14":
            made = rendered_pairs(scenes.encoder)
            heads["rendered video"] = {seed: train(made, x.shape[1], seed) for seed in SEEDS}
        for source, trained in heads.items():
            for nms in (0.0, 2.0):

                def head(
                    s: int, keep: int, seed: int, h: Any = trained, n: float = nms, x: Tensor = x, e: Tensor = e
                ) -> Tensor:
                    selector = Videoitg(keep, nms=n, dim=x.shape[1] + 1)
                    selector.load_state_dict(h[seed].state_dict())
                    return selector.select(scenes.times, features=products(x, e[s])).index

                name = f"videoitg(nms={nms:g})" if nms else "videoitg"
                add(name, features, f"head trained on {source}", head)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("shared/data"))
    data = parser.parse_args().data
    encoder = fewtokens.load_encoder(data / "weights" / "dinov2-small", device="cpu", batch=64)
    with torch.inference_mode():
        scenes = Scenes(data, encoder)
    tables: dict[str, Any] = {"Scenes of 123 that a selector finds by an example": selector_rows(scenes)}
    with torch.inference_mode():
        for cap in CAPS:
            tables[f"Scenes of 123 in a memory of {cap} slots"] = memory_rows(scenes, cap)
    notes = NOTES.format(frames=len(scenes.times))
    title = "Scenes of real video that are held and found"
    write("longvideo_real", title, "python benchmarks/longvideo_real.py", tables, notes, digits=4)


if __name__ == "__main__":
    main()
