"""Pictures of tokenizers: the codes of each pixel, and the attention of queries."""

from __future__ import annotations

import pytest
import torch

from fewtokens.show.overlay import token_colors
from fewtokens.show.tokenizer_maps import code_maps, write_tokenizer_map
from fewtokens.tokenizers import Tokenizer
from fewtokens.video import read, synthetic, write
from tests.cli.test_command import error_line, quick

CAUSAL = "causal_conv(width=8, stride=(4, 8, 8), depth=1) | lfq(6) > causal_conv(width=8, stride=(4, 8, 8), depth=1)"
GRID = "tubelet(8, stride=(2, 8, 8)) | lfq(6) > tubelet(stride=(2, 8, 8))"
DROPPED = "tubelet(8, stride=(2, 8, 8)) | uniform(0.5) | lfq(6) > tubelet(stride=(2, 8, 8))"
QUERIES = (
    "tubelet(8, stride=(2, 8, 8)) | learned_queries(4, num_layers=1, heads=2) | lfq(6) > "
    "mask_tokens(width=8, stride=(2, 8, 8), num_tokens=4, num_layers=1, heads=2)"
)


def tokenizer(spec: str, **options: int) -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer.from_spec(spec, **options).eval()


@pytest.mark.parametrize(("spec", "window"), [(GRID, None), (GRID, 4), (DROPPED, None)])
def test_the_color_of_a_pixel_is_that_of_the_code_of_its_cell(spec, window):
    frames = synthetic("pan", frames=7, size=(20, 28)).frames
    model = tokenizer(spec, window=window)
    tokens = model.encode(frames)
    (drawn,), (label,) = code_maps(frames, tokens, model)
    assert drawn.shape == frames.shape and label == "code 1, 64 values"
    rows = 4 if window is None else 2
    for t, y, x in ((0, 0, 0), (3, 8, 27), (4, 19, 7), (6, 7, 16)):
        part, row = divmod(t // 2, rows)
        token = int(tokens.assignment[part, (row * 3 + y // 8) * 4 + x // 8])
        color = torch.zeros(3) if token < 0 else token_colors(64)[tokens.codes[part, token, 0]]
        assert (drawn[t, :, y, x] - color * 255).abs().max() <= 0.51


def test_the_first_frame_of_a_causal_tokenizer_has_its_own_row():
    frames = synthetic("cuts", frames=9, size=(16, 16)).frames
    model = tokenizer(CAUSAL)
    tokens = model.encode(frames)
    assert tokens.grid.shape == (3, 2, 2)
    (drawn,), _ = code_maps(frames, tokens, model)
    expected = token_colors(64)[tokens.codes[0, :, 0]].reshape(3, 2, 2, 3)
    for t, row in enumerate([0, 1, 1, 1, 1, 2, 2, 2, 2]):
        assert (drawn[t, :, ::8, ::8].permute(1, 2, 0) - expected[row] * 255).abs().max() <= 0.51


@pytest.mark.parametrize("suffix", [".png", ".mp4"])
@pytest.mark.parametrize("spec", [GRID, QUERIES])
def test_files(spec, suffix, tmp_path):
    frames = synthetic("pan", frames=4, size=(16, 24)).frames
    path = write_tokenizer_map(tmp_path / f"a{suffix}", frames, tokenizer(spec), name="clip")
    drawn = read(path).frames
    # Of queries one frame for each of two rows of cells.
    assert len(drawn) == (1 if suffix == ".png" else 4 if spec == GRID else 2)


def test_continuous_tokens_of_cells_are_refused(tmp_path):
    model = tokenizer("tubelet(8, stride=(2, 8, 8)) > tubelet(stride=(2, 8, 8))")
    with pytest.raises(ValueError, match="neither codes nor attention"):
        write_tokenizer_map(tmp_path / "a.png", synthetic("pan", frames=2, size=(16, 16)).frames, model)


class TestCommand:
    @pytest.fixture
    def clip(self, tmp_path):
        return write(tmp_path / "clip.mp4", synthetic("pan", frames=6, size=(24, 32)).frames, 8)

    def test_a_video_and_its_encoded_file_have_the_same_picture(self, clip, tmp_path):
        words = ("--tokenizer", GRID, "--device", "cpu")
        quick("show", clip, *words, "--frames", 6, "--size", 24, "--out", tmp_path / "a.png")
        quick("encode", clip, *words, "--out", tmp_path / "clip.safetensors")
        quick("show", tmp_path / "clip.safetensors", "--out", tmp_path / "b.png")
        a, b = (read(tmp_path / name).frames[0, :, -300:] for name in ("a.png", "b.png"))
        assert torch.equal(a, b)

    def test_refusals(self, clip, tmp_path):
        def line(*words: object) -> str:
            return error_line(quick("show", *words, code=2))

        out = ("--out", tmp_path / "a.png")
        assert "have no effect with --tokenizer" in line(clip, "--tokenizer", GRID, "--keep", 3, "--with", "tome", *out)
        assert "are for a single video" in line(clip, "--tokenizer", GRID, "--out", tmp_path / "a.html")
        quick("encode", clip, "--tokenizer", GRID, "--device", "cpu", "--out", tmp_path / "clip.safetensors")
        assert "an encoded video" in line(tmp_path / "clip.safetensors", "--size", 20, *out)
        other = write(tmp_path / "other.mp4", synthetic("pan", frames=6, size=(16, 16)).frames, 8)
        assert "6x16x16 frames and pixels" in line(tmp_path / "clip.safetensors", "--video", other, *out)
        clip.rename(tmp_path / "moved.mp4")
        assert "which does not exist" in line(tmp_path / "clip.safetensors", *out)
        clip = tmp_path / "moved.mp4"
        quick("tokenize", clip, "--frames", 2, "--out", tmp_path / "t.safetensors", "--device", "cpu")
        assert "omit --tokenizer" in line(tmp_path / "t.safetensors", "--tokenizer", GRID, *out)
