"""Fréchet distances against closed forms and scipy, and networks that stand for the published ones."""

from __future__ import annotations

import dataclasses
import hashlib
import math

import pytest
import torch
from torch import Tensor, nn

from fewtokens.evaluation.reconstruction.frechet import (
    Random3D,
    frechet_distance,
    frechet_random3d,
    rfid,
    rfvd,
)
from fewtokens.evaluation.reconstruction.protocol import Protocol
from fewtokens.evaluation.reconstruction.weights import MissingWeights, hash_weights
from tests.evaluation.reconstruction.scenes import moving_texture


def normal(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def exact(n: int, dim: int) -> Tensor:
    """Samples whose mean is exactly 0 and whose covariance is exactly the identity."""
    x = normal(n, dim).double()
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T


def test_equal_features_have_distance_zero():
    x = normal(200, 16)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x[torch.randperm(200)]) == pytest.approx(0, abs=1e-9)


def test_shifts_and_scales_have_their_closed_form():
    """Between N(0,I) and N(m,s²I) in D dimensions: |m|² + D (s-1)²."""
    x = exact(100, 8)
    shift = torch.linspace(-1, 2, 8).double()
    assert frechet_distance(x, x + shift) == pytest.approx(float(shift.square().sum()), abs=1e-9)
    assert frechet_distance(x, 3 * x + shift) == pytest.approx(float(shift.square().sum()) + 8 * 4, abs=1e-8)
    sampled = frechet_distance(normal(20_000, 8), normal(20_000, 8, seed=1) + shift)
    assert sampled == pytest.approx(float(shift.square().sum()), rel=0.02)


def test_as_the_matrix_square_root_of_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    a, b = normal(60, 12) @ normal(12, 12, seed=2), normal(50, 12, seed=1) @ normal(12, 12, seed=3) + 0.3
    s, t = (x.double().T.cov().numpy() for x in (a, b))
    expected = float((a.double().mean(0) - b.double().mean(0)).square().sum())
    expected += (s + t - 2 * linalg.sqrtm(s @ t).real).trace()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)


def test_too_few_samples_need_shrinkage():
    a, b = normal(10, 16), normal(40, 16, seed=1) + 1
    with pytest.raises(ValueError, match="10 samples do not determine a covariance of 16 dimensions"):
        frechet_distance(a, b)
    assert math.isfinite(frechet_distance(a, b, shrinkage=0))
    # Completely shrunk, both covariances are multiples u and v of the identity: |m|² + D (√u - √v)².
    u, v = (float(x.double().T.cov().trace()) / 16 for x in (a, b))
    shift = float((a.double().mean(0) - b.double().mean(0)).square().sum())
    expected = shift + 16 * (math.sqrt(u) - math.sqrt(v)) ** 2
    assert frechet_distance(a, b, shrinkage=1) == pytest.approx(expected, rel=1e-9)
    for wrong, message in [
        ((a, b[:, :8], None), r"\[n,D\] and \[m,D\]"),
        ((a[:1], b, None), "at least 2 samples"),
        ((a, b, 1.5), "shrinkage must be in 0..1"),
        ((a / 0, b, 0.5), "not finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            frechet_distance(wrong[0], wrong[1], shrinkage=wrong[2])


def clips(n: int = 12, frames: int = 5, size: int = 16) -> Tensor:
    return torch.stack([moving_texture(frames, size, size, seed) for seed in range(n)])


def protocol(videos: Tensor, **changes) -> Protocol:
    n, t, _, h, w = videos.shape
    record = Protocol("moving textures", n, t, h, w, fps=25, crop="none")
    return dataclasses.replace(record, **changes)


def test_random_features_order_distortions():
    videos = clips()
    noise = torch.randn(videos.shape, generator=torch.Generator().manual_seed(0))
    shuffled = videos[:, [2, 0, 3, 1, 4]]  # same frames, other motion

    def distance(other: Tensor, seed: int = 0) -> float:
        return frechet_random3d([(videos, other)], protocol(videos), dim=8, seed=seed).value

    assert distance(videos) == pytest.approx(0, abs=1e-9)
    assert 0 < distance(videos + 0.02 * noise) < distance(videos + 0.05 * noise) < distance(videos + 0.2 * noise)
    assert distance(shuffled) > 1e-4
    assert distance(videos * 9 - 4) == distance((videos * 9 - 4).clamp(0, 1)) > 0  # clamped
    assert distance(shuffled, seed=1) != distance(shuffled)


def test_the_result_has_the_record_and_does_not_depend_on_the_batches():
    videos, other = clips(), clips().flip(-1)
    whole = frechet_random3d([(videos, other)], protocol(videos), dim=8)
    parts = [(videos[:5], other[:5]), (videos[5:], other[5:])]
    assert frechet_random3d(parts, protocol(videos), dim=8).value == pytest.approx(whole.value, rel=1e-5)
    assert whole.name == "frechet_random3d" and (whole.samples, whole.dim) == (12, 8)
    record = dataclasses.asdict(whole)["protocol"]
    assert record["extractor"] == "random3d(dim=8, seed=0)"
    assert record["extractor_hash"] == hash_weights(Random3D(8)) != hash_weights(Random3D(8, seed=1))
    assert record["split"] == "moving textures" and record["first_frame"] == "kept"


def test_the_first_frame_is_dropped_where_the_record_says_so():
    videos = clips()
    changed = torch.cat([1 - videos[:, :1], videos[:, 1:]], 1)
    record = protocol(videos, frames=4, first_frame="dropped")
    assert frechet_random3d([(videos, changed)], record, dim=8).value == pytest.approx(0, abs=1e-9)
    assert frechet_random3d([(videos, changed)], protocol(videos), dim=8).value > 1e-3


def test_clips_that_are_not_those_of_the_record():
    videos = clips(4)
    for record, message in [
        (protocol(videos, clips=5), "states 5 clips, got 4"),
        (protocol(videos, height=32), r"states clips of shape \[5, 3, 32, 16\], got \[5, 3, 16, 16\]"),
        (protocol(videos, first_frame="dropped"), "the first of which is dropped"),
    ]:
        with pytest.raises(ValueError, match=message):
            frechet_random3d([(videos, videos)], record, dim=4)
    with pytest.raises(ValueError, match="'kept' or 'dropped'"):
        protocol(videos, first_frame="ignored")


class I3D(nn.Module):
    """Stands for the published network: size and range of what it gets, as features."""

    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        assert not rescale and not resize and return_features
        size = torch.tensor([x.shape[1], x.shape[2], x.shape[3], x.shape[4]], dtype=x.dtype).expand(x.shape[0], 4)
        flat = x.flatten(1)
        return torch.cat([size, flat.mean(1, keepdim=True), flat.amax(1, keepdim=True)], 1)


class Inception(nn.Module):
    def forward(self, x: Tensor, return_features: bool) -> Tensor:
        assert x.dtype == torch.uint8 and return_features
        return x.float().mean((2, 3))


def test_published_networks_are_read_from_a_file(tmp_path):
    videos, path = clips(8, frames=9), tmp_path / "i3d.pt"
    torch.jit.script(I3D()).save(str(path))
    brighter = videos * 0.5 + 0.5
    result = rfvd([(videos, brighter)], protocol(videos), path)
    resized = nn.functional.interpolate(videos.flatten(0, 1), size=(224, 224), mode="bilinear")
    x = (resized.reshape(8, 9, 3, 224, 224) * 2 - 1).flatten(1)

    def features(x: Tensor) -> Tensor:
        size = torch.tensor([3.0, 9, 224, 224]).expand(8, 4)
        return torch.cat([size, x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)

    expected = frechet_distance(features(x), features(x * 0.5 + 0.5))
    assert result.value == pytest.approx(expected, rel=1e-3)
    assert result.name == "rfvd" and result.protocol.extractor == "i3d"
    assert result.protocol.extractor_hash == hashlib.sha256(path.read_bytes()).hexdigest()

    path = tmp_path / "inception.pt"
    torch.jit.script(Inception()).save(str(path))
    result = rfid([(videos, brighter)], protocol(videos), path)
    colors = (videos.flatten(0, 1) * 255).round().mean((2, 3)), (brighter.flatten(0, 1) * 255).round().mean((2, 3))
    assert result.value == pytest.approx(frechet_distance(*colors), rel=1e-6)
    assert (result.name, result.samples, result.dim) == ("rfid", 72, 3)


def test_missing_weights_have_a_name(tmp_path):
    videos = clips(4, frames=9)
    wrong = tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(1)}, wrong)
    for measure, words, other in [
        (rfvd, "rfvd requires the TorchScript file of I3D", "is not a TorchScript file"),
        (rfid, "rfid requires Inception of 2015", "is not Inception v3 of FID; missing"),
    ]:
        for weights, reason in [(None, "passed as weights$"), (tmp_path / "x.pt", "does not exist"), (wrong, other)]:
            with pytest.raises(MissingWeights, match=f"{words}.*{reason}"):
                measure([(videos, videos)], protocol(videos), weights)
    torch.jit.script(I3D()).save(str(wrong))
    with pytest.raises(ValueError, match="9 frames or more, the protocol has 8"):
        rfvd([(videos[:, :8], videos[:, :8])], protocol(videos[:, :8]), wrong)
