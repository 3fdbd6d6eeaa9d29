"""Training a `ComposedVideoLLM`: conversations about videos to a folder that answers.

The parts are named encoder, projector, compressor and llm; `Settings.rates` says how fast each learns, 0 freezes one.
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
from fewtokens.llm.chat import check_question, collate_turns, encode_turns
from fewtokens.llm.composed import ComposedVideoLLM
from fewtokens.llm.pixels import square_frames
from fewtokens.train.curves import draw_curves
from fewtokens.train.inputs import Input, files_input, plain_input
from fewtokens.train.loop import Evaluate, Progress, Report, fit
from fewtokens.train.settings import Settings
from fewtokens.video import read

# What the paper of Token Dynamics trains with (arXiv 2503.16980, section 5): 1e-5 for the attention and the language
# model, 2e-6 for the encoder, cosine, AdamW without decay, one epoch; the projector as the language model.
PAPER = {
    "epochs": 1.0, "batch": 8, "lr": 1e-5, "rates": {"encoder": 0.2}, "warmup": 0.03, "weight_decay": 0.0,
    "precision": "bf16", "checkpointing": True,
}  # fmt: skip
# For the compressor and the projector alone, the rest frozen.
COMPRESSOR_ONLY = {"encoder": 0.0, "llm": 0.0}


@dataclass(frozen=True)
class Reading:
    """How a video is read: frames spread evenly over it, and the short side in pixels (frames become squares)."""

    frames: int = 16
    size: int = 224


class Conversations(Dataset[dict[str, Any]]):
    """Conversations with their videos, indexed by (epoch, number) or number.

    A video that cannot be read, or a question with a special token in it, is reported in "broken" and left out of its
    batch.
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
    """What `fit` notes of the data of a run."""
    texts = (f"{item.id} {item.turns}" for item in items)
    return {
        "data": files_input([item.video for item in items], texts),
        "frames": plain_input(reading.frames),
        "size": plain_input(reading.size),
    }


def collate_with(pad: int) -> Callable[[Sequence[dict[str, Any]]], dict[str, Any]]:
    """Conversations side by side; what stands in them beside "line" is stacked."""

    def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        good = [sample for sample in samples if "broken" not in sample]
        batch: dict[str, Any] = {"broken": [sample["broken"] for sample in samples if "broken" in sample]}
        if good:
            batch |= collate_turns([sample["line"] for sample in good], pad)
            batch |= {name: torch.stack([sample[name] for sample in good]) for name in good[0] if name != "line"}
        return batch

    return collate


def evaluator(items: Sequence[Conversation], reading: Reading, *, batch: int = 8) -> Evaluate:
    """Scores a model by its first answers: % of them that are the expected words, but for case and punctuation."""

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, ComposedVideoLLM)
        right = asked = 0
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
            questions = model.encode_questions([item.turns[0][0] for item in part])
            videos = {"pixel_values_videos": torch.stack(frames).to(model.device)}
            answers = model.answer(questions | videos, max_new_tokens=32)
            right += sum(
                normalize(answer) == normalize(item.turns[0][1]) for answer, item in zip(answers, part, strict=True)
            )
            asked += len(part)
        return {"exact_match": 100 * right / max(1, asked)}

    return evaluate


def answer_loss(
    model: nn.Module, batch: dict[str, Any], generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective: cross-entropy of the words of the answers."""
    return model(**batch).loss, {}


def add_lora(model: ComposedVideoLLM, rank: int, alpha: int | None = None) -> None:
    """Puts low-rank adapters (arXiv 2106.09685, through peft) into every linear layer of the language model, which is
    frozen but for them. They are merged where the model is saved.

    Raises:
        ValueError: peft is not installed, or a rank below 1.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ValueError("adapters need peft; pip install 'fewtokens[lora]'") from None
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
        data: samples as `Conversations` gives them, or with "video_cells" encoded before in place of pixels.
        collate: samples to a batch, where they are others.
        evaluate, inputs, resume, progress, device: as for `fit`.
        meta: plain values kept beside its config.

    Raises:
        ValueError, OSError, Stopped: what `fit` says.
    """
    report = fit(
        model,
        answer_loss,
        data,
        settings,
        out,
        collate=collate or collate_with(model.tokenizer.pad_token_id or 0),
        evaluate=evaluate,
        inputs=inputs,
        resume=resume,
        progress=progress,
        device=device,
    )
    from accelerate import PartialState

    if PartialState().is_main_process:
        model.save_pretrained(Path(out) / "model", **meta)
        draw_curves(report.metrics, Path(out) / "curves.png")
    return report
