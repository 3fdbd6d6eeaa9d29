"""What holds on a GPU as on a CPU: methods in half precision, memories, tokenizers, compilation, answers, training.

The tests need a CUDA device. FEWTOKENS_GPU=cpu runs them on the CPU, to try the tests themselves.
"""

from __future__ import annotations

import json
import os
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_map

from fewtokens.core import registry
from fewtokens.tokenizers import create_tokenizer, get_preset, list_tokenizers
from fewtokens.video import synthetic, write
from tests.core.test_compile import SPECS as COMPILED
from tests.core.test_compile import Wrapped
from tests.helpers.clips import clip, cues, run_method
from tests.helpers.command import run
from tests.helpers.frames import stream
from tests.laws import test_memory
from tests.laws.test_methods import NAMES, build, sample
from tests.tokenizers.signals import signals

pytestmark = pytest.mark.gpu


@pytest.fixture
def device() -> torch.device:
    name = os.environ.get("FEWTOKENS_GPU", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(name)


@pytest.mark.parametrize("name", NAMES)
def test_methods_in_bfloat16(name, device):
    tokens = sample(name)
    method = build(name).to(device, torch.bfloat16)
    half = tokens.replace(features=tokens.features.bfloat16()).to(device)
    out = run_method(method, half).check()
    assert out.features.dtype == torch.bfloat16
    assert bool(out.features.isfinite().all())
    planned = [method.planned_count(grid) for grid in tokens.grid.videos(len(tokens.features))]
    assert all(count in (None, real) for count, real in zip(planned, out.count.tolist(), strict=True))


@pytest.mark.parametrize("spec", test_memory.SPECS)
def test_memories(spec, device):
    memory, tokens = test_memory.build(spec), stream(29, H=2, W=3, B=2)
    expected = memory.read(test_memory.push_chunks(memory, tokens, 7))
    state = test_memory.push_chunks(memory.to(device), tokens.to(device), 7)
    out = memory.read(state).to("cpu")
    torch.testing.assert_close(out.features, expected.features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.sizes, expected.sizes)
    # A snapshot of one device continues on another.
    moved = memory.to("cpu").read(tree_map(lambda x: x.cpu() if isinstance(x, torch.Tensor) else x, state))
    torch.testing.assert_close(moved.features, out.features)


@pytest.mark.parametrize("name", list_tokenizers())
def test_tokenizers(name, device):
    """Rounding may change single codes; given equal codes, the frames agree."""
    torch.manual_seed(0)
    tokenizer, preset = create_tokenizer(name, tiny=True).eval(), get_preset(name)
    clips = signals(preset.source, preset.tiny_clip, 2)
    tokens = tokenizer.encode(clips)
    frames = tokenizer.decode(tokens)
    tokenizer.to(device)
    on_device = tokenizer.encode(clips.to(device))
    if tokens.codes is not None:
        assert on_device.codes is not None
        assert (on_device.codes.cpu() == tokens.codes).float().mean() > 0.9
    torch.testing.assert_close(tokenizer.decode(tokens.to(device)).cpu(), frames, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("spec", COMPILED)
def test_compiled_methods(spec, device):
    (method,) = registry.build(spec)
    tokens = clip(H=4, W=4, C=16).to(device)
    inputs = {name: value.to(device) for name, value in cues(tokens.to("cpu")).items() if name in method.needs}
    expected = method(tokens, **inputs)
    compiled = torch.compile(Wrapped(method), fullgraph=True)(tokens, inputs)
    assert torch.equal(compiled.assignment, expected.assignment)
    torch.testing.assert_close(compiled.features, expected.features, rtol=1e-4, atol=1e-4)


@cache
def model(family: str, device: str):
    from fewtokens.llm import load
    from tests.llm.saved import save

    with tempfile.TemporaryDirectory() as folder:
        return load(save(family, Path(folder)), device=device)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
@pytest.mark.parametrize("spec", [None, "tome(keep=0.5)", "tome(keep=0.5) | fastv(0.5)"])
def test_answers(family, spec, device):
    from fewtokens.llm import Session

    video = synthetic("static", frames=8, size=(64, 96))
    here = Session(*model(family, "cpu"), spec, 8).ask(video, "what happens", 6)
    there = Session(*model(family, str(device)), spec, 8).ask(video, "what happens", 6)
    assert (there.text, there.tokens) == (here.text, here.tokens)


def test_training(device, tmp_path):
    """In bfloat16, and resumed."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for seed in range(2):
        write(videos / f"{seed}.mp4", synthetic("pan", frames=6, size=(32, 40), seed=seed).frames, 10)
    spec = "tubelet(24, stride=(2, 8, 8)) | fsq((8, 5, 5)) > tubelet(stride=(2, 8, 8))"
    words = ["train", "tokenizer", videos, "--tokenizer", spec, "--out", tmp_path / "run", "--frames", 4, "--batch", 2]
    words += ["--workers", 0, "--device", "cpu" if device.type == "cpu" else "auto", "--json"]
    words += ["--set", "size=16", "--set", "shown=2", "--set", "precision=bf16"]
    assert json.loads(run(*words, "--steps", 2).stdout)["steps"] == 2
    assert json.loads(run(*words, "--steps", 4).stdout)["steps"] == 4
