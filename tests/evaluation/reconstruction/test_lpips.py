"""LPIPS with files in the layout of torchvision and of the package lpips, against a calculation in functions."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.evaluation.reconstruction.lpips import Lpips, lpips
from fewtokens.evaluation.reconstruction.weights import MissingWeights

# Index in "features", input channels, channels, kernel: AlexNet of torchvision.
ALEX = ((0, 3, 64, 11), (3, 64, 192, 5), (6, 192, 384, 3), (8, 384, 256, 3), (10, 256, 256, 3))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """Random weights in the published layout."""
    generator = torch.Generator().manual_seed(0)
    backbone: dict[str, Tensor] = {"classifier.1.weight": torch.zeros(2, 2)}
    heads = {}
    for number, (index, inputs, outputs, kernel) in enumerate(ALEX):
        scale = (2 / (inputs * kernel**2)) ** 0.5
        backbone[f"features.{index}.weight"] = scale * torch.randn(outputs, inputs, kernel, kernel, generator=generator)
        backbone[f"features.{index}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
        heads[f"lin{number}.model.1.weight"] = torch.rand(1, outputs, 1, 1, generator=generator)
    folder = tmp_path_factory.mktemp("lpips")
    torch.save(backbone, folder / "alexnet.pth")
    torch.save(heads, folder / "alex.pth")
    return folder / "alexnet.pth", folder / "alex.pth"


def images(n: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, 3, 64, 71, generator=generator)
    return x, (x + 0.2 * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def features(x: Tensor, weights: dict[str, Tensor]) -> list[Tensor]:
    """The input is -1..1 with the shift and scale of the package lpips."""
    x = (2 * x - 1 - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor([0.458, 0.448, 0.450])[
        :, None, None
    ]
    layers = []
    for number, (index, _, _, kernel) in enumerate(ALEX):
        x = F.max_pool2d(x, 3, 2) if number in (1, 2) else x
        weight, bias = weights[f"features.{index}.weight"], weights[f"features.{index}.bias"]
        x = F.conv2d(x, weight, bias, stride=4 if number == 0 else 1, padding=kernel // 2 if kernel < 11 else 2).relu()
        layers.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
    return layers


def test_as_the_published_formula(files):
    x, y = images()
    backbone, heads = (torch.load(path, weights_only=True) for path in files)
    expected = sum(
        ((a - b) ** 2 * heads[f"lin{n}.model.1.weight"]).sum(1).mean((1, 2))
        for n, (a, b) in enumerate(zip(features(x, backbone), features(y, backbone), strict=True))
    )
    model = Lpips.load(*files)
    torch.testing.assert_close(model(x, y), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(y, x), expected, rtol=1e-5, atol=1e-6)
    assert model(x, x).tolist() == [0, 0]
    assert (model(x, (x + y) / 2) < model(x, y)).all()


def test_videos_are_the_mean_over_frames(files):
    model = Lpips.load(*files)
    x, y = images(6)
    videos = lpips(x.reshape(2, 3, 3, 64, 71), y.reshape(2, 3, 3, 64, 71) + 0, model)
    torch.testing.assert_close(videos, model(x, y).double().reshape(2, 3).mean(1))
    torch.testing.assert_close(lpips(x[None], x[None] * 0 + 5, model), lpips(x[None], x[None] * 0 + 1, model))


def test_it_is_a_loss_with_frozen_weights(files):
    model = Lpips.load(*files)
    x, y = images()
    y.requires_grad_()
    model(x, y).sum().backward()
    assert y.grad is not None and y.grad.abs().sum() > 0
    assert all(not each.requires_grad for each in model.parameters())


def test_vgg_has_the_names_and_shapes_of_torchvision(files):
    """VGG-16 of torchvision: 13 convolutions at these indices of "features"."""
    indices = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    model = Lpips("vgg")
    assert {name for name in model.features.state_dict() if name.endswith("weight")} == {f"{i}.weight" for i in indices}
    assert sum(each.numel() for each in model.features.parameters()) == 14_714_688
    assert sum(each.numel() for each in Lpips("alex").features.parameters()) == 2_469_696
    with pytest.raises(MissingWeights, match="not of the network vgg; missing"):
        Lpips.load(*files, network="vgg")


def test_missing_weights_have_a_name(files, tmp_path):
    backbone, heads = files
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no weights")
    tensors = tmp_path / "heads.safetensors"
    safetensors.torch.save_file(torch.load(heads, weights_only=True), tensors)
    assert torch.equal(Lpips.load(backbone, tensors)(*images()), Lpips.load(backbone, heads)(*images()))
    for arguments, message in [
        ((None, heads), "LPIPS requires the weights of torchvision's alex, passed as backbone"),
        ((backbone, None), "requires weights/v0.1/alex.pth of the package lpips, passed as heads"),
        ((tmp_path / "x.pth", heads), "does not exist"),
        ((broken, heads), "is not a file of weights"),
        ((heads, heads), "is not of the network alex; missing: 0.bias"),
        ((backbone, backbone), "is not of the network alex; missing: 0, 1"),
    ]:
        with pytest.raises(MissingWeights, match=message):
            Lpips.load(*arguments)
    with pytest.raises(ValueError, match="network must be one of alex, vgg"):
        Lpips("squeeze")  # type: ignore[arg-type]
    x, y = images()
    for a, b, message in [(x, y[:1], "equal shape"), (x[..., :20], y[..., :20], "at least 32 pixels, got 20x64")]:
        with pytest.raises(ValueError, match=message):
            Lpips()(a, b)
