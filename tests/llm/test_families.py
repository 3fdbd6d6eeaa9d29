"""The generic backend on every family of transformers that takes features made ahead, on tiny random models.

Expected values come from the stock model, and from a recomputation of embeddings and positions written here: stock
features, their means by `tokens.assignment`, and the positions that the stock model gives the original prompt.
"""

from __future__ import annotations

import inspect
import warnings
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from fewtokens.llm import attach
from fewtokens.llm.families import FAMILIES
from tests.llm.families import (
    Prompt,
    accepts,
    build,
    folders,
    prompt,
)
from tests.llm.tiny import IMAGE, VIDEO

WORKING = [family.folder for family in FAMILIES if family.works and family.folder in folders()]
FEW = "kmeans(keep=4)"
each_family = pytest.mark.parametrize("folder", WORKING)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield


@cache
def example(folder: str, *, seed: int = 0) -> Prompt:
    """Two videos; encoders of frames [V,T,3,H,W] need the same number of frames in both."""
    equal = accepts(build(folder), "video") and "pixel_values_videos" in prompt(folder, ("video", 1)).inputs
    equal = equal and prompt(folder, ("video", 1)).inputs["pixel_values_videos"].ndim == 5
    parts = ("text", 3), ("video", 3), ("text", 2), ("video", 3 if equal else 2), ("text", 4)
    return prompt(folder, *parts, seed=seed)


@cache
def stock(folder: str) -> Tensor:
    return build(folder)(**example(folder).inputs).logits


def features(model: Any, modality: str, inputs: dict[str, Any]) -> Any:
    """The output of the stock encoder."""
    encode = getattr(model.base_model, f"get_{modality}_features")
    names = inspect.signature(encode).parameters
    return encode(**{name: value for name, value in inputs.items() if name in names}, return_dict=True)


def stock_positions(model: Any, inputs: dict[str, Any]) -> Tensor:
    """The positions of a prompt without padding, [A,1,L]."""
    function = getattr(model.base_model, "get_rope_index", None)
    if function is None:
        return torch.arange(inputs["input_ids"].shape[1])[None, None]
    names = inspect.signature(function).parameters
    return function(**{name: value for name, value in inputs.items() if name in names})[0]


def rows_by_column(model: Any, example: Prompt) -> tuple[Tensor, list[list[Tensor]], list[Tensor]]:
    """The stock features of a prompt, by column and DeepStack layer, and the columns of each visual."""
    ids = example.inputs["input_ids"][0]
    own_id = bool((ids == VIDEO).any())
    columns = {
        modality: (ids == placeholder).nonzero().squeeze(1)
        for modality, placeholder in (("image", IMAGE), ("video", VIDEO if own_id else IMAGE))
    }
    modality = "video" if accepts(model, "video") else "image"
    output = features(model, modality, example.inputs)
    flat = torch.cat([rows.flatten(0, -2) for rows in output.pooler_output])
    deep = [torch.cat(list(layer)) for layer in output.get("deepstack_features") or ()]
    visuals = columns[modality].split([len(visual) for visual in example.visuals])
    return flat, deep, list(visuals)


class Recomputed:
    """A reduced prompt, recomputed column by column: ids, embeddings and positions ("keep")."""

    def __init__(self, model: Any, example: Prompt, tokens: list[Any]) -> None:
        ids = example.inputs["input_ids"][0]
        positions = stock_positions(model, example.inputs)[:, 0]
        flat, deep, visuals = rows_by_column(model, example)
        embedded = model.get_input_embeddings()(ids).clone()
        embedded[torch.cat(visuals)] = flat
        pieces: list[tuple[int, Tensor, list[Tensor], bool]] = []  # source column, row, DeepStack rows, visual
        inserted: dict[int, list[Any]] = {}
        dropped: set[int] = set()
        at = 0
        for visual, columns, reduced in zip(example.visuals, visuals, tokens, strict=True):
            rows = slice(at, at + len(visual))
            at += len(visual)
            cells = visual.cells()
            cell_columns = columns[cells]
            assignment = reduced.assignment[0]
            count = int(assignment.max()) + 1
            T, H, W = visual.shape
            index = torch.arange(T * H * W)
            places = torch.stack([index // (H * W), index // W % H, index % W], 1).float()
            ends = torch.cat([columns[1:] - columns[:-1], torch.tensor([2])]) > 1
            run = torch.cat([torch.tensor([0]), ends.long().cumsum(0)[:-1]])  # by row
            occupied = set()
            for token in range(count):
                members = (assignment == token).nonzero().squeeze(1)
                row = flat[rows][cells][members].mean(0)
                layers = [layer[rows][cells][members].mean(0) for layer in deep]
                center = reduced.positions[0, token]
                torch.testing.assert_close(center, places[members].mean(0))
                t, y, x = center.round().long().tolist()
                nearest = (t * H + y) * W + x
                # The first cell of the frame's run, or of the block between rows that are not cells.
                block = nearest // visual.group if visual.group else int(run[cells][nearest])
                blocks = index // visual.group if visual.group else run[cells]
                first = int(cell_columns[(blocks == block).nonzero()[0, 0]])
                occupied.add(block)
                inserted.setdefault(first, []).append((int(cell_columns[nearest]), row, layers))
            dropped.update(cell_columns.tolist())
            for number, other in enumerate(visual.others().tolist()):
                if number not in occupied:
                    dropped.add(int(columns[other]))
        visual_columns = set(torch.cat(visuals).tolist())
        zeros = [layer.new_zeros(layer.shape[1]) for layer in deep]
        for column in range(len(ids)):
            for source, row, layers in inserted.get(column, []):
                pieces.append((source, row, layers, True))
            if column not in dropped:
                pieces.append((column, embedded[column], zeros, column in visual_columns))
        source = torch.tensor([piece[0] for piece in pieces])
        self.source, self.ids = source, ids[source]
        self.embeddings = torch.stack([piece[1] for piece in pieces])[None]
        self.visual = torch.tensor([[piece[3] for piece in pieces]])
        self.deep = [torch.stack([piece[2][layer] for piece in pieces if piece[3]]) for layer in range(len(deep))]
        self.positions = positions[:, None, source]
        self.types = {
            name: example.inputs[name][:, source]
            for name in ("mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids")
            if name in inspect.signature(model.forward).parameters and name in example.inputs
        }

    def logits(self, model: Any) -> Tensor:
        positions = self.positions if len(self.positions) > 1 else self.positions[0]
        inputs = {"inputs_embeds": self.embeddings, "position_ids": positions, "use_cache": False}
        inputs["attention_mask"] = torch.ones_like(self.ids[None])
        if self.deep:
            output = model.base_model.language_model(
                **inputs, visual_pos_masks=self.visual, deepstack_visual_embeds=self.deep
            )
            return model.lm_head(output.last_hidden_state)
        return model(**inputs, **self.types).logits


@each_family
def test_a_full_budget_is_bit_equal_to_stock(folder):
    model, one = build(folder), example(folder)
    expected = stock(folder)
    assert torch.isfinite(expected).all() and expected.std() > 0.05
    with attach(model, "tome(keep=1.0)", items=one.items) as few:
        out = few(**one.inputs).logits
    assert torch.equal(out, expected)
    assert [tokens.grid.shape for tokens in few.last.tokens] == [visual.shape for visual in one.visuals]


@each_family
def test_a_reduced_prompt_equals_a_recomputation(folder):
    model, one = build(folder), example(folder)
    seen = []
    hook = (
        decoder(model)
        .layers[0]
        .register_forward_pre_hook(lambda _, args, kwargs: seen.append(hidden_of(args, kwargs)), with_kwargs=True)
    )
    try:
        with attach(model, FEW, items=one.items, positions="keep") as few:
            out = few(**one.inputs).logits
    finally:
        hook.remove()
    expected = Recomputed(model, one, few.last.tokens)
    removed = sum(visual.cells().numel() for visual in one.visuals) - sum(tokens.N for tokens in few.last.tokens)
    assert torch.equal(few.last.inputs["input_ids"][0], expected.ids)
    others = sum(len(visual.others()) for visual in one.visuals)
    length = one.inputs["input_ids"].shape[1] - removed
    assert length - others <= seen[0] <= length and seen[0] == len(expected.ids)
    torch.testing.assert_close(out, expected.logits(model), rtol=1e-5, atol=1e-5)
    assert (out[:, -1] - stock(folder)[:, -1]).abs().max() > 1e-4


def decoder(model: Any) -> Any:
    from fewtokens.llm.layers.hooks import language_model

    return language_model(model)


def hidden_of(args: Any, kwargs: Any) -> int:
    return (args[0] if args else kwargs["hidden_states"]).shape[1]
