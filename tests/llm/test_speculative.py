"""Speculative decoding: equal to the model alone in every family, and the law of acceptance."""

from __future__ import annotations

import pytest
import torch

from fewtokens.llm import compress, speculate
from fewtokens.llm.compress import compress_each
from fewtokens.llm.interface import vision_tower
from fewtokens.llm.speculative import _Stream, verify
from tests.llm.test_compress import generate
from tests.llm.tiny import FAMILIES, PAD, batch, prompt, tiny

MIXTURE = (("text", 3), ("video", 3), ("text", 5))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spec", ["uniform(keep=1)", "kmeans(keep=0.5)", ""])
def test_greedy_decoding_equals_the_model_alone(family, spec):
    model = tiny(family)
    for seed in range(3):
        example = prompt(family, *MIXTURE, seed=seed)
        out = speculate(model, example.inputs, spec, num_draft=3, max_new_tokens=9, items=example.items)
        alone = generate(model, example.inputs, max_new_tokens=9)
        assert out.tokens.tolist() == alone.sequences[0, example.inputs["input_ids"].shape[1] :].tolist()
        assert len(out.accepted) <= 8
        if not spec:  # the draft is the model itself with all tokens
            assert out.acceptance == 1
            assert len(out.accepted) == 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spec", ["kmeans(keep=0.5)", "rlt(keep=0.5)", "attention_topk(keep=0.5)", ""])
def test_the_model_as_its_own_draft_encodes_the_video_once(family, spec):
    model, example = tiny(family), prompt(family, *MIXTURE)
    runs = []
    tower = vision_tower(model)
    assert tower is not None
    with tower.register_forward_hook(lambda *_: runs.append(1)):
        speculate(model, example.inputs, spec, max_new_tokens=2, items=example.items)
        assert len(runs) == 1
        # Another prompt is encoded too.
        speculate(model, example.inputs, spec, draft_inputs=dict(example.inputs), max_new_tokens=2, items=example.items)
        assert len(runs) == 3


def test_a_draft_with_methods_inside_the_tower_encodes_the_video_again():
    model, example = tiny("qwen2_vl"), prompt("qwen2_vl", *MIXTURE)
    runs = []
    with vision_tower(model).register_forward_hook(lambda *_: runs.append(1)):
        out = speculate(model, example.inputs, "tome_in_encoder(keep=0.5)", max_new_tokens=4)
    alone = generate(model, example.inputs, max_new_tokens=4)
    assert out.tokens.tolist() == alone.sequences[0, example.inputs["input_ids"].shape[1] :].tolist()
    assert len(runs) == 2
    with pytest.raises(ValueError, match="cannot share its features"):
        compress_each(model, example.inputs, ["", "tome_in_encoder(keep=0.5)"])


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_a_bad_draft_changes_nothing_but_the_number_of_passes(family):
    """The draft reads another prompt, so nearly all its tokens are rejected."""
    model = tiny(family)
    passes = 0
    for seed in range(10):
        example, other = prompt(family, *MIXTURE, seed=seed), prompt(family, ("text", 9), ("video", 2), seed=seed + 50)
        out = speculate(
            model, example.inputs, "uniform(keep=1)", draft_inputs=other.inputs, num_draft=4, max_new_tokens=6
        )
        alone = generate(model, example.inputs, max_new_tokens=6)
        assert out.tokens.tolist() == alone.sequences[0, example.inputs["input_ids"].shape[1] :].tolist()
        passes += len(out.accepted)
    assert passes > 20


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_without_rejected_tokens_equals_a_new_one(family):
    model, example = tiny(family), prompt(family, *MIXTURE)
    with torch.no_grad():
        used, new = (_Stream(model, compress(model, example.inputs, "", items=example.items)) for _ in range(2))
        used.start(), new.start()
        used.extend([5, 6, 7, 8])
        used.shorten(2)
        new.extend([5, 6])
        torch.testing.assert_close(used.extend([9, 10]), new.extend([9, 10]), atol=1e-5, rtol=1e-5)
    for a, b in zip(used.cache.layers, new.cache.layers, strict=True):
        torch.testing.assert_close(a.keys, b.keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(a.values, b.values, atol=1e-5, rtol=1e-5)


def test_samples_are_distributed_as_those_of_the_model():
    generator = torch.Generator().manual_seed(0)
    p, q = torch.rand(2, 8, generator=generator, dtype=torch.float64).pow(3)
    p, q = p / p.sum(), q / q.sum()
    distance = float((p - q).abs().sum() / 2)
    assert distance > 0.3
    N = 200_000
    drafted = torch.multinomial(q.expand(N, -1), 2, replacement=True, generator=generator)
    count, token = verify(p.expand(N, 3, -1), q.expand(N, 2, -1), drafted, generator)
    first = torch.where(count > 0, drafted[:, 0], token)
    second = torch.where(count > 1, drafted[:, 1], token)[count > 0]
    for samples in (first, second):
        frequency = torch.bincount(samples, minlength=8) / len(samples)
        assert float((frequency - p).abs().sum() / 2) < 0.005
    assert float((count > 0).double().mean()) == pytest.approx(1 - distance, abs=0.005)


def test_sampling_depends_on_the_seed_only():
    model, example = tiny("qwen2_vl"), prompt("qwen2_vl", *MIXTURE)
    options = {"do_sample": True, "temperature": 0.8, "max_new_tokens": 12}
    runs = [speculate(model, example.inputs, "uniform(keep=2)", seed=seed, **options).tokens for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_it_stops_at_the_end_of_a_sequence(monkeypatch):
    model, example = tiny("qwen2_vl"), prompt("qwen2_vl", *MIXTURE)
    tokens = speculate(model, example.inputs, "", max_new_tokens=12).tokens.tolist()
    end = tokens[5]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [end, PAD])
    stopped = speculate(model, example.inputs, "uniform(keep=1)", max_new_tokens=12).tokens.tolist()
    assert stopped == tokens[: tokens.index(end) + 1]


def test_wrong_inputs():
    model, example = tiny("qwen2_vl"), prompt("qwen2_vl", *MIXTURE)
    both = batch("qwen2_vl", example, prompt("qwen2_vl", *MIXTURE, seed=1))
    with pytest.raises(ValueError, match="takes one prompt, got 2"):
        speculate(model, both.inputs, "")
    with pytest.raises(ValueError, match="num_draft and max_new_tokens must be at least 1"):
        speculate(model, example.inputs, "", num_draft=0)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        speculate(model, example.inputs, "", temperature=0)


def test_images_of_the_draft_alone_are_reduced():
    """The model sees all tokens of images, too."""
    model, one = tiny("qwen2_vl"), prompt("qwen2_vl", ("text", 4), ("image",), ("video", 4), ("text", 5))
    expected = speculate(model, one.inputs, "kmeans(keep=5)", max_new_tokens=4).tokens
    reduced = speculate(model, one.inputs, "kmeans(keep=5)", max_new_tokens=4, images="kmeans(keep=1)").tokens
    assert torch.equal(reduced, expected)
