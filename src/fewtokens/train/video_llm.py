"""Trains a `ComposedVideoLLM` on conversations about videos.

The parts are named encoder, projector, compressor, inside (methods inside the language model), streams and llm, and
encoder2 and projector2 if there is a second encoder; `Settings.rates` scales the learning rate of each, 0 freezes a
part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fewtokens.data.qa_sets import Conversation
from fewtokens.evaluation.videoqa import normalize
from fewtokens.llm.chat import IGNORE_INDEX, check_question, collate_turns, encode_turns
from fewtokens.llm.composed import ComposedVideoLLM
from fewtokens.llm.pixels import square_frames
from fewtokens.train.curves import draw_curves
from fewtokens.train.inputs import Input, files_input, plain_input
from fewtokens.train.loop import Evaluate, Objective, Progress, Report, fit
from fewtokens.train.optimizer import unshard
from fewtokens.train.settings import Settings
from fewtokens.video import read

# The settings of the Token Dynamics paper (arXiv 2503.16980, section 5): 1e-5 for the attention and the language model,
# 2e-6 for the encoder, cosine, AdamW without decay, one epoch; the projector learns like the language model.
PAPER = {
    "epochs": 1.0, "batch": 8, "lr": 1e-5, "rates": {"encoder": 0.2}, "warmup": 0.03, "weight_decay": 0.0,
    "precision": "bf16", "checkpointing": True,
}  # fmt: skip
# The maximum length of an answer that is evaluated, in tokens.
MAX_NEW_TOKENS = 32
# Rates for training only the compressor, the projector and streams.
COMPRESSOR_ONLY = {"encoder": 0.0, "llm": 0.0}


@dataclass(frozen=True)
class Reading:
    """The settings for reading a video: number of evenly spaced frames, and side of the square frames in pixels."""

    frames: int = 16
    size: int = 224


class Conversations(Dataset[dict[str, Any]]):
    """Conversations with their videos, indexed by (epoch, index) or index.

    A video that cannot be read, or a question that contains a special token, is reported in "broken" and excluded from
    its batch.
    """

    def __init__(self, items: Sequence[Conversation], reading: Reading, tokenizer: Any) -> None:
        self.items, self.reading, self.tokenizer = list(items), reading, tokenizer

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        item = self.items[key[1] if isinstance(key, tuple) else key]
        try:
            for question, _ in item.turns:
                check_question(self.tokenizer, question)
            video = read(item.video, frames=self.reading.frames, size=self.reading.size)
        except (ValueError, OSError) as error:
            return {"broken": " ".join(str(error).split())}
        return {
            "pixel_values_videos": square_frames(video.frames, self.reading.size, self.reading.frames),
            "line": encode_turns(self.tokenizer, item.turns),
        }


def conversation_inputs(items: Sequence[Conversation], reading: Reading) -> dict[str, Input]:
    """Returns the inputs that `fit` records for the data of a run."""
    texts = (f"{item.id} {item.turns}" for item in items)
    return {
        "data": files_input([item.video for item in items], texts),
        "frames": plain_input(reading.frames),
        "size": plain_input(reading.size),
    }


def make_collate(pad: int) -> Callable[[Sequence[dict[str, Any]]], dict[str, Any]]:
    """Returns a function that pads the "line" of each conversation to one length and stacks the other tensors."""

    def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        good = [sample for sample in samples if "broken" not in sample]
        batch: dict[str, Any] = {"broken": [sample["broken"] for sample in samples if "broken" in sample]}
        if good:
            batch |= collate_turns([sample["line"] for sample in good], pad)
            batch |= {name: torch.stack([sample[name] for sample in good]) for name in good[0] if name != "line"}
        return batch

    return collate


def answer_questions(model: ComposedVideoLLM, frames: Tensor, questions: Sequence[str]) -> list[str]:
    """Answers a question about each of B videos, frames uint8 [B,T,3,H,W], by greedy decoding."""
    inputs = model.encode_questions(questions) | {"pixel_values_videos": frames.to(model.device)}
    return model.answer(inputs, max_new_tokens=MAX_NEW_TOKENS)


def evaluator(
    items: Sequence[Conversation],
    reading: Reading,
    *,
    batch: int = 8,
    answer: Callable[[Any, Tensor, Sequence[str]], list[str]] = answer_questions,
) -> Evaluate:
    """Scores the first answers of a model: % that equal the expected text, ignoring case and punctuation.

    Args:
        items: conversations, whose other turns have no effect.
        reading: how their videos are read.
        batch: the number of videos that are answered at once.
        answer: how the model that is trained answers.
    """

    def evaluate(model: Any) -> dict[str, float]:
        correct = total = 0
        for start in range(0, len(items), batch):
            part, frames = [], []
            for item in items[start : start + batch]:
                try:
                    check_question(model.tokenizer, item.turns[0][0])
                    video = read(item.video, frames=reading.frames, size=reading.size)
                except (ValueError, OSError):
                    continue
                part.append(item)
                frames.append(square_frames(video.frames, reading.size, reading.frames))
            if not part:
                continue
            answers = answer(model, torch.stack(frames), [item.turns[0][0] for item in part])
            correct += sum(
                normalize(text) == normalize(item.turns[0][1]) for text, item in zip(answers, part, strict=True)
            )
            total += len(part)
        return {"exact_match": 100 * correct / max(1, total)}

    return evaluate


def answer_loss(
    model: nn.Module, batch: dict[str, Any], generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective: cross-entropy of the answer tokens."""
    return model(**batch).loss, {}


def count_answer_tokens(batch: dict[str, Any]) -> int:
    """The number of tokens that the loss of a batch is the mean of."""
    return int((batch["labels"] != IGNORE_INDEX).sum())


answer_loss.weight = count_answer_tokens  # type: ignore[attr-defined]


def add_lora(model: ComposedVideoLLM, rank: int, alpha: int | None = None) -> None:
    """Adds low-rank adapters (arXiv 2106.09685, from peft) to every linear layer of the language model.

    The rest of the language model is frozen. Adapters are merged when the model is saved.

    Raises:
        ValueError: peft is not installed, or the rank is below 1.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ValueError("adapters require peft; install it with pip install 'fewtokens[lora]'") from None
    if rank < 1:
        raise ValueError(f"the rank of the adapters must be at least 1, got {rank}")
    config = LoraConfig(r=rank, lora_alpha=alpha or 2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model.llm = get_peft_model(model.llm, config)


def train_video_llm(
    model: ComposedVideoLLM,
    data: Dataset[dict[str, Any]],
    settings: Settings,
    out: str | Path,
    *,
    objective: Objective = answer_loss,
    collate: Callable[[Sequence[Any]], dict[str, Any]] | None = None,
    evaluate: Evaluate | None = None,
    inputs: Mapping[str, Input] | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    device: str | None = None,
    **meta: Any,
) -> Report:
    """Trains a video language model and saves it in OUT/model.

    Args:
        data: samples as `Conversations` returns them, or with encoded "video_cells" instead of pixels.
        objective: see `fewtokens.train.refinement` for others.
        collate: combines samples into a batch, if they have another format.
        evaluate, inputs, resume, progress, device: as for `fit`.
        meta: JSON values saved with its config.

    Raises:
        ValueError, OSError, Stopped: as `fit`.
    """
    report = fit(
        model,
        objective,
        data,
        settings,
        out,
        collate=collate or make_collate(model.tokenizer.pad_token_id or 0),
        evaluate=evaluate,
        inputs=inputs,
        resume=resume,
        progress=progress,
        device=device,
    )
    from accelerate import PartialState

    unshard(model)
    if PartialState().is_main_process:
        model.save_pretrained(Path(out) / "model", **meta)
        draw_curves(report.metrics, Path(out) / "curves.png", title=f"Video language model, {report.steps} steps")
    return report
