"""Measures of reconstructions against scipy, scikit-image, hand-made cases, and arithmetic in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewtokens.evaluation.reconstruction.lpips import Lpips, lpips
from fewtokens.evaluation.reconstruction.metrics import (
    MAX_PSNR,
    code_health,
    evaluate,
    ms_ssim,
    num_scales,
    psnr,
    seam_flicker,
    ssim,
    temporal_difference_error,
)

ndimage = pytest.importorskip("scipy.ndimage")


def videos(size: tuple[int, int] = (40, 36), frames: int = 3, noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """Two smooth random videos and the same with noise, [2,T,3,H,W] in 0..1."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2 * frames, 3, 6, 6, generator=generator)
    x = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear").reshape(2, frames, 3, *size)
    return x, (x + noise * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def similarity(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """SSIM of one channel and its contrast part, in float64 with scipy's Gaussian filter of radius 5."""
    x, y = x.astype(np.float64), y.astype(np.float64)

    def mean(image):
        return ndimage.gaussian_filter(image, 1.5, truncate=3.5)[5:-5, 5:-5]

    covariance = mean(x * y) - mean(x) * mean(y)
    variances = mean(x * x) - mean(x) ** 2 + mean(y * y) - mean(y) ** 2
    contrast = (2 * covariance + 0.0009) / (variances + 0.0009)
    full = contrast * (2 * mean(x) * mean(y) + 0.0001) / (mean(x) ** 2 + mean(y) ** 2 + 0.0001)
    return full.mean(), contrast.mean()


def test_psnr_averages_frames_or_the_error():
    x, y = videos()
    y[:, 0] = x[:, 0] + 0.5 * (y[:, 0] - x[:, 0])  # frames of different quality
    errors = ((x - y).double().numpy() ** 2).mean((2, 3, 4))
    torch.testing.assert_close(psnr(x, y).numpy(), (-10 * np.log10(errors)).mean(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(psnr(x, y, "clip").numpy(), -10 * np.log10(errors.mean(1)), rtol=0, atol=1e-5)
    assert (psnr(x, y) > psnr(x, y, "clip") + 0.1).all()


def test_an_exact_frame_leaves_the_mean_finite_and_values_are_clamped():
    x, y = videos()
    assert psnr(x, x).tolist() == [MAX_PSNR, MAX_PSNR]
    mixed = torch.cat([x[:, :1], y[:, 1:]], 1)
    torch.testing.assert_close(psnr(x, mixed), (psnr(x[:, 1:], y[:, 1:]) * 2 + MAX_PSNR) / 3)
    assert psnr(torch.ones(1, 1, 3, 16, 16), torch.full((1, 1, 3, 16, 16), 7.0)).tolist() == [MAX_PSNR]
    with pytest.raises(ValueError, match="average must be"):
        psnr(x, y, "video")  # type: ignore[arg-type]


def test_ssim_as_computed_by_scipy():
    x, y = videos()
    expected = [
        np.mean([similarity(x[b, t, c].numpy(), y[b, t, c].numpy())[0] for t in range(3) for c in range(3)])
        for b in range(2)
    ]
    assert ssim(x, y).tolist() == pytest.approx(expected, abs=1e-5)
    assert ssim(x, x).tolist() == pytest.approx([1, 1])


def test_ssim_as_scikit_image():
    structural = pytest.importorskip("skimage.metrics").structural_similarity
    x, y = videos()
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    for b in range(2):
        expected = [structural(x[b, t].numpy(), y[b, t].numpy(), channel_axis=0, **options) for t in range(3)]
        assert float(ssim(x, y)[b]) == pytest.approx(np.mean(expected), abs=1e-5)


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_ms_ssim_as_computed_by_scipy(scales):
    x, y = videos((45, 50), frames=1, noise=0.3)
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    weights = weights / weights.sum()
    expected = []
    for b in range(2):
        products = []
        for c in range(3):
            u, v, product = x[b, 0, c].numpy(), y[b, 0, c].numpy(), 1.0
            for scale, weight in enumerate(weights):
                full, contrast = similarity(u, v)
                product *= (full if scale == scales - 1 else contrast) ** weight
                H, W = (n // 2 * 2 for n in u.shape)
                u, v = (z[:H, :W].reshape(H // 2, 2, W // 2, 2).mean((1, 3)) for z in (u, v))
            products.append(product)
        expected.append(np.mean(products))
    assert ms_ssim(x, y, scales=scales).tolist() == pytest.approx(expected, abs=1e-5)


def test_ms_ssim_has_the_scales_that_fit():
    assert [num_scales(n, 500) for n in (10, 11, 21, 22, 44, 64, 128, 175, 176, 900)] == [0, 1, 1, 2, 3, 3, 4, 4, 5, 5]
    x, y = videos((45, 50), frames=1)
    torch.testing.assert_close(ms_ssim(x, y), ms_ssim(x, y, scales=3))
    torch.testing.assert_close(ms_ssim(x, y, scales=1), ssim(x, y))
    assert ms_ssim(x, 1 - x).tolist() == pytest.approx([0, 0], abs=0.05)  # negative contrast counts as 0
    with pytest.raises(ValueError, match="5 scales requires frames of at least 176 pixels, got 50x45"):
        ms_ssim(x, y, scales=5)
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(x[..., :8], y[..., :8])


def test_temporal_error_ignores_a_constant_error():
    x, _ = videos(frames=4)
    x = 0.25 + x / 2
    assert temporal_difference_error(x, x + 0.1).tolist() == pytest.approx([0, 0], abs=1e-6)
    flicker = x + torch.tensor([0.0, 0.1, 0.0, 0.1])[:, None, None, None]
    assert temporal_difference_error(x, flicker).tolist() == pytest.approx([0.1, 0.1], abs=1e-6)
    with pytest.raises(ValueError, match="at least 2 frames"):
        temporal_difference_error(x[:, :1], x[:, :1])


@pytest.mark.parametrize(("every", "first", "starts"), [(4, None, (4, 8)), (4, 5, (5, 9)), (3, 1, (1, 4, 7))])
def test_flicker_at_the_seams_of_chunks(every, first, starts):
    x = torch.full((1, 10, 3, 4, 4), 0.5)
    jump = torch.zeros(10)
    for number, start in enumerate(starts):  # each chunk has another brightness
        jump[start:] = 0.2 * (1 - number % 2)
    seams = seam_flicker(x, x + jump[:, None, None, None], every, first=first)
    assert seams.tolist() == pytest.approx([0.2], abs=1e-6)
    assert seam_flicker(x, x + 0.2, every, first=first).tolist() == pytest.approx([0], abs=1e-6)


def test_flicker_without_a_seam():
    x = torch.zeros(1, 4, 3, 4, 4)
    with pytest.raises(ValueError, match="have 0 seams in a video of 4 frames"):
        seam_flicker(x, x, 4)
    with pytest.raises(ValueError, match="have 3 seams"):
        seam_flicker(x, x, 1)
    with pytest.raises(ValueError, match="at least 1 frame"):
        seam_flicker(x, x, 0)


def test_code_health_of_known_frequencies():
    # Half 0, a quarter each 1 and 2: 1.5 bits; the second code is always 7.
    first = torch.tensor([0, 0, 1, 2]).repeat(8)
    codes = torch.stack([first, torch.full_like(first, 7)], -1).reshape(2, 16, 2)
    health = code_health(codes, (4, 8))
    assert health == pytest.approx(
        {"usage": (3 / 4 + 1 / 8) / 2, "perplexity": (2**1.5 + 1) / 2, "bits_per_token": 5, "entropy_bits": 1.5}
    )
    uniform = code_health(torch.arange(2**10)[:, None], 2**10)
    assert uniform == pytest.approx({"usage": 1, "perplexity": 1024, "bits_per_token": 10, "entropy_bits": 10})
    assert code_health(torch.tensor([[2**40]]), 2**41)["bits_per_token"] == 41  # no table of all entries


def test_codes_that_do_not_exist_have_no_bits():
    codes = torch.tensor([[0, 1], [1, -1], [0, 0], [1, -1]])
    assert code_health(codes, 2) == pytest.approx(
        {"usage": 1, "perplexity": 2, "bits_per_token": 1.5, "entropy_bits": 1.5}
    )
    assert code_health(codes[1::2], 2)["bits_per_token"] == 1
    for wrong, message in [((codes, 1), "codes must be in 0..0"), ((codes, (2, 2, 2)), "has 2 codes, got 3")]:
        with pytest.raises(ValueError, match=message):
            code_health(*wrong)
    with pytest.raises(ValueError, match="codes must be integers"):
        code_health(torch.rand(4, 2), 2)


def test_evaluate_has_stable_keys():
    x, y = videos((24, 24), frames=5)
    codes = torch.zeros(2, 4, 1, dtype=torch.long)
    report = evaluate(x, y, codes, codebook=16, chunk=2, first_chunk=3)
    assert list(report) == [
        "psnr", "psnr_clip", "ssim", "ms_ssim", "ms_ssim_scales", "temporal_error", "flicker", "usage", "perplexity",
        "bits_per_token", "entropy_bits",
    ]  # fmt: skip
    assert all(isinstance(value, float) and math.isfinite(value) for value in report.values())
    assert report["psnr"] == pytest.approx(float(psnr(x, y).mean()))
    assert report["flicker"] == pytest.approx(float(seam_flicker(x, y, 2, first=3).mean()))
    assert report["ms_ssim_scales"] == 2
    assert set(evaluate(x[0, :1, :, :8, :8], y[0, :1, :, :8, :8])) == {"psnr", "psnr_clip"}
    with pytest.raises(ValueError, match="codebook="):
        evaluate(x, y, codes)
    x, y = videos((32, 32), frames=1)
    model = Lpips().eval()
    expected = float(lpips(x, y, model).mean())
    assert expected > 0 and evaluate(x, y, perceptual=model)["lpips"] == pytest.approx(expected)


def test_videos_of_the_wrong_kind():
    x, y = videos()
    for a, b, message in [
        (x, y[:, :2], "same shape"),
        (x[0], y[0], r"\[B,T,3,H,W\]"),
        ((x * 255).byte(), (y * 255).byte(), "float in 0..1"),
        (x * 255, y * 255, "divide bytes by 255"),
        (x * 2 - 1, y * 2 - 1, r"-1..1 by \(x \+ 1\) / 2"),
        (x, y * math.nan, "not finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            psnr(a, b)


def test_flicker_is_absent_without_seams_or_without_other_frames():
    x = torch.rand(1, 5, 3, 16, 16)
    assert "flicker" in evaluate(x, x, chunk=2)
    assert all("flicker" not in evaluate(x, x, chunk=chunk) for chunk in (None, 1, 5, 8))
