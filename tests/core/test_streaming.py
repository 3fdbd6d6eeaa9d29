"""Streaming in chunks equals processing the full video; scene changes are detected."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fewtokens.core.pipeline import Pipeline
from fewtokens.core.registry import build
from fewtokens.core.streaming import SceneTrigger, Streaming, drop_ratios, finish, load
from fewtokens.encoders import Patches, VitEncoder
from fewtokens.encoders.vit import ViT, ViTConfig
from tests.helpers.clips import assert_same_tokens

SPECS = ["rlt", "grt(0.5)", "dtd(0.7)", "dtd(mode='pixel')", "evs(tau=0.2)", "dycoke(0.6, last_group='pruned')"]


def frames(T=11, side=24):
    """A static background with a moving square, and one cut."""
    g = torch.Generator().manual_seed(0)
    video = torch.rand(2, 3, side, side, generator=g)[(torch.arange(T) > 6).long()]
    for t in range(T):
        video[t, :, 4:10, t : t + 6] = 1 - t / 20
    return video


def encoders():
    torch.manual_seed(0)
    vit = ViT(ViTConfig(dim=16, depth=2, num_heads=2, patch_size=4, image_size=(24, 24))).eval()
    return {"patches": Patches(4), "vit": VitEncoder(vit)}


@pytest.mark.parametrize("name", ["patches", "vit"])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("chunk", [1, 3, 4, 11])
@torch.no_grad()
def test_chunks_equal_the_full_video(name, spec, chunk):
    encoder, video, times = encoders()[name], frames(), torch.arange(11) / 4
    expected = Pipeline(spec, encoder)(video, times)
    pipeline = Pipeline(spec, encoder)
    streaming = Streaming(pipeline)
    chunks = [streaming(part, time).check() for part, time in zip(video.split(chunk), times.split(chunk), strict=True)]
    joined = pipeline.join(chunks)
    assert_same_tokens(joined, expected, 1e-4)
    assert joined.grid == expected.grid


@pytest.mark.parametrize("chunk", [1, 3, 4, 11])
@pytest.mark.parametrize(
    "spec", ["evs(tau=0.2) | dtd(0.7)", "dtd(0.9) | evs(tau=0.1)", "dycoke(0.5, last_group='pruned') | dtd(0.8)"]
)
@torch.no_grad()
def test_a_chain_streams(spec, chunk):
    """Dropped cells have no token for the next method to compare with, in a stream as in the full video."""
    pipeline, video, times = Pipeline(spec, Patches(4)), frames(), torch.arange(11) / 4
    streaming = Streaming(pipeline)
    chunks = [streaming(part, time).check() for part, time in zip(video.split(chunk), times.split(chunk), strict=True)]
    assert_same_tokens(pipeline.join(chunks), pipeline(video, times), 1e-4)


@pytest.mark.parametrize("first", ["rlt", "dtd(0.7)", ""])
@torch.no_grad()
def test_a_chain_that_ends_in_a_memory(first):
    """Features and positions equal those of the full video for every chunk size."""
    torch.manual_seed(0)
    spec = " | ".join(filter(None, [first, "token_turing(5, memory=6, read=2, num_layers=1)"]))
    pipeline, video = Pipeline(spec, Patches(4)).eval(), frames()
    expected = pipeline(video)
    for chunk in (1, 4):
        streaming = Streaming(pipeline)
        joined = pipeline.join([streaming(part).check() for part in video.split(chunk)])
        torch.testing.assert_close(joined.features, expected.features, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(joined.positions, expected.positions, rtol=1e-3, atol=1e-2)


def test_tokens_that_extend_into_later_chunks_cannot_be_compared():
    with pytest.raises(ValueError, match="dtd cannot be streamed after rlt"):
        Streaming(Pipeline("rlt | dtd(0.5)", Patches(4)))


def test_files(tmp_path):
    streaming = Streaming(Pipeline("rlt", Patches(4)))
    video, times = frames(), torch.arange(11) / 4
    names = []
    for index, (part, time) in enumerate(zip(video.split(4), times.split(4), strict=True)):
        names.append(f"{index:06}.safetensors")
        streaming(part, time).save(tmp_path / names[-1])
    with pytest.raises(ValueError, match="not a finished stream"):
        load(tmp_path)
    finish(tmp_path, names, streaming.pipeline.spec, {"seed": 1})
    tokens = load(tmp_path)
    assert_same_tokens(tokens, Pipeline("rlt", Patches(4))(video, times))
    assert tokens.meta == {"seed": 1}
    config = json.loads((tmp_path / "stream.json").read_text())
    outside = tmp_path.parent / "outside.safetensors"
    streaming(video).save(outside)
    (tmp_path / "stream.json").write_text(json.dumps(config | {"chunks": ["../outside.safetensors"]}))
    with pytest.raises(ValueError, match="outside"):
        load(tmp_path)  # chunks must be inside the folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spec": None}, "spec must be a string"),
        ({"spec": "tome"}, "tome.* is not causal and cannot be streamed"),
        ({"spec": "rlt | evs"}, "evs.* is not causal and cannot be streamed"),
        ({"spec": "rlt(tau='x')"}, "tau must be"),
        ({"chunks": []}, "lists no chunks"),
        ({"chunks": "000000.safetensors"}, "chunks must be a list"),
        ({"chunks": [0]}, r"chunks\[0\] must be a string"),
        ({"chunks": [""]}, "no such file"),
        ({"chunks": ["x" * 5000]}, "x .* is not a file name"),
        ({"meta": None}, "meta must be an object"),
    ],
)
def test_an_invalid_stream_json_is_a_one_line_error(tmp_path, change, message):
    streaming = Streaming(Pipeline("rlt", Patches(4)))
    streaming(frames()).save(tmp_path / "000000.safetensors")
    config = {"spec": streaming.pipeline.spec, "chunks": ["000000.safetensors"], "meta": {}}
    (tmp_path / "stream.json").write_text(json.dumps(config))
    assert load(tmp_path).B == 1
    (tmp_path / "stream.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_chunks_of_different_videos(tmp_path):
    Streaming(Pipeline("", Patches(4)))(frames()).save(tmp_path / "000000.safetensors")
    Streaming(Pipeline("", Patches(8)))(frames()).save(tmp_path / "000001.safetensors")
    finish(tmp_path, ["000000.safetensors", "000001.safetensors"], "", {})
    with pytest.raises(ValueError, match="different videos"):
        load(tmp_path)


@pytest.mark.parametrize("spec", ["evs(0.2)", "dycoke", "tome(0.1)", "rlt(keep=0.5)", "dtd(keep=0.5)"])
def test_methods_that_cannot_be_streamed_raise(spec):
    with pytest.raises(ValueError, match=r"is not causal and cannot be streamed\. Streaming methods.* rlt"):
        Streaming(Pipeline(spec, Patches(4)))


def test_without_a_method_all_tokens_are_kept():
    streaming = Streaming(Pipeline("", Patches(4)))
    assert streaming.pipeline.join([streaming(part) for part in frames().split(4)]).N == 11 * 36


class TestTrigger:
    def test_the_threshold_equals_that_of_a_sorted_list(self):
        drops = np.random.default_rng(0).random(300).round(3)
        trigger, events, inside = SceneTrigger(0.1), [], False
        for t, drop in enumerate(drops):
            before = sorted(drops[:t])
            below = t >= 10 and drop < before[int(np.ceil(0.1 * t)) - 1]
            if below and not inside:
                events.append(t)
            inside = below
        assert [t for t, drop in enumerate(drops) if trigger(float(drop))] == events
        assert len(events) > 5

    def test_a_static_video_has_no_events(self):
        trigger = SceneTrigger()
        assert not any(trigger(0.9) for _ in range(100))

    def test_a_cut_is_an_event(self):
        trigger = SceneTrigger(0.1)
        drops = [0.9] * 30 + [0.1] + [0.9] * 30
        assert [t for t, drop in enumerate(drops) if trigger(drop)] == [30]

    def test_drop_ratios(self):
        tokens = build("dtd(0.9)")[0](Patches(4)(frames()[None])[0])
        ratios = drop_ratios(tokens)
        assert ratios[0] == 0
        assert ratios[7] < ratios[1:7].min()

    def test_invalid_fraction(self):
        with pytest.raises(ValueError, match="fraction of steps that trigger must be in"):
            SceneTrigger(1.0)


def test_chunks_without_tokens():
    """As with a stream.json that lists only later chunks."""
    streaming = Streaming(Pipeline("dtd(0.5)", Patches()))
    static = torch.full((8, 3, 32, 32), 90, dtype=torch.uint8)
    chunks = [streaming(part) for part in static.split(4)]
    assert chunks[1].N == 0
    joined = streaming.pipeline.join(chunks[1:])
    assert joined.N == 0
    assert (joined.assignment == -1).all()
