"""The cues of images in tiles, against eager attention of the stock towers, packed by the stock models.

The oracle of a cell's place is the model's own `pack_image_features`, which receives the values of patches in place of
features, and newlines that are not numbers.
"""

from __future__ import annotations

import copy
import inspect
from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from fewtokens.core.attention_rule import AttentionRule
from fewtokens.llm import attach, backend_of, compress
from fewtokens.llm.visuals import encode_visuals
from tests.llm.test_images import llava_next
from tests.llm.test_tower import parts, spy, vision
from tests.llm.tiny import IMAGE, prompt, ready, tiny

# (height, width) of images in parts of the side of a tile, and their tiles: padded at the sides, or not.
IMAGES = {"four tiles": (2, 2, 4), "padded above": (1.2, 2, 4), "padded beside": (2, 1.3, 4), "two tiles": (1, 2, 2)}
CLOSE = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@cache
def interpolated() -> Any:
    """LLaVA-OneVision, whose tiles are interpolated to the cells of about one tile."""
    config = copy.deepcopy(tiny("llava_onevision").config)
    config.vision_aspect_ratio = "anyres_max_1"
    config.image_grid_pinpoints = [[28, 28], [28, 56], [56, 56]]
    torch.manual_seed(2)
    model = hf.LlavaOnevisionForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(3)
    return ready(model)


@cache
def next_video() -> Any:
    model = ready(copy.deepcopy(tiny("llava_next_video")))
    model.config.image_grid_pinpoints = [[24, 24], [24, 48], [48, 48]]
    return model


@cache
def next_images() -> Any:
    return llava_next()


MODELS = (next_images, next_video, interpolated)


def tiled(model: Any, *images: tuple[float, float, int], seed: int = 0) -> dict[str, Tensor]:
    """A prompt with images, each its small version and its tiles."""
    side, generator = model.config.vision_config.image_size, torch.Generator().manual_seed(seed)
    ids = [5, 6, 7]
    pixels, sizes = [], []
    for height, width, tiles in images:
        pixels.append(torch.randn(1 + tiles, 3, side, side, generator=generator))
        sizes.append([round(height * side), round(width * side)])
        rows = model.base_model.get_image_features(pixels[-1][None], torch.tensor(sizes[-1:]), return_dict=True)
        ids += [IMAGE] * len(rows.pooler_output[0]) + [9, 10]
    most = max(map(len, pixels))
    stacked = [torch.cat([each, each.new_zeros(most - len(each), 3, side, side)]) for each in pixels]
    tensor = torch.tensor([ids])
    return {
        "input_ids": tensor, "attention_mask": torch.ones_like(tensor), "pixel_values": torch.stack(stacked),
        "image_sizes": torch.tensor(sizes),
    }  # fmt: skip


def packed(model: Any, inputs: dict[str, Tensor], values: Tensor, images: Any) -> list[Tensor]:
    """Values of the patches of all tiles [tiles,n,c], as those of the cells of each grid of each image."""
    function = model.base_model.pack_image_features
    options: dict[str, Any] = {"image_newline": torch.full(values.shape[2:], torch.nan)}
    for name in ("vision_feature_select_strategy", "vision_aspect_ratio"):
        if name in inspect.signature(function).parameters:
            options[name] = getattr(model.config, name)
    entries = list(values.split([1 + tiles for *_, tiles in images]))
    rows, _ = function(entries, inputs["image_sizes"], **options)
    small = values.shape[1]
    return [part for row in rows for part in (row[:small], row[small:][~row[small:].isnan().any(1)])]


def real_tiles(inputs: dict[str, Tensor], images: Any) -> Tensor:
    return torch.cat([own[: 1 + tiles] for own, (*_, tiles) in zip(inputs["pixel_values"], images, strict=True)])


def measure(
    model: Any, inputs: dict[str, Tensor], rule: AttentionRule, *needs: str, items: Any = None
) -> list[dict[str, Tensor]]:
    """The cues of each grid of each image, in order."""
    encoded = encode_visuals(backend_of(model), model, inputs, items, needs={"image": needs}, rule=rule)
    return [visual.cues for visual in encoded["image"].visuals]


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("name", IMAGES)
def test_attention_is_that_of_the_eager_maps_of_each_tile(make, name):
    model, images = make(), (IMAGES[name], IMAGES["two tiles"])
    inputs = tiled(model, *images)
    eager = copy.deepcopy(vision(model))
    for module in eager.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "eager"
    maps = eager(real_tiles(inputs, images), output_attentions=True).attentions
    first = int(make is not interpolated)
    for layer, attention in enumerate(maps):
        values = {"received": attention.mean((1, 2))[:, first:, None]}
        if first:
            values["class"] = attention[:, :, 0, 1:].mean(1)[..., None]
        for query, value in values.items():
            expected = packed(model, inputs, value, images)
            actual = measure(model, inputs, AttentionRule((query,), layer), "attention")
            assert len(actual) == len(expected) == 4
            for cues, cells in zip(actual, expected, strict=True):
                torch.testing.assert_close(cues["attention"], cells[:, 0], **CLOSE)
                assert cells.std() > 1e-5


@pytest.mark.parametrize("make", MODELS)
def test_the_mean_query_and_the_keys_are_those_of_each_tile(make):
    model, images = make(), (IMAGES["padded above"], IMAGES["two tiles"])
    inputs = tiled(model, *images)
    first = int(make is not interpolated)
    with spy(model) as calls:
        vision(model)(real_tiles(inputs, images))
    q, k, scale = calls[1][0]
    mean = q[:, :, first:].mean(2)
    logits = torch.einsum("shd,shnd->shn", mean, k[:, :, first:]) * scale
    expected = packed(model, inputs, logits.softmax(2).mean(1)[..., None], images)
    keys = packed(model, inputs, k[:, :, first:].mean(1), images)
    actual = measure(model, inputs, AttentionRule(("mean_query",), 1), "attention", "keys")
    for cues, cells, own in zip(actual, expected, keys, strict=True):
        torch.testing.assert_close(cues["attention"], cells[:, 0], **CLOSE)
        torch.testing.assert_close(cues["keys"], own, rtol=1e-5, atol=1e-5)


def test_the_shift_is_that_of_each_tile():
    model, images = next_images(), (IMAGES["padded above"],)
    inputs = tiled(model, *images)
    block, _ = parts(model)[1]
    seen: list[Tensor] = []
    hooks = [
        block.layer_norm2.register_forward_pre_hook(lambda _, args: seen.append(args[0])),
        block.register_forward_hook(lambda _, args, output: seen.append(output)),
    ]
    try:
        vision(model)(real_tiles(inputs, images))
    finally:
        for hook in hooks:
            hook.remove()
    shift = (seen[1] - seen[0]).norm(dim=-1, keepdim=True)[:, 1:]
    for cues, cells in zip(
        measure(model, inputs, AttentionRule(), "shift"), packed(model, inputs, shift, images), strict=True
    ):
        torch.testing.assert_close(cues["shift"], cells[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", MODELS)
def test_the_cells_with_the_most_attention_are_kept(make):
    model, images = make(), (IMAGES["padded above"], IMAGES["two tiles"])
    inputs = tiled(model, *images)
    cues = measure(model, inputs, AttentionRule(), "attention")
    with attach(model, "", images="attention_topk(keep=0.25)") as few:
        logits = few(**inputs).logits
    assert torch.isfinite(logits).all() and few.last.whole == []
    for tokens, cue in zip(few.last.tokens, cues, strict=True):
        count = tokens.grid.cells // 4
        best = cue["attention"].topk(count).indices.sort().values
        assert torch.equal(tokens.cell[0], best)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("spec", ["visionzip(keep=0.3)", "vispruner(keep=0.3)", "prumerge(keep=0.3)", "prumerge"])
def test_methods_that_read_the_tower(make, spec):
    """A batch of two images equals each image alone."""
    model, images = make(), (IMAGES["four tiles"], IMAGES["two tiles"])
    both = compress(model, tiled(model, *images), "", images=spec)
    for number, image in enumerate(images):
        inputs = tiled(model, image)
        inputs["pixel_values"] = tiled(model, *images)["pixel_values"][number : number + 1, : 1 + image[2]]
        alone = compress(model, inputs, "", images=spec)
        for one, other in zip(alone.tokens, both.tokens[2 * number : 2 * number + 2], strict=True):
            assert torch.equal(one.assignment, other.assignment) and 0 < one.N < one.grid.cells
            torch.testing.assert_close(one.features, other.features, rtol=1e-5, atol=1e-5)
            if spec.endswith("0.3)") and not spec.startswith("prumerge"):
                assert int(0.3 * one.grid.cells) == one.N


def test_tiles_that_are_images_in_a_row():
    """InternVL: the tiles of an image are one after the other, each with the class token of its own."""
    model = tiny("internvl")
    one = prompt("internvl", ("text", 3), ("image",), ("image",), ("image",), ("text", 2))
    items = [[("image", 3)]]
    (cues,) = measure(model, one.inputs, AttentionRule(("class",), 1), "attention", items=items)
    with spy(model) as calls:
        model.base_model.get_image_features(one.inputs["pixel_values"], return_dict=True)
    q, k, scale = calls[1][0]
    values = (q[:, :, :1] @ k.transpose(2, 3) * scale).softmax(3)[:, :, 0, 1:].mean(1)
    cells = values.reshape(3, 3, 2, 3, 2).mean((2, 4)).flatten()
    torch.testing.assert_close(cues["attention"], cells, **CLOSE)
    for spec in ("visionzip(keep=0.5)", "vispruner(keep=0.5)", "prumerge(keep=0.5)", "attention_topk(keep=0.5)"):
        (tokens,) = compress(model, one.inputs, "", images=spec, items=items).tokens
        assert 0 < tokens.N < tokens.grid.cells == 27
