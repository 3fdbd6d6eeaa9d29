"""Reduced prompts in every family, on tiny random models: counts, positions, caches, batches, turns, gradients."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

from fewtokens.core.pipeline import Pipeline
from fewtokens.llm import BACKENDS, attach, compress, compress_inputs
from tests.llm.tiny import (
    FAMILIES,
    IMAGE,
    INTERLEAVED,
    MROPE_FAMILIES,
    VIDEO,
    batch,
    grid_of,
    prompt,
    tiny,
    token_types,
)

GREEDY = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
FEW = "kmeans(keep=5)"
MIXTURES = {
    "video, then image": (("text", 3), ("video", 2), ("text", 2), ("image",), ("text", 3)),
    "image, then video": (("text", 3), ("image",), ("text", 2), ("video", 3), ("text", 3)),
    "two videos": (("text", 3), ("video", 2), ("text", 2), ("video", 2), ("text", 3)),
    "video alone": (("text", 4), ("video", 4), ("text", 5)),
}

pytestmark = pytest.mark.parametrize("family", FAMILIES)


def generate(model, inputs, **options):
    return model.generate(**copy.copy(inputs), **(GREEDY | options))


def logits_of(out) -> torch.Tensor:
    return torch.stack(out.logits, 1)  # [B,new,vocabulary]


def recompute(model, short, sequences) -> torch.Tensor:
    """Logits [B,new,vocabulary] of the tokens after the prompt, in one pass without a cache."""
    inputs = dict(short)
    length, new = inputs["input_ids"].shape[1], sequences.shape[1] - inputs["input_ids"].shape[1]
    inputs["input_ids"] = sequences
    inputs["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, new), value=1)
    inputs["position_ids"] = extend_positions(inputs, new)
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    return logits[:, length - 1 : -1].float()


def extend_positions(inputs, new: int) -> torch.Tensor:
    positions = inputs.get("position_ids")
    if positions is None:
        return (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return torch.cat([positions, positions[..., -1:] + 1 + torch.arange(new)], dim=-1)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_full_budget_is_bit_equal_to_stock(family, mixture):
    model, example = tiny(family), prompt(family, *MIXTURES[mixture])
    stock = generate(model, example.inputs)
    for positions in ("keep", "average"):
        with attach(model, "tome(keep=1.0)", items=example.items, positions=positions) as few:
            out = few.generate(**example.inputs, **GREEDY)
        assert torch.equal(out.sequences, stock.sequences)
        assert torch.equal(logits_of(out), logits_of(stock))


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("layout", ["per_frame", "collapse"])
def test_placeholders_features_and_cache_agree_with_the_plan(family, mixture, layout):
    model, example = tiny(family), prompt(family, *MIXTURES[mixture])
    for keep in (1, 5, 0.5):
        spec = f"kmeans(keep={keep})"
        compressed = compress(model, example.inputs, spec, items=example.items, layout=layout)
        steps = [count for kind, count in example.items[0] if kind == "video"]
        planned = [Pipeline(spec).planned_count(tokens.grid) for tokens in compressed.tokens]
        assert [tokens.grid.shape for tokens in compressed.tokens] == [grid_of(family, count) for count in steps]
        assert [tokens.N for tokens in compressed.tokens] == planned
        ids = compressed.inputs["input_ids"]
        cells = sum(tokens.grid.cells for tokens in compressed.tokens)
        before = example.inputs["input_ids"]
        marks = (before == VIDEO).sum() + (before == IMAGE).sum()
        assert int((ids == VIDEO).sum() + (ids == IMAGE).sum()) == int(marks) - cells + sum(planned)
        text = before[(before != VIDEO) & (before != IMAGE)]
        remaining_text = ids[(ids != VIDEO) & (ids != IMAGE)]
        if layout == "per_frame" or family not in INTERLEAVED:
            assert torch.equal(remaining_text, text)
        else:
            assert len(remaining_text) < len(text)
        outputs = compressed.inputs["mm_encoder_outputs"].values()
        rows = sum(row.reshape(-1, 32).shape[0] for out in outputs for row in out.pooler_output)
        assert rows == int((ids == VIDEO).sum() + (ids == IMAGE).sum())
        out = generate(model, compressed.inputs)
        assert out.past_key_values.get_seq_length() == ids.shape[1] + GREEDY["max_new_tokens"] - 1
        assert compressed.after.tolist() == [ids.shape[1]]


@pytest.mark.parametrize("positions", ["keep", "average", "renumber"])
def test_cached_decoding_equals_full_recomputation(family, positions):
    model, example = tiny(family), prompt(family, *MIXTURES["two videos"])
    short = compress_inputs(model, example.inputs, FEW, items=example.items, positions=positions)
    out = generate(model, short)
    torch.testing.assert_close(logits_of(out), recompute(model, short, out.sequences), rtol=1e-4, atol=1e-4)


def test_a_batch_with_different_counts_equals_single(family):
    model = tiny(family)
    equal_lengths = family.startswith("llava")  # these require videos of one length in a batch
    prompts = [
        prompt(family, ("text", 3), ("video", 3), ("text", 4), seed=1),
        prompt(family, ("text", 6), ("video", 3 if equal_lengths else 4), ("text", 2), seed=2),
        prompt(family, ("text", 2), ("video", 3 if equal_lengths else 2), ("text", 2), seed=3),
    ]
    spec = "kmeans(criterion='silhouette', k_min=2, k_max=12)" if equal_lengths else "tome(keep=0.4)"
    both = batch(family, *prompts)
    compressed = compress(model, both.inputs, spec, items=both.items)
    assert len({tokens.N for tokens in compressed.tokens}) > 1
    together = generate(model, compressed.inputs)
    for number, single_prompt in enumerate(prompts):
        single = compress(model, single_prompt.inputs, spec, items=single_prompt.items)
        assert single.tokens[0].N == compressed.tokens[number].N
        single_out = generate(model, single.inputs)
        torch.testing.assert_close(logits_of(together)[number], logits_of(single_out)[0], rtol=1e-4, atol=1e-4)


def test_a_text_prompt_in_a_batch(family):
    model = tiny(family)
    prompts = [prompt(family, ("text", 3), ("video", 2), ("text", 4)), prompt(family, ("text", 9), seed=5)]
    both = batch(family, *prompts)
    together = generate(model, compress_inputs(model, both.inputs, FEW, items=both.items))
    single_out = generate(model, prompts[1].inputs)
    torch.testing.assert_close(logits_of(together)[1], logits_of(single_out)[0], rtol=1e-4, atol=1e-4)


def test_a_text_prompt_is_unchanged(family):
    model, example = tiny(family), prompt(family, ("text", 7))
    with attach(model, FEW) as few:
        out = few.generate(**example.inputs, **GREEDY)
        assert few.last is None
    assert torch.equal(logits_of(out), logits_of(generate(model, example.inputs)))


@pytest.mark.parametrize("count", [1, 2])
def test_beams(family, count):
    """Scores of three beams are those of the full sequences, recomputed."""
    model = tiny(family)
    both = batch(family, *(prompt(family, *MIXTURES["two videos"], seed=seed) for seed in range(count)))
    short = compress_inputs(model, both.inputs, FEW, items=both.items)
    out = generate(model, short, num_beams=3, num_return_sequences=1, length_penalty=0.0, output_scores=True)
    again = compress_inputs(model, both.inputs, FEW, items=both.items)
    new = out.sequences.shape[1] - short["input_ids"].shape[1]
    log_probs = recompute(model, again, out.sequences).log_softmax(2)
    chosen = log_probs.gather(2, out.sequences[:, -new:, None]).squeeze(2).sum(1)
    torch.testing.assert_close(out.sequences_scores, chosen, rtol=1e-4, atol=1e-4)


def test_a_static_cache(family):
    model, example = tiny(family), prompt(family, *MIXTURES["video alone"])
    short = compress_inputs(model, example.inputs, FEW, items=example.items)
    dynamic_out = generate(model, short)
    static_out = generate(
        model, compress_inputs(model, example.inputs, FEW, items=example.items), cache_implementation="static"
    )
    torch.testing.assert_close(logits_of(static_out), logits_of(dynamic_out), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", ["keep", "average", "renumber"])
def test_a_second_turn_on_the_cache(family, positions):
    model, example = tiny(family), prompt(family, *MIXTURES["video alone"])
    rows = compress_inputs(model, example.inputs, FEW, items=example.items, positions=positions)["mm_encoder_outputs"]
    more = torch.randint(2, 180, (1, 4), generator=torch.Generator().manual_seed(9))
    with attach(model, FEW, items=example.items, positions=positions) as few:
        first = few.generate(**example.inputs, **GREEDY)
        short, shift = few.last.inputs, few.last.shift
        ids = torch.cat([first.sequences, more], dim=1)
        second = few.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=first.past_key_values, **GREEDY
        )
    new = first.sequences.shape[1] - short["input_ids"].shape[1]
    cached = ids.shape[1] - 4 - 1  # the last token of an answer is not in the cache yet
    positions = extend_positions({**short, "attention_mask": torch.ones(1, ids.shape[1] - 4, dtype=torch.int64)}, new)[
        ..., :cached
    ]
    later = torch.arange(cached, second.sequences.shape[1] - 1)
    later = (later + (shift if positions != "renumber" or family in MROPE_FAMILIES else 0)).expand(1, -1)
    if positions.ndim == 3:
        later = torch.cat(
            [torch.arange(cached, second.sequences.shape[1] - 1).expand(1, 1, -1), later.expand(3, 1, -1)]
        )
    inputs = {
        "input_ids": second.sequences[:, :-1],
        # Without a mask, transformers interprets a jump of positions as the start of another sequence.
        "attention_mask": torch.ones_like(second.sequences[:, :-1]),
        "position_ids": torch.cat([positions, later], dim=-1),
        "mm_encoder_outputs": rows,
    }
    with torch.no_grad():
        full = model(**inputs, use_cache=False).logits[:, ids.shape[1] - 1 :]
    torch.testing.assert_close(logits_of(second), full.float(), rtol=1e-4, atol=1e-4)


def test_a_second_turn_at_a_full_budget_is_bit_equal_to_stock(family):
    model, example = tiny(family), prompt(family, *MIXTURES["video alone"])
    more = torch.randint(2, 180, (1, 4), generator=torch.Generator().manual_seed(9))

    def talk(ask):
        first = ask(**example.inputs, **GREEDY)
        if family == "qwen2_5_vl":
            # Counted from the last text token (13 of 35 columns) instead of the last frame (at 17), see test_turns.
            assert model.model.rope_deltas.tolist() in ([[-17]], [[-21]])
            model.model.rope_deltas = torch.tensor([[-21]])
        ids = torch.cat([first.sequences, more], dim=1)
        return ask(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=first.past_key_values, **GREEDY)

    stock = talk(model.generate)
    with attach(model, "tome(keep=1.0)", items=example.items) as few:
        out = talk(few.generate)
    assert torch.equal(logits_of(out), logits_of(stock))


def test_positions_are_those_of_the_cells(family):
    """Tokens that are kept unchanged, and all text, have the positions that the model gives them."""
    model, example = tiny(family), prompt(family, *MIXTURES["two videos"])
    inputs = example.inputs
    if family in MROPE_FAMILIES:
        extra = {name: inputs[name] for name in ("video_grid_thw", "second_per_grid_ts") if name in inputs}
        original, _ = model.model.get_rope_index(
            inputs["input_ids"], mm_token_type_ids=token_types(inputs["input_ids"]), **extra
        )
    else:
        original = torch.arange(inputs["input_ids"].shape[1]).expand(1, 1, -1)
    for positions in ("keep", "average"):
        compressed = compress(model, inputs, "uniform(keep=0.5)", items=example.items, positions=positions)
        survives = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
        marks = ((inputs["input_ids"] == VIDEO) | (inputs["input_ids"] == IMAGE))[0].nonzero().squeeze(1)
        start = 0
        for tokens in compressed.tokens:
            cells = tokens.grid.cells
            dropped = torch.ones(cells, dtype=torch.bool)
            dropped[tokens.cell[0]] = False
            survives[marks[start : start + cells][dropped]] = False
            start += cells + (family == "llava_onevision")
        actual = compressed.inputs["position_ids"]
        actual = actual[1:] if actual.ndim == 3 else actual[None]
        assert torch.equal(actual, original[:, :, survives])
    if family in MROPE_FAMILIES:
        compressed = compress(model, inputs, "uniform(keep=0.5)", positions="renumber")
        counted = torch.arange(compressed.inputs["input_ids"].shape[1])
        assert torch.equal(compressed.inputs["position_ids"], counted.expand(4, 1, -1))


def test_per_frame_keeps_a_token_in_its_frame(family):
    if family not in INTERLEAVED:
        pytest.skip("no text between the frames")
    model, example = tiny(family), prompt(family, *MIXTURES["video alone"])
    compressed = compress(model, example.inputs, "uniform(keep=9)", items=example.items, positions="keep")
    ids = compressed.inputs["input_ids"][0]
    runs, start = [], 0
    for stop in (ids == 193).nonzero().squeeze(1).tolist():
        runs.append(int(((ids[start:stop] == VIDEO) | (ids[start:stop] == IMAGE)).sum()))
        start = stop
    assert runs == torch.bincount(compressed.tokens[0].frame[0], minlength=4).tolist()


def test_gradients_through_labels(family):
    model, example = copy.deepcopy(tiny(family)), prompt(family, *MIXTURES["video alone"])
    labels = example.inputs["input_ids"].clone()
    labels[:, :-3] = -100
    pipeline = Pipeline("kmeans(keep=5)")
    with attach(model, pipeline, items=example.items) as few:
        out = few(**example.inputs, labels=labels)
        short = few.last.inputs
    assert torch.equal(short["labels"][0, -3:], labels[0, -3:])
    assert int((short["labels"] != -100).sum()) == 3
    out.loss.backward()
    names = ("vision_tower", "visual", "vision_model")
    vision = next(getattr(model.base_model, name) for name in names if hasattr(model.base_model, name))
    gradients = [float(p.grad.abs().sum()) for p in vision.parameters() if p.grad is not None]
    assert sum(gradients) > 0
    full = model(input_ids=short["input_ids"], attention_mask=short["attention_mask"]).logits
    assert full.shape == out.logits.shape


def test_right_padding_stays_right(family):
    model, example = tiny(family), prompt(family, *MIXTURES["video alone"])
    unpadded = compress(model, example.inputs, FEW, items=example.items)
    padded = dict(example.inputs)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if name in padded:
            padded[name] = torch.nn.functional.pad(padded[name], (0, 3))
    compressed = compress(model, padded, FEW, items=example.items)
    assert torch.equal(compressed.inputs["input_ids"], unpadded.inputs["input_ids"])


def test_unreduced_videos_are_refused(family):
    """Inside `attach`, calling the model directly with a video is an error; outside, the model is unchanged."""
    model, example = tiny(family), prompt(family, *MIXTURES["video alone"])
    stock = generate(model, example.inputs)
    with attach(model, FEW, items=example.items):
        with pytest.raises(ValueError, match="called directly, so no tokens were reduced"):
            generate(model, example.inputs)
        with pytest.raises(ValueError, match="called directly, so no tokens were reduced"):
            model(**example.inputs)
    assert not model._forward_pre_hooks
    assert torch.equal(logits_of(generate(model, example.inputs)), logits_of(stock))


def test_errors_are_one_line(family):
    model, example = tiny(family), prompt(family, *MIXTURES["video alone"])
    for spec, message in {
        "visionzip(keep=0.2, attention='row')": "attention must be one of class, received, mean_query, probe",
        "visionzip(keep=0.2, attention='received@7')": "layer 7 is not in the vision tower",
        "vid_tldr": "needs sharpness .* of each block",
        "kmeans(keep=0)": "keep must be",
        "nothing(3)": "no method called",
    }.items():
        with pytest.raises(ValueError, match=message):
            compress(model, example.inputs, spec, items=example.items)
    with pytest.raises(ValueError, match="layout must be one of"):
        compress(model, example.inputs, FEW, items=example.items, layout="heap")
    with pytest.raises(ValueError, match="positions must be one of"):
        compress(model, example.inputs, FEW, items=example.items, positions="some")
    broken = dict(example.inputs)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if name in broken:
            broken[name] = broken[name][:, :-12]
    with pytest.raises(ValueError, match=r"placeholders for .* features"):
        compress(model, broken, FEW, items=example.items)


def test_methods_that_read_pixels_or_text(family):
    model, example = tiny(family), prompt(family, *MIXTURES["video alone"])
    for spec in ("rlt(keep=0.3)", "dtd(keep=0.5, mode='pixel')", "scissor(keep=0.3)", "vidcom2(keep=0.3)"):
        compressed = compress(model, example.inputs, spec, items=example.items)
        assert Pipeline(spec).planned_count(compressed.tokens[0].grid) == compressed.tokens[0].N
        assert generate(model, compressed.inputs).sequences.shape[1] == compressed.inputs["input_ids"].shape[1] + 5


def test_the_family_has_a_backend(family):
    assert family in BACKENDS


def test_an_image_is_left_whole_with_a_warning(family):
    model, example = tiny(family), prompt(family, *MIXTURES["video, then image"])
    with (
        pytest.warns(UserWarning, match=r"1 image of \d+ tokens is left whole; pass images=True"),
        attach(model, FEW, items=example.items) as few,
    ):
        few(**example.inputs)
    image_only = prompt(family, ("text", 2), ("image",), ("text", 3))
    with pytest.warns(UserWarning, match="left whole"):
        compressed = compress(model, image_only.inputs, FEW, items=image_only.items)
    assert torch.equal(compressed.inputs["input_ids"], image_only.inputs["input_ids"])
    videos = prompt(family, *MIXTURES["two videos"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compress(model, videos.inputs, FEW, items=videos.items)
        compress(model, example.inputs, "", items=example.items)  # nothing to reduce
    with attach(model, FEW), pytest.raises(ValueError, match="called directly, so no tokens were reduced"):
        model(**image_only.inputs)


def test_placeholders_without_pixels(family):
    model = tiny(family)
    example = prompt(family, ("text", 5))
    example.inputs["input_ids"][0, 2] = IMAGE
    with pytest.raises(ValueError, match=r"1 placeholders for image features \(token 190\), but no pixel_values"):
        compress(model, example.inputs, FEW)


def test_one_chain_is_attached_at_a_time(family):
    model, example = tiny(family), prompt(family, *MIXTURES["video alone"])
    with attach(model, FEW, items=example.items) as few:
        with pytest.raises(ValueError, match="already attached to this model"), attach(model, "tome(keep=0.5)"):
            pass
        short = compress_inputs(model, example.inputs, "tome(keep=0.5)", items=example.items)
        with pytest.raises(ValueError, match="already shortened by methods other than those attached"):
            few(**short)
        again = few.compress(**few.compress(**example.inputs))
        assert torch.equal(again["input_ids"], few.last.inputs["input_ids"])
        few.generate(**example.inputs, **GREEDY)
    with attach(model, "tome(keep=0.5)", items=example.items) as few:
        few.generate(**example.inputs, **GREEDY)


def test_random_weights_are_warned_about(family):
    model = tiny(family)
    for spec in ("perceiver(4)", "tome(keep=0.9) | qformer(4)"):
        with pytest.warns(UserWarning, match=r"(perceiver|qformer) has random weights"), attach(model, spec):
            pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with attach(model, "token_dynamics(keep=4)"):  # the identity at initialization
            pass
