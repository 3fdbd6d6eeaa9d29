"""The cues of methods in front of a language model, made in one place for every runtime.

`attach`, `compress`, `Session` and the training of a composed model all come here, so a method receives the same
tensors in each of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.method import CUES
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.tokens import Tokens
from fewtokens.llm.backends.base import MODALITIES, Backend, VisualFeatures
from fewtokens.llm.layout import asked_columns


def check_cues(backend: Backend, pipeline: Pipeline) -> None:
    """Raises a ValueError if a method needs a cue that the backend cannot give."""
    for need in sorted(pipeline.needs - set(backend.cues)):
        who = next(method.name for method in pipeline.methods if need in method.needs)  # type: ignore[operator]
        raise ValueError(f"{who} needs {need} ({CUES[need]}), which {backend.name} cannot give")


def question_columns(backend: Backend, model: Any, prompt: dict[str, Any]) -> Tensor:
    """The words of the cue "text", bool [B,L]: no placeholders, no padding, and nothing from the first label on."""
    words = asked_columns(prompt)
    for modality in MODALITIES:
        if (placeholder := backend.placeholder(model, modality)) is not None:
            words = words & (prompt["input_ids"] != placeholder)
    return words


def cue_shape(needs: Collection[str], visual: VisualFeatures, words: Tensor | None) -> tuple[int, ...]:
    """What two videos must have in common so that their cues can be stacked, beside the size of their frames.

    Args:
        needs: names of cues.
        visual: the video.
        words: bool [L], the words of its prompt, or None if no text is needed.
    """
    assert visual.grid is not None
    frames = visual.grid.T if {"pixels", "frame_global"} & set(needs) else 0
    return frames, 0 if words is None else int(words.sum())


def make_cues(
    needs: Collection[str],
    model: Any,
    prompt: dict[str, Any],
    videos: Sequence[VisualFeatures],
    tokens: Tokens,
    rows: Sequence[int],
    words: Tensor | None,
) -> dict[str, Tensor]:
    """The cues of videos whose `cue_shape` is the same, see `CUES`.

    Args:
        needs: names of cues.
        prompt: with its input_ids [B,L].
        videos: V of them.
        tokens: their cells, [V,N,C].
        rows: the prompt of each video.
        words: see `question_columns`, or None if no text is needed.

    Raises:
        ValueError: a prompt has no word before its first label.
    """
    cues: dict[str, Tensor] = {}
    if "frame_global" in needs:
        cues["frame_global"] = tokens.features.unflatten(1, (tokens.grid.T, -1)).mean(2)
    if "pixels" in needs:
        cues["pixels"] = torch.stack([visual.pixels for visual in videos if visual.pixels is not None])
    if "text" in needs:
        assert words is not None
        ids = torch.stack([prompt["input_ids"][row, words[row]] for row in rows])
        if not ids.shape[1]:
            raise ValueError("a prompt has no words before its first label, so there is no question to reduce by")
        cues["text"] = model.get_input_embeddings()(ids)
    return cues
