"""VAT: growing scales, no order of points, the sum of scales, and the occupancy of a sphere and a box."""

from __future__ import annotations

import pytest
import torch

from fewtokens.tokenizers import create_tokenizer, get_preset
from fewtokens.tokenizers.decoders.triplane import grid_centers

# Center of the sphere; center and half sides of the box.
SPHERE, BOX, SIDES = (torch.tensor(values) for values in ((0.3, 0.3, 0.2), (-0.3, -0.3, 0.0), (0.6, 0.4, 0.6)))


def build():
    return create_tokenizer("vat", tiny=True, seed=0)


def inside(places: torch.Tensor) -> torch.Tensor:
    """Whether places [P,3] are in a sphere and in a box, bool [2,P]."""
    sphere = (places - SPHERE).norm(dim=-1) < 0.6
    box = ((places - BOX).abs() < SIDES).all(-1)
    return torch.stack([sphere, box])


def surfaces() -> torch.Tensor:
    """Points of the surfaces of both, [2,64,3]."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(64, 3, generator=generator), dim=-1)
    cube = directions / directions.abs().amax(-1, keepdim=True)
    return torch.stack([SPHERE + 0.6 * directions, BOX + cube * SIDES])


def test_scales_grow():
    with torch.device("meta"):
        published = create_tokenizer("vat")
    counts = [columns for _, columns in published.quantizer.pairs]
    assert counts == sorted(set(counts)) == [1, 4, 16, 64, 256]
    layout = published.layout(*get_preset("vat").clip)
    assert layout.tokens == 256
    assert layout.bits == 12 * sum(counts)
    tokenizer = build().eval()
    tokens = tokenizer.encode(surfaces())
    assert (tokens.codes >= 0).sum(1).tolist() == [[1, 4, 16]] * 2
    assert tokenizer.bits(tokens).tolist() == [6 * 21] * 2


def test_the_order_of_points_does_not_matter():
    tokenizer = build().eval()
    points = surfaces()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    tokens, other = tokenizer.encode(points), tokenizer.encode(points[:, order])
    torch.testing.assert_close(other.features, tokens.features, atol=1e-5, rtol=1e-5)
    assert torch.equal(other.codes, tokens.codes)


def test_features_are_the_sum_of_scales():
    """What each scale adds, alone, sums up to the features: there is no projection after the sum."""
    tokenizer = build().eval()
    tokens = tokenizer.encode(surfaces())
    quantizer = tokenizer.quantizer
    total = torch.zeros_like(tokens.features)
    for level in range(3):
        codes = torch.full_like(tokens.codes, -1)
        codes[..., level] = tokens.codes[..., level]
        total = total + quantizer.lookup(codes, tokens.grid)
    torch.testing.assert_close(total, tokens.features, atol=1e-5, rtol=1e-5)


def test_a_sphere_and_a_box():
    """From 21 codes each, after 200 steps."""
    tokenizer = build().train()
    torch.manual_seed(0)
    points = surfaces()
    optimizer = torch.optim.Adam(tokenizer.parameters(), betas=(0.9, 0.98))
    for index in range(200):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, (index + 1) / 20, 2 * (1 - index / 200))
        places = 2 * torch.rand(600, 3) - 1
        losses = tokenizer(points, places.expand(2, -1, -1), inside(places)).losses
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert float(losses["gaussian.kl"].detach()) > 0
    tokenizer.eval()
    decoded = tokenizer.decode(tokenizer.encode(points)).flatten(1) > 0.5
    truth = inside(grid_centers(16, torch.device("cpu")))
    iou = (decoded & truth).sum(1) / (decoded | truth).sum(1)
    assert bool((iou > 0.9).all()), iou


def test_other_input_is_refused():
    tokenizer = build()
    with pytest.raises(ValueError, match="points must be float"):
        tokenizer.encode(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"-1\.\.1"):
        tokenizer.encode(torch.full((4, 3), 5.0))
