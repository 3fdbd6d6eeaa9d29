"""Losses of tokenizers against independent formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from fewtokens.encoders import load_encoder
from fewtokens.encoders.vit_encoder import VitEncoder
from fewtokens.train.tokenizer_losses import Discriminator, Lpips, Perceptual, adaptive_weight, gram, pixel_loss
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


def save_vgg(folder) -> tuple[str, Lpips]:
    """The two files of LPIPS with random weights, and the network with the same weights."""
    torch.manual_seed(0)
    network = Lpips("vgg")
    for head in network.heads:
        head.data.uniform_()
    save_file({f"features.{n}": x for n, x in network.features.state_dict().items()}, folder / "vgg.safetensors")
    heads = {f"lin{n}.model.1.weight": x.data[None, :, None, None].clone() for n, x in enumerate(network.heads)}
    save_file(heads, folder / "heads.safetensors")
    return f"{folder}/vgg.safetensors,{folder}/heads.safetensors", network


class TestPerceptual:
    def test_lpips(self, tmp_path):
        weights, network = save_vgg(tmp_path)
        a, b = frames(0, 32), frames(1, 32)
        distance, grams = Perceptual(weights)(a, b)
        images = [(x.flatten(0, 1) + 1) / 2 for x in (a, b)]
        torch.testing.assert_close(distance, network(*images).mean())
        expected = 0.0
        for x, y in zip(*(network.stages(image) for image in images), strict=True):
            size = x.shape[2] * x.shape[3]
            g, h = (torch.einsum("nchw,ndhw->ncd", z, z) / size for z in (x, y))
            expected = expected + (g - h).square().mean()
        torch.testing.assert_close(grams, expected)

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

    def test_missing_weights_are_named(self, tmp_path):
        weights, _ = save_vgg(tmp_path)
        with pytest.raises(ValueError, match=r"LPIPS requires .* passed as heads"):
            Perceptual(weights.replace("heads.s", "head.s"))

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
        with torch.no_grad():
            real, noise = discriminator(flat).mean(), discriminator(frames(2, 32)[:, :1]).mean()
        assert real > 0.5 > -0.5 > noise

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

    def test_the_adaptive_weight_of_small_gradients_in_half_precision(self):
        last = torch.full((8, 8), 0.5, requires_grad=True)
        x = torch.linspace(-1, 1, 64).reshape(8, 8)

        def weight(dtype: torch.dtype) -> float:
            y = (x.to(dtype) @ last.to(dtype)).float()
            return float(adaptive_weight(y.abs().mean() * 1e-7, y.square().mean() * 1e-7, last))

        assert weight(torch.float16) == pytest.approx(weight(torch.float32), rel=0.02)

    def test_the_adaptive_weight_equals_gradients(self):
        last = torch.ones(3, requires_grad=True)
        weight = adaptive_weight((last * 5).sum(), (last.square()).sum(), last)
        assert float(weight) == pytest.approx(5 / 2, rel=1e-3)
