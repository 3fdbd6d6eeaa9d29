"""The plugin for vLLM, on stand-ins of the classes that it extends. `make test-vllm` runs it in vLLM itself."""

from __future__ import annotations

import sys
from importlib import import_module, util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fewtokens.core.grid import Grid
from fewtokens.serve import planned
from tests.llm.tiny import END, IMAGE, START, VIDEO, tiny
from tests.serve.by_hand import shorten
from tests.serve.runner import Prefilled, fields, prefill

STANDINS = Path(__file__).parent / "standins"
pytestmark = pytest.mark.skipif(util.find_spec("vllm") is not None, reason="vLLM itself is installed")
# A keep-type method, one that means, and a chain.
SPECS = ("vidcom2(keep=0.5)", "kmeans(keep=0.4)", "uniform(keep=0.75) | tome(keep=0.3)")


@pytest.fixture(autouse=True)
def standins(monkeypatch):
    def forget() -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == "vllm" or "fewtokens.serve.vllm" in name]:
            del sys.modules[name]

    forget()
    monkeypatch.syspath_prepend(str(STANDINS))
    monkeypatch.delenv("FEWTOKENS_SPEC", raising=False)
    yield
    forget()


class MultiModalConfig:
    mm_hasher_algorithm = "sha256"

    def __init__(self, options: Any = None, rate: float | None = None) -> None:
        self.mm_processor_kwargs, self.video_pruning_rate = options, rate

    def is_multimodal_pruning_enabled(self) -> bool:
        return bool(self.video_pruning_rate)


def make_config(hf_config: Any, *, mrope: bool, additional: Any = None, options: Any = None, **more: Any) -> Any:
    """A config as vLLM completes it."""
    settings = import_module("fewtokens.serve.vllm.settings")
    model_config = SimpleNamespace(
        hf_config=hf_config, multimodal_config=MultiModalConfig(options, more.pop("rate", None)), uses_mrope=mrope
    )
    others = {"speculative_config": None, "lora_config": None} | more
    config = SimpleNamespace(model_config=model_config, additional_config=additional or {}, **others)
    settings.ReadSpec.verify_and_update_config(config)
    return config


class Tokenizer:
    def convert_tokens_to_ids(self, token: str) -> int:
        return {"<video>": VIDEO}[token]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [3 + ord(character) % 100 for character in text]


def make(family: str, spec: str | None, tokenizer: Any = None) -> tuple[Any, Any]:
    """A model and its processor."""
    module, model_class = {
        "qwen2_5_vl": ("qwen2_5_vl", "Qwen25VL"),
        "qwen3_vl": ("qwen3_vl", "Qwen3VL"),
        "qwen3_vl_moe": ("qwen3_vl", "Qwen3VLMoe"),
        "llava_onevision": ("llava", "OneVision"),
        "llava_next_video": ("llava", "NextVideo"),
        "internvl": ("internvl", "InternVL"),
        "internvl_hf": ("internvl", "InternVLHF"),
    }[family]
    module = import_module(f"fewtokens.serve.vllm.{module}")
    mrope = family.startswith("qwen")
    if mrope:
        source = tiny("qwen3_vl" if "qwen3" in family else family).config
        hf_config = SimpleNamespace(**{name: getattr(source, name) for name in (
            "vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")},
            text_config=source.text_config)  # fmt: skip
    else:
        hf_config = SimpleNamespace(video_token_index=VIDEO)
    additional = None if spec is None else {"fewtokens": {"spec": spec}}
    config = make_config(hf_config, mrope=mrope, additional=additional, tokenizer=tokenizer)
    model = getattr(module, model_class)(vllm_config=config)
    processor_class, info_class, _ = type(model)._processor_factory
    info = info_class()
    info.ctx = SimpleNamespace(
        model_config=config.model_config, get_mm_config=lambda: config.model_config.multimodal_config
    )
    info.model_id = family
    info.get_hf_config = lambda: hf_config
    info.get_tokenizer = lambda: tokenizer
    info.get_vision_encoder_info = lambda: SimpleNamespace(get_image_size=lambda: 12)
    info.get_hf_processor = lambda **_: SimpleNamespace(
        image_seq_length=9, ctx_video_token_id=VIDEO, video_token="<video>", start=START, end=END
    )
    return model, processor_class(info, None)


def patches(seed: int, t: int, h: int, w: int, width: int) -> torch.Tensor:
    """Patches [t*h*w, width] in which rows of different frames resemble each other."""
    generator = torch.Generator().manual_seed(seed)
    still = torch.randn(1, h * w, width, generator=generator)
    return (still + 0.5 * torch.randn(t, h * w, width, generator=generator)).flatten(0, 1)


def mrope_request(family: str) -> tuple[list[Any], dict[str, list[dict[str, Any]]]]:
    """Two videos with an image between them; heights above and below widths."""
    width = 32 if family == "qwen2_5_vl" else 32 * 3
    items: dict[str, list[dict[str, Any]]] = {"video": [], "image": []}
    for seed, size in enumerate([(5, 4, 6), (3, 8, 4)]):
        times = [0.5 + index for index in range(size[0])]
        more = {"second_per_grid_ts": torch.tensor(1.3)} if family == "qwen2_5_vl" else {"timestamps": times}
        pixels = patches(seed, *size, width)
        items["video"].append(fields(pixel_values_videos=pixels, video_grid_thw=torch.tensor(size), **more))
    items["image"].append(fields(pixel_values=patches(9, 1, 4, 8, width), image_grid_thw=torch.tensor([1, 4, 8])))
    return [5, 6, START, "video", END, 7, START, "image", END, 8, START, "video", END, 9, 10, 11], items


def full_prompt(family: str, prompt: list[Any], items: Any, tokenizer: Any) -> tuple[list[int], torch.Tensor]:
    """The ids of the full prompt, and their positions by transformers."""
    ids: list[int] = []
    at = {"video": 0, "image": 0}
    for part in prompt:
        if isinstance(part, int):
            ids.append(part)
            continue
        item = items[part][at[part]]
        at[part] += 1
        t, h, w = item[f"{part}_grid_thw"].data.tolist()
        if part == "image" or family == "qwen2_5_vl":
            ids += [IMAGE if part == "image" else VIDEO] * (t * h * w // 4)
            continue
        for time in item["timestamps"].data:
            ids += [*tokenizer.encode(f"<{time:.1f} seconds>"), START, *[VIDEO] * (h * w // 4), END]
    kinds = torch.tensor([{IMAGE: 1, VIDEO: 2}.get(token, 0) for token in ids])[None]
    given = {f"{name}_grid_thw": torch.stack([item[f"{name}_grid_thw"].data for item in items[name]]) for name in at}
    if family == "qwen2_5_vl":
        given["second_per_grid_ts"] = torch.stack([item["second_per_grid_ts"].data for item in items["video"]])
    inner = tiny("qwen3_vl" if "qwen3" in family else family).model
    positions, _ = inner.get_rope_index(torch.tensor([ids]), mm_token_type_ids=kinds, **given)
    return ids, positions[:, 0]


def expected_prompt(family: str, spec: str, prompt: Any, items: Any, tokenizer: Any, model: Any) -> Prefilled:
    """The short prompt by hand: the full one without the columns of rows that are gone."""
    ids, positions = full_prompt(family, prompt, items, tokenizer)
    D, columns = model.config.vision_config.out_hidden_size, [c for c, token in enumerate(ids) if token == VIDEO]
    rows: dict[int, torch.Tensor] = {}
    start = 0
    for item in items["video"]:
        t, h, w = item["video_grid_thw"].data.tolist()
        cells = item["pixel_values_videos"].data.reshape(-1, 4, item["pixel_values_videos"].data.shape[1]).mean(1)
        short, kept = shorten(spec, cells, (t, h // 2, w // 2), D)
        rows |= {columns[start + cell]: row for cell, row in zip(kept, short, strict=True)}
        start += len(cells)
    image = [c for c, token in enumerate(ids) if token == IMAGE]
    pixels = items["image"][0]["pixel_values"].data
    rows |= dict(zip(image, pixels.reshape(-1, 4, pixels.shape[1]).mean(1), strict=True))
    order = [c for c in range(len(ids)) if c in rows or ids[c] != VIDEO]
    last = int(positions[:, -1].max()) + 1 - len(order)
    place = {index: rows[c] for index, c in enumerate(order) if c in rows}
    return Prefilled([ids[c] for c in order], place, positions[:, order], last)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"])
def test_rows_and_positions_are_those_by_hand(family, spec):
    tokenizer = Tokenizer()
    model, processor = make(family, spec, tokenizer)
    prompt, items = mrope_request(family)
    expected = expected_prompt(family, spec, prompt, items, tokenizer, model)
    whole = prefill(model, processor, prompt, items)
    assert len(whole.ids) == len(expected.ids) and sorted(whole.ids) == sorted(expected.ids)
    assert torch.equal(whole.positions, expected.positions)
    assert whole.offset == expected.offset
    for column, row in expected.rows.items():
        torch.testing.assert_close(whole.rows[column], row, rtol=0, atol=1e-5)
    # The text between frames is also among the rows; with the embeddings of its ids, and zero in DeepStack columns.
    for column in whole.rows.keys() - expected.rows.keys():
        own = model.table[expected.ids[column]]
        assert torch.equal(whole.rows[column], torch.cat([own, own.new_zeros(2 * len(own))]))
    for chunk in (1, 7, 16):
        parts = prefill(model, processor, prompt, items, chunk)
        assert torch.equal(parts.positions, whole.positions) and parts.offset == whole.offset
        assert parts.rows.keys() == whole.rows.keys()
        assert all(torch.equal(parts.rows[column], whole.rows[column]) for column in whole.rows)


def test_positions_do_not_move_if_all_tokens_are_kept():
    for family in ("qwen2_5_vl", "qwen3_vl"):
        tokenizer = Tokenizer()
        model, processor = make(family, "uniform(keep=1.0)", tokenizer)
        prompt, items = mrope_request(family)
        ids, positions = full_prompt(family, prompt, items, tokenizer)
        out = prefill(model, processor, prompt, items, 7)
        assert len(out.ids) == len(ids) and torch.equal(out.positions, positions)


def plain_item(family: str, video: torch.Tensor) -> dict[str, Any]:
    """A processed video of frames [T,3,H,W]."""
    if "internvl" not in family:
        return fields(pixel_values_videos=video)
    name, count = "pixel_values_flat" if family == "internvl" else "pixel_values", torch.tensor(len(video))
    return fields(**{name: video}, num_patches=count, video_num_patches=count)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("family", ["llava_onevision", "llava_next_video", "internvl", "internvl_hf"])
def test_plain_families(family, spec):
    model, processor = make(family, spec, Tokenizer())
    videos = [torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(count)) for count in (4, 6)]
    items = [plain_item(family, video) for video in videos]
    out = prefill(model, processor, [5, "video", 6, "video", 7], {"video": items})
    expected: list[torch.Tensor] = []
    ids = [5]
    for video, after in zip(videos, (6, 7), strict=True):
        cells = torch.nn.functional.adaptive_avg_pool2d(video, 3).flatten(2).transpose(1, 2).flatten(0, 1)
        short, _ = shorten(spec, cells, (len(video), 3, 3), 3)
        assert len(short) == planned(spec, Grid(len(video), 3, 3)) < len(cells)
        newline = [torch.full((3,), 7.0)] if family == "llava_onevision" else []
        expected += [*short, *newline]
        run = [VIDEO] * (len(short) + len(newline))
        ids += [50, START, *run, END] if "internvl" in family else run
        ids.append(after)
    assert out.ids == ids
    torch.testing.assert_close(torch.stack([out.rows[column] for column in sorted(out.rows)]), torch.stack(expected))
    assert sorted(out.rows) == [column for column, token in enumerate(out.ids) if token == VIDEO]


@pytest.mark.parametrize(
    ("family", "item", "rows"),
    [
        ("qwen2_5_vl", fields(video_grid_thw=torch.tensor([5, 4, 6])), 30),
        ("llava_onevision", fields(pixel_values_videos=torch.randn(4, 3, 12, 12)), 37),
        ("internvl", fields(video_num_patches=torch.tensor(4)), 36),
    ],
)
def test_without_a_spec_everything_is_stock(family, item, rows):
    model, processor = make(family, None)
    (update,) = [u for u in processor._get_prompt_updates(None, {}, {"video": [item]}) if u.modality == "video"]
    content = update.content(0)
    assert (content if isinstance(content, list) else content.full).count(VIDEO) == rows
    assert getattr(model, "is_multimodal_pruning_enabled", False) is False
    if family == "llava_onevision":
        assert len(model.embed_multimodal(pixel_values_videos=[torch.randn(4, 3, 12, 12)])[0]) == rows
    if family == "internvl":
        assert model.get_encoder_cudagraph_config().modalities == ["image", "video"]
    if family == "qwen2_5_vl":
        with pytest.raises(AssertionError, match="own positions"):
            model.get_mrope_input_positions([1, 2], [])


def test_a_captured_encoder_does_not_encode_videos():
    model, _ = make("internvl", "tome(keep=0.5)")
    assert model.get_encoder_cudagraph_config().modalities == ["image"]


def test_videos_are_encoded_one_at_a_time():
    """As vLLM does with pruning; its budget for the encoder counts the rows that remain."""
    for family in ("llava_onevision", "llava_next_video", "internvl", "internvl_hf"):
        with_spec, without = (make(family, spec)[0] for spec in ("tome(keep=0.5)", None))
        assert hasattr(with_spec, "requires_sequential_video_encoding")
        assert not hasattr(without, "requires_sequential_video_encoding")


class TestIdentity:
    """Two specs never share a cache entry."""

    def hashes(self, spec: str | None, *, uuid: str | None = None, **options: Any) -> list[str]:
        inputs = import_module("vllm.multimodal.processing").ProcessorInputs
        _, processor = make("qwen2_5_vl", spec)
        given = inputs([], {"video": ["a clip"]}, {"video": [uuid]}, options)
        return processor._get_mm_hashes(given)["video"]

    @pytest.mark.parametrize("uuid", [None, "id of the caller"])
    def test_specs_differ(self, uuid):
        specs = (None, "kmeans(keep=0.4)", "kmeans(keep=0.5)", "tome(keep=0.4)")
        every = [self.hashes(spec, uuid=uuid)[0] for spec in specs]
        assert len(set(every)) == len(specs)
        assert every == [self.hashes(spec, uuid=uuid)[0] for spec in specs]

    def test_versions_differ(self, monkeypatch):
        now = self.hashes("kmeans(keep=0.4)")
        monkeypatch.setattr(import_module("fewtokens.serve.vllm.settings"), "__version__", "0.0.1")
        assert self.hashes("kmeans(keep=0.4)") != now

    def test_a_request_cannot_set_the_spec(self):
        with pytest.raises(ValueError, match="that of the engine"):
            self.hashes("kmeans(keep=0.4)", fewtokens="tome(keep=0.4)")


class TestSettings:
    def config(self, **settings: Any) -> Any:
        return make_config(SimpleNamespace(), mrope=True, **settings)

    def test_order(self, monkeypatch):
        monkeypatch.setenv("FEWTOKENS_SPEC", "random(keep=3)")
        spec_of = import_module("fewtokens.serve.vllm.settings").spec_of
        assert spec_of(self.config().model_config) == "random(keep=3)"
        options = {"fps": 2, "fewtokens": "random(keep=4)"}
        config = self.config(options=options)
        assert spec_of(config.model_config) == "random(keep=4)"
        # Processors of transformers must not receive it.
        assert config.model_config.multimodal_config.mm_processor_kwargs == {"fps": 2}
        config = self.config(options=options, additional={"fewtokens": {"spec": "random(keep=5)"}, "other": 1})
        assert spec_of(config.model_config) == "random(keep=5)"

    def test_the_config_that_vllm_hashes_has_the_spec_and_the_version(self, monkeypatch):
        monkeypatch.setenv("FEWTOKENS_SPEC", "random(keep=3)")
        from fewtokens import __version__

        identity = {"spec": "random(keep=3)", "version": __version__}
        assert self.config(additional={"other": 1}).additional_config == {"other": 1, "fewtokens": identity}

    def test_pruning_is_on_only_where_positions_are_recomputed(self):
        spec = {"fewtokens": "random(keep=3)"}
        enabled = [
            make_config(SimpleNamespace(), mrope=mrope, additional=given)
            .model_config.multimodal_config.is_multimodal_pruning_enabled()
            for mrope, given in [(True, spec), (False, spec), (True, None)]
        ]  # fmt: skip
        assert enabled == [True, False, False]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"additional": {"fewtokens": "llama_vid"}}, "depends on the question"),
            ({"additional": {"fewtokens": "evs(tau=0.1)"}}, "set a budget"),
            ({"additional": {"fewtokens": {"spec": 3}}}, "must be a spec"),
            ({"rate": 0.5}, "video_pruning_rate"),
            ({"speculative_config": object()}, "speculative decoding"),
            ({"lora_config": SimpleNamespace(enable_tower_connector_lora=True)}, "adapters in the encoder"),
        ],
    )
    def test_mistakes(self, settings, message):
        with pytest.raises(ValueError, match=message) as error:
            self.config(**{"additional": {"fewtokens": "random(keep=3)"}} | settings)
        assert "\n" not in str(error.value)


def test_register_is_idempotent():
    plugin = import_module("fewtokens.serve.vllm")
    registry = import_module("vllm.model_executor.models.registry").ModelRegistry
    config = import_module("vllm.model_executor.models.config")
    called = []

    class Stock(config.VerifyAndUpdateConfig):
        @classmethod
        def verify_and_update_config(cls, vllm_config):
            called.append(cls)

    registry.models |= dict.fromkeys(("Other", "OtherWithHook"))
    config.MODELS_CONFIG_MAP["OtherWithHook"] = Stock
    for _ in range(2):
        plugin.register()
    assert {name: registry.models[name] for name in plugin.MODELS} == plugin.MODELS
    assert set(config.MODELS_CONFIG_MAP) == {*plugin.MODELS, "Other", "OtherWithHook"}

    # The hooks of other models do what they did, unless a spec would be ignored.
    for name, hook in config.MODELS_CONFIG_MAP.items():
        model = SimpleNamespace(multimodal_config=MultiModalConfig(), architecture=name)
        given = SimpleNamespace(model_config=model, additional_config={})
        hook.verify_and_update_config(given)
        if name not in plugin.MODELS:
            given.additional_config = {"fewtokens": "random(keep=3)"}
            with pytest.raises(ValueError, match=f"does not serve {name};"):
                hook.verify_and_update_config(given)
    assert len(called) == 1
    for target in plugin.MODELS.values():
        module, name = target.split(":")
        assert isinstance(getattr(import_module(module), name), type)


def test_methods_on_pixels_get_the_patches_of_the_encoder():
    """The same selection as from pixels computed by hand; patches of 2 frames of 4 x 4 pixels."""
    from fewtokens.serve import reduce

    model, processor = make("qwen2_5_vl", "rlt(keep=0.6)")
    raw = torch.rand(5 * 4 * 6, 3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    normalized = ((raw - 0.5) / 0.25).flatten(1)
    item = fields(pixel_values_videos=normalized, video_grid_thw=torch.tensor([5, 4, 6]))
    out = prefill(model, processor, [START, "video", END], {"video": [item]})
    pixels = raw.reshape(30, 4, 3, 2, 16).permute(0, 3, 1, 4, 2).reshape(30, 2, 4 * 16 * 3)
    expected = reduce("rlt(keep=0.6)", normalized.reshape(30, 4, -1).mean(1), Grid(5, 2, 3), pixels=pixels)
    assert torch.equal(torch.stack([out.rows[column] for column in sorted(out.rows)]), expected.rows)


@pytest.mark.parametrize("family", ["llava_onevision", "llava_next_video", "internvl", "internvl_hf"])
def test_methods_on_pixels_get_the_frames_of_the_encoder(family):
    """The same selection as from pixels computed by hand; frames of 3 x 3 cells of one color."""
    from fewtokens.serve import reduce

    model, processor = make(family, "rlt(keep=20)", Tokenizer())
    # The stand-ins of the other processors normalize with these.
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if family == "internvl" else ([0.5] * 3, [0.25] * 3)
    colors = torch.rand(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    normalized = (colors - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    video = normalized.repeat_interleave(8, 2).repeat_interleave(8, 3)
    out = prefill(model, processor, [5, "video", 6], {"video": [plain_item(family, video)]})
    pixels = colors.permute(0, 2, 3, 1).reshape(36, 1, 3).repeat(1, 1, 64)
    rows = normalized.permute(0, 2, 3, 1).reshape(36, 3)
    expected = reduce("rlt(keep=20)", rows, Grid(4, 3, 3), pixels=pixels).rows
    torch.testing.assert_close(torch.stack([out.rows[column] for column in sorted(out.rows)])[:20], expected)
