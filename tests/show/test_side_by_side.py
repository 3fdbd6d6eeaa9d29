"""Original, reconstruction and error side by side: what lies where on the picture."""

from __future__ import annotations

import pytest
import torch

from fewtokens.show.side_by_side import Panels, write_side_by_side
from fewtokens.video import read


def pairs(length: int):
    """Gray frames and reconstructions that are brighter by a step that grows with time."""
    for number in range(length):
        frame = torch.full((3, 32, 48), 100, dtype=torch.uint8)
        yield frame, frame + 5 * (number + 1)


def test_panels_show_the_pixels_enlarged():
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, 10, 100), generator=generator, dtype=torch.uint8) for _ in range(2)]
    panels = Panels(("first", "second"), (10, 100), "text")
    drawn = panels.draw(images, "note")
    assert panels.size == (30, 300) and drawn.shape[1] % 2 == drawn.shape[2] % 2 == 0
    for x, image in zip(panels.left, images, strict=True):
        part = drawn[:, panels.top : panels.top + 30, x : x + 300]
        assert torch.equal(part[:, 1::3, 1::3], image) and torch.equal(part[:, ::3, ::3], image)
    x, y = panels.note
    assert (drawn[:, y:, x : x + 30] < 200).any()  # the note
    assert not torch.equal(drawn, panels.draw(images, "other"))


def test_a_video(tmp_path):
    score = write_side_by_side(tmp_path / "a.mp4", pairs(3), length=3, fps=4, caption="0.1 bits per pixel")
    # Errors of 5, 10 and 15 of 255.
    expected = sum(-20 * torch.tensor(step / 255).log10() for step in (5, 10, 15)) / 3
    assert score == pytest.approx(float(expected), abs=1e-3)
    video = read(tmp_path / "a.mp4")
    panels = Panels("abc", (32, 48))
    assert len(video) == 3 and video.interval == pytest.approx(0.25)
    middle = panels.top + panels.size[0] // 2
    columns = [x + panels.size[1] // 2 for x in panels.left]
    gray = video.frames[..., middle, columns].float()
    assert (gray[..., 0] - 100).abs().max() < 4
    assert (gray[:, 0, 1] - torch.tensor([105.0, 110, 115])).abs().max() < 4
    assert gray[0, 0, 2] < gray[1, 0, 2] < gray[2, 0, 2]


def test_a_png_and_refusals(tmp_path):
    write_side_by_side(tmp_path / "a.png", pairs(9), length=9, fps=4)
    assert read(tmp_path / "a.png").frames.shape[-1] >= 6 * 128
    with pytest.raises(ValueError, match="suffix"):
        write_side_by_side(tmp_path / "a.txt", pairs(2), length=2, fps=4)
