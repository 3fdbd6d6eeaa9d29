"""Merging between the blocks of an encoder is equal to `Tokens.apply` in every block."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core import registry
from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.tokens import Tokens
from fewtokens.encoders import VitEncoder
from fewtokens.encoders.block_tokens import BlockTokens
from fewtokens.encoders.vit import ViT, ViTConfig

SPECS = [
    "tome_in_encoder(r=0)",
    "tome_in_encoder(r=(4, -1))",
    "tome_in_encoder(0.1)",
    "tome_in_encoder(r=2) | representation_shift_in_encoder(0.4)",
    "representation_shift_in_encoder(0.5) | tome_in_encoder(r=2)",
    "tome_in_encoder(r=3) | vid_tldr(r=[3, 2])",
    "tome_in_encoder(r=1) | merge_windows_in_encoder(0.4, window=3)",
]


def network(**config) -> ViT:
    torch.manual_seed(0)
    vit = ViT(ViTConfig(dim=32, depth=4, num_heads=4, patch_size=4, image_size=(24, 24), **config)).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return vit


def clip() -> torch.Tensor:
    video = torch.rand(2, 3, 3, 24, 36, generator=torch.Generator().manual_seed(1))
    video[:, 1:, :, :12] = video[:, :1, :, :12]
    return video


def compare(one: Tokens, two: Tokens, tolerance: float = 1e-5) -> None:
    for name in ("mask", "sizes", "assignment"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    for name in ("features", "positions", "prefix"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name), rtol=tolerance, atol=tolerance)


@torch.no_grad()
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("pixels", ["", "rlt(tau=0.3)"])
@pytest.mark.parametrize("config", [{}, {"num_registers": 2}, {"class_token": False}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equals_merging_all_fields(spec, pixels, config, dtype, monkeypatch):
    encoder = VitEncoder(network(**config).to(dtype), batch=4)
    arguments = {
        "block_methods": registry.build(spec),
        "pixel_methods": registry.build(pixels) if pixels else [],
        "needs": ("keys", "shift"),
    }
    tokens, cues = encoder(clip(), **arguments)
    monkeypatch.setattr(BlockTokens, "possible", lambda tokens: False)
    expected, expected_cues = encoder(clip(), **arguments)
    compare(tokens, expected)
    assert type(tokens) is Tokens
    for name, values in expected_cues.items():
        torch.testing.assert_close(cues[name], values, rtol=1e-5, atol=1e-5)


def test_gradients(monkeypatch):
    def gradients() -> list[torch.Tensor]:
        vit = network()
        tokens, _ = VitEncoder(vit)(clip(), block_methods=registry.build("tome_in_encoder(r=3)"))
        (tokens.features.square().sum() + tokens.prefix.square().sum()).backward()
        return [parameter.grad for parameter in vit.parameters()]

    found = gradients()
    monkeypatch.setattr(BlockTokens, "possible", lambda tokens: False)
    torch.testing.assert_close(found, gradients(), rtol=1e-4, atol=1e-4)


class Spy(Method):
    """Keeps all tokens and records their types."""

    stage = "encoder"

    def forward(self, tokens: Tokens, **cues) -> Tokens:
        self.seen = [*getattr(self, "seen", []), type(tokens)]
        return tokens.check()


@torch.no_grad()
def test_methods_may_read_and_replace_any_field():
    spy = Spy()
    vit = network()
    start = Tokens.from_cells(torch.randn(2, 1, 5, 6, 32))
    tokens, _ = vit.walk(start, [*registry.build("tome_in_encoder(r=2)"), spy])
    assert spy.seen == [BlockTokens] * 4
    assert tokens.check().grid == Grid(1, 5, 6)
    merged = BlockTokens.of(start, torch.randn(2, 31, 32))
    changed = merged.replace(sizes=2 * merged.sizes)
    assert type(changed) is Tokens
    assert torch.equal(changed.positions, start.positions)
    assert merged.select([0]).prefix.shape == (1, 1, 32)
