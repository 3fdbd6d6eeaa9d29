"""`VideoTransformer`: which cells each kind of attention reads, positions of any grid, chunks."""

from __future__ import annotations

import math

import pytest
import torch

from fewtokens.tokenizers.blocks.transformer import Block, VideoTransformer, rotary_angles, rotate

T, H, W = 3, 5, 4
t, y, x = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, (T, H, W)), indexing="ij"))


def pairs(axis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return axis[:, None], axis[None]


SAME_FRAME, EARLIER = torch.eq(*pairs(t)), torch.ge(*pairs(t))
SAME_PLACE = torch.eq(*pairs(y)) & torch.eq(*pairs(x))
# mask[q,k]: whether query q reads key k
MASKS = {
    "full": torch.ones(T * H * W, T * H * W, dtype=torch.bool),
    "block_causal": EARLIER,
    "space": SAME_FRAME,
    "window3": SAME_FRAME & torch.eq(*pairs(y // 3)) & torch.eq(*pairs(x // 3)),
    "time": EARLIER & SAME_PLACE,
}


def cells(frames: int = T, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, frames, H, W, 8, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("kind", MASKS)
def test_attention_equals_masked_attention_over_all_cells(kind):
    torch.manual_seed(0)
    block, features = Block(8, 2, kind, "vit"), cells()
    out, _ = block(features, None)
    normal = block.norm1(features).flatten(1, 3)
    q, k, v = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in block.attention.qkv(normal).split(8, 2))
    logits = (q @ k.transpose(2, 3) / math.sqrt(4)).masked_fill(~MASKS[kind], -torch.inf)
    mixed = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
    expected = features.flatten(1, 3) + block.attention.out(mixed)
    expected = expected + block.mlp(block.norm2(expected))
    torch.testing.assert_close(out.flatten(1, 3), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["rotary", "rotary4", (2, 3, 3)], ids=str)
@pytest.mark.parametrize("kinds", [("space", "window2", "time"), ("block_causal", "block_causal"), ("time", "full")])
def test_causality_is_exact(kinds, positions):
    torch.manual_seed(0)
    net = VideoTransformer(8, [(kind, 1) for kind in kinds], 1, positions=positions)
    features, changed = cells(5), cells(5)
    changed[:, 3] += 1
    before, after = net(features), net(changed)
    same = (before == after).flatten(2).all(2).all(0).tolist()
    assert net.causal == ("full" not in kinds)
    assert same == ([True] * 3 if net.causal else [False] * 3) + [False] * 2


@torch.no_grad()
@pytest.mark.parametrize("positions", ["rotary", (2, 3, 3)], ids=str)
@pytest.mark.parametrize("style", ["vit", "llama"])
def test_chunks_equal_the_whole(style, positions):
    torch.manual_seed(0)
    net = VideoTransformer(8, [("space", 1), ("time", 2), ("block_causal", 2)], 2, positions=positions, style=style)
    features, state, chunks = cells(7), None, []
    for chunk in features.split([1, 3, 1, 2], 1):
        out, state = net.step(chunk, state)
        chunks.append(out)
    torch.testing.assert_close(torch.cat(chunks, 1), net(features), rtol=1e-5, atol=1e-5)


def test_rotary_products_depend_on_differences_of_positions_only():
    q, k = torch.randn(2, 1, 12, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([[0.0, 1, 2], [3, 0, 1]])

    def product(shift: torch.Tensor) -> torch.Tensor:
        return (
            rotate(q, rotary_angles(places[:1] + shift, 12, 3)) @ rotate(k, rotary_angles(places[1:] + shift, 12, 3)).T
        )

    torch.testing.assert_close(product(torch.tensor([5.0, 7, 2])), product(torch.zeros(3)), rtol=1e-5, atol=1e-5)
    moved = rotate(k, rotary_angles(places[1:] + torch.tensor([0.0, 0, 1]), 12, 3))
    assert not torch.allclose(rotate(k, rotary_angles(places[1:], 12, 3)), moved)


def test_the_fourth_axis_does_not_turn_without_a_position():
    angles = rotary_angles(torch.tensor([[3.0, 2, 1]]), 16, 4)
    assert bool((angles[:, :6] != 0).all())
    assert bool((angles[:, 6:] == 0).all())


def test_learned_positions_are_resized_in_space_and_not_in_time():
    net = VideoTransformer(8, (), 2, positions=(2, 4, 4))
    with torch.no_grad():
        net.positions.places.copy_(torch.arange(4.0).expand(4, 4)[..., None].expand(4, 4, 8))
        net.positions.frames.copy_(torch.tensor([10.0, 20.0])[:, None].expand(2, 8))
    out = net(torch.zeros(1, 4, 8, 8, 8))[0, ..., 0]
    assert out[:, 0, 0].tolist() == [10, 20, 20, 20]
    # Centers of twice as many columns, from -0.25 in steps of 0.5, clamped at the edges.
    assert out[0, 0].tolist() == [10.0, 10.25, 10.75, 11.25, 11.75, 12.25, 12.75, 13.0]
    assert torch.equal(net(torch.zeros(1, 2, 4, 4, 8))[0, ..., 0], torch.arange(4.0).expand(2, 4, 4) + out[:2, :1, :1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 3}, "heads must divide"),
        ({"layers": (("spacetime", 2),)}, "must be of the kinds full"),
        ({"layers": (("window", 2),)}, "must be of the kinds full"),
        ({"style": "bert"}, "style must be"),
        ({"positions": "sine"}, "positions must be"),
        ({"positions": (2, 3)}, "positions must be"),
        ({"heads": 8}, "even number of channels"),
    ],
)
def test_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        VideoTransformer(8, **{"layers": (("full", 1),), "heads": 2, **arguments})
