"""A pipeline accepts videos in every form, and rejects anything else with a one-line error."""

from __future__ import annotations

import ast
import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fewtokens
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.tokens import Tokens
from fewtokens.encoders import Patches
from tests.helpers.clips import assert_same_tokens


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 3, 32, 48), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline("uniform(0.5)", Patches(8))


def test_frames_in_every_form(pipeline, frames):
    expected = pipeline(frames[None])
    array = frames.numpy()
    images = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames]
    forms = [frames, array, array.transpose(0, 2, 3, 1), array[None], images, tuple(images), frames.float() / 255]
    for form in forms:
        assert_same_tokens(pipeline(form), expected)
    # The times of a `Video` are kept.
    video = fewtokens.Video(frames, torch.tensor([0.0, 0.4, 1.0]))
    assert pipeline(video).grid.times.tolist() == pytest.approx([0.0, 0.4, 1.0])
    one = pipeline(frames[:1])
    for form in (frames[0], array[0], array[0].transpose(1, 2, 0), images[0], images[:1]):
        assert_same_tokens(pipeline(form), one)


def test_files(pipeline, frames, tmp_path):
    path = fewtokens.video.write(tmp_path / "a.mp4", frames.repeat(8, 1, 1, 1), fps=8)
    read = fewtokens.read(path, frames=16, size=224)
    for form in (path, str(path), Path(path)):
        assert_same_tokens(pipeline(form), pipeline(read))
    Image.fromarray(frames[0].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    assert pipeline(tmp_path / "a.png").grid.T == 1


def test_a_list_is_a_batch(pipeline, frames, tmp_path):
    batch = pipeline([frames, frames[:2], fewtokens.Video(frames, torch.arange(3.0))])
    assert batch.grid.lengths.tolist() == [3, 2, 3]
    for tokens, form in zip(batch, (frames, frames[:2], frames), strict=True):
        assert_same_tokens(tokens, pipeline(form))
    tokens = pipeline(frames)
    assert len(Pipeline("random(5)")([tokens, tokens])) == 2


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (5, "a video must be a path, a Video, frames .* got int"),
        (None, "a video must be .* got NoneType"),
        ({"a": 1}, "a video must be .* got dict"),
        ([], "empty list of videos"),
        ([1, 2], "a video must be .* got int"),
        (torch.zeros(4, 32, 32, 3, dtype=torch.uint8), "permute them so that channels come first"),
        (torch.zeros(32, 32, dtype=torch.uint8), r"frames must be \[3,H,W\], .* got \[32, 32\]"),
        (torch.zeros(4, 4, 32, 32, dtype=torch.uint8), r"got \[4, 4, 32, 32\]"),
        (torch.zeros(0, 3, 32, 32, dtype=torch.uint8), "frames must not be empty"),
        (torch.zeros(3, 32, 32, dtype=torch.int64), "uint8, or float in 0..1, got torch.int64"),
        (np.zeros((3, 32, 32), dtype=np.int32), "uint8, or float in 0..1, got int32"),
        (np.zeros((3, 32, 32), dtype=object), "uint8, or float in 0..1"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))], "must have the same size"),
        ("no/such/clip.mp4", "no such file"),
    ],
)
def test_invalid_videos_are_one_line_errors(pipeline, video, message):
    with pytest.raises(ValueError, match=message) as caught:
        pipeline(video)
    assert "\n" not in str(caught.value)


def test_tokenize(frames, tmp_path):
    path = fewtokens.video.write(tmp_path / "a.mp4", frames.repeat(8, 1, 1, 1), fps=8)
    tokens = fewtokens.tokenize(path, "tome", keep=20, frames=4, size=32)
    assert isinstance(tokens, Tokens)
    assert (tokens.count.tolist(), tokens.grid.T) == ([20], 4)
    assert fewtokens.tokenize(frames, "tokenlearner('2/frame')", encoder=Patches(8)).count.tolist() == [6]
    with pytest.raises(ValueError, match="keep requires a spec string"):
        fewtokens.tokenize(frames, fewtokens.build("tome"), keep=3)


def test_methods_by_name():
    merging = fewtokens.list_methods("*merge*")
    assert merging == ["merge_windows", "merge_windows_in_encoder", "prumerge"]
    assert fewtokens.list_methods(kind="clustering") == ["centerclip", "dpc_knn", "kmeans"]
    assert set(fewtokens.list_methods(kind="layers")) == set(fewtokens.list_methods(stage="llm"))
    assert fewtokens.list_methods()[:2] == ["random", "uniform"]
    assert "fastv" in fewtokens.list_methods(stage="llm")
    assert "fastv" not in fewtokens.list_methods()
    assert "perceiver" in fewtokens.list_methods(learned=True)
    assert "perceiver" not in fewtokens.list_methods(learned=False)
    assert fewtokens.list_methods(stage="pixels", learned=True) == ["length_embedding"]
    assert fewtokens.create_method("tome", keep=0.5).keep == 0.5
    for arguments, message in (
        ({"name": "tomme"}, "did you mean tome"),
        ({"name": "tome", "kep": 3}, "tome has no argument kep; it accepts keep"),
    ):
        with pytest.raises(ValueError, match=message):
            fewtokens.create_method(**arguments)
    with pytest.raises(ValueError, match="kind must be one of"):
        fewtokens.list_methods(kind="nowhere")
    with pytest.raises(ValueError, match="stage must be one of"):
        fewtokens.list_methods(stage="nowhere")


class TestTokensAsData:
    def test_indexing(self, pipeline, frames):
        tokens = pipeline([frames, frames[:1], frames[:2]])
        assert len(tokens) == 3
        assert [video.grid.T for video in tokens] == [3, 1, 2]
        assert tokens[-1].grid.T == 2
        assert tokens[1:].grid.lengths.tolist() == [1, 2]
        assert tokens[torch.tensor([True, False, True])].grid.lengths.tolist() == [3, 2]
        assert tokens[[2, 0]].grid.lengths.tolist() == [2, 3]
        for index in (3, -4, [5]):
            with pytest.raises(IndexError, match=r"must be in -3..2"):
                tokens[index]
        with pytest.raises(IndexError, match=r"a bool mask must be \[B\]"):
            tokens[torch.tensor([True])]

    def test_repr_is_one_line(self, pipeline, frames):
        tokens = pipeline(frames)
        assert repr(tokens) == "Tokens(B=1, N=36, C=192, grid=3 x 4 x 6, float32, cpu)"
        assert repr(tokens.grid) == "Grid(3 x 4 x 6)"
        plan = fewtokens.create_method("uniform", keep=3).decide(tokens)
        assert repr(plan) == "Plan(B=1, N=36 -> M=3, copies)"
        video = fewtokens.Video(frames, torch.zeros(3), path="a.mp4")
        assert repr(video) == "Video(frames=uint8[3, 3, 32, 48], times=float32[3], path='a.mp4')"
        assert repr(tokens.pack()) == "Packed(features=float32[36, 192], cu_seqlens=int32[2], max_count=36)"

    def test_no_repr_prints_tensors(self):
        """Every dataclass with a tensor field defines `__repr__`."""
        for path in Path(fewtokens.__file__).parent.rglob("*.py"):
            for kind in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(kind, ast.ClassDef):
                    continue
                is_dataclass = any("dataclass" in ast.unparse(decorator) for decorator in kind.decorator_list)
                has_tensors = any(
                    "Tensor" in ast.unparse(p.annotation) for p in kind.body if isinstance(p, ast.AnnAssign)
                )
                has_repr = any("__repr__" in ast.unparse(part) for part in kind.body)
                assert has_repr or not (is_dataclass and has_tensors), f"{path.name}: {kind.name}"

    def test_in_a_notebook(self, pipeline, frames):
        """Shows an image per frame, in which the cells of a token have the same color."""
        tokens = fewtokens.create_method("evs", tau=0.5)(pipeline.encoder(frames[[0, 0, 1]][None])[0])
        html = tokens._repr_html_()
        assert "24 tokens of 72 cells" not in html
        assert f"{int(tokens.count[0])} tokens of 72 cells" in html
        images = [
            np.asarray(Image.open(io.BytesIO(base64.b64decode(part.split('"')[0]))))
            for part in html.split("data:image/png;base64,")[1:]
        ]
        assert len(images) == 3
        cells = [image[9::18, 9::18] for image in images]
        assert cells[0].shape == (4, 6, 3)
        assert len(np.unique(cells[0].reshape(-1, 3), axis=0)) > 20  # one token per cell
        assert (cells[1] == 40).all()  # unchanged, so all cells were dropped

    def test_arrays_and_tables(self, pipeline, frames):
        pandas = pytest.importorskip("pandas")
        tokens = pipeline(
            [fewtokens.Video(frames, torch.tensor([0.0, 0.5, 1.0])), fewtokens.Video(frames[:1], torch.zeros(1))]
        )
        arrays = tokens.numpy()
        assert arrays["features"].shape == tuple(tokens.features.shape)
        assert tokens.to(torch.bfloat16).numpy()["features"].dtype == np.float32
        table = tokens.to_pandas()
        assert isinstance(table, pandas.DataFrame)
        assert len(table) == int(tokens.count.sum())
        assert list(table.columns[:7]) == ["video", "token", "seconds", "t", "y", "x", "size"]
        last = table[(table.video == 0)].iloc[-1]
        assert (last.seconds, last.t) == (1.0, 2.0)
        np.testing.assert_array_equal(last.filter(like="f").to_numpy(dtype=np.float32)[:192], arrays["features"][0, 35])

    def test_from_transformers_outputs(self):
        hidden = torch.randn(4, 1 + 6, 8)  # four frames with a class token each

        class Outputs:
            last_hidden_state = hidden

        tokens = Tokens.from_hf(Outputs(), (4, 2, 3))
        assert tokens.features.shape == (1, 24, 8)
        assert tokens.prefix.shape == (1, 4, 8)
        assert torch.equal(tokens.unmerge()[0, 2].flatten(0, 1), hidden[2, 1:])
        assert torch.equal(Tokens.from_hf(hidden[:, 1:].reshape(1, 24, 8), (4, 2, 3)).features, tokens.features)
        with pytest.raises(ValueError, match="do not fit a grid of 4 x 3 x 3"):
            Tokens.from_hf(Outputs(), (4, 3, 3))
        with pytest.raises(ValueError, match="last_hidden_state"):
            Tokens.from_hf(hidden[0], (4, 2, 3))
