"""Writing a video part by part."""

from __future__ import annotations

import pytest
import torch

from fewtokens.video import read, synthetic, write


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_parts_are_written_as_the_whole(suffix, tmp_path):
    frames = synthetic("pan", frames=7, size=(30, 44)).frames
    whole = write(tmp_path / f"a{suffix}", frames, 10)
    parts = write(tmp_path / f"b{suffix}", iter(frames.split(3)), 10)
    assert torch.equal(read(whole).frames, read(parts).frames) and len(read(parts)) == 7


def test_parts_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="at least one frame"):
        write(tmp_path / "a.mp4", iter([]), 10)
    with pytest.raises(ValueError, match="same size"):
        write(tmp_path / "a.mp4", iter([torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 10)]), 10)
    assert not list(tmp_path.iterdir())
