"""Computes the cues of methods before a language model, in one place for every runtime.

`attach`, `compress`, `Session` and the training of a composed model all use these functions, so a method receives the
same tensors in each of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fewtokens.core.attention_rule import AttentionRule
from fewtokens.core.method import CUES, Method
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.tokens import Tokens
from fewtokens.llm.backends.base import MODALITIES, Backend
from fewtokens.llm.backends.rows import VisualFeatures
from fewtokens.llm.families import FAMILIES
from fewtokens.llm.layout import prompt_columns
from fewtokens.llm.tower import TOWER_CUES


def check_cues(backend: Backend, model: Any, pipeline: Pipeline) -> None:
    """Checks that a model can provide the cues that the methods need.

    Args:
        model: None if its weights are not loaded yet; the cues of its vision tower are then not checked.

    Warns if a class token is requested that the vision tower does not have.

    Raises:
        ValueError: a method needs a cue, or an attention, that the model cannot provide.
    """
    attention_rule(pipeline)
    available = {*backend.cues, *TOWER_CUES} if model is None else set(backend.available_cues(model))
    for method in pipeline.methods:
        if not isinstance(method, Method) or method.stage == "encoder":
            continue
        for need in sorted(set(method.needs) - available):
            remedy = ""
            if need in (*TOWER_CUES, "pixels"):
                names = [family.name for family in FAMILIES if family.prompts and need in family.cues]
                remedy = f"; {', '.join(names)} and others can (fewtokens llm-families)"
            raise ValueError(f"{method.name} needs {need} ({CUES[need]}), which {backend.name} cannot provide{remedy}")
        if model is not None and set(method.needs) & set(TOWER_CUES):
            backend.check_attention(model, method)


def needed_cues(pipeline: Pipeline) -> set[str]:
    """Returns the names of the cues that the methods after the vision tower need, or use if they are given."""
    methods = [m for m in pipeline.methods if isinstance(m, Method) and m.stage != "encoder"]
    return {need for method in methods for need in (*method.needs, *method.optional_cues)}


def attention_rule(*pipelines: Pipeline) -> AttentionRule:
    """Returns which attention the methods read.

    Raises:
        ValueError: two methods read different ones.
    """
    every = [method for pipeline in pipelines for method in pipeline.methods]
    methods = [m for m in every if isinstance(m, Method) and m.stage != "encoder" and set(m.needs) & set(TOWER_CUES)]
    rules = {method.attention_rule for method in methods}
    if len(rules) > 1:
        raise ValueError(
            f"{' and '.join(method.name for method in methods)} read different attention; give each the same argument "
            "attention, such as attention='received'"
        )
    return rules.pop() if rules else AttentionRule()


def question_columns(backend: Backend, model: Any, prompt: dict[str, Any]) -> Tensor:
    """The columns of the cue "text", bool [B,L]: no placeholders, no padding, and nothing from the first label on."""
    columns = prompt_columns(prompt)
    for modality in MODALITIES:
        for placeholder in backend.placeholders(model, modality):
            columns = columns & (prompt["input_ids"] != placeholder)
    return columns


def cue_shape(needs: Collection[str], visual: VisualFeatures, text: Tensor | None) -> tuple[int, ...]:
    """The key that two videos must share, in addition to their frame size, for their cues to be stacked.

    Args:
        needs: names of cues.
        visual: the video.
        text: bool [L], the columns of the cue "text" in its prompt, or None if no text is needed.
    """
    assert visual.grid is not None
    frames = visual.grid.T if {"pixels", "frame_global"} & set(needs) else 0
    return frames, 0 if text is None else int(text.sum())


def make_cues(
    needs: Collection[str],
    model: Any,
    prompt: dict[str, Any],
    videos: Sequence[VisualFeatures],
    tokens: Tokens,
    rows: Sequence[int],
    text: Tensor | None,
) -> dict[str, Tensor]:
    """Computes the cues of videos with the same `cue_shape`, see `CUES`.

    Args:
        needs: names of cues.
        prompt: the inputs, with input_ids [B,L].
        videos: V videos.
        tokens: their cells, [V,N,C].
        rows: the index of each video's prompt.
        text: see `question_columns`; None if no text is needed.

    Raises:
        ValueError: a prompt has no text before its first label.
    """
    cues: dict[str, Tensor] = {}
    if "frame_global" in needs:
        cues["frame_global"] = _frame_means(tokens, videos)
    if "pixels" in needs:
        cues["pixels"] = torch.stack([visual.pixels for visual in videos if visual.pixels is not None])
    for name in set(needs) & set(TOWER_CUES):
        cues[name] = pad_sequence([visual.cues[name] for visual in videos], batch_first=True)
    if "text" in needs:
        assert text is not None
        ids = torch.stack([prompt["input_ids"][row, text[row]] for row in rows])
        if not ids.shape[1]:
            raise ValueError(
                "a prompt has no text before its first label, so there is no question for query-aware methods"
            )
        cues["text"] = model.get_input_embeddings()(ids)
    return cues


def _frame_means(tokens: Tokens, videos: Sequence[VisualFeatures]) -> Tensor:
    """The mean of the cells of each frame [V,T,C]; of those that were encoded, zero if there are none."""
    frames = tokens.features.unflatten(1, (tokens.grid.T, -1))
    encoded = videos[0].encoded
    if encoded is None:
        return frames.mean(2)
    assert len(videos) == 1
    weights = encoded.view(frames.shape[:3]).to(frames.dtype)
    return (weights[..., None] * frames).sum(2) / weights.sum(2, keepdim=True).clamp(min=1)
