"""Few tokens in every family, proved on tiny random models: counts, positions, caches, batches, turns, gradients."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

from fewtokens.core.pipeline import Pipeline
from fewtokens.llm import BACKENDS as KNOWN
from fewtokens.llm import attach, compress, compress_inputs
from tests.llm.tiny import FAMILIES, IMAGE, MROPED, PARTED, VIDEO, batch, grid_of, kinds, prompt, tiny

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


def recomputed(model, short, sequences) -> torch.Tensor:
    """Logits [B,new,vocabulary] of the tokens after the prompt, in one pass without a cache."""
    inputs = dict(short)
    length, new = inputs["input_ids"].shape[1], sequences.shape[1] - inputs["input_ids"].shape[1]
    inputs["input_ids"] = sequences
    inputs["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, new), value=1)
    inputs["position_ids"] = lengthened(inputs, new)
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    return logits[:, length - 1 : -1].float()


def lengthened(inputs, new: int) -> torch.Tensor:
    at = inputs.get("position_ids")
    if at is None:
        return (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return torch.cat([at, at[..., -1:] + 1 + torch.arange(new)], dim=-1)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_full_budget_is_bit_equal_to_stock(family, mixture):
    model, asked = tiny(family), prompt(family, *MIXTURES[mixture])
    stock = generate(model, asked.inputs)
    for positions in ("keep", "average"):
        with attach(model, "tome(keep=1.0)", items=asked.items, positions=positions) as few:
            out = few.generate(**asked.inputs, **GREEDY)
        assert torch.equal(out.sequences, stock.sequences)
        assert torch.equal(logits_of(out), logits_of(stock))


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("layout", ["per_frame", "collapse"])
def test_placeholders_features_and_cache_agree_with_the_plan(family, mixture, layout):
    model, asked = tiny(family), prompt(family, *MIXTURES[mixture])
    for keep in (1, 5, 0.5):
        spec = f"kmeans(keep={keep})"
        made = compress(model, asked.inputs, spec, items=asked.items, layout=layout)
        steps = [count for kind, count in asked.items[0] if kind == "video"]
        planned = [Pipeline(spec).planned_count(tokens.grid) for tokens in made.tokens]
        assert [tokens.grid.shape for tokens in made.tokens] == [grid_of(family, count) for count in steps]
        assert [tokens.N for tokens in made.tokens] == planned
        ids = made.inputs["input_ids"]
        cells = sum(tokens.grid.cells for tokens in made.tokens)
        before = asked.inputs["input_ids"]
        marks = (before == VIDEO).sum() + (before == IMAGE).sum()
        assert int((ids == VIDEO).sum() + (ids == IMAGE).sum()) == int(marks) - cells + sum(planned)
        words = before[(before != VIDEO) & (before != IMAGE)]
        left = ids[(ids != VIDEO) & (ids != IMAGE)]
        if layout == "per_frame" or family not in PARTED:
            assert torch.equal(left, words)
        else:
            assert len(left) < len(words)
        outputs = made.inputs["mm_encoder_outputs"].values()
        rows = sum(row.reshape(-1, 32).shape[0] for out in outputs for row in out.pooler_output)
        assert rows == int((ids == VIDEO).sum() + (ids == IMAGE).sum())
        out = generate(model, made.inputs)
        assert out.past_key_values.get_seq_length() == ids.shape[1] + GREEDY["max_new_tokens"] - 1
        assert made.after.tolist() == [ids.shape[1]]


@pytest.mark.parametrize("positions", ["keep", "average", "renumber"])
def test_cached_decoding_equals_full_recomputation(family, positions):
    model, asked = tiny(family), prompt(family, *MIXTURES["two videos"])
    short = compress_inputs(model, asked.inputs, FEW, items=asked.items, positions=positions)
    out = generate(model, short)
    torch.testing.assert_close(logits_of(out), recomputed(model, short, out.sequences), rtol=1e-4, atol=1e-4)


def test_a_batch_with_different_counts_equals_single(family):
    model = tiny(family)
    equal = family.startswith("llava")  # these take videos of one length in a batch
    prompts = [
        prompt(family, ("text", 3), ("video", 3), ("text", 4), seed=1),
        prompt(family, ("text", 6), ("video", 3 if equal else 4), ("text", 2), seed=2),
        prompt(family, ("text", 2), ("video", 3 if equal else 2), ("text", 2), seed=3),
    ]
    spec = "kmeans(criterion='silhouette', k_min=2, k_max=12)" if equal else "tome(keep=0.4)"
    both = batch(family, *prompts)
    made = compress(model, both.inputs, spec, items=both.items)
    assert len({tokens.N for tokens in made.tokens}) > 1
    together = generate(model, made.inputs)
    for number, alone in enumerate(prompts):
        single = compress(model, alone.inputs, spec, items=alone.items)
        assert single.tokens[0].N == made.tokens[number].N
        one = generate(model, single.inputs)
        torch.testing.assert_close(logits_of(together)[number], logits_of(one)[0], rtol=1e-4, atol=1e-4)


def test_a_text_alone_in_a_batch(family):
    model = tiny(family)
    prompts = [prompt(family, ("text", 3), ("video", 2), ("text", 4)), prompt(family, ("text", 9), seed=5)]
    both = batch(family, *prompts)
    together = generate(model, compress_inputs(model, both.inputs, FEW, items=both.items))
    one = generate(model, prompts[1].inputs)
    torch.testing.assert_close(logits_of(together)[1], logits_of(one)[0], rtol=1e-4, atol=1e-4)


def test_text_only_goes_through_untouched(family):
    model, asked = tiny(family), prompt(family, ("text", 7))
    with attach(model, FEW) as few:
        out = few.generate(**asked.inputs, **GREEDY)
        assert few.last is None
    assert torch.equal(logits_of(out), logits_of(generate(model, asked.inputs)))


@pytest.mark.parametrize("count", [1, 2])
def test_beams(family, count):
    """Scores of three beams are those of the whole sequences, computed anew."""
    model = tiny(family)
    both = batch(family, *(prompt(family, *MIXTURES["two videos"], seed=seed) for seed in range(count)))
    short = compress_inputs(model, both.inputs, FEW, items=both.items)
    out = generate(model, short, num_beams=3, num_return_sequences=1, length_penalty=0.0, output_scores=True)
    again = compress_inputs(model, both.inputs, FEW, items=both.items)
    new = out.sequences.shape[1] - short["input_ids"].shape[1]
    likely = recomputed(model, again, out.sequences).log_softmax(2)
    chosen = likely.gather(2, out.sequences[:, -new:, None]).squeeze(2).sum(1)
    torch.testing.assert_close(out.sequences_scores, chosen, rtol=1e-4, atol=1e-4)


def test_a_static_cache(family):
    model, asked = tiny(family), prompt(family, *MIXTURES["video alone"])
    short = compress_inputs(model, asked.inputs, FEW, items=asked.items)
    moving = generate(model, short)
    fixed = generate(model, compress_inputs(model, asked.inputs, FEW, items=asked.items), cache_implementation="static")
    torch.testing.assert_close(logits_of(fixed), logits_of(moving), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", ["keep", "average", "renumber"])
def test_a_second_turn_on_the_kept_cache(family, positions):
    model, asked = tiny(family), prompt(family, *MIXTURES["video alone"])
    more = torch.randint(2, 180, (1, 4), generator=torch.Generator().manual_seed(9))
    with attach(model, FEW, items=asked.items, positions=positions) as few:
        first = few.generate(**asked.inputs, **GREEDY)
        short, shift = few.last.inputs, few.last.shift
        ids = torch.cat([first.sequences, more], dim=1)
        second = few.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=first.past_key_values, **GREEDY
        )
    new = first.sequences.shape[1] - short["input_ids"].shape[1]
    cached = ids.shape[1] - 4 - 1  # the last word of an answer has not been fed yet
    at = lengthened({**short, "attention_mask": torch.ones(1, ids.shape[1] - 4, dtype=torch.int64)}, new)[..., :cached]
    later = torch.arange(cached, second.sequences.shape[1] - 1)
    later = (later + (shift if positions != "renumber" or family in MROPED else 0)).expand(1, -1)
    if at.ndim == 3:
        later = torch.cat(
            [torch.arange(cached, second.sequences.shape[1] - 1).expand(1, 1, -1), later.expand(3, 1, -1)]
        )
    inputs = {
        "input_ids": second.sequences[:, :-1],
        # Without a mask transformers takes a jump of positions for the start of another sequence.
        "attention_mask": torch.ones_like(second.sequences[:, :-1]),
        "position_ids": torch.cat([at, later], dim=-1),
        "mm_encoder_outputs": compress_inputs(model, asked.inputs, FEW, items=asked.items)["mm_encoder_outputs"],
    }
    with torch.no_grad():
        whole = model(**inputs, use_cache=False).logits[:, ids.shape[1] - 1 :]
    torch.testing.assert_close(logits_of(second), whole.float(), rtol=1e-4, atol=1e-4)


def test_a_second_turn_at_a_full_budget_is_bit_equal_to_stock(family):
    model, asked = tiny(family), prompt(family, *MIXTURES["video alone"])
    more = torch.randint(2, 180, (1, 4), generator=torch.Generator().manual_seed(9))

    def talk(ask):
        first = ask(**asked.inputs, **GREEDY)
        if family == "qwen2_5_vl":
            # From the last word (13 of 35 columns) rather than from the last frame (at 17), see test_turns.
            assert model.model.rope_deltas.tolist() in ([[-17]], [[-21]])
            model.model.rope_deltas = torch.tensor([[-21]])
        ids = torch.cat([first.sequences, more], dim=1)
        return ask(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=first.past_key_values, **GREEDY)

    stock = talk(model.generate)
    with attach(model, "tome(keep=1.0)", items=asked.items) as few:
        out = talk(few.generate)
    assert torch.equal(logits_of(out), logits_of(stock))


def test_positions_are_those_of_the_cells(family):
    """Of what is kept unchanged: the model's own positions of these cells, and of all words."""
    model, asked = tiny(family), prompt(family, *MIXTURES["two videos"])
    inputs = asked.inputs
    if family in MROPED:
        told = {name: inputs[name] for name in ("video_grid_thw", "second_per_grid_ts") if name in inputs}
        own, _ = model.model.get_rope_index(inputs["input_ids"], mm_token_type_ids=kinds(inputs["input_ids"]), **told)
    else:
        own = torch.arange(inputs["input_ids"].shape[1]).expand(1, 1, -1)
    for positions in ("keep", "average"):
        made = compress(model, inputs, "uniform(keep=0.5)", items=asked.items, positions=positions)
        stays = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
        marks = ((inputs["input_ids"] == VIDEO) | (inputs["input_ids"] == IMAGE))[0].nonzero().squeeze(1)
        at = 0
        for tokens in made.tokens:
            cells = tokens.grid.cells
            gone = torch.ones(cells, dtype=torch.bool)
            gone[tokens.cell[0]] = False
            stays[marks[at : at + cells][gone]] = False
            at += cells + (family == "llava_onevision")
        found = made.inputs["position_ids"]
        found = found[1:] if found.ndim == 3 else found[None]
        assert torch.equal(found, own[:, :, stays])
    if family in MROPED:
        made = compress(model, inputs, "uniform(keep=0.5)", positions="renumber")
        counted = torch.arange(made.inputs["input_ids"].shape[1])
        assert torch.equal(made.inputs["position_ids"], counted.expand(4, 1, -1))


def test_per_frame_leaves_a_token_in_its_frame(family):
    if family not in PARTED:
        pytest.skip("no words between the frames")
    model, asked = tiny(family), prompt(family, *MIXTURES["video alone"])
    made = compress(model, asked.inputs, "uniform(keep=9)", items=asked.items, positions="keep")
    ids = made.inputs["input_ids"][0]
    runs, at = [], 0
    for stop in (ids == 193).nonzero().squeeze(1).tolist():
        runs.append(int(((ids[at:stop] == VIDEO) | (ids[at:stop] == IMAGE)).sum()))
        at = stop
    assert runs == torch.bincount(made.tokens[0].frame[0], minlength=4).tolist()


def test_gradients_through_labels(family):
    model, asked = copy.deepcopy(tiny(family)), prompt(family, *MIXTURES["video alone"])
    labels = asked.inputs["input_ids"].clone()
    labels[:, :-3] = -100
    pipeline = Pipeline("kmeans(keep=5)")
    with attach(model, pipeline, items=asked.items) as few:
        out = few(**asked.inputs, labels=labels)
        short = few.last.inputs
    assert torch.equal(short["labels"][0, -3:], labels[0, -3:])
    assert int((short["labels"] != -100).sum()) == 3
    out.loss.backward()
    names = ("vision_tower", "visual", "vision_model")
    vision = next(getattr(model.base_model, name) for name in names if hasattr(model.base_model, name))
    reached = [float(p.grad.abs().sum()) for p in vision.parameters() if p.grad is not None]
    assert sum(reached) > 0
    whole = model(input_ids=short["input_ids"], attention_mask=short["attention_mask"]).logits
    assert whole.shape == out.logits.shape


def test_right_padding_stays_right(family):
    model, asked = tiny(family), prompt(family, *MIXTURES["video alone"])
    alone = compress(model, asked.inputs, FEW, items=asked.items)
    padded = dict(asked.inputs)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if name in padded:
            padded[name] = torch.nn.functional.pad(padded[name], (0, 3))
    made = compress(model, padded, FEW, items=asked.items)
    assert torch.equal(made.inputs["input_ids"], alone.inputs["input_ids"])


def test_the_gate(family):
    """Inside `attach` a video that would reach the model whole is an error; outside all is as it was."""
    model, asked = tiny(family), prompt(family, *MIXTURES["video alone"])
    stock = generate(model, asked.inputs)
    with attach(model, FEW, items=asked.items):
        with pytest.raises(ValueError, match="nothing was reduced"):
            generate(model, asked.inputs)
        with pytest.raises(ValueError, match="nothing was reduced"):
            model(**asked.inputs)
    assert not model._forward_pre_hooks
    assert torch.equal(logits_of(generate(model, asked.inputs)), logits_of(stock))


def test_what_cannot_be_is_said_in_a_line(family):
    model, asked = tiny(family), prompt(family, *MIXTURES["video alone"])
    for spec, said in {
        "visionzip(keep=0.2)": f"visionzip needs .* which {family} cannot give",
        "vid_tldr": "stage 'encoder'",
        "kmeans(keep=0)": "keep must be",
        "nothing(3)": "no method called",
    }.items():
        with pytest.raises(ValueError, match=said):
            compress(model, asked.inputs, spec, items=asked.items)
    with pytest.raises(ValueError, match="layout must be one of"):
        compress(model, asked.inputs, FEW, items=asked.items, layout="heap")
    with pytest.raises(ValueError, match="positions must be one of"):
        compress(model, asked.inputs, FEW, items=asked.items, positions="some")
    broken = dict(asked.inputs)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if name in broken:
            broken[name] = broken[name][:, :-12]
    with pytest.raises(ValueError, match=r"places for .* features"):
        compress(model, broken, FEW, items=asked.items)


def test_methods_that_look_at_pixels_and_words(family):
    model, asked = tiny(family), prompt(family, *MIXTURES["video alone"])
    for spec in ("rlt(keep=0.3)", "dtd(keep=0.5, mode='pixel')", "scissor(keep=0.3)", "vidcom2(keep=0.3)"):
        made = compress(model, asked.inputs, spec, items=asked.items)
        assert Pipeline(spec).planned_count(made.tokens[0].grid) == made.tokens[0].N
        assert generate(model, made.inputs).sequences.shape[1] == made.inputs["input_ids"].shape[1] + 5


def test_the_family_is_known(family):
    assert family in KNOWN


def test_an_image_is_left_whole_and_it_is_said(family):
    model, asked = tiny(family), prompt(family, *MIXTURES["video, then image"])
    with (
        pytest.warns(UserWarning, match="images in the prompt are left whole"),
        attach(model, FEW, items=asked.items) as few,
    ):
        few(**asked.inputs)
    alone = prompt(family, ("text", 2), ("image",), ("text", 3))
    with pytest.warns(UserWarning, match="left whole"):
        made = compress(model, alone.inputs, FEW, items=alone.items)
    assert torch.equal(made.inputs["input_ids"], alone.inputs["input_ids"])
    videos = prompt(family, *MIXTURES["two videos"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compress(model, videos.inputs, FEW, items=videos.items)
        compress(model, asked.inputs, "", items=asked.items)  # nothing to reduce
    with attach(model, FEW), pytest.raises(ValueError, match="pixels reached the model"):
        model(**alone.inputs)


def test_places_without_pixels(family):
    model = tiny(family)
    asked = prompt(family, ("text", 5))
    asked.inputs["input_ids"][0, 2] = IMAGE
    with pytest.raises(ValueError, match=r"1 places for image features \(token 190\), but no pixel_values"):
        compress(model, asked.inputs, FEW)


def test_one_thing_is_attached_at_a_time(family):
    model, asked = tiny(family), prompt(family, *MIXTURES["video alone"])
    with attach(model, FEW, items=asked.items) as few:
        with pytest.raises(ValueError, match="attached to this model already"), attach(model, "tome(keep=0.5)"):
            pass
        short = compress_inputs(model, asked.inputs, "tome(keep=0.5)", items=asked.items)
        with pytest.raises(ValueError, match="shortened before, by other methods"):
            few(**short)
        again = few.compress(**few.compress(**asked.inputs))
        assert torch.equal(again["input_ids"], few.last.inputs["input_ids"])
        few.generate(**asked.inputs, **GREEDY)
    with attach(model, "tome(keep=0.5)", items=asked.items) as few:
        few.generate(**asked.inputs, **GREEDY)


def test_random_weights_are_told(family):
    model = tiny(family)
    for spec in ("perceiver(4)", "tome(keep=0.9) | qformer(4)"):
        with pytest.warns(UserWarning, match=r"(perceiver|qformer) has random weights"), attach(model, spec):
            pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with attach(model, "token_dynamics(keep=4)"):  # begins as the identity
            pass
