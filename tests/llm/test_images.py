"""Images: single ones, tiles of any-resolution models with newlines, tiles and pages that are images of their own.

Expected values come from the stock model, and from a recomputation written here: stock features, their means by
`tokens.assignment`, the newlines of the rows that keep a token, and the positions of the original prompt.
"""

from __future__ import annotations

import inspect
import warnings
from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from fewtokens.core import registry
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.tokens import Tokens
from fewtokens.llm import attach, compress, compress_inputs
from fewtokens.llm.backends.rows import RowLayout, tiled_layout
from fewtokens.llm.families import find_family
from tests.llm import families, tiny
from tests.llm.test_families import stock_positions
from tests.llm.tiny import IMAGE, MODELS, PAD, TEXT, VIDEO, VISION

FEW = "kmeans(keep=0.25)"
GREEDY = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
# One grid for each image.
PLAIN = ("qwen2_5_vl", "qwen3_vl", "video_llama_3", "gemma3", "mistral3", "paligemma", "glm46v")
# Images in a row.
PICTURES = ("internvl", "smolvlm", "aya_vision", "idefics3")
# lfm3_vl is not in the oldest supported version of transformers.
WITH_VIDEOS = ("qwen2_5_vl", "qwen3_vl", "video_llama_3", "lfm3_vl")
MIXED = {
    "image, then video": (("text", 3), ("image",), ("text", 2), ("video", 2), ("text", 3)),
    "video between images": (("text", 2), ("image",), ("video", 3), ("text", 1), ("image",), ("text", 3)),
}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@cache
def llava_next() -> Any:
    """Tiles of 16 pixels, 4 x 4 cells each."""
    torch.manual_seed(0)
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**VISION, image_size=16, patch_size=4, projection_dim=16),
        text_config=hf.LlamaConfig(**TEXT), vision_feature_layer=-2, image_token_id=IMAGE, image_token_index=IMAGE,
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32], [16, 48]],
    )  # fmt: skip
    model = hf.LlavaNextForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
            elif "newline" in name:
                parameter.normal_()
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = PAD, None
    MODELS.append(model)
    return model.eval()


def tiled_prompt(*parts: Any, seed: int = 0) -> dict[str, Tensor]:
    """Numbers of text tokens, and images as (height, width, tiles)."""
    model, generator = llava_next(), torch.Generator().manual_seed(seed)
    ids, pixels, sizes = [], [], []
    for part in parts:
        if isinstance(part, int):
            ids += torch.randint(2, 180, (part,), generator=generator).tolist()
            continue
        height, width, tiles = part
        pixels.append(torch.randn(1 + tiles, 3, 16, 16, generator=generator))
        sizes.append([height, width])
        features = model.base_model.get_image_features(pixels[-1][None], torch.tensor(sizes[-1:]), return_dict=True)
        ids += [IMAGE] * len(features.pooler_output[0])
    most = max(len(each) for each in pixels)
    stacked = [torch.cat([each, each.new_zeros(most - len(each), 3, 16, 16)]) for each in pixels]
    ids = torch.tensor([ids])
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.stack(stacked),
        "image_sizes": torch.tensor(sizes),
    }  # fmt: skip


def means(rows: Tensor, tokens: Tokens) -> Tensor:
    """The mean row of the cells of each token, [N,D]."""
    assignment = tokens.assignment[0]
    return torch.stack([rows[assignment == token].mean(0) for token in range(int(assignment.max()) + 1)])


def centers(tokens: Tokens) -> Tensor:
    """The mean (t, y, x) of the cells of each token, [N,3]."""
    T, H, W = tokens.grid.shape
    index = torch.arange(T * H * W)
    return means(torch.stack([index // (H * W), index // W % H, index % W], 1).float(), tokens)


def tiled_rows(rows: Tensor, tokens: list[Tokens], layout: str) -> Tensor:
    """The rows of a reduced image in tiles: means of its small version, then of each row of tiles with its newline."""
    small, large = tokens
    H, W = large.grid.shape[1:]
    parts = [means(rows[: small.grid.cells], small)]
    canvas = rows[small.grid.cells :].unflatten(0, (H, W + 1))
    newline = canvas[0, -1]
    assert all(torch.equal(row, newline) for row in canvas[:, -1])
    merged, line = means(canvas[:, :-1].flatten(0, 1), large), centers(large)[:, 1].round().long()
    for row in range(H):
        parts.append(merged[line == row])
        if layout == "per_frame" and bool((line == row).any()):
            parts.append(newline[None])
    return torch.cat(parts if layout == "per_frame" else [parts[0], merged, newline[None]])


@pytest.mark.parametrize("layout", ["per_frame", "collapse"])
@pytest.mark.parametrize(
    ("size", "tiles", "shape"), [((32, 32), 4, (8, 8)), ((16, 30), 2, (4, 8)), ((24, 32), 4, (6, 8))]
)
def test_tiles_with_newlines(size, tiles, shape, layout):
    model, inputs = llava_next(), tiled_prompt(3, (*size, tiles), 4)
    features = model.base_model.get_image_features(inputs["pixel_values"], inputs["image_sizes"], return_dict=True)
    (rows,) = features.pooler_output
    assert len(rows) == 16 + shape[0] * (shape[1] + 1) and find_family(model.config.model_type).works
    assert size != (32, 32) or len(rows) == 88
    with attach(model, "evs(keep=0.5)", images=FEW, layout=layout) as few:
        out = few(**inputs).logits
    tokens = few.last.tokens
    assert [each.grid.shape for each in tokens] == [(1, 4, 4), (1, *shape)]
    assert [each.N for each in tokens] == [4, shape[0] * shape[1] // 4] and few.last.whole == []
    expected = tiled_rows(rows, tokens, layout)
    # Both grids are reduced, and newlines are counted apart from them.
    newlines = len(expected) - sum(each.N for each in tokens)
    assert newlines == 1 if layout == "collapse" else 1 <= newlines <= shape[0]
    embedded = model.get_input_embeddings()(inputs["input_ids"][0])
    embedded = torch.cat([embedded[:3], expected, embedded[-4:]])[None]
    assert few.last.inputs["input_ids"].shape[1] == embedded.shape[1]
    torch.testing.assert_close(out, model(inputs_embeds=embedded).logits, rtol=1e-5, atol=1e-5)
    assert (out[:, -1] - model(**inputs).logits[:, -1]).abs().max() > 1e-4


def test_tiles_with_a_full_budget_are_bit_equal_to_stock():
    model, inputs = llava_next(), tiled_prompt(3, (32, 32, 4), 2, (16, 30, 2), 4)
    with attach(model, "tome(keep=1.0)", images=True) as few:
        assert torch.equal(few(**inputs).logits, model.__class__.__call__(model, **few.compress(**inputs)).logits)
        out = few(**inputs).logits
    assert torch.equal(out, model(**inputs).logits) and len(few.last.tokens) == 4


def test_grids_of_an_image_share_a_count_by_cells():
    model, inputs = llava_next(), tiled_prompt(2, (32, 32, 4), 2)
    for keep, shares in ((20, [4, 16]), (32, [6, 26]), (1, [1, 1]), ("10/frame", [2, 8]), (0.5, [8, 32])):
        spec = f"uniform(keep={keep!r})"
        compressed = compress(model, inputs, "", images=spec)
        assert [tokens.N for tokens in compressed.tokens] == shares
    chain = compress(model, inputs, "uniform(keep=40) | kmeans(keep=20)", images=True)
    assert [tokens.N for tokens in chain.tokens] == [4, 16]


@pytest.mark.parametrize(
    "size", [(768, 768), (100, 900), (900, 100), (333, 1201), (1500, 1000), (384, 384), (2304, 2304)]
)
def test_the_layout_of_tiles_is_that_of_the_models(size):
    """Against the packing of LLaVA-NeXT and LLaVA-OneVision, on features that are their own row number."""
    from transformers.models.llava_next import modeling_llava_next as next_
    from transformers.models.llava_onevision import modeling_llava_onevision as onevision

    pinpoints = [[h * 384, w * 384] for h in range(1, 7) for w in range(1, 7)]
    for module, limit in ((next_, None), (onevision, 9)):
        layout = tiled_layout(size, pinpoints, 384, 27, limit)
        tiles = module.image_size_to_num_patches(list(size), pinpoints, 384)
        config = type("Config", (), {"image_grid_pinpoints": pinpoints, "vision_config": type("V", (), {})})
        config.vision_config.image_size, config.vision_config.patch_size = 384, 14
        owner = type("Owner", (), {"config": config})
        kind = getattr(module, "LlavaNextModel", None) or module.LlavaOnevisionModel
        options = {"vision_feature_select_strategy": "full"} if limit is None else {}
        packed, _ = kind.pack_image_features(
            owner, [torch.zeros(tiles, 27 * 27, 1)], torch.tensor([size]), image_newline=torch.ones(1), **options
        )
        small, large = layout.parts()
        ends = packed[0][len(small) :, 0].nonzero().squeeze(1)
        assert len(packed[0]) == len(layout) and torch.equal(ends, large.others())


def columns_of(example: families.Prompt) -> list[Tensor]:
    """The columns of each image and video of a prompt."""
    ids = example.inputs["input_ids"][0]
    remaining = {token: (ids == token).nonzero().squeeze(1) for token in (IMAGE, VIDEO)}
    found = []
    for visual in example.visuals:
        token = VIDEO if visual.kind == "video" and len(remaining[VIDEO]) else IMAGE
        own, remaining[token] = remaining[token].tensor_split([len(visual)])
        found.append(own)
    return found


def by_hand(model: Any, example: families.Prompt, tokens: list[Tokens | None]) -> Tensor:
    """Logits of a prompt whose images and videos were reduced to `tokens`, with the positions "keep"."""
    inputs, ids = example.inputs, example.inputs["input_ids"][0]
    embedded, position = model.get_input_embeddings()(ids).clone(), stock_positions(model, inputs)[:, 0]
    deep: list[Tensor] = []
    for modality, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if name not in inputs:
            continue
        kind = "video" if modality == "video" else "image"
        names = families.parameters(model, kind)
        encode = getattr(model.base_model, f"get_{kind}_features")
        output = encode(**{key: value for key, value in inputs.items() if key in names}, return_dict=True)
        place = torch.cat([c for c in columns_of(example) if (ids[c[0]] == VIDEO) == (modality == "video")])
        embedded[place] = torch.cat([rows.flatten(0, -2) for rows in output.pooler_output])
        for number, layer in enumerate(output.get("deepstack_features") or ()):
            if number == len(deep):
                deep.append(torch.zeros_like(embedded))
            deep[number][place] = torch.cat(list(layer))
    pieces = {int(c): [(embedded[c], [layer[c] for layer in deep], c)] for c in range(len(ids))}
    visual_columns = set(torch.cat(columns_of(example)).tolist())
    for visual, columns, reduced in zip(example.visuals, columns_of(example), tokens, strict=True):
        if reduced is None:
            continue
        _, H, W = visual.shape
        cells = columns[visual.cells()]
        t, y, x = centers(reduced).round().long().unbind(1)
        nearest = cells[(t * H + y) * W + x]
        layers = [means(layer[cells], reduced) for layer in deep]
        rows = means(embedded[cells], reduced)
        for column in cells.tolist():
            pieces[column] = []
        for token, source in enumerate(nearest.tolist()):
            start = source
            while start - 1 in set(cells.tolist()):
                start -= 1
            pieces[start].append((rows[token], [layer[token] for layer in layers], source))
    flat = [piece for column in sorted(pieces) for piece in pieces[column]]
    source = torch.tensor([int(piece[2]) for piece in flat])
    position = position[:, None, source]
    arguments: dict[str, Any] = {
        "inputs_embeds": torch.stack([piece[0] for piece in flat])[None],
        "position_ids": position if len(position) > 1 else position[0],
        "attention_mask": torch.ones(1, len(flat), dtype=torch.int64), "use_cache": False,
    }  # fmt: skip
    if deep:
        mask = torch.tensor([[int(c) in visual_columns for c in source]])
        rows_of = [torch.stack([piece[1][n] for piece in flat])[mask[0]] for n in range(len(deep))]
        output = model.base_model.language_model(**arguments, visual_pos_masks=mask, deepstack_visual_embeds=rows_of)
        return model.lm_head(output.last_hidden_state)
    types = {
        name: inputs[name][:, source]
        for name in ("mm_token_type_ids", "token_type_ids")
        if name in inputs and name in inspect.signature(model.forward).parameters
    }
    return model(**arguments, **types).logits


def in_order(example: families.Prompt, tokens: list[Tokens]) -> list[Tokens]:
    """Tokens, images before videos, in the order of the prompt."""
    count = sum(visual.kind == "image" for visual in example.visuals)
    rows = {"image": iter(tokens[:count]), "video": iter(tokens[count:])}
    return [next(rows[visual.kind]) for visual in example.visuals]


@pytest.mark.parametrize("folder", PLAIN)
def test_reduced_images_equal_a_recomputation(folder):
    model = families.build(folder)
    example = families.prompt(folder, ("text", 3), ("image",), ("text", 2), ("image",), ("text", 4))
    stock = model(**example.inputs).logits
    with attach(model, "tome(keep=1.0)", images=True, items=example.items) as few:
        assert torch.equal(few(**example.inputs).logits, stock)
    with attach(model, "evs", images="kmeans(keep=0.5)", items=example.items, positions="keep") as few:
        out = few(**example.inputs).logits
    assert [tokens.grid.shape for tokens in few.last.tokens] == [visual.shape for visual in example.visuals]
    assert [tokens.N for tokens in few.last.tokens] == [max(1, len(visual) // 2) for visual in example.visuals]
    torch.testing.assert_close(out, by_hand(model, example, few.last.tokens), rtol=1e-5, atol=1e-5)
    assert (out[:, -1] - stock[:, -1]).abs().max() > 1e-4


@pytest.mark.parametrize("mixture", MIXED)
@pytest.mark.parametrize("folder", [name for name in WITH_VIDEOS if name in families.folders()])
def test_images_and_videos_equal_a_recomputation(folder, mixture):
    model, example = families.build(folder), families.prompt(folder, *MIXED[mixture])
    images, videos = ([v.kind for v in example.visuals].count(kind) for kind in ("image", "video"))
    with attach(model, "kmeans(keep=4)", images="kmeans(keep=2)", positions="keep") as few:
        out = few(**example.inputs).logits
    assert [tokens.N for tokens in few.last.tokens] == [2] * images + [4] * videos
    expected = by_hand(model, example, in_order(example, few.last.tokens))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    # Images of other methods than videos, or left whole.
    with attach(model, "kmeans(keep=4)", positions="keep") as few, pytest.warns(UserWarning, match="left whole"):
        out = few(**example.inputs).logits
    whole = iter(few.last.tokens)
    tokens = [None if visual.kind == "image" else next(whole) for visual in example.visuals]
    torch.testing.assert_close(out, by_hand(model, example, tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("folder", PICTURES)
def test_tiles_that_are_images_of_their_own(folder):
    """Each has the budget of an image, and the text around it stays."""
    model = families.build(folder)
    example = families.prompt(folder, ("text", 3), ("image",), ("text", 2), ("image",), ("image",), ("text", 4))
    with attach(model, "evs", images="kmeans(keep=2)", items=example.items, positions="keep") as few:
        out = few(**example.inputs).logits
    assert [tokens.N for tokens in few.last.tokens] == [2, 2, 2]
    before, after = example.inputs["input_ids"], few.last.inputs["input_ids"]
    assert torch.equal(after[after != IMAGE], before[before != IMAGE])
    torch.testing.assert_close(out, by_hand(model, example, few.last.tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_full_budget_is_bit_equal_to_stock(family):
    model, example = tiny.tiny(family), tiny.prompt(family, *MIXED["image, then video"])
    stock = model.generate(**example.inputs, **GREEDY)
    with attach(model, "tome(keep=1.0)", images=True, items=example.items) as few:
        out = few.generate(**example.inputs, **GREEDY)
    assert torch.equal(torch.stack(out.logits), torch.stack(stock.logits)) and few.last.whole == []


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_single_prompts(side):
    model = llava_next()
    prompts = [tiled_prompt(3, (32, 32, 4), 4, seed=1), tiled_prompt(5, (16, 30, 2), 1, (24, 32, 4), 4, seed=2)]
    length = max(each["input_ids"].shape[1] for each in prompts)
    joined: dict[str, Tensor] = {}
    for name in prompts[0]:
        values = [each[name] for each in prompts]
        if name in ("input_ids", "attention_mask"):
            space = [length - value.shape[1] for value in values]
            sizes = [(n, 0) if side == "left" else (0, n) for n in space]
            values = [torch.nn.functional.pad(v, s) for v, s in zip(values, sizes, strict=True)]
        if name == "pixel_values":
            values = [torch.nn.functional.pad(v, (0,) * 6 + (0, 5 - v.shape[1])) for v in values]
        joined[name] = torch.cat(values)
    with attach(model, FEW, images=True) as few:
        together = few(**joined).logits
        last = few.last
        for number, inputs in enumerate(prompts):
            single = few(**inputs).logits[0]
            row = together[number][last.inputs["attention_mask"][number].bool()]
            torch.testing.assert_close(row, single, rtol=1e-5, atol=1e-5)


def test_beams_of_images_in_tiles():
    """Features are repeated for each beam: one beam of a batch of equal prompts is the greedy answer."""
    model, inputs = llava_next(), tiled_prompt(3, (32, 32, 4), 2, (16, 30, 2), 4)
    double = {name: torch.cat([value, value]) for name, value in inputs.items()}
    with attach(model, FEW, images=True) as few:
        one = few.generate(**inputs, max_new_tokens=4, do_sample=False, num_beams=3)
        two = few.generate(**double, max_new_tokens=4, do_sample=False, num_beams=3)
    assert torch.equal(two[0], one[0]) and torch.equal(two[1], one[0])


@pytest.mark.parametrize("layout", ["per_frame", "collapse"])
def test_text_between_the_rows_of_an_image(layout):
    """Pixtral writes a break after each row of cells."""
    model = families.build("mistral3")
    example = families.prompt("mistral3", ("text", 3), ("image",), ("text", 4))
    (visual,) = example.visuals
    _, H, W = visual.shape
    ids = example.inputs["input_ids"][0].tolist()
    with_breaks = ids[:3] + [id for row in range(H) for id in [IMAGE] * W + [150 + (row == H - 1)]] + ids[3 + H * W :]
    inputs = example.inputs | {"input_ids": torch.tensor([with_breaks])}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs.pop("mm_token_type_ids", None)
    with attach(model, "kmeans(keep=2)", images=True, layout=layout) as few:
        out = few(**inputs).logits
    after = few.last.inputs["input_ids"][0].tolist()
    line = centers(few.last.tokens[0])[:, 1].round().long()
    rows = model.base_model.get_image_features(
        pixel_values=inputs["pixel_values"], image_sizes=inputs["image_sizes"], return_dict=True
    ).pooler_output[0]
    merged, embed = means(rows.reshape(H * W, -1), few.last.tokens[0]), model.get_input_embeddings()
    parts = [embed(torch.tensor(ids[:3]))]
    expected = ids[:3]
    for row in range(H):
        own = merged[line == row] if layout == "per_frame" else merged[:0] if row else merged
        parts.append(own)
        expected = expected + [IMAGE] * len(own)
        if layout == "per_frame" or row == H - 1:
            expected = [*expected, 150 + (row == H - 1)]
            parts.append(embed(torch.tensor(expected[-1:])))
    parts.append(embed(torch.tensor(ids[3 + H * W :])))
    assert after == expected + ids[3 + H * W :]
    torch.testing.assert_close(out, model(inputs_embeds=torch.cat(parts)[None]).logits, rtol=1e-5, atol=1e-5)


def test_whole_images_are_counted():
    model, inputs = llava_next(), tiled_prompt(2, (32, 32, 4), 1, (16, 30, 2), 3)
    with (
        attach(model, FEW) as few,
        pytest.warns(UserWarning, match="2 images of 140 tokens are left whole; pass images"),
    ):
        out = few(**inputs).logits
    assert few.last.whole == [88, 52] and few.last.tokens == []
    assert torch.equal(out, model(**inputs).logits)
    one = tiled_prompt(2, (32, 32, 4), 3)
    with pytest.warns(UserWarning, match="1 image of 88 tokens is left whole"):
        compress_inputs(model, one, FEW)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compress(model, one, FEW, images=True)


def test_an_image_without_a_grid_is_left_whole(monkeypatch):
    from fewtokens.llm.backends.base import Backend

    model, inputs = llava_next(), tiled_prompt(2, (32, 32, 4), 3)
    monkeypatch.setattr(Backend, "tiled_layouts", lambda self, model, inputs, entries: [None] * len(entries))
    with pytest.warns(UserWarning, match="1 image of 88 tokens is left whole; their rows form no grid"):
        assert compress(model, inputs, FEW, images=True).whole == [88]


def test_local_patches_in_one_entry_are_left_whole():
    """Three local patches and the image have as many rows as one grid of twice the side."""
    model = families.build("step3p7")
    image = families.prompt("step3p7", ("text", 2), ("image",), ("text", 3))
    rows = len(image.visuals[0])
    patches = torch.randn(3, *image.inputs["pixel_values"].shape[1:], generator=torch.Generator().manual_seed(1))
    more = torch.full((1, 3 * rows), IMAGE)
    ids = torch.cat([image.inputs["input_ids"][:, :2], more, image.inputs["input_ids"][:, 2:]], 1)
    inputs = image.inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs |= {"pixel_values_local": patches, "num_local_patches": torch.tensor([3])}
    items = [[("image", 1)]]
    with pytest.warns(UserWarning, match="their rows form no grid"):
        assert compress(model, inputs, "kmeans(keep=2)", images=True, items=items).whole == [4 * rows]
    assert compress(model, image.inputs, "kmeans(keep=2)", images=True, items=items).tokens[0].N == 2


def test_methods_that_compare_frames_are_refused():
    """Those that return a single frame in full; methods with other cues cannot run here."""
    model, seen = llava_next(), []
    torch.manual_seed(0)
    for name in registry.names():
        options = [f"{name}(keep=0.5)", name]
        for spec in options:
            try:
                (method,) = registry.build(spec, dim=8)
            except (ValueError, TypeError):
                continue
            break
        else:
            continue
        if method.stage not in ("pixels", "tokens") or set(method.needs) - {"pixels"} or method.learned:
            continue
        frame, clip = torch.rand(1, 1, 6, 6, 8), torch.rand(1, 8, 6, 6, 8).cumsum(1)
        counts = []
        for features in (frame, clip):
            tokens = Tokens.from_cells(features)
            # Cells of one row have the same pixels, so that a method may drop some of a frame.
            pixels = torch.rand(1, tokens.N // 6, 1, 12).repeat_interleave(6, 1)
            cues = {"pixels": pixels} if "pixels" in method.needs else {}
            counts.append(int(method(tokens, **cues).count) / tokens.N)
        refused = counts[0] == 1
        seen.append(refused)
        if refused:
            with pytest.raises(ValueError, match=f"{name} compares frames") as error, attach(model, spec, images=True):
                pass
            assert "\n" not in str(error.value)
        else:
            with attach(model, spec, images=True):
                pass
    assert seen.count(True) >= 6 and seen.count(False) >= 10


def test_methods_inside_the_language_model_are_in_one_chain():
    model = llava_next()
    with pytest.raises(ValueError, match="fastv acts inside the language model"), attach(model, FEW, images="fastv"):
        pass
    inputs = tiled_prompt(3, (32, 32, 4), 4)
    with attach(model, "fastv(keep=0.5, layer=1)", images=True) as few:
        few(**inputs)
        assert few.last.layout.video().sum() == 16 + 64
    example = tiny.prompt("llava_onevision", ("text", 2), ("image",), ("text", 2))
    with pytest.raises(ValueError, match="pixels cannot reduce images in tiles"):
        compress(tiny.tiny("llava_onevision"), example.inputs, "", images="visual_words(keep=0.5)")
    example = tiny.prompt("qwen2_5_vl", ("text", 2), ("image",), ("text", 2))
    (tokens,) = compress(tiny.tiny("qwen2_5_vl"), example.inputs, "", images="visual_words(keep=0.5)").tokens
    assert tokens.N == 3


def test_the_layout_lists_its_parts():
    layout = tiled_layout((32, 32), [[32, 32]], 16, 4)
    assert len(layout) == 88 and [len(part) for part in layout.parts()] == [16, 72]
    assert layout.parts()[0] == RowLayout(layout.grid) and Pipeline("").planned_count(layout.grid) == 16
