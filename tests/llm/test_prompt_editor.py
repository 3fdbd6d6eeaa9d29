"""Shortened prompts against an implementation with loops: padding on either side, texts of different lengths."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from fewtokens.core.tokens import Tokens
from fewtokens.llm import compress
from fewtokens.llm.chat import VIDEO_MARKER, collate_turns, encode_turns
from tests.llm.test_composed import ANSWERS, QUESTIONS, build, parts  # noqa: F401, a fixture
from tests.llm.tiny import FAMILIES, IMAGE, MROPE_FAMILIES, VIDEO, Prompt, grid_of, prompt, tiny, token_types

PAD_ID = 7
Line = tuple[list[int], list[tuple[int, ...]], list[int], list[list[int]]]


def weights_between(where: list[float], shape: tuple[int, ...]) -> dict[tuple[int, ...], float]:
    """The weights of linear interpolation at (t, y, x), by cell; cells outside the grid are those at the border."""
    weights: dict[tuple[int, ...], float] = {}
    for corner in itertools.product((0, 1), repeat=3):
        cell, weight = [], 1.0
        for value, step, size in zip(where, corner, shape, strict=True):
            low = int(value // 1)
            weight *= value - low if step else 1 - (value - low)
            cell.append(min(max(low + step, 0), size - 1))
        weights[tuple(cell)] = weights.get(tuple(cell), 0.0) + weight
    return weights


def edit_by_loops(
    ids: list[int],
    at: list[tuple[int, ...]],
    labels: list[int],
    videos: list[tuple[list[int], Tokens]],
    placeholder: int,
    layout: str,
    positions: str,
) -> Line:
    """Edits one prompt without padding; returns ids, positions, labels and the new columns of each video.

    Args:
        videos: the columns of its cells, and its tokens.
    """
    survivors, new = set(range(len(ids))), []
    for number, (columns, tokens) in enumerate(videos):
        T, H, W = tokens.grid.shape
        survivors -= set(columns)
        if layout == "collapse":
            survivors -= set(range(columns[0], columns[-1]))
        for n in range(tokens.N):
            where = tokens.positions[0, n].tolist()
            t, y, x = (min(max(round(v), 0), size - 1) for v, size in zip(where, (T, H, W), strict=True))
            begin = nearest = columns[(t * H + y) * W + x]
            while begin - 1 in columns:
                begin -= 1
            position = at[nearest]
            if positions == "average":
                weights = weights_between(where, (T, H, W))
                cells = [(at[columns[(a * H + b) * W + c]], weight) for (a, b, c), weight in weights.items()]
                position = tuple(round(sum(p[axis] * s for p, s in cells)) for axis in range(len(position)))
            new.append((columns[0] if layout == "collapse" else begin, len(new), number, position))
    entries = [(column, -1, None, ids[column], at[column], labels[column]) for column in survivors]
    entries += [(column, order, number, placeholder, where, -100) for column, order, number, where in new]
    entries.sort(key=lambda entry: entry[:2])
    groups = [[place for place, entry in enumerate(entries) if entry[2] == number] for number in range(len(videos))]
    # In the order of the tokens, which differs from that of the columns if there is text between frames.
    for number, group in enumerate(groups):
        groups[number] = sorted(group, key=lambda place: entries[place][1])
    if positions == "renumber":
        where = [(n,) * len(at[0]) for n in range(len(entries))]
    else:
        where = [entry[4] for entry in entries]
    return [entry[3] for entry in entries], where, [entry[5] for entry in entries], groups


def check(compressed: Any, lines: list[Line], *, left: bool, pad: int, counted: bool) -> None:
    """Compares a shortened batch with the expected prompts.

    Args:
        counted: whether positions are preceded by a count of the columns.
    """
    inputs = compressed.inputs
    width = max(len(ids) for ids, *_ in lines)
    assert inputs["input_ids"].shape == (len(lines), width)
    videos = iter(compressed.layout.videos)
    for b, (ids, where, labels, groups) in enumerate(lines):
        free = width - len(ids)
        before, after = (free, 0) if left else (0, free)
        assert inputs["input_ids"][b].tolist() == [pad] * before + ids + [pad] * after
        assert inputs["attention_mask"][b].tolist() == [0] * before + [1] * len(ids) + [0] * after
        assert inputs["labels"][b].tolist() == [-100] * before + labels + [-100] * after
        real = slice(before, before + len(ids))
        if "position_ids" in inputs:
            at = inputs["position_ids"]
            at = at[:, b, real] if at.ndim == 3 else at[None, b, real]
            if counted:
                assert at[0].tolist() == list(range(len(ids)))
                at = at[1:]
            assert [tuple(column) for column in at.T.tolist()] == where
        else:
            assert where == [(n,) for n in range(len(ids))]
        for group in groups:
            video = next(videos)
            assert video.row == b
            assert video.columns.tolist() == [before + column for column in group]
        assert int(compressed.after[b]) == len(ids)
        question = [n for n, label in enumerate(labels) if all(other == -100 for other in labels[: n + 1])]
        assert int(compressed.layout.ends[b]) == before + question[-1]
    assert next(videos, None) is None


def pad_prompts(prompts: list[Prompt], family: str, *, left: bool) -> tuple[dict[str, Any], list[Any]]:
    """Pads prompts on one side; only the mask marks the padding."""
    width = max(example.inputs["input_ids"].shape[1] for example in prompts)
    inputs: dict[str, Any] = {}
    for name in {name: 0 for example in prompts for name in example.inputs}:
        values = [example.inputs[name] for example in prompts if name in example.inputs]
        if name in ("input_ids", "attention_mask", "mm_token_type_ids", "labels"):
            fill = {"labels": -100, "input_ids": PAD_ID}.get(name, 0)
            free = [width - v.shape[1] for v in values]
            sides = [(n, 0) if left else (0, n) for n in free]
            values = [torch.nn.functional.pad(v, side, value=fill) for v, side in zip(values, sides, strict=True)]
        elif name == "pixel_values" and family == "smolvlm":
            longest = max(v.shape[1] for v in values)
            values = [torch.nn.functional.pad(v, (0, 0, 0, 0, 0, 0, 0, longest - v.shape[1])) for v in values]
        inputs[name] = torch.cat(values)
    return inputs, [row for example in prompts for row in example.items]


def cells_of(family: str, ids: list[int], items: list[tuple[str, int]]) -> list[list[int]]:
    """The columns of the cells of each video of a prompt."""
    shared = family in ("internvl", "smolvlm")
    marks = iter([column for column, id in enumerate(ids) if id == (IMAGE if shared else VIDEO)])
    videos = []
    for kind, steps in items:
        T, H, W = grid_of(family, steps)
        if kind == "image" and not shared:
            continue
        columns = list(itertools.islice(marks, T * H * W))
        if kind == "video":
            videos.append(columns)
            if family == "llava_onevision":
                next(marks)  # its newline
    return videos


def positions_of(family: str, inputs: dict[str, Any]) -> list[tuple[int, ...]]:
    """The positions of the original prompt, computed by the model."""
    ids = inputs["input_ids"]
    if family not in MROPE_FAMILIES:
        return [(n,) for n in range(ids.shape[1])]
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    extra = {name: inputs[name] for name in names if name in inputs}
    at, _ = tiny(family).model.get_rope_index(ids, mm_token_type_ids=token_types(ids), **extra)
    return [tuple(column) for column in at[:, 0].T.tolist()]


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("layout", ["per_frame", "collapse"])
@pytest.mark.parametrize("positions", ["keep", "average", "renumber"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_equals_loops(family, positions, layout, left, monkeypatch):
    model = tiny(family)
    monkeypatch.setattr(model.generation_config, "pad_token_id", PAD_ID)
    equal_lengths = family.startswith("llava")  # these require videos of one length in a batch
    prompts = [
        prompt(family, ("text", 3), ("video", 3), ("text", 4), seed=1),
        prompt(family, ("text", 11), seed=4),
        prompt(family, ("text", 5), ("image",), ("text", 1), ("video", 3 if equal_lengths else 4), ("text", 2), seed=2),
        prompt(family, ("video", 3 if equal_lengths else 2), ("text", 2), ("video", 3), ("text", 6), seed=3),
    ]
    if equal_lengths:
        prompts[2] = prompt(family, ("text", 7), ("video", 3), ("text", 2), seed=2)
    for number, example in enumerate(prompts):
        example.inputs["labels"] = torch.full_like(example.inputs["input_ids"], -100)
        example.inputs["labels"][:, -1 - number % 2 :] = example.inputs["input_ids"][:, -1 - number % 2 :]
    inputs, items = pad_prompts(prompts, family, left=left)
    compressed = compress(
        model, inputs, "kmeans(criterion='silhouette', k_min=2, k_max=9) | tome(keep=0.4)", items=items,
        layout=layout, positions=positions,
    )  # fmt: skip
    assert any(not torch.equal(tokens.positions, tokens.positions.round()) for tokens in compressed.tokens)
    tokens = iter(compressed.tokens)
    lines = []
    for example in prompts:
        ids, labels = example.inputs["input_ids"][0].tolist(), example.inputs["labels"][0].tolist()
        videos = [(columns, next(tokens)) for columns in cells_of(family, ids, example.items[0])]
        placeholder = IMAGE if family in ("internvl", "smolvlm") else VIDEO
        at = positions_of(family, example.inputs)
        lines.append(edit_by_loops(ids, at, labels, videos, placeholder, layout, positions))
    check(compressed, lines, left=left, pad=PAD_ID, counted=family in MROPE_FAMILIES)
    assert compressed.before.tolist() == [example.inputs["input_ids"].shape[1] for example in prompts]


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("positions", ["keep", "renumber"])
def test_a_batch_of_a_composed_model(parts, positions, left, monkeypatch):  # noqa: F811
    model = build(parts, "kmeans(criterion='silhouette', k_min=2, k_max=7)", positions=positions)
    monkeypatch.setattr(model.llm.generation_config, "pad_token_id", PAD_ID)
    lines = [encode_turns(model.tokenizer, [pair]) for pair in zip(QUESTIONS, ANSWERS, strict=True)]
    frames = torch.randint(0, 255, (3, 4, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    frames[1, 1:] = frames[1, :1]  # a static video, which has fewer clusters
    compressed = model.compress(collate_turns(lines, PAD_ID, left=left) | {"pixel_values_videos": frames})
    assert len({tokens.N for tokens in compressed.tokens}) > 1
    expected = []
    for (ids, labels), tokens in zip(lines, compressed.tokens, strict=True):
        (mark,) = (ids == VIDEO_MARKER).nonzero()[0].tolist()
        cells = tokens.grid.cells
        ids_by_cell = [*ids[:mark].tolist(), *[VIDEO_MARKER] * cells, *ids[mark + 1 :].tolist()]
        labels_by_cell = [*labels[:mark].tolist(), *[-100] * cells, *labels[mark + 1 :].tolist()]
        columns = list(range(mark, mark + cells))
        at = [(n,) for n in range(len(ids_by_cell))]
        expected.append(
            edit_by_loops(ids_by_cell, at, labels_by_cell, [(columns, tokens)], VIDEO_MARKER, "per_frame", positions)
        )
    check(compressed, expected, left=left, pad=PAD_ID, counted=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_placeholders_of_a_video_must_be_in_one_prompt(family):
    """One placeholder is moved to the next prompt, so that the total still matches."""
    prompts = [prompt(family, ("text", 3), ("video", 2), ("text", 3), seed=seed) for seed in (1, 2)]
    inputs, items = pad_prompts(prompts, family, left=True)
    ids: Tensor = inputs["input_ids"]
    mark = IMAGE if family in ("internvl", "smolvlm") else VIDEO
    first = int((ids[0] == mark).nonzero()[-1])
    ids[0, first], ids[1, 0] = 3, mark
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = token_types(ids)
    with pytest.raises(ValueError, match=r"placeholders of one \w+ span two prompts in the batch"):
        compress(tiny(family), inputs, "uniform(keep=0.5)", items=items)
