"""The folder for `model.generate(custom_generate=...)` gives what `few.generate` gives."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from fewtokens.llm import attach
from tests.llm.test_session import CLIP, FIRST, loaded
from tests.llm.tiny import prompt, tiny

FOLDER = Path(__file__).parents[2] / "examples" / "few_tokens"


@pytest.fixture(autouse=True)
def _modules(tmp_path, monkeypatch):
    """transformers copies the code into a folder of modules."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_it_equals_generate_of_attach(family):
    model, processor = loaded(family)
    inputs = processor(model, CLIP, FIRST)
    options = {"max_new_tokens": 5, "do_sample": False}
    with attach(model, "evs(keep=0.5)", positions="keep") as few:
        expected = few.generate(**inputs, **options)
    ids = model.generate(
        **inputs,
        **options,
        custom_generate=str(FOLDER),
        trust_remote_code=True,
        few_tokens="evs(keep=0.5)",
        positions="keep",
    )
    assert torch.equal(ids, expected) and ids.shape[1] < inputs["input_ids"].shape[1] + 5
    with pytest.raises(ValueError, match="nonsense"):
        model.generate(**inputs, custom_generate=str(FOLDER), trust_remote_code=True, few_tokens="nonsense")


def test_a_model_whose_folder_contains_it(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "model")
    tiny("qwen2_vl").save_pretrained(tmp_path / "model")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", trust_remote_code=True).eval()
    example = prompt("qwen2_vl", ("text", 3), ("video", 3), ("text", 3))
    options = {"max_new_tokens": 4, "do_sample": False}
    with attach(tiny("qwen2_vl"), "kmeans(keep=3)") as few:
        expected = few.generate(**example.inputs, **options)
    assert torch.equal(model.generate(**example.inputs, **options, few_tokens="kmeans(keep=3)"), expected)
