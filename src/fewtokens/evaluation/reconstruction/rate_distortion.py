"""Rate and quality of tokenizers and codecs: rows of a table, and the mean difference in rate at equal quality."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class RatePoint:
    """One setting of a tokenizer, codec or baseline, as a mean over clips.

    Attributes:
        name: of the curve, such as "x264" or the preset of a tokenizer.
        bits_per_pixel: bits of a clip divided by T·H·W.
        metrics: measures by name, such as those of `evaluate`.
        label: of the setting, such as "crf=28".
    """

    name: str
    bits_per_pixel: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    label: str = ""

    def __post_init__(self) -> None:
        if not (self.bits_per_pixel > 0 and math.isfinite(self.bits_per_pixel)):
            raise ValueError(f"{self.name}: bits per pixel must be above 0, got {self.bits_per_pixel}")


def bd_rate(reference: Sequence[RatePoint], points: Sequence[RatePoint], metric: str = "psnr") -> float:
    """Mean difference in rate at equal quality, in percent: -20 saves a fifth of the bits of the reference.

    Bjontegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33, 2001, with piecewise cubic
    interpolation (PCHIP) of the logarithm of the rate over the quality instead of one polynomial, as in JVET's
    common test conditions. The mean is over the qualities that both curves reach.

    Args:
        reference, points: at least two points of each curve. Their quality must increase with the rate.
        metric: name of the measure; higher is better.

    Raises:
        ValueError: fewer than two points, a point without the measure, quality that does not increase with the rate,
            no common quality, or scipy is missing.
    """
    try:
        from scipy.interpolate import PchipInterpolator
    except ImportError:
        raise ValueError("BD-rate requires scipy; install it with pip install 'fewtokens[eval]'") from None

    curves = [_curve(reference, metric), _curve(points, metric)]
    low = max(quality[0] for quality, _ in curves)
    high = min(quality[-1] for quality, _ in curves)
    if low >= high:
        ranges = " and ".join(f"{quality[0]:g}..{quality[-1]:g}" for quality, _ in curves)
        raise ValueError(f"the curves have no {metric} in common: {ranges}")
    means = [PchipInterpolator(*curve).integrate(low, high) / (high - low) for curve in curves]
    return float(100 * math.expm1(means[1] - means[0]))


def rate_rows(
    points: Sequence[RatePoint], *, reference: str = "x264", metric: str = "psnr"
) -> list[dict[str, str | float | None]]:
    """The rows of a table: one per point, sorted by curve and rate, with the BD-rate of its curve.

    Args:
        points: of all curves.
        reference: name of the curve that BD-rates refer to.
        metric: of the BD-rate; higher is better.

    Returns:
        Rows with "name", "label", "bits_per_pixel", the measures, "bd_rate" (percent) and "bd_note", why a curve
        has no BD-rate (else "").
    """
    curves: dict[str, list[RatePoint]] = {}
    for point in points:
        curves.setdefault(point.name, []).append(point)
    rows: list[dict[str, str | float | None]] = []
    for name, curve in curves.items():
        rate, note = None, ""
        try:
            if reference not in curves:
                raise ValueError(f"there are no points of {reference}")
            rate = bd_rate(curves[reference], curve, metric)
        except ValueError as error:
            note = str(error)
        for point in sorted(curve, key=lambda point: point.bits_per_pixel):
            row: dict[str, str | float | None] = {"name": name, "label": point.label}
            row |= {"bits_per_pixel": point.bits_per_pixel, **point.metrics}
            rows.append(row | {"bd_rate": rate, "bd_note": note})
    return rows


def _curve(points: Sequence[RatePoint], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Quality and the logarithm of the rate, by increasing rate."""
    name = points[0].name if points else "a curve"
    if len(points) < 2:
        raise ValueError(f"{name}: a BD-rate needs at least 2 points, got {len(points)}")
    if any(metric not in point.metrics for point in points):
        raise ValueError(f"{name}: a point has no {metric}")
    points = sorted(points, key=lambda point: point.bits_per_pixel)
    quality = np.array([point.metrics[metric] for point in points], dtype=np.float64)
    rate = np.log([point.bits_per_pixel for point in points])
    if not ((np.diff(quality) > 0).all() and (np.diff(rate) > 0).all()):
        raise ValueError(f"{name}: {metric} does not increase with the rate")
    return quality, rate
