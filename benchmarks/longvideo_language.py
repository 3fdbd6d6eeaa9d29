"""Questions as text about rendered streams, answered by a small video language model from its memory.

    python benchmarks/longvideo_language.py WORK train [--data shared/data]   about 20 minutes of one core; resumes
    python benchmarks/longvideo_language.py WORK ask [--data shared/data]     about 6 minutes
    python benchmarks/longvideo_language.py WORK report

The model is a frozen ViT-S/14 (weights/dinov2-small of the data folder), a projector, the mean of the 16 tokens of a
frame, and a Llama of 0.6 M parameters with random weights and a vocabulary of 40 words. It is trained by
`train_video_llm`, the function behind `fewtokens train video-llm`, on encoded frames in random order with conversations
about them, first with few frames. It is not trained with any memory. The streams are those of `longvideo_pixels.py`, 5
minutes long; their frames pass through `StreamSession.push`, and questions are asked three times a stream.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

import fewtokens
from common import write
from fewtokens.core import files
from fewtokens.core.grid import Grid
from fewtokens.core.selection import FrameSelector
from fewtokens.data.scenes import COLORS, SHAPES
from fewtokens.encoders import VitEncoder, load_encoder
from fewtokens.evaluation.longvideo.pictures import LOOKS, Pictures, visit_frames
from fewtokens.evaluation.longvideo.script import Script
from fewtokens.llm.chat import collate_turns, encode_turns
from fewtokens.llm.composed import ComposedVideoLLM, load_language_model, load_video_llm
from fewtokens.llm.prompts import ComposedProcessor
from fewtokens.llm.stream_session import StreamSession
from fewtokens.selection import select_among
from fewtokens.train.settings import Settings
from fewtokens.train.video_llm import train_video_llm

SIZE, PATCHES, POOL = 56, 16, "spatial_pool(keep='1/frame')"
VISITS, FRAMES = 24, 3
# (name, steps, batch, frames of a conversation, which may differ between batches)
STAGES = (("short", 400, 64, (1, 2, 4)), ("long", 900, 32, (8, 16, 24, 32)))
KINDS = ("first", "last", "order", "shown", "needle", "again")
SEEDS, SECONDS, SLOTS = tuple(range(9)), 300, 24
MEMORIES = (
    "ring(1)", f"ring({SLOTS})", f"reservoir({SLOTS})", f"halving({SLOTS})", f"tome_cap({SLOTS})",
    f"kmeans_cap({SLOTS})", f"moviechat({SLOTS}, short=1, slots=1)", f"videoscan({SLOTS})",
)  # fmt: skip
SELECTORS = (
    f"uniform_frames({SLOTS})", f"random_frames({SLOTS})", f"scene_changes({SLOTS})", f"max_min_frames({SLOTS})",
    f"aks({SLOTS})",
)  # fmt: skip
NOTES = (
    "Accuracy of exact answers in %, nine streams, asked after 100, 200 and 300 s; all: mean of the kinds. Tokens: "
    "slots or frames that the model reads, one token each, the mean at the end. Chance without the video: shown, "
    "needle, again and order 50, first and last 2.1. Text only: the most frequent answer in training, of two objects "
    "the one named first; gray frame: the model reads one gray frame instead. One frame per scene: an oracle, which "
    "shows what the model can do. needle: whether an object was shown that appeared in a single frame; shown: one of "
    "the first half of the stream so far; half of the answers are no. Selectors see all frames so far when the "
    "question comes (aks by novelty), memories see each once. Bytes: state of the session. First token: ms from the "
    "question to the first token, median after 100 and after 300 s."
)


def name(look: int) -> str:
    return f"{list(COLORS)[look % len(COLORS)]} {SHAPES[look // len(COLORS)]}"


def ask_texts(kind: str, *looks: int) -> str:
    words = [name(look) for look in looks]
    return {
        "first": "Which object is the first?",
        "last": "Which object is the last?",
        "order": "Which object came first, the {0} or the {1}?",
        "shown": "Was the {0} shown?",
        "needle": "Was the {0} shown?",
        "again": "Was the {0} shown more than once?",
    }[kind].format(*words)


def conversation(runs: list[int], rng: np.random.Generator) -> list[tuple[str, str]]:
    """Two questions of each kind about places in this order, and a list of all of them."""
    present = list(dict.fromkeys(runs))
    counts = Counter(runs)
    turns = [(ask_texts("first"), name(runs[0])), (ask_texts("last"), name(runs[-1]))]
    for _ in range(2):
        if len(present) > 1:
            a, b = rng.permutation(present)[:2].tolist()
            turns.append((ask_texts("order", a, b), name(a if present.index(a) < present.index(b) else b)))
        absent = [look for look in range(LOOKS) if look not in counts]
        yes = bool(rng.integers(2))
        turns.append((ask_texts("shown", int(rng.choice(present if yes else absent))), "yes" if yes else "no"))
        groups = [[look for look in present if (counts[look] > 1) == more] for more in (False, True)]
        yes = bool(rng.integers(2))
        if groups[yes]:
            turns.append((ask_texts("again", int(rng.choice(groups[yes]))), "yes" if yes else "no"))
    order = rng.permutation(len(turns)).tolist()
    return [*(turns[n] for n in order), ("List all objects.", " then ".join(map(name, runs)))]


def sample_runs(frames: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Places in the order of time, neighbors differ and about a third return; and the frames of each."""
    count = int(rng.integers(1, frames + 1))
    runs: list[int] = []
    while len(runs) < count:
        look = int(rng.choice(runs)) if runs and rng.random() < 0.3 else int(rng.integers(LOOKS))
        if not runs or look != runs[-1]:
            runs.append(look)
        elif len(set(runs)) == 1:
            runs.append(int((look + rng.integers(1, LOOKS)) % LOOKS))
    cuts = np.sort(rng.permutation(frames - 1)[: count - 1]) + 1
    return runs, np.diff([0, *cuts.tolist(), frames]).tolist()


class Numbers(Dataset[int]):
    """The seeds of samples, which `Collate` makes: all of a batch have the same number of frames."""

    def __init__(self, items: int, first: int) -> None:
        self.items, self.first = items, first

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, key: int | tuple[int, int]) -> int:
        return self.first + (key[1] if isinstance(key, tuple) else key)


class Collate:
    """Makes the conversations of a batch with encoded frames; half of the frames are averages of two of a place."""

    def __init__(self, cells: Tensor, tokenizer: Any, lengths: tuple[int, ...]) -> None:
        self.cells, self.tokenizer, self.lengths = cells, tokenizer, lengths

    def __call__(self, seeds: list[int]) -> dict[str, Any]:
        frames = self.lengths[seeds[0] % len(self.lengths)]
        lines, videos = [], []
        for seed in seeds:
            rng = np.random.default_rng(seed)
            runs, lengths = sample_runs(frames, rng)
            look = torch.tensor(runs).repeat_interleave(torch.tensor(lengths))
            both = [
                self.cells[look, torch.from_numpy(rng.integers(self.cells.shape[1], size=frames))] for _ in range(2)
            ]
            mixed = torch.from_numpy(rng.integers(2, size=(frames, 1, 1))).float()
            videos.append(torch.lerp(both[0].float(), both[1].float(), 0.5 * mixed).flatten(0, 1))
            lines.append(encode_turns(self.tokenizer, conversation(runs, rng)))
        batch = collate_turns(lines, 0)
        return batch | {"video_cells": torch.stack(videos), "video_grid": Grid(frames, 4, 4)}


def make_language_model(folder: Path) -> Path:
    """Saves a Llama with random weights and a tokenizer for the words of the questions."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = Tokenizer(models.WordLevel(unk_token="<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    texts = [ask_texts(kind, 0, 1) for kind in KINDS] + [name(look) for look in range(LOOKS)]
    texts += ["USER: List all objects. ASSISTANT: yes no then"]
    special = trainers.WordLevelTrainer(special_tokens=["<pad>", "<s>", "</s>", "<unk>"])
    vocabulary.train_from_iterator(texts, special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=1024, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def training_cells(work: Path, encoder: VitEncoder) -> Tensor:
    """Encoded frames of visits to each place, [48,n,16,384]; none of these visits is in a stream."""
    path = work / "cells.safetensors"
    if not path.exists():
        rows = []
        for look in range(LOOKS):
            seeds = [(10**7, visit) for visit in range(VISITS)]
            frames = torch.cat([visit_frames(look, seed, 0, 16, SIZE)[:: 16 // FRAMES][:FRAMES] for seed in seeds])
            with torch.inference_mode():
                rows.append(encoder(frames[:, None])[0].features.half().clone())
        files.save(path, "longvideo_cells", {"cells": torch.stack(rows)}, {})
    return files.load(path, "longvideo_cells")[0]["cells"]


def step_train(work: Path, data: Path) -> None:
    encoder = load_encoder(data / "weights" / "dinov2-small", device="cpu", batch=256)
    assert isinstance(encoder, VitEncoder)
    cells = training_cells(work, encoder)
    folder = work / "language"
    llm, tokenizer = load_language_model(folder if (folder / "config.json").exists() else make_language_model(folder))
    torch.manual_seed(0)
    model = ComposedVideoLLM(encoder, llm, tokenizer, spec=POOL, positions="renumber")

    def progress(done: int, total: int, values: dict[str, float]) -> None:
        if done % 20 == 0:
            print(done, total, {key: round(value, 3) for key, value in values.items()}, flush=True)

    for stage, (title, steps, batch, lengths) in enumerate(STAGES):
        if (work / title / "model" / "config.json").exists():
            model = load_video_llm(work / title / "model", device="cpu")
            continue
        settings = Settings(
            steps=steps, batch=batch, lr=2e-3, weight_decay=0.02, rates={"encoder": 0.0}, workers=0, save_every=200,
            log_every=20, warmup=0.05, precision="no", seed=stage,
        )  # fmt: skip
        numbers = Numbers(steps * batch, 10**6 * stage)
        train_video_llm(
            model, numbers, settings, work / title, collate=Collate(cells, tokenizer, lengths), progress=progress,
            device="cpu",
        )  # fmt: skip


def stream_questions(script: Script, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """(kind, question, answer) about what happened so far; answers yes and no are equally frequent."""
    runs = script.scenes.tolist()
    counts, present = Counter(runs), list(dict.fromkeys(runs))
    needles = range(script.num_scenes, len(script.codes))
    absent = [look for look in range(LOOKS) if look not in counts and look not in needles]
    asked = [("first", ask_texts("first"), name(runs[0])), ("last", ask_texts("last"), name(runs[-1]))]
    for _ in range(6 if len(present) > 1 else 0):
        a, b = rng.permutation(present)[:2].tolist()
        asked.append(("order", ask_texts("order", a, b), name(a if present.index(a) < present.index(b) else b)))
    early = present[: max(1, len(present) // 2)]
    again = [[look for look in present if (counts[look] > 1) == more] for more in (False, True)]
    kinds = {"shown": (absent, early), "needle": (absent, list(needles)), "again": again}
    for kind, (no, yes) in kinds.items():
        number = min(3, len(no), len(yes))
        for group, answer in ((no, "no"), (yes, "yes")):
            asked += [(kind, ask_texts(kind, look), answer) for look in rng.permutation(group)[:number].tolist()]
    return asked


class Asker:
    """The model with a session for each memory; every frame is encoded once, for all of them."""

    def __init__(self, work: Path) -> None:
        folder = work / STAGES[-1][0] / "model"
        self.model = load_video_llm(folder, device="cpu")
        self.processor = ComposedProcessor(folder, self.model, num_frames=SLOTS, read_size=SIZE)
        self.encoded: dict[bytes, Any] = {}
        encode = self.model.cells

        def once(frames: Tensor, times: Tensor | None = None) -> Any:
            key = frames.numpy().tobytes()
            if key not in self.encoded:
                self.encoded[key] = encode(frames, times)
            return self.encoded[key]

        self.model.cells = once  # type: ignore[method-assign]

    def session(self, memory: str) -> StreamSession:
        return StreamSession(self.model, self.processor, f"{POOL} | {memory}")


def step_ask(work: Path, data: Path) -> None:
    asker = Asker(work)
    rows: dict[str, dict[str, Any]] = {
        key: {"right": defaultdict(list), "tokens": [], "bytes": [], "first": defaultdict(list), "push": 0.0}
        for key in ("gray frame", "one frame per scene", *MEMORIES, *SELECTORS)
    }

    def ask(row: dict[str, Any], session: StreamSession, part: Script, questions: list[tuple[str, str, str]]) -> None:
        for kind, question, answer in questions:
            said = session.ask(question, 4)
            row["right"][kind].append(said.text == answer)
            row["first"][part.seconds].append(1e3 * said.first_token)
        if part.seconds == SECONDS:
            row["tokens"].append(said.tokens)
            row["bytes"].append(session.nbytes)

    for seed in SEEDS:
        asker.encoded.clear()
        script = Script.sample(SECONDS, seed=seed, num_scenes=24, num_needles=6, mean=20, noise=0)
        film = Pictures(script, SIZE)
        frames, times = film.frames(0, SECONDS), torch.arange(SECONDS, dtype=torch.float64)
        sessions = {memory: asker.session(memory) for memory in MEMORIES}
        gray = asker.session("ring(1)")
        gray.push(torch.full((1, 3, SIZE, SIZE), 60, dtype=torch.uint8))
        for start in range(0, SECONDS, 100):
            stop = start + 100
            part, rng = script.until(stop), np.random.default_rng([seed, stop])
            questions = stream_questions(part, rng)
            for memory, session in sessions.items():
                began = time.process_time()
                session.push(frames[start:stop], times[start:stop])
                rows[memory]["push"] += time.process_time() - began
                ask(rows[memory], session, part, questions)
            ask(rows["gray frame"], gray, part, questions)
            shown = torch.cat([part.starts + 1, part.needles]).unique().clamp(max=stop - 1)
            chosen = {"one frame per scene": shown}
            for spec in SELECTORS:
                (selector,) = fewtokens.build(spec)
                assert isinstance(selector, FrameSelector)
                scorer = "features" if "relevance" in selector.needs else None
                chosen[spec] = select_among(selector, frames[:stop], times[:stop], scorer=scorer).index
            for key, index in chosen.items():
                session = asker.session(f"ring({max(SLOTS, len(index))})")
                session.push(frames[index], times[index])
                ask(rows[key], session, part, questions)
        print(
            seed,
            {
                key: round(float(np.mean([np.mean(right) for right in row["right"].values()])), 3)
                for key, row in rows.items()
            },
            flush=True,
        )
    table = [text_only()]
    for key, row in rows.items():
        right = {kind: 100 * float(np.mean(row["right"][kind])) for kind in KINDS}
        streamed = key in MEMORIES
        table.append(
            {
                "memory or selector": key, "tokens": float(np.mean(row["tokens"])),
                "bytes": row["bytes"][0] if streamed else None, "all": float(np.mean(list(right.values()))), **right,
                "push, ms": 1e3 * row["push"] / (len(SEEDS) * SECONDS) if streamed else None,
                "first token, 100 s": float(np.median(row["first"][100])),
                "first token, 300 s": float(np.median(row["first"][300])),
            }
        )  # fmt: skip
    with files.atomic_file(work / "ask.json") as temporary:
        temporary.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def text_only() -> dict[str, Any]:
    """The most frequent answer of training to the same kind of question; of two objects the one named first."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for number in range(2000):
        rng = np.random.default_rng(number)
        for question, answer in conversation(sample_runs(24, rng)[0], rng)[:-1]:
            counts[question.partition(" the ")[0] + " once" * ("once" in question)][answer] += 1
    right: dict[str, list[bool]] = defaultdict(list)
    for seed in SEEDS:
        script = Script.sample(SECONDS, seed=seed, num_scenes=24, num_needles=6, mean=20, noise=0)
        for stop in range(100, SECONDS + 1, 100):
            for kind, question, answer in stream_questions(script.until(stop), np.random.default_rng([seed, stop])):
                key = question.partition(" the ")[0] + " once" * ("once" in question)
                guess = counts[key].most_common(1)[0][0]
                if kind == "order":
                    guess = question.partition("first, the ")[2].partition(", or")[0]
                right[kind].append(guess == answer)
    scores = {kind: 100 * float(np.mean(right[kind])) for kind in KINDS}
    empty = {"push, ms": None, "first token, 100 s": None, "first token, 300 s": None}
    head = {"memory or selector": "text only", "tokens": 0, "bytes": None}
    return {**head, "all": float(np.mean(list(scores.values()))), **scores, **empty}


def step_report(work: Path, data: Path) -> None:
    rows = json.loads((work / "ask.json").read_text(encoding="utf-8"))
    command = "python benchmarks/longvideo_language.py WORK ask"
    write("longvideo_language", "Questions as text about streams of 5 minutes", command, rows, NOTES, digits=4)


def main() -> None:
    steps = {"train": step_train, "ask": step_ask, "report": step_report}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK", help="directory of data and runs")
    parser.add_argument("step", choices=list(steps), metavar="STEP", help=", ".join(steps))
    parser.add_argument("--data", type=Path, default=Path("shared/data"))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    steps[given.step](given.work, given.data)


if __name__ == "__main__":
    main()
