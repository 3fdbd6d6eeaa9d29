"""A language model from a .gguf file: loaded, used in a composed model, trained, saved as a folder, asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fewtokens.cli import app
from fewtokens.llm.composed import load_language_model
from fewtokens.llm.load import VideoLLM
from tests.llm.test_composed import QUESTIONS, conversations, parts  # noqa: F401, fixtures

WIDTH, LAYERS, HEADS, GROUPS, INNER = 24, 2, 4, 2, 48
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def write_gguf(path: Path):
    """A tiny random Llama as llama.cpp stores it, and the same as a model of transformers."""
    import gguf
    import transformers as hf

    vocabulary = [*SPECIAL, "Ġ", "Ċ", *map(chr, range(33, 127)), "Ġw", "wh"]
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(
        hf.LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, num_key_value_heads=GROUPS,
        )
    )  # fmt: skip
    file = gguf.GGUFWriter(path, "llama")
    for name, value in {
        "block_count": LAYERS, "context_length": 512, "embedding_length": WIDTH, "feed_forward_length": INNER,
        "head_count": HEADS, "head_count_kv": GROUPS, "layer_norm_rms_eps": 1e-6, "rope_freq_base": 10000.0,
        "vocab_size": len(vocabulary), "rope_dimension_count": WIDTH // HEADS, "tokenizer_model": "gpt2",
        "tokenizer_pre": "default", "token_list": vocabulary, "token_merges": ["Ġ w", "w h"],
        "token_types": [3] * len(SPECIAL) + [1] * (len(vocabulary) - len(SPECIAL)), "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "unk_token_id": 3,
    }.items():  # fmt: skip
        getattr(file, f"add_{name}")(value)
    names = {
        "embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
        "self_attn.": "attn_", "o_proj": "output", "mlp.": "ffn_", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm", "_proj": "", "model.token": "token",
    }  # fmt: skip
    for name, value in model.state_dict().items():
        heads = HEADS if "q_proj" in name else GROUPS if "k_proj" in name else None
        if heads:  # its rotary embedding rotates adjacent pairs instead of halves
            value = value.reshape(heads, 2, -1, WIDTH).transpose(1, 2).reshape(value.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        file.add_tensor(name, value.contiguous().numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return model


@pytest.fixture(scope="module")
def gguf_model(tmp_path_factory):
    pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, write_gguf(path)


def test_it_is_the_same_model(gguf_model):
    path, model = gguf_model
    loaded, tokenizer = load_language_model(path)
    assert loaded.dtype == torch.float32
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    ids = tokenizer("what is it", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0]) == "what is it"
    torch.testing.assert_close(loaded(ids).logits, model.eval()(ids).logits)


def test_trained_saved_and_asked(gguf_model, parts, conversations, tmp_path):  # noqa: F811
    path, _ = gguf_model
    args = ["train", "video-llm", "--data", conversations / "train.jsonl", "--encoder", parts / "vit", "--llm", path,
             "--pool", 2, "--frames", 4, "--size", 32, "--set", "workers=0", "--set", "steps=2", "--batch", 3,
             "--device", "cpu", "--out", tmp_path / "run", "--json"]  # fmt: skip
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    folder = tmp_path / "run" / "model"
    assert (folder / "llm" / "model.safetensors").is_file()
    assert "quantization_config" not in json.loads((folder / "llm" / "config.json").read_text())
    assert (
        VideoLLM.from_pretrained(folder, device="cpu")
        .session()
        .ask(conversations / "0.mp4", QUESTIONS[0], 3)
        .new_tokens
        >= 1
    )


def test_files_that_cannot_be_read(gguf_model, tmp_path, monkeypatch):
    path, _ = gguf_model
    with pytest.raises(ValueError, match="no such file"):
        load_language_model(tmp_path / "none.gguf")
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="cannot be loaded as a causal language model") as error:
        load_language_model(tmp_path / "cut.gguf")
    assert "\n" not in str(error.value)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"requires gguf and accelerate; install with pip install 'fewtokens\[gguf\]'"):
        load_language_model(path)
