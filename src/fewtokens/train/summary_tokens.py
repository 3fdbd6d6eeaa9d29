"""Training the summary tokens of a memory such as `video_xl`, for a frozen `ComposedVideoLLM`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from fewtokens.core.kv_memory import COUNTED, KIND, SUMMARY, KVMemory, KVState
from fewtokens.core.spec import format_short
from fewtokens.core.tokens import Tokens
from fewtokens.llm.chains import build_methods
from fewtokens.llm.chat import IGNORE_INDEX, VIDEO_MARKER
from fewtokens.llm.clock import Clock
from fewtokens.llm.composed import ComposedVideoLLM
from fewtokens.llm.kv_stream import KVStream
from fewtokens.llm.layers.summary_tokens import SummaryTokens
from fewtokens.llm.prompts import Processor
from fewtokens.train.curves import draw_curves
from fewtokens.train.inputs import Input
from fewtokens.train.loop import Evaluate, Progress, Report, fit
from fewtokens.train.settings import Settings
from fewtokens.train.video_llm import MAX_NEW_TOKENS, count_answer_tokens, make_collate

FILE = "summary_tokens.safetensors"


class MemoryReader(nn.Module):
    """A video language model that reads videos through a memory, of which the summary tokens are trained.

    As in Activation Beacon (arXiv 2401.03462), on which Video-XL (arXiv 2409.14485) is based, the model is frozen, and
    the loss is that of next tokens which are read after what the memory holds. Here these are all answers of a
    conversation. The gradient flows through the keys and values of earlier windows. The published training draws a
    ratio for each window; here it is that of the method, as in inference.

    What is read is computed as in a `Session`, so that the loss is that of its answers. Slots belong to one video, so
    the videos of a batch are read one after another, and their activations stay in memory until the gradient is
    computed: `Settings.accumulate` divides a batch.

    Args:
        model: the model, which is frozen; its own methods have no effect.
        processor: makes its prompts.
        spec: the memory, such as "video_xl(ratio=8)", with `checkpoint=` to continue from a file.

    Attributes:
        stream: the model with the memory.
        summaries: the summary tokens, the only parameters.

    Raises:
        ValueError: the spec is another than one memory with summary tokens, or the memory refuses the model.
    """

    def __init__(self, model: ComposedVideoLLM, processor: Processor, spec: str) -> None:
        super().__init__()
        methods = build_methods(spec, model)
        memory = methods[0] if len(methods) == 1 else None
        if not isinstance(memory, KVMemory) or not memory.summarizes:
            raise ValueError(
                f"{spec!r} is not one memory with summary tokens; use one without other methods, such as "
                "'video_xl(ratio=8)'"
            )
        self.stream = KVStream(model.eval().requires_grad_(False), processor, processor.backend, memory)
        self.summaries = SummaryTokens(model)
        if memory.checkpoint is not None:
            self.summaries.restore(memory.checkpoint)
        self.stream.runtime.use(self.summaries)

    @property
    def tokenizer(self) -> Any:
        return self.stream.model.tokenizer

    def spec(self, checkpoint: str | Path) -> str:
        """The spec of the memory with a file of summary tokens."""
        memory = self.stream.method
        return format_short(type(memory), memory.name, memory.arguments | {"checkpoint": str(checkpoint)})

    def read(self, videos: Mapping[str, Any]) -> Iterator[KVState]:
        """Yields the state after each video.

        Args:
            videos: as for `ComposedVideoLLM.forward`: frames uint8 [B,T,3,H,W], or cells [B,S,C] and their grid.
        """
        model = self.stream.model
        with torch.no_grad():
            rows = model.rows(videos).to(model.dtype)
        (grid,) = model.grids_of(videos)
        for features in rows:
            yield self.stream.push_tokens(Tokens.from_cells(features[None], grid), features[:0])

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **videos: Any) -> Tensor:
        """Returns the mean cross-entropy of the labels.

        Args:
            input_ids: int64 [B,L], with one `VIDEO_MARKER` per prompt.
            attention_mask, labels: [B,L].
            videos: see `read`.

        Raises:
            ValueError: the videos are too short for a summary token that is read.
        """
        losses = []
        for ids, mask, targets, state in zip(input_ids, attention_mask.bool(), labels, self.read(videos), strict=True):
            losses.append(self._loss(state, ids[mask], targets[mask]))
        return torch.stack(losses).sum() / (labels != IGNORE_INDEX).sum()

    def _loss(self, state: KVState, ids: Tensor, labels: Tensor) -> Tensor:
        """The sum of the cross-entropy of the labels of one prompt, [L]."""
        held = state.slots.info
        if not bool(held[held[:, KIND] == SUMMARY, COUNTED].any()):
            raise ValueError(
                f"{self.stream.method.short_spec} leaves no summary token of these videos; use more frames, or a "
                "smaller ratio or window"
            )
        at = int((ids == VIDEO_MARKER).nonzero()[0])
        targets = labels[at + 1 :]
        question = int((targets != IGNORE_INDEX).int().argmax())
        logits = self.stream.prefill_ids(state, ids[:at], ids[at + 1 :], question)
        return F.cross_entropy(logits[:-1].float(), targets[1:], ignore_index=IGNORE_INDEX, reduction="sum")

    @torch.no_grad()
    def answer(self, frames: Tensor, questions: Sequence[str]) -> list[str]:
        """Answers a question about each of B videos, frames uint8 [B,T,3,H,W], by greedy decoding."""
        device = self.stream.model.device
        states = self.read({"pixel_values_videos": frames.to(device)})
        return [
            self.stream.ask(state, question, MAX_NEW_TOKENS, None, Clock(device)).text
            for state, question in zip(states, questions, strict=True)
        ]


def memory_loss(
    model: nn.Module, batch: dict[str, Any], generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective: cross-entropy of the answers, read through the memory."""
    return model(**batch), {}


memory_loss.weight = count_answer_tokens  # type: ignore[attr-defined]


def train_summary_tokens(
    reader: MemoryReader,
    data: Dataset[dict[str, Any]],
    settings: Settings,
    out: str | Path,
    *,
    evaluate: Evaluate | None = None,
    inputs: Mapping[str, Input] | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    device: str | None = None,
) -> Report:
    """Trains summary tokens and saves them in OUT/summary_tokens.safetensors, for `video_xl(checkpoint=...)`.

    Args:
        reader: the model with the memory. The part in `Settings.rates` is named summaries.
        data: samples as `Conversations` returns them.
        settings: without checkpointing, compile and shard.
        evaluate, inputs, resume, progress, device: as for `fit`.

    Raises:
        ValueError, OSError, Stopped: as `fit`.
    """
    from accelerate import PartialState

    if off := [name for name in ("checkpointing", "compile", "shard") if getattr(settings, name)]:
        raise ValueError(f"summary tokens are trained without {off[0]}; use --set {off[0]}=false")
    main = PartialState(cpu=device == "cpu")
    reader.stream.model.to(main.device)
    report = fit(
        reader, memory_loss, data, settings, out, collate=make_collate(reader.tokenizer.pad_token_id or 0),
        evaluate=evaluate, inputs=inputs, resume=resume, progress=progress, device=device,
    )  # fmt: skip
    if main.is_main_process:
        reader.summaries.save(Path(out) / FILE)
        name = reader.stream.method.name
        draw_curves(report.metrics, Path(out) / "curves.png", title=f"Summary tokens of {name}, {report.steps} steps")
    return report
