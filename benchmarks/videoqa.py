"""What each method keeps for a language model that watches videos: the table of Token Dynamics, made from nothing.

    python benchmarks/videoqa_encoder.py WORK        the frozen encoder, about 35 minutes on 2 cores
    python benchmarks/videoqa.py WORK data           clips and their features, about 10 minutes, 7 GB
    python benchmarks/videoqa.py WORK base           a language model of 0.9 M parameters on all tokens, over an hour
    python benchmarks/videoqa.py WORK zeroshot       every method at 12, 32 and 64 of 256 tokens, not retrained
    python benchmarks/videoqa.py WORK finetune       every method at 32 tokens, equal further training, 3 seeds; hours
    python benchmarks/videoqa.py WORK longer         some of them with four times as much of it
    python benchmarks/videoqa.py WORK ablation       the map and the base of Token Dynamics, one by one
    python benchmarks/videoqa.py WORK report         results/videoqa.json, .md and .png

finetune, longer and ablation take numbers of seeds after them; seeds can run side by side, each on one core. Each step
goes on where it was stopped.

Clips of 16 frames, 64 pixels (`fewtokens.data.videoqa`): ten kinds of question, all open (answers of one word), scored
by exact match. Tokens: 16 frames x 4 x 4 cells, 2 x 2 patches of the encoder in each. Reduction is after the projector,
in the width of the language model; tokens keep the positions of their cells (positions="keep"), but for the rows that
say otherwise.

Expected: 47.7 % with all tokens where a blind guess has 18.4 %; not retrained, at 32 tokens, hourglass 44,
fewer_frames 43, kmeans 41, random 39, tome 30; after further training frame_fusion 46, fewer_frames 44, token_dynamics
43, kmeans 42. What is made of them: docs/studies/video_llm.md.
"""

from __future__ import annotations

import json
import sys
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
from fewtokens.data.questions import TEXTS, key_of, make_question
from fewtokens.data.scenes import Actor
from fewtokens.data.staging import stage
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
# Made for this budget by their own arguments: 32 tokens of 16 frames of 4 x 4 cells.
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
# A quarter of an hour a run where others take half a minute: one seed.
SLOW = ("storm",)
ADAPTIVE = {
    "kmeans, adaptive 12-32": "kmeans(criterion='silhouette', k_min=12, k_max=32)",
    "token_dynamics, adaptive 12-32": "token_dynamics(criterion='silhouette', between=(12, 32))",
}


DESCRIBE = "What does the clip show?"


def scene(split: str, number: int) -> list[Actor]:
    """Everything that is seen in a clip, as it comes up and from left to right."""
    actors, _ = stage(
        make_question(split, number, CONFIG), CONFIG, np.random.default_rng(key_of(split, number, CONFIG, 1))
    )
    shown = [actor for actor in actors if actor.shown.any()]
    return sorted(shown, key=lambda actor: (int(actor.shown.argmax()), actor.path[actor.shown.argmax()][1]))


def caption(actors: Sequence[Actor]) -> str:
    return " ".join(f"{actor.colour} {actor.look}" for actor in actors)


def talk(split: str, number: int, turns: int = 5) -> list[tuple[str, str]]:
    """The question of a clip, other questions on it whose answer is certain, and a description: a small model learns to
    look many times faster from much said of each clip than from one word."""
    rng = np.random.default_rng(key_of(split, number, CONFIG, 2))
    question = make_question(split, number, CONFIG, formats=("open",))
    actors = scene(split, number)
    colours, looks = Counter(actor.colour for actor in actors), Counter(actor.look for actor in actors)
    starts = [int(actor.shown.argmax()) for actor in actors]
    found: list[tuple[str, tuple[str, ...], str]] = []
    for actor in actors:
        alone = colours[actor.colour] == 1
        if alone:
            found.append(("digit coloured" if actor.look.isdigit() else "shape shape", (actor.colour,), actor.look))
        if looks[actor.look] == 1 and not actor.look.isdigit():
            found.append(("colour colour", (actor.look,), actor.colour))
            frames = np.flatnonzero(actor.shown)
            down, right = actor.path[frames[-1]] - actor.path[frames[0]]
            if max(abs(down), abs(right)) > 0.3 and min(abs(down), abs(right)) < 0.1:
                way = ("right" if right > 0 else "left") if abs(right) > abs(down) else "down" if down > 0 else "up"
                found.append(("direction way", (actor.colour, actor.look), way))
    found.append(("count object", (), str(len(actors))))
    found += [("count colour", (colour,), str(many)) for colour, many in colours.items()]
    if len(actors) > 1 and starts[0] < starts[1]:
        found += [("order shape", (), actors[0].look)] * (not actors[0].look.isdigit())
        found.append(("order colour", (), actors[0].colour))
        later = actors[int(rng.integers(1, len(actors)))].colour
        if later != actors[0].colour:
            found.append(("order pair", tuple(rng.permutation([actors[0].colour, later]).tolist()), actors[0].colour))
    frame = int(rng.integers(CONFIG.frames))
    there = [actor for actor in actors if actor.shown[frame]]
    if len(there) == 1 and not there[0].look.isdigit():
        at = (f"{round(frame / CONFIG.fps, 3):g}",)
        found += [("moment shape", at, there[0].look), ("moment colour", at, there[0].colour)]
    said = [(prompt(question), target(question))]
    for n in rng.permutation(len(found))[:turns]:
        what, named, answer = found[n]
        text = TEXTS[what][int(rng.integers(len(TEXTS[what])))].format(*named)
        said.append((f"{text}\nAnswer with one word.", answer))
    return [*said, (DESCRIBE, caption(actors))]


class Cells(Dataset[dict[str, Any]]):
    """Encoded clips with their questions, all open, as `train_video_llm` takes them; in memory.

    Args:
        talks: much said of each clip, instead of its question alone.
        items: the first so many; all if none.
    """

    def __init__(self, work: Path, split: str, tokenizer: Any, *, talks: bool = False, items: int = 0) -> None:
        self.questions = VideoQA(CONFIG, split, items or ITEMS[split], formats=("open",)).questions()
        self.cells = np.load(work / f"{split}.npy", mmap_mode="r")[: len(self.questions)].copy()
        turns = (talk(split, n) if talks else [(prompt(q), target(q))] for n, q in enumerate(self.questions))
        self.lines = [encode_turns(tokenizer, said) for said in turns]

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        number = key[1] if isinstance(key, tuple) else key
        return {"line": self.lines[number], "video_cells": torch.from_numpy(self.cells[number].astype(np.float32))}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    batch = collate_turns([sample["line"] for sample in samples], 0)
    cells = torch.stack([sample["video_cells"] for sample in samples])
    return batch | {"video_cells": cells, "video_grid": GRID}


def encoder_of(work: Path) -> VitEncoder:
    encoder = load_encoder(blank(work / "blank"), batch=4096)
    assert isinstance(encoder, VitEncoder)
    tensors, _ = files.load(work / "encoder.safetensors", "videoqa_encoder")
    encoder.vit.load_state_dict(tensors)
    return encoder


def make_language_model(folder: Path) -> Path:
    """A Llama of random weights and a tokenizer that knows the words of the questions."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["<pad>", "<s>", "</s>", "<unk>"])
    texts = [f"USER: {asked} ASSISTANT: {said}" for number in range(4000) for asked, said in talk("train", number)]
    words.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
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
    model = ComposedVideoLLM(encoder_of(work), *_language(work), pool=POOL)
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
    model = ComposedVideoLLM(encoder_of(work), *_language(work), pool=POOL)
    settings = Settings(
        steps=steps, batch=32, lr=1.5e-3, weight_decay=0.02, rates={"encoder": 0.0}, workers=1, save_every=200,
        log_every=50, warmup=0.03, precision="bf16",
    )  # fmt: skip
    data = Cells(work, "train", model.tokenizer, talks=True)
    train_video_llm(model, data, settings, work / "base", collate=collate, progress=say, device="cpu")
    print(summarize(answers(model.eval(), Cells(work, "test", model.tokenizer)))["all"])


def say(done: int, total: int, numbers: dict[str, float]) -> None:
    if done % 50 == 0:
        print(done, total, {name: round(value, 3) for name, value in numbers.items()}, flush=True)


@torch.no_grad()
def answers(model: ComposedVideoLLM, data: Cells, part: slice = slice(None)) -> list[dict[str, Any]]:
    """Rows of `evaluate.videoqa` for a part of the test; every answer is one word."""
    questions = data.questions[part]
    rows: list[dict[str, Any]] = []
    for start in range(0, len(questions), 100):
        some = questions[start : start + 100]
        cells = torch.from_numpy(data.cells[part][start : start + len(some)].astype(np.float32))
        words = model.encode_questions([prompt(q) for q in some])
        said = model.answer(words | {"video_cells": cells, "video_grid": GRID}, max_new_tokens=1)
        rows += [row(text, question) for text, question in zip(said, some, strict=True)]
    return rows


def usable() -> list[str]:
    """Methods without parameters that need no cue of the encoder, the baselines first."""
    found = []
    for name in registry.names():
        kind = registry.get(name)
        if kind.stage == "tokens" and not kind.learned and set(kind().needs) <= {"text", "frame_global"}:
            found.append(name)
    return [name for name in found if name not in ("grid_split", "spatial_pool")]


def with_methods(model: ComposedVideoLLM, spec: str, k: int, seed: int = 0) -> ComposedVideoLLM:
    """The model with a chain at a budget; what cannot go so low is taken down by `tome`, as in a bench."""
    torch.manual_seed(seed)
    if "(" in spec:
        return model.reduce_with(spec.format(k=k))
    model.compressor = Pipeline(chain(spec, k, GRID, seed=seed, dim=model.dim))
    return model


def measure(model: ComposedVideoLLM, data: Cells) -> dict[str, Any]:
    """Accuracy by kind, tokens that came out, milliseconds of reduction and prompt a video."""
    counts, reducing = [], 0.0
    with torch.no_grad():
        for start in range(0, 200, 50):
            cells = torch.from_numpy(data.cells[start : start + 50].astype(np.float32))
            words = model.encode_questions([prompt(q) for q in data.questions[start : start + 50]])
            begun = time.perf_counter()
            short = model.compress(words | {"video_cells": cells, "video_grid": GRID})
            reducing += time.perf_counter() - begun
            counts += [tokens.N for tokens in short.tokens]
    begun = time.perf_counter()
    scores = summarize(answers(model, data))
    seconds = time.perf_counter() - begun
    kinds = {kind: scores["kinds"][kind]["accuracy"] for kind in KINDS}
    tokens = float(np.mean(counts))
    accuracy = scores["all"]["accuracy"]
    return {
        "tokens": tokens, "accuracy": accuracy, "tokdense": 100 * accuracy / tokens, "kinds": kinds,
        "reduce_ms": 1000 * reducing / 200, "answer_ms": 1000 * seconds / len(data),
    }  # fmt: skip


def kept(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def keep(path: Path, rows: dict[str, Any]) -> None:
    with files.whole_file(path) as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n")


def step_zeroshot(work: Path) -> None:
    path = work / "zeroshot.json"
    rows = kept(path)
    model = load_video_llm(work / "base" / "model", device="cpu")
    data = Cells(work, "test", model.tokenizer)
    jobs: list[tuple[str, str, int]] = [("full", "", GRID.cells)]
    jobs += [(f"{name}@{k}", name, k) for k in (32, 12, 64) for name in usable()]
    jobs += [(f"{name}@{k}", TRAINED[name], k) for k in (32, 12, 64) for name in ("token_dynamics",)]
    jobs += [(name, spec, 32) for name, spec in ADAPTIVE.items()]
    for key, spec, k in jobs:
        if key in rows:
            continue
        rows[key] = measure(with_methods(model, spec, k) if spec else model.reduce_with(""), data)
        keep(path, rows)
        print(key, round(rows[key]["accuracy"], 4), round(rows[key]["tokens"], 1), flush=True)
    if "full, renumbered" not in rows:
        model.positions = "renumber"
        for name in ("uniform", "kmeans", "tome", "mean_pool"):
            rows[f"{name}@32, renumbered"] = measure(with_methods(model, name, 32), data)
        rows["full, renumbered"] = measure(model.reduce_with(""), data)
        keep(path, rows)


def tuned(
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
    """The base with a chain, trained further for as many steps as all others; its scores."""
    model = load_video_llm(work / "base" / "model", device="cpu")
    model.positions = positions
    with_methods(model, spec, k, seed) if spec else model.reduce_with("")
    if make is not None:
        model.compressor = Pipeline([make(model)])
    settings = Settings(
        steps=steps, batch=32, lr=5e-4, weight_decay=0.02, rates={"encoder": 0.0, "compressor": 2.0}, workers=0,
        save_every=10**9, log_every=50, seed=seed, precision="bf16",
    )  # fmt: skip
    out = work / f"tune-{seed}"
    begun = time.perf_counter()
    fit(model, answer_loss, data, settings, out, collate=collate, resume=False, device="cpu")
    seconds = time.perf_counter() - begun
    return measure(model.eval(), test) | {"train_seconds": seconds}


def step_finetune(work: Path, seeds: Sequence[int]) -> None:
    tokenizer = _language(work)[1]
    data, test = Cells(work, "train", tokenizer, items=TUNE_ITEMS), Cells(work, "test", tokenizer)
    names = {"full": "", **{name: name for name in usable()}, **TRAINED, **ADAPTIVE}
    some = ("token_dynamics", "kmeans", "uniform", "mean_pool")
    others = {f"{name}@{k}": (TRAINED.get(name, name), k) for k in (12, 64) for name in some}
    jobs = {name: (spec, 32) for name, spec in names.items()} | others
    for seed in seeds:
        path = work / f"finetune-{seed}.json"
        rows = kept(path)
        for name, (spec, k) in jobs.items():
            key = f"{name}#{seed}"
            if key not in rows and (name not in SLOW or seed == SEEDS[0]):
                rows[key] = tuned(work, spec, k, seed, data, test)
                keep(path, rows)
                print(key, round(rows[key]["accuracy"], 4), round(rows[key]["tokens"], 1), flush=True)


def step_longer(work: Path, seeds: Sequence[int]) -> None:
    """Whether what begins at random comes nearer to what does not."""
    tokenizer = _language(work)[1]
    data, test = Cells(work, "train", tokenizer, items=2 * TUNE_ITEMS), Cells(work, "test", tokenizer)
    names = ("kmeans", "token_dynamics", "token_dynamics (paper)", "token_dynamics (reference)", "perceiver")
    for seed in seeds:
        path = work / f"longer-{seed}.json"
        rows = kept(path)
        for name in names:
            key = f"{name}#{seed}"
            if key not in rows:
                rows[key] = tuned(work, TRAINED.get(name, name), 32, seed, data, test, steps=4 * TUNE_STEPS)
                keep(path, rows)
                print(key, round(rows[key]["accuracy"], 4), flush=True)


def step_ablation(work: Path, seeds: Sequence[int]) -> None:
    """The base alone, the base with its map, with a map of another video, and a base drawn at random; each trained as
    long, positions renumbered, so that what says where and when is the map alone."""
    from fewtokens.methods.learned.token_dynamics import TokenDynamics

    class RandomMap(TokenDynamics):
        def forward(self, tokens: Any, **cues: Any) -> Any:
            base = tokens.apply(self.decide(tokens))
            generator = torch.Generator().manual_seed(self.seed)
            shuffled = base.assignment[:, torch.randperm(base.assignment.shape[1], generator=generator)]
            told = base.replace(assignment=shuffled)
            made = self.attention(base.features, told)
            return base.replace(features=made * base.mask[..., None])

    class RandomBase(TokenDynamics):
        def forward(self, tokens: Any, **cues: Any) -> Any:
            base = tokens.apply(self.decide(tokens))
            generator = torch.Generator().manual_seed(self.seed)
            drawn = torch.randn(base.features.shape, generator=generator) * base.features.std()
            made = self.attention(drawn, base)
            return base.replace(features=made * base.mask[..., None])

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
        rows = kept(path)
        for name, (spec, make) in makes.items():
            key = f"{name}#{seed}"
            if key not in rows:
                rows[key] = tuned(work, spec, 32, seed, data, test, positions="renumber", make=make)
                keep(path, rows)
                print(key, round(rows[key]["accuracy"], 4), flush=True)


def step_report(work: Path) -> None:
    from videoqa_report import write

    questions = [VideoQA(CONFIG, split, 40_000, formats=("open",)).questions() for split in ("train", "test")]
    found: dict[str, Any] = {"zeroshot": kept(work / "zeroshot.json")}
    for name in ("finetune", "longer", "ablation"):
        found[name] = {key: row for path in sorted(work.glob(f"{name}-*.json")) for key, row in kept(path).items()}
    found["text_only"] = text_only(*questions)
    found["machine"] = machine()
    found["prefill_gflops"] = {str(k): prefill_gflops(k) for k in (*BUDGETS, GRID.cells)}
    write(found, RESULTS)


def main(arguments: list[str]) -> None:
    steps = {name.removeprefix("step_"): function for name, function in globals().items() if name.startswith("step_")}
    if len(arguments) < 2 or arguments[1] not in steps:
        sys.exit(f"usage: python benchmarks/videoqa.py WORK {'|'.join(steps)} [SEED ...]")
    work, step, *seeds = arguments
    if step in ("finetune", "longer", "ablation"):
        steps[step](Path(work), [int(seed) for seed in seeds] or SEEDS)
    else:
        steps[step](Path(work))


if __name__ == "__main__":
    main(sys.argv[1:])
