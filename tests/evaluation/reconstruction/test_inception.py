"""Inception v3 of FID: names and shapes of the published file, its differences from torchvision's, resizing."""

from __future__ import annotations

import pytest
import torch

from fewtokens.evaluation.reconstruction.frechet import frechet_distance, rfid
from fewtokens.evaluation.reconstruction.inception import InceptionV3, _resize
from tests.evaluation.reconstruction.test_frechet import clips, protocol


@pytest.fixture(scope="module")
def network() -> InceptionV3:
    torch.manual_seed(0)
    return InceptionV3().eval()


def test_parameters_are_those_of_the_published_network(network):
    """Inception v3 has 21,785,568 parameters in its convolutions and normalizations (23,851,784 with its classifier of
    1000 classes in torchvision, which also has an auxiliary one)."""
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 8, 9, dtype=torch.uint8)).shape == (1, 2048)
    names = network.state_dict().keys()
    assert sum(each.numel() for each in network.parameters()) == 21_785_568
    assert sum(name.endswith("conv.weight") for name in names) == 94
    for name, shape in {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_6a.branch3x3dbl_3.bn.running_var": (96,),
        "Mixed_6c.branch7x7dbl_4.conv.weight": (160, 160, 7, 1),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7c.branch3x3dbl_3a.conv.weight": (384, 384, 1, 3),
        "Mixed_7c.branch_pool.conv.weight": (192, 2048, 1, 1),
    }.items():
        assert tuple(network.state_dict()[name].shape) == shape


def test_resizing_is_that_of_tensorflow_1():
    """A ramp of 4 pixels to 8: positions 0, 0.5, 1, ..., and the last pixel repeats; no half-pixel offset."""
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    expected = torch.tensor([0, 0.5, 1, 1.5, 2, 2.5, 3, 3])
    assert torch.equal(_resize(ramp, 8), expected.expand(1, 1, 8, 8))
    assert torch.equal(_resize(ramp.mT, 8), expected[:, None].expand(1, 1, 8, 8))
    assert torch.equal(_resize(ramp, 2), torch.tensor([0.0, 2]).expand(1, 1, 2, 2))


@torch.no_grad()
def test_pooling_of_the_last_two_blocks(network):
    """The last channels are those of the pooled branch: the mean of the pixels inside, then the largest."""
    for block, inputs, pool in ((network.Mixed_7b, 1280, torch.mean), (network.Mixed_7c, 2048, torch.amax)):
        x = torch.rand(1, inputs, 3, 4)
        pooled = torch.stack(
            [
                torch.stack([pool(x[0, :, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2], (1, 2)) for j in range(4)], 1)
                for i in range(3)
            ],
            1,
        )
        assert block.branch_pool is not None
        y = block(x)
        assert y.shape == (1, 2048, 3, 4)
        torch.testing.assert_close(y[:, -192:], block.branch_pool(pooled[None]))


def test_a_state_dict_is_a_file_for_rfid(network, tmp_path, monkeypatch):
    weights = dict(network.state_dict()) | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save(weights, tmp_path / "inception.pth")
    loaded = []

    def colors(self, images):
        assert images.dtype == torch.uint8
        loaded.append(self)
        return images.float().mean((2, 3))

    monkeypatch.setattr(InceptionV3, "forward", colors)
    videos = clips(8, frames=2)
    result = rfid([(videos, 1 - videos)], protocol(videos), tmp_path / "inception.pth")
    a, b = ((x.flatten(0, 1) * 255).round().mean((2, 3)) for x in (videos, 1 - videos))
    assert result.value == pytest.approx(frechet_distance(a, b), rel=1e-5)
    assert (result.samples, result.dim) == (16, 3) and not loaded[0].training
    name = "Mixed_6b.branch7x7_2.conv.weight"
    assert torch.equal(loaded[0].state_dict()[name], weights[name])
