"""What training gives the summary tokens of `video_xl`: answers of a small model from 8 summaries of 32 tokens.

    taskset -c 1 python benchmarks/video_xl_training.py [--steps N] [--tune N] [--clips N]

Clips of 8 frames of 16 x 16 pixels, 4 tokens each: a noisy dark picture in which 6 of 8 shapes are shown, each in one
of 8 colors, in one frame and one cell of 8 x 8 pixels. Questions: which color a shape has; a conversation has one for
each shape, in random order. A ViT of one layer and a Llama of 3 layers of 64 channels (0.15 M parameters, no pretrained
weights) are trained on all tokens first. Then, from this model, with the same clips, number of steps and batch:

* the summary tokens of video_xl at ratio 4, with windows of 16 tokens; the model is frozen (`train_summary_tokens`);
* the whole model with each baseline at the same number of tokens (`train_video_llm`).

Accuracy is that of one question per clip of clips that are not in the training, by exact match.

Cost: 13 minutes of one core. Expected: the model is right for 36 % of the questions with all tokens, so it has only
begun to bind colors to shapes. Untrained summaries give no answer; trained ones have the accuracy of all tokens, as
the mean of 2 x 2 tokens has if the whole model is trained on it, with a lower loss; `uniform` stays at 30 %.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from common import write
from fewtokens.evaluation.videoqa import normalize
from fewtokens.llm.chat import VIDEO_MARKER, encode_turns
from fewtokens.llm.composed import ComposedVideoLLM, build_video_llm, load_video_llm
from fewtokens.llm.prompts import ComposedProcessor
from fewtokens.train.settings import Settings
from fewtokens.train.summary_tokens import MemoryReader, train_summary_tokens
from fewtokens.train.video_llm import answer_questions, train_video_llm

SHAPES = ("square", "ring", "cross", "diagonal", "bar", "line", "corner", "frame")
COLORS = {
    "red": (255, 40, 40), "green": (40, 220, 40), "blue": (60, 60, 255), "yellow": (240, 230, 40),
    "cyan": (40, 230, 230), "purple": (190, 50, 210), "white": (250, 250, 250), "orange": (255, 140, 20),
}  # fmt: skip
FRAMES, SIDE, CELL, SHOWN = 8, 2, 8, 6
TOKENS = FRAMES * SIDE**2
RATIO, WINDOW, ASKED = 4, 16, 300
TEST = 1_000_000  # seeds of test clips begin here
NOTES = (
    "Accuracy of 300 answers in % (a standard error of at most 2.9); of 8 colors, chance is 12.5. Tokens: those that a "
    "question reads. Trained: what learned to read so few tokens, beyond the training of the model on all tokens; "
    "loss: mean of their last 50 steps. Summaries: one embedding and copies of three projections per layer, for a "
    "frozen model. Text only: the question without a video."
)


def masks() -> Tensor:
    """The pixels of each shape, bool [8,8,8]."""
    y, x = torch.meshgrid(torch.arange(CELL), torch.arange(CELL), indexing="ij")
    edge = torch.stack([y, x, 7 - y, 7 - x]).amin(0)
    return torch.stack([
        edge >= 1, (edge == 1) | (edge == 2), (abs(y - 3.5) < 1) | (abs(x - 3.5) < 1), abs(x - y) < 2, abs(x - 3.5) < 2,
        abs(y - 3.5) < 2, (y < 3) | (x < 3), edge == 0,
    ])  # fmt: skip


def clip(seed: int) -> tuple[Tensor, list[tuple[str, str]]]:
    """The frames of a clip, uint8 [8,3,16,16], and (shape, color) of what it shows, in random order."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 50, (FRAMES, 3, SIDE, CELL, SIDE, CELL), generator=generator, dtype=torch.uint8)
    shapes = torch.randperm(len(SHAPES), generator=generator)[:SHOWN].tolist()
    colors = torch.randint(len(COLORS), (SHOWN,), generator=generator).tolist()
    cells = torch.randperm(TOKENS, generator=generator)[:SHOWN].tolist()
    patterns, names = masks(), list(COLORS)
    for shape, color, cell in zip(shapes, colors, cells, strict=True):
        t, y, x = cell // SIDE**2, cell // SIDE % SIDE, cell % SIDE
        paint = torch.tensor(COLORS[names[color]], dtype=torch.uint8)[:, None, None]
        frames[t, :, y, :, x] = torch.where(patterns[shape], paint, frames[t, :, y, :, x])
    shown = [(SHAPES[shape], names[color]) for shape, color in zip(shapes, colors, strict=True)]
    return frames.reshape(FRAMES, 3, SIDE * CELL, SIDE * CELL), shown


def question(shape: str) -> str:
    return f"color of the {shape}"


class Clips(Dataset[dict[str, Any]]):
    """Clips with a question for each shape, in the format of `Conversations`."""

    def __init__(self, count: int, tokenizer: Any) -> None:
        self.count, self.tokenizer = count, tokenizer
        self.sample = cache(self._sample)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return self.sample(key[1])

    def _sample(self, index: int) -> dict[str, Any]:
        frames, shown = clip(index)
        turns = [(question(shape), color) for shape, color in shown]
        return {"pixel_values_videos": frames, "line": encode_turns(self.tokenizer, turns)}


def build(folder: Path) -> ComposedVideoLLM:
    """The model with random weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = Tokenizer(models.WordLevel(unk_token="<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["<pad>", "<s>", "</s>", "<unk>"])
    vocabulary.train_from_iterator([*map(question, SHAPES), *COLORS, "USER: ASSISTANT:"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    vit = Dinov2Config(
        hidden_size=48, num_hidden_layers=1, num_attention_heads=2, patch_size=CELL, image_size=SIDE * CELL
    )
    Dinov2Model(vit).save_pretrained(folder / "vit")
    llm = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, initializer_range=0.05, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(llm).save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    return build_video_llm(folder / "vit", folder / "llm", device="cpu")


def percent(answers: list[str], expected: list[str]) -> float:
    right = sum(normalize(answer) == color for answer, color in zip(answers, expected, strict=True))
    return 100 * right / len(expected)


def text_only(model: ComposedVideoLLM, questions: list[str]) -> list[str]:
    """The answers to questions without a video."""
    ids = model.encode_questions(questions)["input_ids"]
    ids = ids[ids != VIDEO_MARKER].reshape(len(ids), -1)  # all questions have the same length
    new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    return model.tokenizer.batch_decode(new[:, ids.shape[1] :], skip_special_tokens=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800, help="training steps on all tokens")
    parser.add_argument("--tune", type=int, default=600, help="training steps of summaries and of baselines")
    parser.add_argument("--clips", type=int, default=4000, help="training clips")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="video_xl_training_"))
    model = build(work)
    clips = Clips(options.clips, model.tokenizer)
    test = [clip(TEST + n) for n in range(ASKED)]
    frames = torch.stack([pixels for pixels, _ in test])
    asked = [question(shown[n % SHOWN][0]) for n, (_, shown) in enumerate(test)]
    expected = [shown[n % SHOWN][1] for n, (_, shown) in enumerate(test)]
    shared: dict[str, Any] = {"warmup": 0.05, "workers": 0, "save_every": 10**6, "log_every": 50, "weight_decay": 0.01}
    start = time.process_time()

    def note(done: int, total: int, numbers: dict[str, float]) -> None:
        if done % 50 == 0:
            print(done, total, f"loss {numbers['loss']:.3f}, {time.process_time() - start:.0f} s", flush=True)

    base = Settings(steps=options.steps, batch=32, lr=2e-3, **shared)
    report = train_video_llm(model, clips, base, work / "base", progress=note, device="cpu")
    rows: list[dict[str, Any]] = []

    def add(name: str, tokens: int, trained: str, answers: list[str], loss: float | None = None) -> None:
        rows.append({"read": name, "tokens": tokens, "trained": trained, "accuracy": percent(answers, expected),
                     "loss": loss})  # fmt: skip
        print(rows[-1], f"{time.process_time() - start:.0f} s", flush=True)

    def load(spec: str = "") -> ComposedVideoLLM:
        return load_video_llm(work / "base" / "model", spec=spec, device="cpu")

    def reader(spec: str) -> MemoryReader:
        whole = load()
        return MemoryReader(whole, ComposedProcessor(work, whole, num_frames=FRAMES, read_size=SIDE * CELL), spec)

    add("text only", 0, "-", text_only(load(), asked))
    add("all tokens", TOKENS, "-", answer_questions(load(), frames, asked), last_loss(report))
    tune = Settings(steps=options.tune, batch=8, lr=3e-3, **shared)
    count, spec = TOKENS // RATIO, f"video_xl(ratio={RATIO}, window={WINDOW})"
    memory = reader(spec)
    add(spec, count, "-", memory.answer(frames, asked))
    report = train_summary_tokens(memory, clips, tune, work / "summaries", progress=note, device="cpu")
    add(spec, count, "summaries", memory.answer(frames, asked), last_loss(report))
    tune = Settings(steps=options.tune, batch=8, lr=1e-3, **shared)
    for name in ("mean_pool", "uniform"):
        small = load(f"{name}(keep={count})")
        add(small.spec, count, "-", answer_questions(small, frames, asked))
        report = train_video_llm(small, clips, tune, work / name, progress=note, device="cpu")
        add(small.spec, count, "model", answer_questions(small, frames, asked), last_loss(report))
    title, command = "What training gives the summary tokens of video_xl", "python benchmarks/video_xl_training.py"
    write("video_xl_training", title, command, rows, NOTES, digits=3)


def last_loss(report: Any) -> float:
    return next(line["loss"] for line in reversed(report.metrics) if "loss" in line)


if __name__ == "__main__":
    main()
