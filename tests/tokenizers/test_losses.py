"""Losses of tokenizers against independent formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from fewtokens.encoders import load_encoder
from fewtokens.encoders.vit_encoder import VitEncoder
from fewtokens.tokenizers.losses import Discriminator, Lpips, Perceptual, adaptive_weight, gram, pixel_loss
from tests.helpers.vits import small_vit


def frames(seed: int = 0, size: int = 16) -> torch.Tensor:
    return torch.rand(2, 2, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class TestPixels:
    def test_formulas(self):
        a, b = frames(0), frames(1)
        d = a - b
        assert torch.isclose(pixel_loss("l1", a, b), d.abs().mean())
        assert torch.isclose(pixel_loss("l2", a, b), (d * d).mean())
        assert torch.isclose(pixel_loss("charbonnier", a, b), (d * d + 1e-6).sqrt().mean())

    def test_logit_laplace_is_a_density(self):
        """exp(-loss) integrates to 1 over the mapped pixels, for any decoded value."""
        mapped = torch.linspace(1e-4, 1 - 1e-4, 200_001, dtype=torch.float64)
        target = (mapped - 0.1) / 0.8 * 2 - 1
        for decoded in (-0.5, 0.0, 0.7):
            losses = torch.stack([pixel_loss("logit_laplace", torch.tensor([decoded]), t[None]) for t in target[::400]])
            assert float(torch.trapezoid((-losses).exp(), mapped[::400])) == pytest.approx(1, abs=2e-2)

    def test_logit_laplace_has_its_minimum_at_the_target(self):
        target = torch.tensor([0.4])
        decoded = torch.linspace(-1, 1, 401)
        losses = torch.stack([pixel_loss("logit_laplace", x[None], target) for x in decoded])
        best = float(decoded[losses.argmin()])
        assert best == pytest.approx(math.log(0.66 / 0.34) / 2, abs=0.01)


def vgg(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors, channels, index = {}, 3, 0
    for stage in ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3):
        for width in stage:
            tensors[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3, generator=generator) * 0.05
            tensors[f"features.{index}.bias"] = torch.zeros(width)
            channels, index = width, index + 2
        index += 1  # pooling
    for stage, width in enumerate((64, 128, 256, 512, 512)):
        tensors[f"lin{stage}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=generator)
    return tensors


class TestPerceptual:
    def test_lpips_recomputed(self, tmp_path):
        tensors = vgg()
        path = tmp_path / "lpips.safetensors"
        save_file(tensors, path)
        a, b = frames(0, 32)[0], frames(1, 32)[0]
        shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
        scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
        x, y = (a - shift) / scale, (b - shift) / scale
        expected, index = 0.0, 0
        for stage, depth in enumerate((2, 2, 3, 3, 3)):
            if stage:
                x, y, index = F.max_pool2d(x, 2), F.max_pool2d(y, 2), index + 1
            for _ in range(depth):
                weight, bias = tensors[f"features.{index}.weight"], tensors[f"features.{index}.bias"]
                x, y = (F.conv2d(z, weight, bias, padding=1).relu() for z in (x, y))
                index += 2
            d = (F.normalize(x, dim=1, eps=1e-10) - F.normalize(y, dim=1, eps=1e-10)) ** 2
            expected = expected + F.conv2d(d, tensors[f"lin{stage}.model.1.weight"]).mean()
        distance, grams = Lpips(path)(a, b)
        torch.testing.assert_close(distance, expected)
        assert float(grams.detach()) > 0
        assert float(Lpips(path)(a, a)[0]) == 0

    def test_an_encoder(self, tmp_path):
        folder = VitEncoder(small_vit(), name="small").save_pretrained(tmp_path / "vit")
        perceptual = Perceptual(str(folder))
        decoded = frames(0, 32).requires_grad_()
        distance, grams = perceptual(decoded, frames(1, 32))
        features = [load_encoder(folder, device="cpu")((x + 1) / 2)[0].features for x in (decoded, frames(1, 32))]
        torch.testing.assert_close(distance, 1 - F.cosine_similarity(*features, dim=-1).mean())
        (distance + grams).backward()
        assert float(decoded.grad.abs().sum()) > 0
        assert not any(p.requires_grad for p in perceptual.parameters())

    def test_missing_tensors_are_named(self, tmp_path):
        tensors = vgg()
        del tensors["lin3.model.1.weight"]
        save_file(tensors, tmp_path / "lpips.safetensors")
        with pytest.raises(ValueError, match="missing: lin3"):
            Perceptual(str(tmp_path / "lpips.safetensors"))

    def test_a_pickle_runs_no_code(self, tmp_path):
        path = tmp_path / "lpips.pth"
        torch.save({"x": pytest.approx}, path)
        with pytest.raises(ValueError, match="not a file of tensors"):
            Perceptual(str(path))

    def test_gram(self):
        x = torch.randn(2, 5, 3)
        torch.testing.assert_close(gram(x), torch.einsum("bnc,bnd->bcd", x, x) / 5)


class TestDiscriminator:
    def test_each_loss_trains_one_network(self):
        discriminator = Discriminator(4)
        decoded = frames(0, 32).requires_grad_()
        discriminator.generator_loss(decoded).backward()
        assert decoded.grad is not None
        assert all(p.grad is None for p in discriminator.parameters())
        decoded.grad = None
        discriminator.own_loss(decoded, frames(1, 32), 0.1).backward()
        assert decoded.grad is None
        assert all(p.grad is not None for p in discriminator.parameters())

    def test_it_learns_to_tell_noise_from_flat_frames(self):
        torch.manual_seed(0)
        discriminator = Discriminator(4)
        optimizer = torch.optim.Adam(discriminator.parameters(), 1e-2)
        flat = torch.zeros(2, 1, 3, 32, 32)
        for _ in range(30):
            loss = discriminator.own_loss(frames(0, 32)[:, :1], flat)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert float(discriminator(flat).mean()) > 0.5 > -0.5 > float(discriminator(frames(2, 32)[:, :1]).mean())

    def test_lecam_pulls_toward_the_other_mean(self):
        discriminator = Discriminator(4)
        with torch.no_grad():
            discriminator.layers[-1].weight.zero_()
            discriminator.layers[-1].bias.fill_(0.5)
        discriminator.mean_real.fill_(2.0)
        discriminator.mean_decoded.fill_(-1.0)
        loss = discriminator.own_loss(frames(0, 32), frames(1, 32), lecam=1.0, decay=1.0)
        hinge = (0.5 + 1.5) / 2
        assert float(loss) == pytest.approx(hinge + (0.5 + 1) ** 2 + (2 - 0.5) ** 2)

    def test_the_adaptive_weight_equals_gradients(self):
        last = torch.ones(3, requires_grad=True)
        weight = adaptive_weight((last * 5).sum(), (last.square()).sum(), last)
        assert float(weight) == pytest.approx(5 / 2, rel=1e-3)
