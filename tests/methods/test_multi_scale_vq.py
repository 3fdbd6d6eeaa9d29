"""Multi-scale VQ: the rest at each scale, kept scales, dropout, sizes of frames."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fewtokens.core.grid import Grid
from fewtokens.methods.quantizers.multi_scale_vq import MultiScaleVq

VAR = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


def build(scales=(1, 2, 4), seed: int = 0, **arguments) -> MultiScaleVq:
    torch.manual_seed(seed)
    return MultiScaleVq(scales, **{"dim": 6, "code_dim": 6, "size": 32, "convolutions": 0} | arguments).eval()


@pytest.mark.parametrize("book", ["euclidean", "cosine", "attention"])
def test_each_scale_quantizes_what_the_coarser_ones_left(book):
    """The steps of VAR in one frame, with the entries searched by brute force; the details and the rest sum to it."""
    method = build(convolutions=2, book=book)
    x = torch.randn(1, 16, 6)
    with torch.no_grad():
        features, codes, _ = method.quantize(x, None, Grid(1, 4, 4))
        if book == "attention":
            table = method.codebook.value(method.codebook.table)
            keys = method.codebook.key_norm(method.codebook.key(method.codebook.table))
        else:
            table = method.codebook.table
        frame = x.mT.reshape(1, 6, 4, 4)
        rest, details = frame, []
        for level, side in enumerate((1, 2, 4)):
            # Means of 16, 4 and 1 cells.
            pooled = rest.unfold(2, 4 // side, 4 // side).unfold(3, 4 // side, 4 // side).mean((4, 5))
            rows = pooled.flatten(2).mT[0]
            if book == "attention":
                index = (method.codebook.query_norm(method.codebook.query(rows)) @ keys.T).argmax(1)
            elif book == "cosine":
                index = F.cosine_similarity(rows[:, None], table[None], dim=2).argmax(1)
            else:
                index = (rows[:, None] - table[None]).square().sum(2).argmin(1)
            assert torch.equal(codes[0, : side * side, level], index)
            assert bool((codes[0, side * side :, level] == -1).all())
            detail = F.interpolate(table[index].T.reshape(1, 6, side, side), (4, 4), mode="bicubic")
            # Positions 0, 1/2 and 1 of the scales; 1/4 and 3/4 of the convolutions; the first wins the tie.
            detail = 0.5 * detail + 0.5 * method.smoothing[[0, 0, 1][level]](detail)
            details.append(detail)
            rest = rest - detail
    total = sum(details)
    torch.testing.assert_close(features.mT.reshape(1, 6, 4, 4), total, atol=1e-5, rtol=1e-5)
    assert float((total + rest - frame).abs().max()) < 4 * 4.8e-7


def test_the_convolutions_of_var():
    """VAR has four for ten scales, at 1/12 .. 11/12; its code breaks the ties at 2/9 and 7/9 like this."""
    method = build(VAR, convolutions=4)
    assert [method._convolution(level) for level in range(10)] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("convolutions", [0, 2])
@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_kept_scales_are_those_of_the_dropout(convolutions, dropout):
    method = build((1, 1, 2, 3, 4), convolutions=convolutions, dropout=dropout).train()
    grid = Grid(2, 4, 5)
    torch.manual_seed(1)
    features, codes, losses = method.quantize(torch.randn(16, 40, 6), None, grid)
    kept = (codes >= 0).any(1).sum(1)
    assert set(kept.tolist()) == ({3, 4, 5} if dropout else {5})
    assert all(bool(loss.isfinite()) for loss in losses.values())
    every = codes.clone()
    for number in kept.unique().tolist():
        rows = kept == number
        assert torch.equal(method.lookup(codes[..., :number], grid)[rows], features[rows])
        every[rows, :, number:] = -1
    assert torch.equal(method.lookup(every, grid), features)


def test_gradients_pass_through_the_rest_with_attention_only():
    x = torch.randn(1, 16, 6)
    for book, expected in (("attention", True), ("euclidean", False)):
        method = build((1, 4), book=book, convolutions=0)
        features = x.clone().requires_grad_()
        out = method.quantize(features, None, Grid(1, 4, 4)).features
        out[0, 0].sum().backward()
        # Without it, a token has the gradient of its own feature only.
        assert (features.grad[0, 5] != 0).any() == expected


def test_sizes_of_frames():
    assert MultiScaleVq().codebook_sizes == (1024,) * 5
    assert sum(rows * columns for rows, columns in build(VAR).shapes(Grid(1, 16, 16))) == 680
    folder = (1, 1, 2, 3, 3, 4, 5, 6, 8, 11)
    assert sum(rows * columns for rows, columns in build(folder).shapes(Grid(1, 11, 11))) == 286
    assert build((1, (2, 4), 8)).shapes(Grid(3, 4, 7)) == [(1, 1), (2, 4), (4, 7)]
    # A set of 9 tokens: linear interpolation between scales of 1, 3 and 9 tokens.
    method = build((1, 3, 9), convolutions=0)
    codes = method.quantize(torch.randn(1, 9, 6), None, Grid(1, 1, 9)).codes
    assert (codes >= 0).sum(1).tolist() == [[1, 3, 9]]
    middle = codes.clone()
    middle[..., [0, 2]] = -1
    positions = ((torch.arange(9) + 0.5) / 3 - 0.5).clamp(0, 2)
    low, part = positions.floor().long().clamp(max=1), positions - positions.floor().clamp(max=1)
    points = method.codebook.table[codes[0, :3, 1]]
    expected = points[low] * (1 - part)[:, None] + points[low + 1] * part[:, None]
    torch.testing.assert_close(method.lookup(middle, Grid(1, 1, 9))[0], expected)


def test_the_loss_of_a_single_scale():
    method = build((1,), convolutions=0).train()
    x = torch.randn(2, 4, 6)
    _, codes, losses = method.quantize(x, None, Grid(1, 2, 2))
    error = (method.codebook.table[codes[:, :1, 0]] - x).square().mean()
    torch.testing.assert_close(losses, {"codebook": error, "commitment": 0.25 * error})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scales": ()}, "scales must be sides"),
        ({"scales": (1, 0)}, "scales must be sides"),
        ({"scales": (1, (2, 3, 4))}, "scales must be sides"),
        ({"convolutions": 4}, r"convolutions must be in 0\.\.3"),
        ({"dropout": 1.5}, "dropout must be in"),
        ({"book": "hard"}, "book must be"),
        ({"size": 1}, "size must be at least 2"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)
