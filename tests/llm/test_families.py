"""The generic backend on every family of transformers that takes precomputed features, on tiny random models.

Expected values come from the stock model, and from a recomputation of embeddings and positions written here: stock
features, their means by `tokens.assignment`, and the positions that the stock model gives the original prompt.
"""

from __future__ import annotations

import inspect
import re
import warnings
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from fewtokens.core.grid import Grid
from fewtokens.llm import (
    FAMILIES,
    Backend,
    Processor,
    RowLayout,
    attach,
    backend_of,
    compress,
    register_family,
)
from fewtokens.llm.backends.base import _SAME, _registered, backend_named
from fewtokens.llm.backends.rows import row_layout
from fewtokens.llm.interface import version
from fewtokens.llm.layers.hooks import language_model
from tests.llm.families import INTERLEAVED, NEWER, ROOT, SHARED, Prompt, accepts, batch, build, encoder, folders, prompt
from tests.llm.tiny import IMAGE, PAD, VIDEO

# Of images in tiles, tested in test_images.py.
NO_VIDEOS = ("llava_next",)
WORKING = [
    family.folder
    for family in FAMILIES
    if family.works
    and family.folder in folders()
    and family.folder not in NO_VIDEOS
    and (version() >= (5, 23) or family.folder not in NEWER)
]
FEW = "kmeans(keep=4)"
each_family = pytest.mark.parametrize("folder", WORKING)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield


@cache
def steps(folder: str) -> tuple[int, int]:
    """The steps of two videos; encoders of frames [V,T,3,H,W] require the same number in both."""
    pixels = prompt(folder, ("video", 1)).inputs.get("pixel_values_videos")
    return (3, 3) if pixels is not None and pixels.ndim == 5 else (3, 2)


@cache
def example(folder: str) -> Prompt:
    """Two videos."""
    first, second = steps(folder)
    return prompt(folder, ("text", 3), ("video", first), ("text", 2), ("video", second), ("text", 4))


@cache
def other(folder: str) -> Prompt:
    """One video."""
    return prompt(folder, ("text", 6), ("video", steps(folder)[0]), ("text", 4), seed=1)


@cache
def stock(folder: str) -> Tensor:
    return stock_logits(folder, example(folder).inputs)


def stock_logits(folder: str, inputs: dict[str, Any]) -> Tensor:
    model = build(folder)
    if folder == "nemotron_h_omni" and version() < (5, 24):
        # It concatenates its own features of a video as if they were a list.
        output = features(model, "video", inputs)
        output.pooler_output = list(output.pooler_output)
        rest = {name: value for name, value in inputs.items() if name != "pixel_values_videos"}
        return model(**rest, mm_encoder_outputs={"video": output}).logits
    return model(**inputs).logits


def folder_of(model: Any) -> str:
    return type(model).__module__.split(".")[-2]


def features(model: Any, modality: str, inputs: dict[str, Any]) -> Any:
    """The output of the stock encoder."""
    encode = encoder(model, modality)
    assert encode is not None
    names = inspect.signature(encode).parameters
    return encode(**{name: value for name, value in inputs.items() if name in names}, return_dict=True)


def stock_positions(model: Any, inputs: dict[str, Any]) -> Tensor:
    """The positions of a prompt without padding, [A,1,L]."""
    function = getattr(model.base_model, "get_rope_index", None)
    if function is None:
        return torch.arange(inputs["input_ids"].shape[1])[None, None]
    names = inspect.signature(function).parameters
    inputs = inputs | {"second_per_grids": inputs.get("video_second_per_grid")}
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


# Families whose positions are a count of the columns.
COUNTED = ("exaone4_5", "hyperclovax_vision_v2")


def positions(folder: str) -> str:
    return "renumber" if folder in COUNTED else "keep"


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
        if folder_of(model) == "molmo2":  # adds features to the embedding of the placeholder
            self.embeddings[self.visual] += model.get_input_embeddings()(torch.tensor(IMAGE))
        self.deep = [torch.stack([piece[2][layer] for piece in pieces if piece[3]]) for layer in range(len(deep))]
        self.positions = positions[:, None, source]
        if folder_of(model) in COUNTED:
            self.positions = torch.arange(len(source))[None, None]
        self.types = {
            name: example.inputs[name][:, source]
            for name in ("mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids")
            if name in inspect.signature(model.forward).parameters and name in example.inputs
        }

    def extend(self, model: Any, ids: Tensor) -> None:
        """Appends tokens [n] to the prompt."""
        self.ids = torch.cat([self.ids, ids])
        self.embeddings = torch.cat([self.embeddings, model.get_input_embeddings()(ids)[None]], 1)
        self.visual = torch.nn.functional.pad(self.visual, (0, len(ids)))
        more = self.positions[..., -1:] + 1 + torch.arange(len(ids))
        self.positions = torch.cat([self.positions, more], -1)
        answer = int(folder_of(model) == "paligemma")
        self.types = {
            name: torch.nn.functional.pad(value, (0, len(ids)), value=answer) for name, value in self.types.items()
        }

    def logits(self, model: Any) -> Tensor:
        positions = self.positions if len(self.positions) > 1 else self.positions[0]
        inputs = {"inputs_embeds": self.embeddings, "position_ids": positions, "use_cache": False}
        inputs["attention_mask"] = torch.ones_like(self.ids[None])
        if self.deep:
            inputs |= {"visual_pos_masks": self.visual, "deepstack_visual_embeds": self.deep}
        elif folder_of(model) == "qwen4_exp":
            inputs["ple_input_ids"] = self.ids[None]
        else:
            if folder_of(model) == "gemma4":
                text = self.ids.masked_fill(self.visual[0], PAD)[None]
                inputs["per_layer_inputs"] = language_model(model).get_per_layer_inputs(text, None)
            return model(**inputs, **self.types).logits
        return model.lm_head(language_model(model)(**inputs).last_hidden_state)


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
        language_model(model)
        .layers[0]
        .register_forward_pre_hook(lambda _, args, kwargs: seen.append(hidden_of(args, kwargs)), with_kwargs=True)
    )
    try:
        with attach(model, FEW, items=one.items, positions=positions(folder)) as few:
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


def hidden_of(args: Any, kwargs: Any) -> int:
    return (args[0] if args else kwargs["hidden_states"]).shape[1]


def reduced_logits(folder: str, one: Prompt, tokens: list[Any], ids: Tensor | None = None) -> Tensor:
    """The logits [L,vocabulary] of a reduced prompt, recomputed."""
    model = build(folder)
    expected = Recomputed(model, one, tokens)
    if ids is not None:
        expected.extend(model, ids)
    return expected.logits(model)[0]


@each_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch(folder, side):
    model, prompts = build(folder), (example(folder), other(folder))
    both = batch(folder, *prompts, side=side)
    with attach(model, FEW, items=both.items, positions=positions(folder)) as few:
        out = few(**both.inputs).logits
    mask, tokens = few.last.inputs["attention_mask"].bool(), few.last.tokens
    for row, (one, own) in enumerate(zip(prompts, (tokens[:2], tokens[2:]), strict=True)):
        torch.testing.assert_close(out[row, mask[row]], reduced_logits(folder, one, own), rtol=1e-4, atol=2e-4)


@each_family
def test_an_image_and_a_video(folder):
    model = build(folder)
    mixed = prompt(folder, ("text", 3), ("image",), ("text", 2), ("video", 2), ("text", 3))
    if folder in SHARED and folder != "glm5_next":
        with pytest.raises(Exception, match=r"match|same time|placeholder|cat"):
            stock_logits(folder, mixed.inputs)
        with pytest.raises(ValueError, match="one placeholder for images and videos"), attach(model, FEW) as few:
            few(**mixed.inputs)
        return
    with attach(model, "tome(keep=1.0)", items=mixed.items) as few:
        out = few(**mixed.inputs).logits
    assert torch.equal(out, stock_logits(folder, mixed.inputs))
    with attach(model, FEW, items=mixed.items) as few:
        few(**mixed.inputs)
    assert [tokens.grid.shape for tokens in few.last.tokens] == [mixed.visuals[1].shape]


@each_family
def test_labels(folder):
    model, one = build(folder), other(folder)
    labels = one.inputs["input_ids"].clone()
    labels[:, :-3] = -100
    with attach(model, FEW, items=one.items, positions=positions(folder)) as few:
        loss = few(**one.inputs, labels=labels).loss
    expected = reduced_logits(folder, one, few.last.tokens)[-4:-1]
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(expected, labels[0, -3:]), rtol=1e-4, atol=1e-4)


GREEDY = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}


def generate(folder: str, **options: Any) -> tuple[Any, Any]:
    model, one = build(folder), other(folder)
    with attach(model, FEW, items=one.items, positions=positions(folder)) as few:
        return few.generate(**one.inputs, **(GREEDY | options)), few.last


@each_family
def test_generation_with_a_cache(folder):
    """Greedy tokens and two beams have the logits of one pass without a cache."""
    one = other(folder)
    out, short = generate(folder)
    new = out.sequences[0, short.inputs["input_ids"].shape[1] :]
    expected = reduced_logits(folder, one, short.tokens, new)[-4:-1]
    torch.testing.assert_close(torch.cat(out.logits), expected.float(), rtol=1e-4, atol=1e-4)
    if folder == "glm5_next":
        return  # transformers loses its videos with beams
    out, short = generate(folder, num_beams=2, length_penalty=0.0, output_scores=True)
    new = out.sequences[0, short.inputs["input_ids"].shape[1] :]
    log_probs = reduced_logits(folder, one, short.tokens, new)[-4:-1].float().log_softmax(1)
    torch.testing.assert_close(out.sequences_scores[0], log_probs.gather(1, new[:, None]).sum(), rtol=1e-4, atol=1e-4)


@each_family
def test_a_static_cache(folder):
    model = build(folder)
    ids = torch.arange(2, 8)[None]
    try:
        model.generate(ids, cache_implementation="static", max_new_tokens=2, do_sample=False)
    except Exception as error:
        pytest.skip(f"stock fails: {type(error).__name__}")
    if folder == "gemma4_unified":
        pytest.skip("stock masks blocks in layers of full attention in another way with a static cache")
    static, dynamic = (generate(folder, **options)[0].logits for options in ({"cache_implementation": "static"}, {}))
    torch.testing.assert_close(torch.cat(static), torch.cat(dynamic), rtol=1e-4, atol=1e-4)


@each_family
def test_prefill_in_chunks(folder):
    if folder == "glm5_next":
        with pytest.raises(ValueError, match="skips the videos"):
            generate(folder, prefill_chunk_size=5)
        return
    if folder in BLOCKS:
        pytest.skip("rows attend to later rows, which are in a later chunk")
    chunked, whole = (generate(folder, **options)[0].logits for options in ({"prefill_chunk_size": 5}, {}))
    torch.testing.assert_close(torch.cat(chunked), torch.cat(whole), rtol=1e-4, atol=1e-4)


# Families whose visual rows attend to later rows of their block.
BLOCKS = ("gemma3", "gemma4", "gemma4_unified", "molmo2", "paligemma")


@pytest.mark.parametrize("folder", BLOCKS)
def test_blocks_of_rows_that_attend_to_each_other(folder):
    model, one = build(folder), other(folder)
    with attach(model, FEW, items=one.items, layout="collapse") as few:
        short = few.compress(**one.inputs)
    first = int((short["input_ids"][0] >= IMAGE).nonzero()[0])
    before = model(**short).logits[0, first]
    rows = next(iter(short["mm_encoder_outputs"].values())).pooler_output
    (rows if isinstance(rows, Tensor) else rows[-1])[-1] += 1
    assert (model(**short).logits[0, first] - before).abs().max() > 1e-4


def test_every_folder_of_transformers_is_in_the_table():
    listed = {family.folder for family in FAMILIES if family.since is None or family.since <= version()}
    missing, gone = set(folders()) - listed, listed - set(folders())
    assert not missing, f"add these to fewtokens/llm/families.py: {', '.join(sorted(missing))}"
    assert not gone, f"transformers no longer has {', '.join(sorted(gone))}"
    assert all(family.works or family.reason for family in FAMILIES)
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


@each_family
def test_the_columns_of_the_table(folder):
    family = next(family for family in FAMILIES if family.folder == folder)
    model = build(folder)
    backend = backend_of(model)
    assert family.name == model.config.model_type == backend.name
    assert family.video == accepts(model, "video")
    assert family.axes == backend.axes(model)
    assert family.prompts == backend.has_prompts
    if family.time_text:
        source = source_of_processor(family.name)
        for fragment in re.split(r"[\d.…]+", family.time_text):
            assert fragment.strip() in source
        assert folder in INTERLEAVED


def video_processor_of(name: str) -> str | None:
    """The video processor of a family that uses another's; the mapping itself lacks classes that need torchvision."""
    source = (ROOT / "auto" / "video_processing_auto.py").read_text()
    found = re.search(rf'\("{name}", \{{"torchvision": "(\w+)"', source)
    return found and found[1]


def source_of_processor(name: str) -> str:
    """The source of the processor and the video processor of a family."""
    kind = PROCESSOR_MAPPING_NAMES.get(name.removesuffix("_thinker")) or video_processor_of(name)
    files = [*ROOT.glob("*/processing_*.py"), *ROOT.glob("*/video_processing_*.py")]
    own = next(file for file in files if f"class {kind}(" in file.read_text())
    return "".join(file.read_text() for file in files if file.parent == own.parent)


@pytest.mark.parametrize("name", [name for name, other in _SAME.items() if other == "qwen3_vl"])
def test_prompts_of_families_with_the_processor_of_another(name):
    assert PROCESSOR_MAPPING_NAMES[name] == PROCESSOR_MAPPING_NAMES["qwen3_vl"] == "Qwen3VLProcessor"
    assert video_processor_of(name) == "Qwen3VLVideoProcessor"


@pytest.mark.parametrize(
    ("rows", "shape", "merge", "leading", "expected"),
    [
        (24, (4, 4, 6), 2, False, RowLayout(Grid(4, 2, 3))),
        (12, (4, 4, 6), 2, False, RowLayout(Grid(2, 2, 3))),  # ERNIE: time halved
        (6, (4, 4, 6), 2, False, RowLayout(Grid(1, 2, 3))),  # Kimi: time averaged
        (18, (3, 4, 4), 2, False, RowLayout(Grid(3, 2, 2), group=2)),  # HY V4: a newline after each row
        (31, (4, 4, 6), 2, False, None),
        (588, (3, 384, 384), None, False, RowLayout(Grid(3, 14, 14))),
        (589, (3, 384, 384), None, False, RowLayout(Grid(3, 14, 14), group=588)),  # LLaVA-OneVision: a newline
        (51, (3, 56, 56), None, True, RowLayout(Grid(3, 4, 4), group=16, leading=True)),  # Video-LLaVA: class tokens
        (24, (1, 8, 12), None, False, RowLayout(Grid(1, 4, 6))),
        (23, (1, 8, 12), None, False, None),
    ],
)
def test_the_layout_follows_from_the_number_of_rows(rows, shape, merge, leading, expected):
    layout = row_layout(rows, shape, merge, leading=leading)
    assert layout == expected
    if layout is not None:
        # Rows with their own (t, y, x), -1 where they are no cell.
        T, H, W = layout.grid.shape
        numbered = torch.full((rows,), -1)
        index = 0
        for cell in range(T * H * W):
            group = layout.group
            index += bool(group and leading and cell % group == 0)
            numbered[index] = cell
            index += 1 + bool(group and not leading and cell % group == group - 1)
        assert numbered[layout.cells()].tolist() == list(range(T * H * W))
        assert (numbered[layout.others()] == -1).all() and len(layout.others()) == (numbered == -1).sum()


@pytest.mark.parametrize("layout", ["per_frame", "collapse"])
def test_rows_that_are_not_cells_stay_with_their_tokens(layout):
    """Class tokens of frames without a token are removed; a block has only the one before it."""
    model, one = build("video_llava"), other("video_llava")
    with attach(model, "uniform(keep=2)", layout=layout) as few:
        few(**one.inputs)
    frames = few.last.tokens[0].frame[0].unique().numel()
    expected = 2 + (frames if layout == "per_frame" else 1)
    assert int((few.last.inputs["input_ids"] == VIDEO).sum()) == expected
    assert sum(map(len, few.last.inputs["mm_encoder_outputs"]["video"].pooler_output)) == expected


def test_an_input_with_a_value_for_each_token_must_be_known():
    model, one = build("gemma3"), other("gemma3")
    unknown = torch.zeros_like(one.inputs["input_ids"])
    with pytest.raises(ValueError, match=r"bbox \[1, \d+\] has a value for each token"), attach(model, FEW) as few:
        few.compress(**one.inputs, bbox=unknown)
    short = compress(model, one.inputs, FEW, items=one.items).inputs
    assert torch.equal(short["token_type_ids"], (short["input_ids"] == IMAGE).long())


def test_a_registered_family():
    class Parts(Backend):
        video_parts = True

    model, one = build("exaone4_5"), other("exaone4_5")
    register_family("exaone4_5", Parts)
    try:
        assert type(backend_of(model)) is Parts and backend_of(model).name == "exaone4_5"
        with attach(model, FEW, items=[[("video", 1)]]) as few:
            few(**one.inputs)
        with pytest.raises(ValueError, match="items list 2 videos, the prompt has 1"):
            compress(model, one.inputs, FEW, items=[[("video", 2)]])
        with pytest.raises(ValueError, match="must be a subclass of fewtokens"):
            register_family("exaone4_5", int)
    finally:
        del _registered["exaone4_5"]


@pytest.mark.parametrize("folder", COUNTED)
def test_positions_that_generate_would_discard(folder):
    with pytest.raises(ValueError, match="positions must be 'renumber', got 'keep'"):
        compress(build(folder), other(folder).inputs, FEW, positions="keep")


def test_families_without_prompts_say_so(tmp_path):
    model = build("exaone4_5")
    with pytest.raises(ValueError, match=r"exaone4_5.* make prompts with the processor of transformers"):
        Processor(tmp_path, model)
    with pytest.raises(ValueError, match=r"no prompts for a model of type 'exaone4_5'; make prompts"):
        backend_named("exaone4_5")


def test_rows_without_a_grid_are_refused():
    model, one = build("internvl"), other("internvl")
    one = Prompt(dict(one.inputs), one.items)
    one.inputs["pixel_values"] = one.inputs["pixel_values"].clone()
    with pytest.raises(ValueError, match="items list 2 images, the prompt has 3"):
        compress(model, one.inputs, FEW, items=[[("video", 2)]])
