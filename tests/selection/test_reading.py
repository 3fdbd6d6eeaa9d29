"""`read(select=)`: what is decoded, candidates, caching, chains, and errors."""

from __future__ import annotations

import re

import pytest
import torch

import fewtokens
from fewtokens.core import registry
from fewtokens.core.tokens import Tokens
from fewtokens.selection import Oracle, Scorer, select_among
from fewtokens.selection.choose import FEATURES, candidate_frames
from fewtokens.video import VideoError, stream
from tests.helpers.footage import FPS, Decoded, scenes, write_scenes

FRAMES, NEEDLE = 160, 104
ORACLE = Oracle(lambda times: torch.exp(-((times - NEEDLE / FPS) ** 2)))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("selection") / "clip.mp4"
    write_scenes(path, FRAMES, NEEDLE)
    return path


@pytest.mark.parametrize("name", registry.selector_names())
def test_only_candidates_are_decoded_small_and_only_selected_frames_in_full(name, clip, monkeypatch):
    arguments = {"keep": 5} if "keep" in registry.create_method(name).arguments else {}
    selector = registry.create_method(name, **arguments)
    scorer = ORACLE if "relevance" in selector.needs else None
    times = torch.arange(FRAMES, dtype=torch.float64) / FPS
    FEATURES.clear()
    decoded = Decoded(monkeypatch)
    video = fewtokens.read(clip, select=selector, scorer=scorer, size=40)
    candidates = len(candidate_frames(selector, times, torch.tensor([0])))
    small = candidates if "features" in selector.needs else 0
    assert decoded.counts.pop(40) == len(video) == len(video.selection)
    assert decoded.counts == ({64: small} if small else {})
    assert torch.equal(video.times, video.selection.index / FPS)


def test_the_frames_are_those_at_these_times(clip):
    video = fewtokens.read(clip, select="max_min_frames(keep=3, rate=8)")
    every = fewtokens.read(clip)
    assert torch.equal(video.frames, every.frames[video.selection.index])
    assert NEEDLE in video.selection.index  # the only frame of its kind
    again = fewtokens.read(clip, **video.reading)
    assert torch.equal(again.frames, video.frames) and again.reading == video.reading


def test_a_part_of_the_video(clip):
    video = fewtokens.read(clip, select="uniform_frames(keep=3)", start=5, end=10)
    assert video.times.tolist() == [5.0, 7.5, 9.875]
    assert video.selection.index.tolist() == [40, 60, 79]


def test_relevance_finds_the_needle(clip):
    video = fewtokens.read(clip, select="aks(keep=1, rate=8)", scorer=ORACLE)
    assert video.selection.index.tolist() == [NEEDLE]
    novel = fewtokens.read(clip, select="aks(keep=8, rate=8)", scorer="features")
    assert novel.times[0] > 0


class TestCandidates:
    times = torch.arange(100) / 10

    def test_rates(self):
        build = registry.create_method
        assert candidate_frames(build("aks"), self.times, None).tolist() == list(range(0, 100, 10))
        assert candidate_frames(build("aks", rate="all"), self.times, None).tolist() == list(range(100))
        keys = torch.tensor([0, 33, 71])
        assert candidate_frames(build("keyframes"), self.times, keys).tolist() == [0, 33, 71]
        # Without an index of keyframes, one frame per second.
        assert candidate_frames(build("keyframes"), self.times, None).tolist() == list(range(0, 100, 10))

    def test_a_maximum_number(self):
        quota = registry.create_method("quota", frames=4)
        assert candidate_frames(quota, self.times, None).tolist() == [0, 33, 66, 99]

    def test_keyframes_of_a_file(self, clip, monkeypatch):
        decoded = Decoded(monkeypatch)
        video = fewtokens.read(clip, select="max_min_frames(keep=100, rate='keyframes')", size=32)
        import av

        with av.open(str(clip)) as container:
            packets = [p for p in container.demux(video=0) if p.is_keyframe and p.size]
            keys = [float((p.pts - container.streams.video[0].start_time) * p.time_base) for p in packets]
        assert video.times.tolist() == pytest.approx(keys)
        assert decoded.counts == {64: len(keys), 32: len(keys)}


class Counting(Scorer):
    id, size, needs_question = "counting", 48, True

    def __init__(self) -> None:
        self.encoded = self.scored = 0

    def features(self, frames):
        self.encoded += len(frames)
        return super().features(frames)

    def score(self, thumbnails, question, features):
        self.scored += 1
        return features.norm(dim=1) * len(question)


def test_features_are_cached_by_file_and_scores_by_question(tmp_path):
    path = tmp_path / "clip.mp4"
    write_scenes(path, 40, 30)
    scorer = Counting()
    for question in ("what?", "what?", "where?"):
        fewtokens.read(path, select="aks(keep=2)", question=question, scorer=scorer)
    assert (scorer.encoded, scorer.scored) == (5, 2)
    fewtokens.read(path, select="aks(keep=2, rate=2)", question="what?", scorer=scorer)
    assert (scorer.encoded, scorer.scored) == (15, 3)
    write_scenes(path, 48, 30)
    fewtokens.read(path, select="aks(keep=2)", question="what?", scorer=scorer)
    assert (scorer.encoded, scorer.scored) == (21, 4)


class TestPipeline:
    def test_a_chain_acts_on_a_path(self, clip):
        pipeline = fewtokens.Pipeline("aks(keep=4) | tome(keep=0.25)", fewtokens.load_encoder("patches"))
        assert pipeline.spec.startswith("aks(keep=4, tau=0.8, depth=5, stop_top='keep', rate=1.0) | tome(keep=0.25")
        tokens = pipeline(clip, scorer=ORACLE)
        video = fewtokens.read(clip, select="aks(keep=4)", scorer=ORACLE, size=224)
        expected = fewtokens.Pipeline("tome(keep=0.25)", fewtokens.load_encoder("patches"))(video)
        assert torch.equal(tokens.features, expected.features) and torch.equal(tokens.grid.times, video.times)
        assert tokens.meta["reading"]["select"].startswith("aks(keep=4")

    def test_among_given_frames(self):
        frames, kinds = scenes(60, 33)
        pipeline = fewtokens.Pipeline(
            "max_min_frames(keep=3, rate='all') | mean_pool(keep=0.5)", fewtokens.load_encoder("patches")
        )
        tokens = pipeline(frames, torch.arange(60) / FPS)
        assert set(kinds[(tokens.grid.times * FPS).round().long()].tolist()) == {0, 1, 2}
        assert tokens.grid.T == 3

    def test_frames_of_several_sizes_are_pooled_to_their_grids(self):
        frames, _ = scenes(12, 7, 64, 96)
        encoder = fewtokens.load_encoder("patches")
        pipeline = fewtokens.Pipeline("kffocus(keep=4, key=6, other=2, grid=4, rate='all')", encoder)
        times = torch.arange(12) / FPS
        tokens = pipeline(frames, times)
        selection = select_among(pipeline.selector, frames, times)
        full, _ = encoder(frames[selection.index][None], times[selection.index])
        cells = selection.cells(4, 6)
        assert int(tokens.count[0]) == int(cells.prod(1).sum()) < 4 * 24
        assert len(cells.unique(dim=0)) == 2
        start = 0
        for frame, (rows, columns) in zip(full.features[0].view(4, 4, 6, -1), cells.tolist(), strict=True):
            # The mean of each region, by loops.
            for row in range(rows):
                for column in range(columns):
                    inside = [
                        frame[y, x] for y in range(4) for x in range(6)
                        if y * rows // 4 == row and x * columns // 6 == column
                    ]  # fmt: skip
                    torch.testing.assert_close(tokens.features[0, start], torch.stack(inside).mean(0))
                    assert tokens.sizes[0, start] == len(inside)
                    start += 1
        assert bool((tokens.assignment >= 0).all())

    def test_a_saved_chain(self, tmp_path):
        pipeline = fewtokens.Pipeline("uniform_frames(keep=2) | tome", fewtokens.load_encoder("patches"))
        again = fewtokens.Pipeline.from_pretrained(pipeline.save_pretrained(tmp_path / "p"))
        assert again.spec == pipeline.spec and again.selector.keep == 2

    def test_errors(self, clip):
        encoder = fewtokens.load_encoder("patches")
        uniform = fewtokens.Pipeline("uniform_frames(keep=2)", encoder)
        tokens = uniform(clip)
        assert isinstance(tokens, Tokens)
        for call, message in (
            (lambda: fewtokens.Pipeline("tome | aks", encoder), "aks selects frames, so it must be the first method"),
            (lambda: fewtokens.Pipeline("tome", encoder)(clip, question="a"), "question and scorer require a method"),
            (lambda: uniform(tokens), "uniform_frames selects frames before encoding; pass a path or frames"),
            (lambda: uniform(torch.zeros(2, 4, 3, 32, 32)), "uniform_frames selects frames of one video at a time"),
            (lambda: uniform.check_causal(), "uniform_frames(keep=2) selects among all frames of a video"),
        ):
            with pytest.raises(ValueError, match=re.escape(message)):
                call()

    def test_tokenize(self, clip):
        tokens = fewtokens.tokenize(clip, "aks(keep=3) | tome(keep=0.5)", scorer=ORACLE, size=64)
        assert tokens.grid.T == 3 and tokens.meta["reading"]["size"] == 64


def test_errors_are_one_line(clip):
    aks = "aks requires a scorer"
    for arguments, message in (
        ({"select": "aks"}, aks),
        ({"select": "aks", "question": "a"}, aks),
        ({"select": "aks", "scorer": "clip:x"}, "aks selects by a question"),
        ({"select": "aks", "scorer": "clip:x", "question": " "}, "aks selects by a question"),
        ({"select": "aks(keep=0)"}, "aks: keep must be a count of frames"),
        ({"select": "tome"}, "'tome' does not select frames; use one of aks"),
        ({"select": "aks | tome"}, "'aks | tome' does not select frames"),
        ({"select": 3}, "select must be the spec of a frame selector"),
        ({"select": "aks", "scorer": "x"}, "scorer must be 'clip:FOLDER'"),
        ({"select": "aks", "scorer": 3}, "scorer must be 'clip:FOLDER'"),
        ({"select": "aks", "scorer": "features", "frames": 4}, "select= cannot be combined with frames"),
        ({"question": "a"}, "question= and scorer= require select="),
    ):
        with pytest.raises(ValueError, match=re.escape(message.replace(aks, "aks selects by relevance"))) as caught:
            fewtokens.read(clip, **arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(VideoError, match="no such file"):
        fewtokens.read("missing.mp4", select="uniform_frames")


def test_folders_and_arrays(tmp_path):
    frames, _ = scenes(30, 12)
    video = fewtokens.read(frames, select="scene_changes(keep=3, rate='all')")
    assert len(video) == 3 and video.reading is None and video.path is None
    from PIL import Image

    for n, frame in enumerate(frames[:6]):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(tmp_path / f"{n}.png")
    assert fewtokens.read(tmp_path, select="keyframes(keep=4)").times.tolist() == [0]  # one frame per second
    assert len(fewtokens.read(tmp_path, select="uniform_frames(keep=4)")) == 4


def test_streams_are_unchanged(clip):
    assert sum(len(chunk) for chunk in stream(clip, chunk=50)) == FRAMES
