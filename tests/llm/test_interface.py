"""The interface of transformers: unknown names are errors, wrapped models are unwrapped, old releases refused."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch import nn

from fewtokens.llm import BACKENDS, Session, attach, backend_of, compress, compress_inputs
from fewtokens.llm.backends import base as backend_module
from fewtokens.llm.backends.base import backend_class
from fewtokens.llm.interface import cache_of, layer_cache, unsupported, unwrap
from fewtokens.llm.layers.hooks import language_model
from fewtokens.llm.layers.streams import check_layers
from tests.llm import families
from tests.llm.test_compress import generate, logits_of
from tests.llm.tiny import FAMILIES, prompt, tiny

MIXTURE = (("text", 3), ("video", 4), ("text", 5))
FEW = "uniform(keep=0.5)"


def with_renamed_argument(model, target, old, new):
    """Copies a model that passes an argument to its layers (or its language model) under another name."""
    model = copy.deepcopy(model)
    text = language_model(model)

    class Renaming(type(text.layers[0]) if target == "layer" else type(text)):
        def __call__(self, *args, **kwargs):
            for name in old:
                if name in kwargs:
                    kwargs[new] = kwargs.pop(name)
            return super().__call__(*args, **kwargs)

    for module in text.layers if target == "layer" else [text]:
        module.__class__ = Renaming
    return model


INSIDE = ("fastv(keep=0.5, layer=1)", "prunevid_inner(layer=1)", "dycoke_cache(keep=0.3, layer=1)")


@pytest.mark.parametrize("spec", INSIDE)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_whose_cache_has_another_name(family, spec):
    model = with_renamed_argument(tiny(family), "layer", ("past_key_values", "cache"), "memory")
    example = prompt(family, *MIXTURE)
    with attach(model, spec, items=example.items) as few, pytest.raises(ValueError, match="cache under another name"):
        few.generate(**example.inputs, max_new_tokens=3)


@pytest.mark.parametrize("name", ["attention_mask", "position_embeddings"])
def test_other_arguments_of_a_layer(name):
    model, example = with_renamed_argument(tiny("qwen2_vl"), "layer", (name,), "another"), prompt("qwen2_vl", *MIXTURE)
    with attach(model, INSIDE[0]) as few, pytest.raises(ValueError, match=f"no {name}"):
        few(**example.inputs)


def test_deepstack_under_another_name():
    model = with_renamed_argument(tiny("qwen3_vl"), "text", ("deepstack_visual_embeds",), "deep")
    example = prompt("qwen3_vl", *MIXTURE)
    with attach(model, INSIDE[0]) as few, pytest.raises(ValueError, match=r"DeepStack features .* another name"):
        few(**example.inputs)


def test_attention_that_does_not_pass_through_the_interface(monkeypatch):
    model, example = copy.deepcopy(tiny("qwen2_vl")), prompt("qwen2_vl", *MIXTURE)
    for layer in language_model(model).layers:
        monkeypatch.setattr(layer.self_attn, "forward", lambda hidden_states, **_: (hidden_states, None))
    with (
        attach(model, INSIDE[0]) as few,
        pytest.raises(ValueError, match="attention of Qwen2VLDecoderLayer does not pass through AttentionInterface"),
    ):
        few(**example.inputs)
    assert language_model(model).config._attn_implementation == "sdpa"


def test_streams_in_layers_with_other_submodules():
    model = copy.deepcopy(tiny("qwen3_vl"))
    attention = language_model(model).layers[1].self_attn
    attention.query_norm = attention.q_norm
    del attention.q_norm
    with pytest.raises(ValueError, match=r"the attention of decoder layers consists of .*query_norm"):
        check_layers(language_model(model))
    model = copy.deepcopy(tiny("qwen2_vl"))
    language_model(model).layers[0].gate = nn.Identity()
    with pytest.raises(ValueError, match="decoder layers differ in gate"):
        check_layers(language_model(model))
    model = copy.deepcopy(tiny("qwen2_vl"))
    language_model(model).layers[0].self_attn.sliding_window = 8
    with pytest.raises(ValueError, match=r"layers of full attention, .*sliding"):
        check_layers(language_model(model))


def test_a_new_parameter_of_get_rope_index(monkeypatch):
    model, example = copy.deepcopy(tiny("qwen2_vl")), prompt("qwen2_vl", *MIXTURE)
    monkeypatch.setattr(model.base_model, "get_rope_index", lambda input_ids, seconds: None)
    with pytest.raises(ValueError, match="get_rope_index requires seconds, which the prompt does not have"):
        compress_inputs(model, example.inputs, FEW)


def test_a_model_that_takes_its_cache_by_another_name(monkeypatch):
    model = copy.deepcopy(tiny("qwen2_vl"))
    monkeypatch.setattr(model, "forward", lambda input_ids, mm_encoder_outputs=None, memory=None: None)
    with pytest.raises(ValueError, match="its cache under another name"):
        backend_of(model)


def test_a_cache_under_either_name():
    assert cache_of({"cache": 1}) == cache_of({"past_key_values": 1, "cache": None}) == 1
    assert cache_of({"ids": 1}) is None
    assert layer_cache({"past_key_values": None}) is None
    assert layer_cache({"use_cache": False}) is None
    with pytest.raises(ValueError, match="under another name"):
        layer_cache({"use_cache": True, "memory": 1})
    assert "fewtokens[llm]" in str(unsupported("does"))


def test_every_module_is_a_backend():
    with_prompts = {name for name in BACKENDS if backend_class(name)(name).has_prompts}
    assert with_prompts == {*FAMILIES, "composed"}
    for name in BACKENDS:
        backend = backend_class(name)
        assert backend.name == name == backend.__module__.rpartition(".")[2]


def test_unsupported_releases(monkeypatch):
    monkeypatch.setattr(backend_module, "version", lambda: (5, 20))
    with pytest.raises(ValueError, match=r"smolvlm .* transformers 5\.20; install 5\.21 or newer"):
        backend_of(tiny("smolvlm"))
    assert backend_of(tiny("internvl")).name == "internvl"
    monkeypatch.setattr(backend_module, "version", lambda: (5, 18))
    with pytest.raises(ValueError, match=r"transformers 5\.19 or newer"):
        backend_of(tiny("internvl"))


def test_pixels_of_another_model():
    example = prompt("qwen2_vl", *MIXTURE).inputs
    with pytest.raises(ValueError, match="internvl does not accept"):
        compress_inputs(tiny("internvl"), example, FEW)


def with_adapters(model):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    return peft.get_peft_model(copy.deepcopy(model), config).eval()


WRAPPERS = {
    "peft": with_adapters,
    "compile": torch.compile,
    "DataParallel": nn.DataParallel,
    "peft in compile in DataParallel": lambda model: nn.DataParallel(torch.compile(with_adapters(model))),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_wrapped_models(family, wrapper):
    example = prompt(family, *MIXTURE)
    model = WRAPPERS[wrapper](tiny(family))
    inner = unwrap(model)
    assert backend_of(model).name == family
    with attach(inner, FEW, items=example.items) as few, torch.no_grad():
        expected = few(**example.inputs).logits
    with attach(model, FEW, items=example.items) as few, torch.no_grad():
        assert torch.equal(few(**example.inputs).logits, expected)
        assert few.generate(**example.inputs, max_new_tokens=2).shape[1] == few.last.inputs["input_ids"].shape[1] + 2
        with pytest.raises(ValueError, match="already attached to this model"), attach(inner, FEW):
            pass
        short = compress_inputs(model, example.inputs, FEW, items=example.items)
    out = generate(inner, short)
    torch.testing.assert_close(logits_of(out)[:, 0], expected[:, -1], rtol=1e-4, atol=1e-4)
    if "peft" in wrapper:
        with attach(tiny(family), FEW, items=example.items) as few, torch.no_grad():
            assert not torch.allclose(few(**example.inputs).logits, expected, atol=1e-4)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_sessions_of_wrapped_models(wrapper):
    from tests.llm.test_session import CLIP, FIRST, loaded

    model, processor = loaded("qwen2_vl")
    model = WRAPPERS[wrapper](model)
    answer = Session(model, processor, FEW, 8).ask(CLIP, FIRST, 3)
    assert answer.text == Session(unwrap(model), processor, FEW, 8).ask(CLIP, FIRST, 3).text
    assert processor(model, CLIP, FIRST).keys() == processor(unwrap(model), CLIP, FIRST).keys()


def test_adapters_that_act_on_prompts_are_refused():
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, num_layers=3, token_dim=32,
                                     num_attention_heads=4)  # fmt: skip
    model = peft.get_peft_model(copy.deepcopy(tiny("llava_onevision")), config)
    with pytest.raises(ValueError, match="virtual tokens before the prompt"), attach(model, FEW):
        pass


def test_gradients_through_ddp(tmp_path, monkeypatch):
    """The forward of DDP is called; otherwise gradients would not be summed over processes."""
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    example = prompt("qwen2_vl", *MIXTURE)
    labels = example.inputs["input_ids"]
    monkeypatch.setitem(os.environ, "GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(copy.deepcopy(tiny("qwen2_vl")), find_unused_parameters=True)
        reduced = []
        model.register_comm_hook(None, lambda state, bucket: (reduced.append(1), _done(bucket.buffer()))[1])
        with attach(model, FEW) as few:
            few(**example.inputs, labels=labels).loss.backward()
    finally:
        distributed.destroy_process_group()
    assert reduced


def _done(value):
    future = torch.futures.Future()
    future.set_result(value)
    return future


@pytest.mark.parametrize("family", ["qwen2_5_omni", "qwen3_omni_moe"])
def test_sound_apart_from_a_video(family):
    """Positions depend on the length of the sound, which the thinkers of Qwen-Omni take as a mask of its features."""
    model, one = families.build(family), families.prompt(family, ("text", 4), ("video", 4), ("text", 3))
    config, inputs = model.config, dict(one.inputs)
    count = 5 if family == "qwen2_5_omni" else 3
    end = getattr(config, "audio_end_token_id", 6)
    sound = torch.tensor([[config.audio_start_token_id, *[config.audio_token_id] * count, end, 7]])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], sound], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs.pop("mm_token_type_ids", None)
    frames = 20
    inputs["input_features"] = torch.randn(1, config.audio_config.num_mel_bins, frames)
    inputs["feature_attention_mask"] = torch.ones(1, frames, dtype=torch.int64)
    with torch.no_grad():
        expected = model(**inputs).logits[0, -3:]
        full = compress(model, inputs, "")
        torch.testing.assert_close(model(**full.inputs).logits[0, -3:], expected, atol=1e-4, rtol=1e-4)
        short = compress(model, inputs, "kmeans(keep=3)")
        assert model(**short.inputs).logits.isfinite().all()
    # The axes of time, height and width; the first of four is the number of the column.
    places = [each.inputs["position_ids"][-3:, 0, -1] for each in (short, full)]
    assert torch.equal(*places)


def test_types_of_tokens_that_placeholders_do_not_tell_apart():
    """Videos of GLM-4V have the placeholder of images."""
    one = families.prompt("glm4v", ("text", 4), ("video", 4), ("text", 3))
    inputs = {name: value for name, value in one.inputs.items() if name != "mm_token_type_ids"}
    with pytest.raises(ValueError, match="pass mm_token_type_ids, which its processor returns"):
        compress(families.build("glm4v"), inputs, "kmeans(keep=3)")
