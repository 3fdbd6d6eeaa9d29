"""Overlays, sheets, plots and pages: regions are those of the assignment; titles, captions and colors."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch
from PIL import Image

from fewtokens.core import registry
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.encoders import Patches
from fewtokens.show import Clip, Result, draw_sheet, heat, overlay, write_overlay, write_page
from fewtokens.show.overlay import overlay_parts, token_colors, token_map
from fewtokens.video import read, synthetic

# The package exports a function of the same name.
overlay_module = sys.modules["fewtokens.show.overlay"]


def example(spec: str, frames: int = 4, size=(32, 48), patch: int = 8, tubelet: int = 1) -> tuple[torch.Tensor, Tokens]:
    video = synthetic("static", frames=frames, size=size)
    tokens, cues = Patches(patch, tubelet_size=tubelet)(video.frames[None], video.times, needs=("pixels",))
    for method in registry.build(spec):
        tokens = method(tokens, **{name: cues[name] for name in method.needs})
    return video.frames, tokens


@pytest.mark.parametrize("style", ["fill", "outline", "mean"])
@pytest.mark.parametrize("spec", ["random(0.3)", "tome(0.2)", "rlt", "kmeans(1)", "uniform(1)", "uniform(1.0)"])
def test_size_and_type(spec, style):
    frames, tokens = example(spec)
    drawn = overlay(frames, tokens, style)
    assert drawn.shape == frames.shape
    assert drawn.dtype == torch.uint8


def test_dropped_cells_are_dark_and_gray_and_kept_cells_are_not():
    frames, tokens = example("random(0.3)")
    drawn = overlay(frames, tokens, "fill")
    dropped = token_map(tokens, *frames.shape[:1], *frames.shape[2:]) < 0
    red, _, blue = drawn.permute(1, 0, 2, 3).int()
    # Borders between kept and dropped cells are drawn over one pixel of each cell.
    inner = torch.zeros_like(dropped)
    inner.reshape(4, 4, 8, 6, 8)[:, :, 1:-1, :, 1:-1] = True
    assert bool((red == blue)[dropped & inner].all())
    assert drawn.float().mean(1)[dropped & inner].max() < 70
    assert torch.equal(drawn.permute(0, 2, 3, 1)[~dropped & inner], frames.permute(0, 2, 3, 1)[~dropped & inner])


def test_a_token_has_one_color_in_every_frame():
    frames = torch.full((3, 3, 16, 16), 100, dtype=torch.uint8)
    tokens = Tokens.from_cells(torch.randn(1, 3, 2, 2, 4))
    merged = tokens.apply(Plan.group(torch.tensor([[0, 1, 2, 3] * 3]), tokens))
    drawn = overlay(frames, merged, "fill")
    assert torch.equal(drawn[0], drawn[2])
    assert len({tuple(drawn[1, :, y, x].tolist()) for y, x in ((3, 3), (3, 12), (12, 3), (12, 12))}) == 4


def test_borders_lie_between_tokens_only():
    frames = torch.full((1, 3, 16, 16), 50, dtype=torch.uint8)
    tokens = Tokens.from_cells(torch.randn(1, 1, 4, 4, 4))
    merged = tokens.apply(Plan.group(torch.tensor([[0] * 8 + [1] * 8]), tokens))
    lines = (overlay(frames, merged, "outline") != 50).any(1)[0]
    assert lines.nonzero().tolist() == [[7, x] for x in range(16)]


def test_mean_style_shows_the_mean():
    frames = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 1, 16).expand(1, 3, 8, 16).contiguous()
    tokens = Tokens.from_cells(torch.randn(1, 1, 1, 2, 4))
    assert overlay(frames, tokens, "mean")[0, 0, 0].tolist() == [4] * 8 + [12] * 8


@pytest.mark.parametrize(
    ("frames", "size", "patch", "tubelet"), [(1, (8, 8), 8, 1), (5, (37, 23), 8, 2), (3, (9, 40), 4, 3)]
)
def test_odd_sizes_and_tubelets(frames, size, patch, tubelet):
    pixels, tokens = example("tome(0.5)", frames, size, patch, tubelet)
    assert overlay(pixels, tokens).shape == pixels.shape


def test_soft_attribution_glows():
    tokens = Tokens.from_cells(torch.randn(1, 2, 2, 2, 4))
    weights = torch.zeros(1, 2, 8)
    weights[0, 1, 5] = 1
    soft = tokens.apply(Plan(torch.tensor([2]), 2, weights=weights))
    drawn = heat(torch.full((2, 3, 8, 8), 200, dtype=torch.uint8), soft, 1)
    assert int(drawn[1, :, 1, 5].min()) > int(drawn[0].max())
    with pytest.raises(ValueError, match="no attribution weights"):
        heat(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), tokens, 0)
    with pytest.raises(ValueError, match=r"token must be in 0\.\.1, got 2"):
        heat(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), soft, 2)


def test_consecutive_tokens_differ_in_color():
    colors = token_colors(500)
    assert (colors[1:] - colors[:-1]).norm(dim=1).min() > 0.2
    assert bool(((colors >= 0) & (colors <= 1)).all())


def clips() -> list[Clip]:
    examples = []
    for name in ("</script><b>one</b>", "two"):
        frames, tokens = example("tome(0.2)")
        _, kept = example("random(0.2)")
        results = [
            Result(
                "tome", "tome(0.2)</script>", tokens, frames, {"tokens": 19, "retention": 0.2, "psnr_db": float("inf")}
            ),
            Result("random", "random(0.2)", kept, None, {"tokens": 19, "retention": 0.2, "psnr_db": 9.5}),
        ]
        examples.append(Clip(name, frames, torch.arange(4) / 8, results))
    return examples


def test_a_page_needs_nothing_else(tmp_path):
    page = write_page(clips(), tmp_path / "a.html", title="<i>title</i>").read_text()
    assert "<i>title" not in page
    assert page.count("</script>") == 2  # the data and the code
    for url in re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page):
        assert url.startswith(("data:", "#", "url")), url
    assert "http://" not in page
    assert "https://" not in page
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', page, re.S).group(1))
    assert data[0]["name"] == "</script><b>one</b>"
    assert data[0]["results"][1]["frames"] is None
    assert data[0]["results"][0]["numbers"]["PSNR dB"] == "∞"
    assert all(frame.startswith("data:image/jpeg;base64,") for frame in data[0]["frames"])
    with pytest.raises(ValueError, match="at least one clip"):
        write_page([], tmp_path / "b.html", title="x")


def test_a_sheet(tmp_path):
    path = draw_sheet(clips()[1], tmp_path / "new" / "a.png")
    with Image.open(path) as image:
        assert image.width == 1240
        assert image.height > 300
        assert len(image.getcolors(1 << 24)) > 100


@pytest.mark.parametrize("style", ["fill", "outline", "mean"])
def test_parts_are_the_whole(style, monkeypatch):
    frames, tokens = example("tome(0.2)", frames=11)
    parts = list(overlay_parts(frames, tokens, style))
    assert len(parts) == 2
    monkeypatch.setattr(overlay_module, "_PART", 100)
    assert torch.equal(torch.cat(parts), overlay(frames, tokens, style))


def test_suffixes(tmp_path):
    frames, tokens = example("tome(0.2)")
    for suffix in (".png", ".mp4", ".gif"):
        path = write_overlay(tmp_path / f"a{suffix}", frames, tokens, fps=4)
        assert read(path).size[0] > 0
    for wrong, style in (("a.bmp", "fill"), ("a.png", "neon")):
        with pytest.raises(ValueError, match=r"suffix must|style must"):
            write_overlay(tmp_path / wrong, frames, tokens, style=style)
    with pytest.raises(ValueError, match="one video"):
        overlay(frames, tokens.select([0, 0]))
