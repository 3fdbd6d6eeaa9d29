"""Accuracy of a video language model with each method: the table of Token Dynamics, all models trained from scratch.

    python benchmarks/videoqa_encoder.py WORK        the frozen encoder, about 35 minutes on 2 cores
    python benchmarks/videoqa.py WORK data           clips and their features, about 10 minutes, 7 GB
    python benchmarks/videoqa.py WORK base           a language model of 0.9 M parameters on all tokens, over an hour
    python benchmarks/videoqa.py WORK zeroshot       every method at 12, 32 and 64 of 256 tokens, without retraining
    python benchmarks/videoqa.py WORK finetune       every method at 32 tokens, equal further training, 3 seeds; hours
    python benchmarks/videoqa.py WORK longer         some of them with four times as much further training
    python benchmarks/videoqa.py WORK ablation       the map and the base of Token Dynamics, separately
    python benchmarks/videoqa.py WORK report         results/videoqa.json, .md and .png

finetune, longer and ablation accept seeds as further arguments; seeds can run in parallel, one per core. Interrupted
steps resume.

Clips of 16 frames, 64 pixels (`fewtokens.data.videoqa`): ten types of question, all open (answers of one word), scored
by exact match. Tokens: 16 frames x 4 x 4 cells, each with 2 x 2 patches of the encoder. Reduction is after the
projector, in the dimension of the language model; tokens keep the positions of their cells (positions="keep"), except
in the rows marked otherwise.

Expected: 47.7 % with all tokens, compared with 18.4 % for random guessing; without retraining, at 32 tokens, hourglass
44, fewer_frames 43, kmeans 41, random 39, tome 30; after further training frame_fusion 46, fewer_frames 44,
token_dynamics 43, kmeans 42. Discussion: docs/studies/video_llm.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from common import RESULTS, machine
from fewtokens.core import files, registry
from fewtokens.core.grid import Grid
from fewtokens.core.pipeline import Pipeline
from fewtokens.data.questions import TEXTS, clip_seed, make_question
from fewtokens.data.scenes import Actor
from fewtokens.data.staging import build_scene
from fewtokens.data.videoqa import KINDS, SceneConfig, VideoQA
from fewtokens.encoders import VitEncoder, load_encoder
from fewtokens.evaluation.bench import chain
from fewtokens.evaluation.videoqa import prompt, row, summarize, target, text_only
from fewtokens.llm.chat import collate_turns, encode_turns
from fewtokens.llm.composed import ComposedVideoLLM, load_video_llm
from fewtokens.profiling.prefill import prefill_gflops
from fewtokens.train.loop import fit
from fewtokens.train.settings import Settings
from fewtokens.train.video_llm import answer_loss, train_video_llm
from videoqa_encoder import POOL, blank

CONFIG = SceneConfig()
GRID = Grid(16, 4, 4, torch.arange(16) / CONFIG.fps)
ITEMS = {"train": 24_000, "test": 2_000}
BUDGETS = (12, 32, 64)
TUNE_STEPS, TUNE_ITEMS, SEEDS = 100, 6_400, (0, 1, 2)
# Their arguments give this budget: 32 tokens for 16 frames of 4 x 4 cells.
TRAINED = {
    "token_dynamics": "token_dynamics({k})",
    "token_dynamics (paper)": "token_dynamics({k}, mode='paper')",
    "token_dynamics (reference)": "vqtoken({k}, side=4)",
    "tokenlearner": "tokenlearner('2/frame')",
    "dense_tokens": "dense_tokens('2/frame')",
    "pool_mlp": "pool_mlp('2/frame')",
    "perceiver": "perceiver({k}, num_layers=2)",
    "qformer": "qformer({k}, num_layers=2)",
    "attentional_pool": "attentional_pool({k})",
    "token_turing": "token_turing({k})",
    "llama_vid": "llama_vid()",
    "ppllava": "ppllava(kernel=(2, 2, 2))",
    "storm": "storm(pool=2, spatial=2)",
    "linvt": "linvt({k})",
}
# One seed, because a run takes a quarter of an hour instead of half a minute.
SLOW = ("storm",)
ADAPTIVE = {
    "kmeans, adaptive 12-32": "kmeans(criterion='silhouette', k_min=12, k_max=32)",
    "token_dynamics, adaptive 12-32": "token_dynamics(criterion='silhouette', between=(12, 32))",
}


DESCRIBE = "What does the clip show?"


def scene(split: str, index: int, config: SceneConfig = CONFIG) -> list[Actor]:
    """The visible objects of a clip, ordered by first appearance, then from left to right."""
    actors, _ = build_scene(
        make_question(split, index, config), config, np.random.default_rng(clip_seed(split, index, config, 1))
    )
    visible = [actor for actor in actors if actor.shown.any()]
    return sorted(visible, key=lambda actor: (int(actor.shown.argmax()), actor.path[actor.shown.argmax()][1]))


def caption(actors: Sequence[Actor]) -> str:
    return " ".join(f"{actor.color} {actor.look}" for actor in actors)


def conversation(split: str, index: int, turns: int = 5, config: SceneConfig = CONFIG) -> list[tuple[str, str]]:
    """The question of a clip, further questions with a certain answer, and a description.

    A small model learns to use the video many times faster from several turns per clip than from one word.
    """
    rng = np.random.default_rng(clip_seed(split, index, config, 2))
    question = make_question(split, index, config, formats=("open",))
    actors = scene(split, index, config)
    colors, looks = Counter(actor.color for actor in actors), Counter(actor.look for actor in actors)
    starts = [int(actor.shown.argmax()) for actor in actors]
    candidates: list[tuple[str, tuple[str, ...], str]] = []
    for actor in actors:
        if colors[actor.color] == 1:
            candidates.append(("digit colored" if actor.look.isdigit() else "shape shape", (actor.color,), actor.look))
        if looks[actor.look] == 1 and not actor.look.isdigit():
            candidates.append(("color color", (actor.look,), actor.color))
            frames = np.flatnonzero(actor.shown)
            down, right = actor.path[frames[-1]] - actor.path[frames[0]]
            if max(abs(down), abs(right)) > 0.3 and min(abs(down), abs(right)) < 0.1:
                way = ("right" if right > 0 else "left") if abs(right) > abs(down) else "down" if down > 0 else "up"
                candidates.append(("direction way", (actor.color, actor.look), way))
    candidates.append(("count object", (), str(len(actors))))
    candidates += [("count color", (color,), str(count)) for color, count in colors.items()]
    if len(actors) > 1 and starts[0] < starts[1]:
        candidates += [("order shape", (), actors[0].look)] * (not actors[0].look.isdigit())
        candidates.append(("order color", (), actors[0].color))
        later = actors[int(rng.integers(1, len(actors)))].color
        if later != actors[0].color:
            candidates.append(
                ("order pair", tuple(rng.permutation([actors[0].color, later]).tolist()), actors[0].color)
            )
    frame = int(rng.integers(config.frames))
    present = [actor for actor in actors if actor.shown[frame]]
    if len(present) == 1 and not present[0].look.isdigit():
        second = (f"{round(frame / config.fps, 3):g}",)
        candidates += [("moment shape", second, present[0].look), ("moment color", second, present[0].color)]
    exchanges = [(prompt(question), target(question))]
    for n in rng.permutation(len(candidates))[:turns]:
        wording, values, answer = candidates[n]
        text = TEXTS[wording][int(rng.integers(len(TEXTS[wording])))].format(*values)
        exchanges.append((f"{text}\nAnswer with one word.", answer))
    return [*exchanges, (DESCRIBE, caption(actors))]


class Cells(Dataset[dict[str, Any]]):
    """Encoded clips with open questions, in memory, in the format of `train_video_llm`.

    Args:
        conversations: several turns per clip instead of its question only.
        items: number of items, from the first; 0 for all.
    """

    def __init__(self, work: Path, split: str, tokenizer: Any, *, conversations: bool = False, items: int = 0) -> None:
        self.questions = VideoQA(CONFIG, split, items or ITEMS[split], formats=("open",)).questions()
        self.cells = np.load(work / f"{split}.npy", mmap_mode="r")[: len(self.questions)].copy()
        turns = (
            conversation(split, n) if conversations else [(prompt(q), target(q))] for n, q in enumerate(self.questions)
        )
        self.lines = [encode_turns(tokenizer, exchanges) for exchanges in turns]

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index = key[1] if isinstance(key, tuple) else key
        return {"line": self.lines[index], "video_cells": torch.from_numpy(self.cells[index].astype(np.float32))}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    batch = collate_turns([sample["line"] for sample in samples], 0)
    cells = torch.stack([sample["video_cells"] for sample in samples])
    return batch | {"video_cells": cells, "video_grid": GRID}


def load_frozen_encoder(work: Path) -> VitEncoder:
    encoder = load_encoder(blank(work / "blank"), batch=4096)
    assert isinstance(encoder, VitEncoder)
    tensors, _ = files.load(work / "encoder.safetensors", "videoqa_encoder")
    encoder.vit.load_state_dict(tensors)
    return encoder


def make_language_model(folder: Path) -> Path:
    """Saves a Llama with random weights and a tokenizer for the vocabulary of the questions."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = Tokenizer(models.WordLevel(unk_token="<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["<pad>", "<s>", "</s>", "<unk>"])
    texts = [
        f"USER: {text} ASSISTANT: {answer}" for index in range(4000) for text, answer in conversation("train", index)
    ]
    vocabulary.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=1024, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def step_data(work: Path) -> None:
    model = ComposedVideoLLM(load_frozen_encoder(work), *_language(work), pool=POOL)
    for split, items in ITEMS.items():
        path = work / f"{split}.npy"
        done_path = work / f"{split}.done"
        shape = (items, GRID.cells, 512)
        done = int(done_path.read_text()) if done_path.exists() else 0
        cells = np.lib.format.open_memmap(path, "r+" if done else "w+", np.float16, shape)
        data = VideoQA(CONFIG, split, items)
        for start in range(done, items, 100):
            frames = torch.stack([data[n].frames for n in range(start, min(items, start + 100))])
            with torch.no_grad():
                cells[start : start + len(frames)] = model.cells(frames)[0].numpy()
            done_path.write_text(str(start + len(frames)))
            if start % 1000 == 0:
                print(split, start, flush=True)


def _language(work: Path) -> tuple[Any, Any]:
    from fewtokens.llm.composed import load_language_model

    folder = work / "language"
    return load_language_model(folder if (folder / "config.json").exists() else make_language_model(folder))


def step_base(work: Path, steps: int = 3600) -> None:
    torch.manual_seed(0)
    model = ComposedVideoLLM(load_frozen_encoder(work), *_language(work), pool=POOL)
    settings = Settings(
        steps=steps, batch=32, lr=1.5e-3, weight_decay=0.02, rates={"encoder": 0.0}, workers=1, save_every=200,
        log_every=50, warmup=0.03, precision="bf16",
    )  # fmt: skip
    data = Cells(work, "train", model.tokenizer, conversations=True)
    train_video_llm(model, data, settings, work / "base", collate=collate, progress=print_progress, device="cpu")
    print(summarize(answers(model.eval(), Cells(work, "test", model.tokenizer)))["all"])


def print_progress(done: int, total: int, values: dict[str, float]) -> None:
    if done % 50 == 0:
        print(done, total, {name: round(value, 3) for name, value in values.items()}, flush=True)


@torch.no_grad()
def answers(model: ComposedVideoLLM, data: Cells, part: slice = slice(None)) -> list[dict[str, Any]]:
    """Rows of `evaluation.videoqa` for a part of the test set; every answer is one word."""
    questions = data.questions[part]
    rows: list[dict[str, Any]] = []
    for start in range(0, len(questions), 100):
        batch = questions[start : start + 100]
        cells = torch.from_numpy(data.cells[part][start : start + len(batch)].astype(np.float32))
        inputs = model.encode_questions([prompt(q) for q in batch])
        texts = model.answer(inputs | {"video_cells": cells, "video_grid": GRID}, max_new_tokens=1)
        rows += [row(text, question) for text, question in zip(texts, batch, strict=True)]
    return rows


def usable() -> list[str]:
    """Methods without parameters or cues of the encoder, baselines first."""
    names = []
    for name in registry.names():
        kind = registry.get(name)
        if kind.stage == "tokens" and not kind.learned and set(kind().needs) <= {"text", "frame_global"}:
            names.append(name)
    return [name for name in names if name not in ("grid_split", "spatial_pool")]


def with_budget(model: ComposedVideoLLM, spec: str, k: int, seed: int = 0) -> ComposedVideoLLM:
    """The model with a chain at a budget; a method that keeps more is followed by `tome`, as in `bench`."""
    torch.manual_seed(seed)
    if "(" in spec:
        return model.reduce_with(spec.format(k=k))
    model.compressor = Pipeline(chain(spec, k, GRID, seed=seed, dim=model.dim))
    return model


def measure(model: ComposedVideoLLM, data: Cells) -> dict[str, Any]:
    """Accuracy by type of question, tokens kept, milliseconds of reduction and of an answer per video."""
    counts, reducing = [], 0.0
    with torch.no_grad():
        for start in range(0, 200, 50):
            cells = torch.from_numpy(data.cells[start : start + 50].astype(np.float32))
            inputs = model.encode_questions([prompt(q) for q in data.questions[start : start + 50]])
            start_time = time.perf_counter()
            edited = model.compress(inputs | {"video_cells": cells, "video_grid": GRID})
            reducing += time.perf_counter() - start_time
            counts += [tokens.N for tokens in edited.tokens]
    start_time = time.perf_counter()
    scores = summarize(answers(model, data))
    seconds = time.perf_counter() - start_time
    kinds = {kind: scores["kinds"][kind]["accuracy"] for kind in KINDS}
    tokens = float(np.mean(counts))
    accuracy = scores["all"]["accuracy"]
    return {
        "tokens": tokens, "accuracy": accuracy, "tokdense": 100 * accuracy / tokens, "kinds": kinds,
        "reduce_ms": 1000 * reducing / 200, "answer_ms": 1000 * seconds / len(data),
    }  # fmt: skip


def read_rows(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def write_rows(path: Path, rows: dict[str, Any]) -> None:
    with files.atomic_file(path) as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n")


def step_zeroshot(work: Path) -> None:
    path = work / "zeroshot.json"
    rows = read_rows(path)
    model = load_video_llm(work / "base" / "model", device="cpu")
    data = Cells(work, "test", model.tokenizer)
    jobs: list[tuple[str, str, int]] = [("full", "", GRID.cells)]
    jobs += [(f"{name}@{k}", name, k) for k in (32, 12, 64) for name in usable()]
    jobs += [(f"{name}@{k}", TRAINED[name], k) for k in (32, 12, 64) for name in ("token_dynamics",)]
    jobs += [(name, spec, 32) for name, spec in ADAPTIVE.items()]
    for key, spec, k in jobs:
        if key in rows:
            continue
        rows[key] = measure(with_budget(model, spec, k) if spec else model.reduce_with(""), data)
        write_rows(path, rows)
        print(key, round(rows[key]["accuracy"], 4), round(rows[key]["tokens"], 1), flush=True)
    if "full, renumbered" not in rows:
        model.positions = "renumber"
        for name in ("uniform", "kmeans", "tome", "mean_pool"):
            rows[f"{name}@32, renumbered"] = measure(with_budget(model, name, 32), data)
        rows["full, renumbered"] = measure(model.reduce_with(""), data)
        write_rows(path, rows)


def finetune(
    work: Path,
    spec: str,
    k: int,
    seed: int,
    data: Cells,
    test: Cells,
    positions: str = "keep",
    make: Any = None,
    steps: int = TUNE_STEPS,
) -> dict[str, Any]:
    """Trains the base with a chain for the same number of steps as all others; returns its scores."""
    model = load_video_llm(work / "base" / "model", device="cpu")
    model.positions = positions
    with_budget(model, spec, k, seed) if spec else model.reduce_with("")
    if make is not None:
        model.compressor = Pipeline([make(model)])
    settings = Settings(
        steps=steps, batch=32, lr=5e-4, weight_decay=0.02, rates={"encoder": 0.0, "compressor": 2.0}, workers=0,
        save_every=10**9, log_every=50, seed=seed, precision="bf16",
    )  # fmt: skip
    out = work / f"tune-{seed}"
    start_time = time.perf_counter()
    fit(model, answer_loss, data, settings, out, collate=collate, resume=False, device="cpu")
    seconds = time.perf_counter() - start_time
    return measure(model.eval(), test) | {"train_seconds": seconds}


def step_finetune(work: Path, seeds: Sequence[int]) -> None:
    tokenizer = _language(work)[1]
    data, test = Cells(work, "train", tokenizer, items=TUNE_ITEMS), Cells(work, "test", tokenizer)
    names = {"full": "", **{name: name for name in usable()}, **TRAINED, **ADAPTIVE}
    selected = ("token_dynamics", "kmeans", "uniform", "mean_pool")
    others = {f"{name}@{k}": (TRAINED.get(name, name), k) for k in (12, 64) for name in selected}
    jobs = {name: (spec, 32) for name, spec in names.items()} | others
    for seed in seeds:
        path = work / f"finetune-{seed}.json"
        rows = read_rows(path)
        for name, (spec, k) in jobs.items():
            key = f"{name}#{seed}"
            if key not in rows and (name not in SLOW or seed == SEEDS[0]):
                rows[key] = finetune(work, spec, k, seed, data, test)
                write_rows(path, rows)
                print(key, round(rows[key]["accuracy"], 4), round(rows[key]["tokens"], 1), flush=True)


def step_longer(work: Path, seeds: Sequence[int]) -> None:
    """Whether randomly initialized methods approach those without parameters."""
    tokenizer = _language(work)[1]
    data, test = Cells(work, "train", tokenizer, items=2 * TUNE_ITEMS), Cells(work, "test", tokenizer)
    names = ("kmeans", "token_dynamics", "token_dynamics (paper)", "token_dynamics (reference)", "perceiver")
    for seed in seeds:
        path = work / f"longer-{seed}.json"
        rows = read_rows(path)
        for name in names:
            key = f"{name}#{seed}"
            if key not in rows:
                rows[key] = finetune(work, TRAINED.get(name, name), 32, seed, data, test, steps=4 * TUNE_STEPS)
                write_rows(path, rows)
                print(key, round(rows[key]["accuracy"], 4), flush=True)


def step_ablation(work: Path, seeds: Sequence[int]) -> None:
    """The base, the base with its map, with a shuffled map, and a random base with its map.

    All are trained equally long with renumbered positions, so that only the map contains positions.
    """
    from fewtokens.methods.learned.token_dynamics import TokenDynamics

    class RandomMap(TokenDynamics):
        def forward(self, tokens: Any, **cues: Any) -> Any:
            base = tokens.apply(self.decide(tokens))
            generator = torch.Generator().manual_seed(self.seed)
            shuffled = base.assignment[:, torch.randperm(base.assignment.shape[1], generator=generator)]
            remapped = base.replace(assignment=shuffled)
            features = self.attention(base.features, remapped)
            return base.replace(features=features * base.mask[..., None])

    class RandomBase(TokenDynamics):
        def forward(self, tokens: Any, **cues: Any) -> Any:
            base = tokens.apply(self.decide(tokens))
            generator = torch.Generator().manual_seed(self.seed)
            random = torch.randn(base.features.shape, generator=generator) * base.features.std()
            features = self.attention(random, base)
            return base.replace(features=features * base.mask[..., None])

    tokenizer = _language(work)[1]
    data, test = Cells(work, "train", tokenizer, items=TUNE_ITEMS), Cells(work, "test", tokenizer)
    makes = {
        "base alone": ("kmeans", None),
        "base + map": ("token_dynamics({k})", None),
        "base + map (paper)": ("token_dynamics({k}, mode='paper')", None),
        "base + map (reference)": ("vqtoken({k}, side=4)", None),
        "base + random map": ("kmeans", lambda model: RandomMap(32, dim=model.dim)),
        "random base + map": ("kmeans", lambda model: RandomBase(32, dim=model.dim)),
    }
    for seed in seeds:
        path = work / f"ablation-{seed}.json"
        rows = read_rows(path)
        for name, (spec, make) in makes.items():
            key = f"{name}#{seed}"
            if key not in rows:
                rows[key] = finetune(work, spec, 32, seed, data, test, positions="renumber", make=make)
                write_rows(path, rows)
                print(key, round(rows[key]["accuracy"], 4), flush=True)


def step_report(work: Path) -> None:
    from videoqa_report import write

    questions = [VideoQA(CONFIG, split, 40_000, formats=("open",)).questions() for split in ("train", "test")]
    results: dict[str, Any] = {"zeroshot": read_rows(work / "zeroshot.json")}
    for name in ("finetune", "longer", "ablation"):
        results[name] = {
            key: row for path in sorted(work.glob(f"{name}-*.json")) for key, row in read_rows(path).items()
        }
    results["text_only"] = text_only(*questions)
    results["machine"] = machine()
    results["prefill_gflops"] = {str(k): prefill_gflops(k) for k in (*BUDGETS, GRID.cells)}
    write(results, RESULTS)


def main() -> None:
    steps = {name.removeprefix("step_"): function for name, function in globals().items() if name.startswith("step_")}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK", help="directory of data and runs")
    parser.add_argument("step", choices=list(steps), metavar="STEP", help=", ".join(steps))
    parser.add_argument(
        "seeds", type=int, nargs="*", metavar="SEED", help="for finetune, longer, ablation (default: 0 1 2)"
    )
    options = parser.parse_args()
    if options.step in ("finetune", "longer", "ablation"):
        steps[options.step](options.work, options.seeds or SEEDS)
    elif options.seeds:
        parser.error(f"{options.step} does not accept seeds")
    else:
        steps[options.step](options.work)


if __name__ == "__main__":
    main()
