"""Every sheet and plot has a title, a caption and units; plots are also SVG; a method has one color everywhere."""

from __future__ import annotations

import ast
import math
import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from fewtokens.core import registry
from fewtokens.show import Clip, canvas, draw_comparison, draw_sheet, method_color, method_styles, write_overlay
from fewtokens.show.sheet import draw_contact_sheet
from fewtokens.show.strips import draw_strips
from tests.show.test_show import clips, example

ROOT = Path(__file__).parents[2]
DRAWING = ("src/fewtokens", "benchmarks", "docs/figures")


@pytest.fixture
def texts(monkeypatch):
    """What is written on images, piece by piece."""
    pieces: list[str] = []
    original = canvas.ImageDraw.ImageDraw.text

    def text(self, xy, text, *args, **options):
        pieces.append(text)
        return original(self, xy, text, *args, **options)

    monkeypatch.setattr(canvas.ImageDraw.ImageDraw, "text", text)
    return pieces


class TestSheets:
    def test_a_sheet_names_clip_budget_and_methods(self, tmp_path, texts):
        clip = clips()[1]
        draw_sheet(clip, tmp_path / "a.png", caption="Budget: 20 %.")
        words = " ".join(texts)
        assert texts[0] == clip.name
        assert "Budget: 20 %." in words and "dark is dropped" in words and "rebuilt" in words
        assert {"tome", "random"} <= set(texts)
        assert any("20.0 %" in piece and "9.5 dB" in piece for piece in texts)

    def test_a_sheet_without_frames_does_not_explain_them(self, tmp_path, texts):
        clip = clips()[1]
        draw_sheet(Clip(clip.name, clip.frames, clip.times, clip.results[1:]), tmp_path / "a.png")
        assert "rebuilt" not in " ".join(texts)
        assert "4 frames of 48 x 32 pixels, 96 cells" in " ".join(texts)

    def test_an_overlay_names_method_clip_and_count(self, tmp_path, texts):
        frames, tokens = example("tome(0.25)")
        tokens = tokens.replace(meta={"spec": "tome(keep=0.25)"})
        write_overlay(tmp_path / "a.png", frames, tokens, name="clip.mp4")
        assert texts[0] == "tome(keep=0.25) on clip.mp4"
        assert "24 tokens of 96 cells (25.0 %)" in " ".join(texts)

    def test_the_legend_names_only_what_is_drawn(self, tmp_path, texts):
        def caption(spec: str, frames: int = 4) -> str:
            texts.clear()
            pixels, tokens = example(spec, frames)
            write_overlay(tmp_path / "a.png", pixels, tokens)
            return " ".join(texts)

        pruned = caption("evs(0.3)", frames=16)
        assert "No tint: one token for one cell." in pruned and "Dark: dropped." in pruned
        assert "A color" not in pruned and "12 of 16 frames shown" in pruned
        assert "Dark" not in caption("tome(0.25)") and "frames shown" not in caption("tome(0.25)")
        assert "A color is one token for one position in several frames." in caption("rlt")

    def test_titles_have_short_specs(self, tmp_path, texts):
        frames, tokens = example("tome(0.25)")
        (method,) = registry.build("kmeans(keep=0.1)")
        assert "criterion" in method.spec and method.short_spec == "kmeans(keep=0.1)"
        write_overlay(tmp_path / "a.png", frames, tokens.replace(meta={"spec": f"rlt | {method.spec}"}))
        assert texts[0] == "rlt | kmeans(keep=0.1)"

    def test_strips_and_contact_sheets(self, tmp_path, texts):
        frames = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
        draw_strips([("a", frames)], tmp_path / "a.png", title="A title", caption="A caption.")
        draw_contact_sheet(frames, ["x", "y", "z"], tmp_path / "b.png", title="B title", caption="B caption.")
        assert {"A title", "A caption.", "B title", "B caption.", "x", "y", "z"} <= set(texts)

    def test_long_captions_are_wrapped_into_the_sheet(self, tmp_path, texts):
        frames = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
        draw_contact_sheet(frames, [""], tmp_path / "a.png", title="t", caption="word " * 200)
        lines = [piece for piece in texts if piece.startswith("word")]
        assert len(lines) > 3
        assert max(canvas.font(15).getlength(line) for line in lines) < 1240


class TestComparison:
    def test_columns(self, tmp_path, texts):
        path = draw_comparison(clips()[1], tmp_path / "a.png", title="Title", width=1200)
        with Image.open(path) as image:
            assert image.width == 1200
        assert texts[0] == "Title"
        assert {"input", "tome", "random"} <= set(texts)
        assert "96 cells" in " ".join(texts)

    def test_five_results_fit_their_columns(self, tmp_path, monkeypatch):
        """No text is wider than its column, and the legend is not below the card."""
        drawn: list[tuple[float, float, float]] = []
        text = ImageDraw.ImageDraw.text

        def note(pen, xy, words, *args, font, **options):
            drawn.append((xy[0], xy[0] + font.getlength(words), xy[1]))
            return text(pen, xy, words, *args, font=font, **options)

        monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
        clip = clips()[0]
        result = replace(clip.results[0], name="a_long_name_of_a_method(keep=0.1)", frames=clip.frames)
        many = replace(clip, frames=clip.frames[:, :, :18], results=[result] * 5)
        path = draw_comparison(many, tmp_path / "a.png")
        with Image.open(path) as image:
            height = image.height
        column = (1660 - 60 - 5 * 10) // 6
        assert all(y < height - 30 for *_, y in drawn)
        for number in range(6):
            left = 30 + number * (column + 10)
            inside = [right for x, right, y in drawn if left <= x < left + column and y > 120]
            assert inside and max(inside) <= left + column

    def test_errors(self, tmp_path):
        clip = clips()[1]
        with pytest.raises(ValueError, match=r"frames must be in 0\.\.3, got \[4\]"):
            draw_comparison(clip, tmp_path / "a.png", frames=[4])
        with pytest.raises(ValueError, match="at least one result"):
            draw_comparison(Clip("x", clip.frames, None, []), tmp_path / "a.png")

    def test_the_figure_of_the_readme(self, tmp_path):
        with Image.open(ROOT / "docs" / "images" / "hero.png") as image:
            assert 600 * image.width / 1000 > image.height, "at most 600 pixels high at a width of 1000"
        hero = runpy.run_path(str(ROOT / "docs" / "figures" / "hero.py"))
        from fewtokens.video import synthetic

        path = hero["draw_hero"](tmp_path / "hero.png", synthetic("static", frames=4, size=(64, 96)), "Synthetic clip")
        assert path.stat().st_size > 10_000


class TestColors:
    def test_methods_of_this_package_have_fixed_and_different_looks(self):
        styles = method_styles(registry.names())
        looks = {(style["color"], style["marker"]) for style in styles.values()}
        assert len(looks) == len(styles)
        for name, style in styles.items():
            assert method_color(name) == style["color"] == method_styles([name, "another"])[name]["color"]
        assert all(styles[name]["linestyle"] == "--" for name in registry.BASELINES)

    def test_arguments_keep_the_color(self):
        styles = method_styles(["tome", "tome(keep=0.1)", "tome(keep=0.2)"])
        assert len({style["color"] for style in styles.values()}) == 1
        assert len({(style["marker"], style.get("markerfacecolor")) for style in styles.values()}) == 3

    def test_unknown_names_get_free_looks(self):
        names = [f"m{n}" for n in range(20)]
        styles = method_styles([*names, *registry.names()])
        assert len({(style["color"], style["marker"]) for style in styles.values()}) == len(styles)

    def test_no_plot_picks_colors_of_methods_itself(self):
        for folder in DRAWING:
            for path in (ROOT / folder).rglob("*.py"):
                text = path.read_text(encoding="utf-8")
                assert not re.search(r"tab10|tab20|set_prop_cycle", text), path


class TestPlots:
    def plot(self, tmp_path, monkeypatch):
        pyplot = pytest.importorskip("matplotlib.pyplot")
        from fewtokens.show.plots import draw_trade_off

        figures = []
        monkeypatch.setattr(pyplot, "close", figures.append)
        rows = [{"method": "all", "keep": 1.0, "tokens": 90, "total_ms": 9, "psnr_db": 50.0}]
        rows += [
            {"method": name, "keep": keep, "tokens": 90 * keep, "total_ms": 9 * keep, "psnr_db": 9.0 + keep}
            for name in ("random", "tome", "kmeans")
            for keep in (0.1, 0.5)
        ]
        path = tmp_path / "psnr_db.png"
        draw_trade_off(rows, "psnr_db", path, baselines=("random",), full="all", caption="3 clips, encoder patches.")
        return figures[0], path

    def test_title_units_and_caption(self, tmp_path, monkeypatch):
        figure, _ = self.plot(tmp_path, monkeypatch)
        assert figure.get_suptitle() == "Frames rebuilt from few tokens"
        assert figure.get_supxlabel().startswith("3 clips, encoder patches. Budgets: 10 %, 50 %.")
        assert [axis.get_xlabel() for axis in figure.axes] == [
            "tokens kept (% of all, mean)",
            "time from frames to tokens (ms, mean)",
        ]
        assert figure.axes[0].get_ylabel() == "PSNR (dB)"

    def test_methods_have_their_colors(self, tmp_path, monkeypatch):
        figure, _ = self.plot(tmp_path, monkeypatch)
        lines = {line.get_label(): line for line in figure.axes[1].get_lines()}
        for name in ("random", "tome", "kmeans"):
            assert lines[name].get_color() == method_color(name)

    def test_svg_next_to_png_and_equal_files_for_equal_figures(self, tmp_path, monkeypatch):
        _, path = self.plot(tmp_path, monkeypatch)
        svg = path.with_suffix(".svg").read_bytes()
        assert svg.startswith(b"<?xml") and path.stat().st_size > 1000
        monkeypatch.undo()
        (tmp_path / "again").mkdir()
        _, again = self.plot(tmp_path / "again", monkeypatch)
        assert again.with_suffix(".svg").read_bytes() == svg

    def test_curves(self, tmp_path):
        pytest.importorskip("matplotlib")
        from fewtokens.train.curves import draw_curves

        metrics = [{"step": n, "loss": math.exp(-n), "lr": 0.1, "exact_match": 10.0 * n} for n in range(5)]
        path = draw_curves(metrics, tmp_path / "curves.png", title="A run")
        text = path.with_suffix(".svg").read_text()
        assert path.is_file() and "<svg" in text

    def test_every_plot_is_saved_with_title_and_caption(self):
        """No code of the project saves a figure except `save_plot`, and its calls name title and caption."""
        for folder in DRAWING:
            for path in (ROOT / folder).rglob("*.py"):
                tree = ast.parse(path.read_text(encoding="utf-8"))
                for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
                    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
                    keywords = {keyword.arg for keyword in call.keywords}
                    if name == "savefig":
                        assert path.name == "plots.py" and path.parent.name == "show", path
                    if name in ("save_plot", "draw_strips", "draw_contact_sheet"):
                        assert {"title", "caption"} <= keywords, (path, call.lineno)
