"""Rate-distortion plots: quality against bits per pixel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fewtokens.core.keys import heading
from fewtokens.evaluation.reconstruction.rate_distortion import RatePoint
from fewtokens.show.colors import method_styles
from fewtokens.show.plots import pad_log_axis, save_plot

# Label with unit of each measure.
_UNITS = {
    "psnr": "PSNR (dB), mean over frames",
    "psnr_clip": "PSNR (dB) of the error of a clip",
    "ssim": "SSIM (at most 1)",
    "ms_ssim": "MS-SSIM (0 to 1)",
    "temporal_error": "error of frame differences (lower is better)",
    "flicker": "extra error at seams (lower is better)",
    "lpips": "LPIPS (lower is better)",
}
# Codecs and baselines of reconstruction, which every plot shows in gray.
_GRAYS = {
    "x264": ("#1b1b1b", "o", "--"),
    "x265": ("#1b1b1b", "s", ":"),
    "jpeg": ("#6b7280", "^", "--"),
    "area_pooling": ("#8a8a8a", "D", "--"),
    "mean_frame": ("#8a8a8a", "P", "--"),
    "repeat_first": ("#8a8a8a", "X", "--"),
    "mean_color": ("#8a8a8a", "v", "--"),
}


def draw_rate_distortion(
    points: Sequence[RatePoint],
    metric: str,
    path: Path,
    *,
    title: str = "Reconstruction at equal bits",
    caption: str = "",
) -> Path | None:
    """Plots a measure against bits per pixel, one line per name.

    Returns None if no point has the measure or matplotlib is missing. Codecs and baselines are gray, tokenizers have
    their colors. A single point is a marker.

    Args:
        points: of all curves.
        metric: a key of their measures.
        path: of the PNG; an SVG of the same name is written next to it.
        title: of the plot.
        caption: below the plot: clips, size, what the bits include.
    """
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    curves: dict[str, list[RatePoint]] = {}
    for point in sorted(points, key=lambda point: point.bits_per_pixel):
        if metric in point.metrics:
            curves.setdefault(point.name, []).append(point)
    if not curves:
        return None
    styles = method_styles(curves)
    figure, axis = plt.subplots(figsize=(9, 5.6), layout="constrained")
    for name in sorted(curves, key=lambda name: (name in _GRAYS, name)):
        style = styles[name]
        if name in _GRAYS:
            color, marker, line = _GRAYS[name]
            style = {"color": color, "marker": marker, "linestyle": line, "markersize": 5}
        if len(curves[name]) == 1:
            style = style | {"linestyle": "none"}
        rates = [point.bits_per_pixel for point in curves[name]]
        axis.plot(rates, [point.metrics[metric] for point in curves[name]], label=name, linewidth=1.6, **style)
    axis.set(xscale="log", xlabel="bits per pixel", ylabel=_UNITS.get(metric, heading(metric)))
    pad_log_axis(axis, [point.bits_per_pixel for curve in curves.values() for point in curve])
    axis.grid(alpha=0.25, which="both")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    save_plot(figure, path, title=title, caption=caption)
    plt.close(figure)
    return path
