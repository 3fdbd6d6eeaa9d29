"""BD-rate against cases with known answers and a reference package, rows of the table, the plot."""

from __future__ import annotations

import math

import pytest

from fewtokens.evaluation.reconstruction.rate_distortion import RatePoint, bd_rate, rate_rows

pytest.importorskip("scipy")


def curve(name: str, *pairs: tuple[float, float]) -> list[RatePoint]:
    return [RatePoint(name, rate, {"psnr": quality}) for rate, quality in pairs]


def test_equal_quality_at_a_fifth_fewer_bits():
    reference = curve("a", (0.1, 28), (0.2, 31), (0.4, 33.5), (0.8, 35))
    fewer = curve("b", *((0.8 * point.bits_per_pixel, point.metrics["psnr"]) for point in reference))
    assert bd_rate(reference, fewer) == pytest.approx(-20)
    assert bd_rate(fewer, reference) == pytest.approx(25)
    assert bd_rate(reference, reference[::-1]) == pytest.approx(0)


def test_lines_of_different_slope():
    """Rates 2^q and 4^q over the qualities 0 to 2 that both reach: the mean of the log2 of their ratio is 1."""
    reference = curve("a", *((2.0**q, q) for q in (-1, 0, 1, 2)))
    steeper = curve("b", *((4.0**q, q) for q in (0, 1, 2, 3)))
    assert bd_rate(reference, steeper) == pytest.approx(100)


def test_as_the_package_bjontegaard():
    """bjontegaard 1.3.0 (PyPI), method "pchip": -19.97385143."""
    reference = curve("a", (96, 33.1), (181, 35.6), (340, 38.2), (810, 40.9))
    better = curve("b", (77, 33.5), (150, 35.9), (301, 38.4), (640, 40.6))
    assert bd_rate(reference, better) == pytest.approx(-19.97385143, abs=1e-7)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (curve("b", (1, 30)), "b: a BD-rate needs at least 2 points, got 1"),
        ([], "at least 2 points, got 0"),
        (curve("b", (1, 30), (2, 29)), "psnr does not increase with the rate"),
        (curve("b", (1, 30), (1, 31)), "psnr does not increase"),
        (curve("b", (1, 10), (2, 12)), "no psnr in common: 28..31 and 10..12"),
        ([RatePoint("b", 1, {"psnr": 30}), RatePoint("b", 2, {"ssim": 1})], "b: a point has no psnr"),
    ],
)
def test_curves_that_cannot_be_compared(points, message):
    with pytest.raises(ValueError, match=message):
        bd_rate(curve("a", (0.1, 28), (0.2, 31)), points)


def test_a_rate_must_be_positive():
    for rate in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="bits per pixel must be above 0"):
            RatePoint("a", rate)


def test_rows_of_a_table():
    points = [
        *curve("x264", (0.2, 31), (0.1, 28)),
        *curve("vidtok", (0.1, 31), (0.05, 28)),
        RatePoint("mean_color", 0.01, {"psnr": 16, "ssim": 0.3}, label="24 bits"),
    ]
    rows = rate_rows(points)
    assert [(row["name"], row["bits_per_pixel"]) for row in rows] == [
        ("x264", 0.1), ("x264", 0.2), ("vidtok", 0.05), ("vidtok", 0.1), ("mean_color", 0.01),
    ]  # fmt: skip
    assert [row["bd_rate"] for row in rows] == pytest.approx([0, 0, -50, -50, None])
    assert rows[4] == {
        "name": "mean_color", "label": "24 bits", "bits_per_pixel": 0.01, "psnr": 16, "ssim": 0.3, "bd_rate": None,
        "bd_note": "mean_color: a BD-rate needs at least 2 points, got 1",
    }  # fmt: skip
    assert {row["bd_note"] for row in rate_rows(points, reference="x265")} == {"there are no points of x265"}


def test_the_plot_has_a_line_per_curve_in_its_own_look(tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    from fewtokens.show.rate_distortion import draw_rate_distortion

    figures = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    points = [
        *curve("x264", (0.2, 31), (0.1, 28)),
        *curve("vidtok", (0.1, 31), (0.05, 28)),
        *curve("larp", (0.07, 27)),
        RatePoint("mean_color", 0.01, {"ssim": 0.3}),
    ]
    path = draw_rate_distortion(points, "psnr", tmp_path / "psnr.png", caption="2 clips of 17x64x64.")
    assert path == tmp_path / "psnr.png" and path.stat().st_size and path.with_suffix(".svg").stat().st_size
    (axis,) = figures[0].axes
    lines = {line.get_label(): line for line in axis.get_lines()}
    assert set(lines) == {"x264", "vidtok", "larp"}
    assert list(lines["x264"].get_xdata()) == [0.1, 0.2] and list(lines["x264"].get_ydata()) == [28, 31]
    assert lines["x264"].get_linestyle() == "--" and lines["larp"].get_linestyle() == "None"
    assert len({line.get_color() for line in lines.values()}) == 3
    assert axis.get_xlabel() == "bits per pixel" and axis.get_ylabel() == "PSNR (dB), mean over frames"
    assert figures[0].get_supxlabel() == "2 clips of 17x64x64."
    assert draw_rate_distortion(points, "lpips", tmp_path / "lpips.png") is None
