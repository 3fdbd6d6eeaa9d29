"""VideoLLM-MoD: tokens of each frame skip layers, against a reference by loops, cached, and trained."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fewtokens.core.method import save_weights
from fewtokens.llm import Session, attach
from fewtokens.llm.composed import load_video_llm
from fewtokens.llm.layers.cache import PrunedLayer
from fewtokens.methods.layers.videollm_mod import VideoLLMMoD, highest_of_frames
from tests.helpers.layers import layer_state
from tests.llm.test_composed import batch, build, parts, train  # noqa: F401
from tests.llm.test_compress import GREEDY, generate, logits_of, recompute
from tests.llm.test_session import loaded
from tests.llm.test_stream_session import CLIP
from tests.llm.tiny import prompt, tiny

MIXTURE = (("text", 3), ("video", 4), ("text", 5))

pytestmark = pytest.mark.filterwarnings("ignore:.*has random weights")


def test_tokens_that_pass():
    """The published counts: of 100 tokens with 80 of 8 frames, LION-FS keeps 60, and 20 % are 36."""
    scores = torch.rand(3, 100, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # with ties
    frame = torch.full((3, 100), -1)
    frame[:, 12:92] = torch.arange(8).repeat_interleave(10)
    for keep, count in ((0.5, 60), (0.2, 36), (0.11, 36), (1.0, 100)):
        kept = highest_of_frames(scores, frame, keep)
        assert (kept | (frame < 0)).sum(1).tolist() == [count] * 3
        for b in range(3):
            for t in range(8):
                columns = [c for c in range(100) if frame[b, c] == t]
                best = sorted(columns, key=lambda c: -scores[b, c])[: math.ceil(10 * keep)]
                assert sorted(best) == [c for c in columns if kept[b, c]]


def test_the_choice_in_a_frame_depends_on_no_later_frame():
    method, state = VideoLLMMoD(0.5, dim=16), layer_state()
    before = method.choose(state, 0)
    hidden = state.hidden.clone()
    hidden[:, 7:] *= -1  # the second frame, and the text
    after = method.choose(replace(state, hidden=hidden), 0)
    assert torch.equal(before.kept[:, :7], after.kept[:, :7]) and not torch.equal(before.kept, after.kept)
    assert torch.equal(before.gate[:, :7], after.gate[:, :7])
    assert (before.kept[:, 3:7].sum(1).tolist(), before.kept[:, 7:11].sum(1).tolist()) == ([2, 2], [2, 2])


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "qwen3_vl"])
class TestFamilies:
    def test_if_all_tokens_pass_without_a_gate_nothing_changes(self, family):
        model, example = tiny(family), prompt(family, *MIXTURE)
        stock = logits_of(generate(model, example.inputs))
        with attach(model, "videollm_mod(keep=1.0, gate=False)", items=example.items) as few:
            assert torch.equal(logits_of(few.generate(**example.inputs, **GREEDY)), stock)
        with attach(model, "videollm_mod(keep=1.0)", items=example.items) as few:
            gated = logits_of(few.generate(**example.inputs, **GREEDY))
        assert not torch.allclose(gated, stock, atol=1e-4)

    @pytest.mark.parametrize(
        "spec",
        [
            "videollm_mod(keep=0.5)",
            "videollm_mod(keep=0.3, layers=(0, 1, 2), router='own', gate=False)",
            "fastv(keep=0.5, layer=2) | videollm_mod(keep=0.5, layers=(1, 2))",
        ],
    )
    def test_cached_decoding_equals_recomputation_without_a_cache(self, family, spec):
        torch.manual_seed(1)
        model, example = tiny(family), prompt(family, ("text", 3), ("video", 2), ("text", 2), ("video", 2), ("text", 4))
        with attach(model, spec, items=example.items) as few:
            out = few.generate(**example.inputs, **GREEDY)
            again = recompute(model, few.last.inputs, out.sequences)
        torch.testing.assert_close(logits_of(out), again, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(logits_of(out), logits_of(generate(model, example.inputs)), atol=1e-4)

    def test_a_cache_has_no_keys_of_skipping_tokens(self, family):
        model, example = tiny(family), prompt(family, *MIXTURE)
        with attach(model, "videollm_mod(keep=0.5)", items=example.items) as few:
            out = few.generate(**example.inputs, **GREEDY)
            length, tokens = few.last.inputs["input_ids"].shape[1], few.last.tokens[0]
            (video,) = few.last.layout.videos
        first, second, third = out.past_key_values.layers
        new = GREEDY["max_new_tokens"] - 1
        passing = sum(-(-int((tokens.frame == t).sum()) // 2) for t in range(tokens.grid.T))
        for layer in (first, third):
            assert isinstance(layer, PrunedLayer)
            assert layer.keys.shape[2] == length - tokens.N + passing + new
            # Each with its column in the prompt: half of those of each frame.
            kept = torch.isin(video.columns, layer.columns[0])
            assert [int(kept[tokens.frame[0] == t].sum()) for t in range(tokens.grid.T)] == [
                -(-int((tokens.frame == t).sum()) // 2) for t in range(tokens.grid.T)
            ]
        assert second.keys.shape[2] == length + new


def reference(model, inputs, method: VideoLLMMoD) -> torch.Tensor:
    """Logits of one prompt, layer by layer and frame by frame."""
    short = model.compress(inputs)
    embedded = model.embed(short.inputs)
    hidden, ids = embedded["inputs_embeds"], embedded["position_ids"]
    (video,) = short.layout.videos
    text = model.language_model
    for index, layer in enumerate(text.layers):
        columns = list(range(hidden.shape[1]))
        weights = torch.ones(hidden.shape[1])
        point = {point.layer: number for number, point in enumerate(method.prune_points(len(text.layers)))}
        if index in point:
            router = method.routers[point[index] % len(method.routers)]
            p = router(layer.input_layernorm(hidden))[0].softmax(1)[:, 1]
            skipping = []
            for t in range(video.tokens.grid.T):
                own = video.columns[video.tokens.frame[0] == t].tolist()
                best = sorted(own, key=lambda c: -float(p[c]))[: -(-len(own) // 2)]
                skipping += [c for c in own if c not in best]
            columns = [c for c in columns if c not in skipping]
            if method.gate:
                weights[video.columns] = p[video.columns]
        part = hidden[:, columns]
        rope = text.rotary_emb(part, ids[:, columns])
        after = layer(part, attention_mask=None, position_ids=ids[:, columns], position_embeddings=rope)
        out = hidden.clone()
        out[:, columns] = part + weights[columns][None, :, None] * (after - part)
        hidden = out
    return model.causal_lm.lm_head(text.norm(hidden))


@pytest.mark.parametrize("arguments", ["", ", gate=False", ", layers=(0, 1), router='own'"])
def test_a_composed_model_against_loops(parts, arguments):  # noqa: F811
    model = build(parts, f"videollm_mod(keep=0.5{arguments})").eval()
    inputs = batch(model, 1)
    with torch.no_grad():
        out = model(**inputs)
        torch.testing.assert_close(out.logits, reference(model, inputs, model.inside[0]), rtol=1e-4, atol=1e-5)
    # A prompt alone equals the prompt in a batch, padded.
    together = model(**batch(model))
    torch.testing.assert_close(together.logits[:1, : out.logits.shape[1]], out.logits, rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_router(parts):  # noqa: F811
    model = build(parts, "videollm_mod(keep=0.5)").train()
    inputs = batch(model)
    out = model(**inputs)
    method = model.inside[0]
    auxiliary = method.auxiliary_loss()
    assert 0 < float(auxiliary.detach()) < 0.1
    with torch.no_grad():
        unweighted = model.eval()(**inputs).loss
    torch.testing.assert_close(out.loss - auxiliary, unweighted, rtol=1e-4, atol=1e-5)
    # Through the gate, without the auxiliary loss; without a gate, through the auxiliary loss alone.
    (weight,) = method.parameters()
    gradient = torch.autograd.grad(out.loss - auxiliary, weight)[0]
    assert bool((gradient != 0).any())
    model = build(parts, "videollm_mod(keep=0.5, gate=False)").train()
    model(**inputs).loss.backward()
    assert bool((model.inside[0].routers[0].weight.grad != 0).any())


def test_a_prompt_without_a_video_has_no_auxiliary_loss(parts):  # noqa: F811
    model = build(parts, "videollm_mod(keep=0.5)").train()
    model(**batch(model)).loss.backward()
    ids = torch.randint(3, 10, (2, 6))
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.inside[0].auxiliary_loss() is None


def test_training_and_saving(parts, tmp_path):  # noqa: F811
    spec = "spatial_pool(1) | videollm_mod(keep=0.5)"
    first = build(parts, spec).inside[0].routers[0].weight.clone()
    model, report = train(parts, tmp_path, 12, spec=spec)
    assert report.metrics[-1]["loss"] < report.metrics[0]["loss"]
    assert not torch.equal(model.inside[0].routers[0].weight, first)
    loaded, inputs = load_video_llm(tmp_path / "model", device="cpu"), batch(model)
    assert "videollm_mod(keep=0.5" in loaded.spec
    assert torch.equal(loaded(**inputs).logits, model.eval()(**inputs).logits)
    answers = [
        each.answer(
            each.encode_questions(["which digit is it"]) | {"pixel_values_videos": inputs["pixel_values_videos"][:1]}
        )
        for each in (loaded, model)
    ]
    assert answers[0] == answers[1]
    with pytest.raises(ValueError, match="use --set checkpointing=false"):
        model.checkpointing = True
    with pytest.raises(ValueError, match="cannot be added to this model, which runs videollm_mod"):
        attach(model, "fastv(layer=1)").__enter__()


def test_a_checkpoint(tmp_path):
    method = VideoLLMMoD(dim=8)
    path = str(save_weights(method, tmp_path / "router.safetensors"))
    assert torch.equal(VideoLLMMoD(dim=8, checkpoint=path).routers[0].weight, method.routers[0].weight)
    assert method.untrained and not VideoLLMMoD(dim=8, checkpoint=path).untrained


def test_arguments(parts):  # noqa: F811
    for arguments, message in (
        ({"keep": 0.0}, "keep must be"),
        ({"layers": (2, 1)}, "layers must be ascending indices"),
        ({"router": "both"}, "router must be 'shared' or 'own'"),
        ({"router": "own"}, "requires layers, such as"),
    ):
        with pytest.raises(ValueError, match=message):
            VideoLLMMoD(**arguments)
    with pytest.raises(ValueError, match="set dim=16"):
        VideoLLMMoD(dim=8).choose(layer_state(), 0)
    with pytest.raises(ValueError, match="acts inside the language model and has no parameters to train"):
        build(parts, "fastv(layer=1)")


def test_an_answer_counts_the_tokens_of_each_layer():
    answer = Session(*loaded("llava_onevision"), "videollm_mod(keep=0.5)", 4).ask(CLIP, "what happens", 2)
    assert answer.layer_tokens == [answer.tokens // 2, answer.tokens, answer.tokens // 2]
