"""Frames of several sizes in one video: an item per run where a family takes any size, averaged cells elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fewtokens.core.selection import Selection
from fewtokens.llm import Session, attach
from fewtokens.llm.frame_sizes import prepare_runs, runs
from fewtokens.llm.prompts import inputs_on
from fewtokens.video import synthetic, write
from tests.llm.test_session import FIRST, loaded
from tests.llm.tiny import FAMILIES

# Runs of 2, 3, 1 and 2 frames.
SCALE = torch.tensor([1.0, 1.0, 0.5, 0.5, 0.5, 1.0, 0.25, 0.25], dtype=torch.float64)[:, None].expand(-1, 2)
PLAIN = synthetic("shapes", frames=8, size=(128, 192), seed=2)
CLIP = replace(PLAIN, selection=Selection(torch.arange(8), SCALE))
IN_RUNS = [family for family in FAMILIES if loaded(family)[1].backend.any_size]
AVERAGED = ["llava_onevision", "smolvlm", "internvl"]


def test_runs():
    assert runs(torch.tensor([[2, 2], [2, 2], [1, 2], [2, 2]])) == [(0, 2), (2, 3), (3, 4)]
    assert runs(torch.tensor([[1, 1]])) == [(0, 1)]


def test_families_of_each_kind():
    assert {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "video_llama_3"} >= set(IN_RUNS) >= {"qwen2_5_vl", "qwen3_vl"}


@pytest.mark.parametrize("family", IN_RUNS)
def test_runs_are_videos_of_the_stock_model(family):
    """The same answer as the model without fewtokens gives for a prompt with one video per run."""
    model, processor = loaded(family)
    backend = processor.backend
    height, width = backend.frame_size(model, processor, CLIP)
    side, tubelet = backend.cell_side(model, processor), backend.tubelet(model)
    rows, columns = height // side, width // side
    expected = [
        (-(-frames // tubelet), max(1, int(rows * scale)), max(1, int(columns * scale)))
        for frames, scale in ((2, 1), (3, 0.5), (1, 1), (2, 0.25))
    ]
    answer = Session(model, processor, "", 8).ask(CLIP, FIRST, 6)
    assert answer.sizes == expected
    assert answer.tokens == answer.cells == sum(t * h * w for t, h, w in expected)
    prepared = prepare_runs(backend, processor, model, CLIP)
    grids = prepared.inputs["video_grid_thw"].tolist()
    merge = backend.merge(model, processor.preprocess_config)
    assert [(t, h // merge, w // merge) for t, h, w in grids] == expected
    ids = processor.ids(FIRST, prepared.text)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | inputs_on(model, prepared.inputs)
    if backend.axes(model) > 1:
        inputs["mm_token_type_ids"] = 2 * (ids == backend.placeholders(model, "video")[0]).long()
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert answer.text == processor.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_times_stay_in_the_prompt():
    model, processor = loaded("qwen3_vl")
    text = prepare_runs(processor.backend, processor, model, CLIP).text
    seconds = CLIP.times.tolist()
    # Pairs of frames, in which the last one of an odd run is repeated.
    pairs = [(0, 1), (2, 3), (4, 4), (5, 5), (6, 7)]
    stamps = [f"<{(seconds[a] + seconds[b]) / 2:.1f} seconds>" for a, b in pairs]
    assert [part + ">" for part in text.split(">") if part.startswith("<") and part.endswith(" seconds")] == stamps


@pytest.mark.parametrize("family", AVERAGED)
def test_cells_are_averaged_after_the_tower(family):
    model, processor = loaded(family)
    session = Session(model, processor, "", 8)
    answer = session.ask(CLIP, FIRST, 2)
    (cached,) = session._encoded.values()
    ((visual,),) = (group.visuals for group in cached.encoded.values())
    grid = visual.grid
    assert grid.T == 8 and answer.cells == grid.cells  # encoded in full
    sizes = [(max(1, int(grid.H * s)), max(1, int(grid.W * s))) for s in SCALE[:, 0].tolist()]
    assert answer.tokens == sum(h * w for h, w in sizes) < answer.cells
    assert answer.sizes == [(n, *sizes[start]) for start, n in ((0, 2), (2, 3), (5, 1), (6, 2))]
    ((reduced,),) = session._reduced[next(iter(session._reduced))].values()
    cells = visual.features[visual.layout.cells()].view(*grid.shape, -1)
    features = reduced.tokens.features[0].split([h * w for h, w in sizes])
    assert torch.equal(features[0], cells[0].flatten(0, 1))
    whole = torch.nn.functional.adaptive_avg_pool2d(cells[6].permute(2, 0, 1), sizes[6]).flatten(1).T
    if all(full % part == 0 for full, part in zip(grid.shape[1:], sizes[6], strict=True)):
        torch.testing.assert_close(features[6], whole)
    full = Session(model, processor, "", 8).ask(PLAIN, FIRST, 2)
    assert full.sizes == [] and full.tokens == full.cells == answer.cells


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_methods_reduce_what_is_left(family):
    model, processor = loaded(family)
    all_of = Session(model, processor, "", 8).ask(CLIP, FIRST, 2).tokens
    count = Session(model, processor, "tome(keep=6)", 8).ask(CLIP, FIRST, 2)
    assert count.tokens == 6 < all_of
    session = Session(model, processor, "kmeans(keep=8)", 8)
    assert session.ask(CLIP, FIRST, 2).tokens == session.ask(CLIP, "what else", 2).tokens == 8
    assert session.unreduced().ask(CLIP, FIRST, 2).tokens == all_of
    if family in IN_RUNS:
        each = Session(model, processor, "uniform(keep='2/frame')", 8).ask(CLIP, FIRST, 2)
        assert each.tokens == sum(steps * min(2, rows * columns) for steps, rows, columns in each.sizes)


def test_a_method_that_needs_frames_of_one_size():
    model, processor = loaded("llava_onevision")
    with pytest.raises(ValueError, match="rlt works on frames of one size; use a selector without sizes"):
        Session(model, processor, "rlt(0.1)", 8).ask(CLIP, FIRST, 2)


def test_attach_selects_the_frames_of_a_file(tmp_path):
    model, processor = loaded("qwen2_vl")
    path = write(tmp_path / "clip.mp4", synthetic("pan", frames=24, size=(64, 96)).frames, 8)
    session = Session(model, processor, "tome(keep=0.5)", select="max_min_frames(keep=4, rate=8)")
    expected = session.ask(path, FIRST, 4)
    for spec, options in (
        ("max_min_frames(keep=4, rate=8) | tome(keep=0.5)", {}),
        ("tome(keep=0.5)", {"select": "max_min_frames(keep=4, rate=8)"}),
    ):
        with attach(model, spec, **options) as few:
            ids = few.generate(**few.inputs(processor, path, FIRST), max_new_tokens=4, do_sample=False)
            length = few.last.inputs["input_ids"].shape[1]
        assert length == expected.prompt_tokens
        assert processor.tokenizer.decode(ids[0, length:], skip_special_tokens=True) == expected.text


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("tome", {}, "no method selects frames; attach 'aks"),
        ("aks | tome", {}, "aks selects by relevance and requires a scorer"),
        ("aks | tome", {"select": "aks"}, "the chain starts with aks, which selects frames; remove it or select="),
        ("kffocus | tome", {}, "kffocus chooses frames of several sizes, which only a Session takes"),
        ("tome", {"select": "tome"}, "'tome' does not select frames"),
    ],
)
def test_attach_refuses(spec, options, message):
    model, processor = loaded("qwen2_vl")
    with pytest.raises(ValueError, match=message), attach(model, spec, **options) as few:
        few.inputs(processor, "clip.mp4", FIRST)
