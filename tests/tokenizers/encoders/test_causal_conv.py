"""The small causal network of convolutions, encoder and decoder."""

from __future__ import annotations

import pytest
import torch

from fewtokens.tokenizers import Tokenizer, create_tokenizer
from fewtokens.video import synthetic
from tests.tokenizers.streaming import (
    check_decoder_causality,
    check_decoder_chunks,
    check_encoder_causality,
    check_encoder_chunks,
    millions,
)


def build(width: int = 8, **options) -> Tokenizer:
    torch.manual_seed(0)
    part = f"causal_conv(width={width}{''.join(f', {key}={value!r}' for key, value in options.items())})"
    return create_tokenizer(f"{part} | fsq((8, 8, 8, 5, 5, 5)) > {part}").eval()


@pytest.mark.parametrize(("width", "published"), [(24, 0.61), (32, 1.05)])
def test_parameters(width, published):
    """Those of the networks that section 3d of the specification measured."""
    with torch.device("meta"):
        tokenizer = build(width)
    assert millions(tokenizer) == pytest.approx(published, rel=0.015)


@pytest.mark.parametrize(
    ("stride", "frames", "grid"),
    [((4, 8, 8), 1, (1, 4, 4)), ((4, 8, 8), 17, (5, 4, 4)), ((2, 8, 8), 5, (3, 4, 4)), ((8, 16, 16), 9, (2, 2, 2)),
     ((1, 8, 8), 3, (3, 4, 4)), ((4, 4, 4), 5, (2, 8, 8))],
)  # fmt: skip
def test_sizes(stride, frames, grid):
    tokenizer = build(stride=stride)
    clip = synthetic("pan", frames=frames, size=(32, 32)).frames
    tokens = tokenizer.encode(clip)
    assert tokens.grid.shape == grid
    assert tokenizer.decode(tokens).shape == (1, frames, 3, 32, 32)


@pytest.mark.parametrize("stride", [(3, 8, 8), (4, 8, 16), (4, 6, 6), (16, 8, 8), (4, 2, 2), (1, 4, 4), (4, 8)])
def test_other_strides_are_refused(stride):
    with pytest.raises(ValueError, match="stride must be 1, 2, 4 or 8 frames"):
        build(stride=stride)


def test_no_output_depends_on_the_future():
    tokenizer = build()
    check_encoder_causality(tokenizer)
    check_decoder_causality(tokenizer)


@pytest.mark.parametrize("stride", [(4, 8, 8), (2, 16, 16)])
def test_chunks_equal_the_whole(stride):
    for chunks in ((1, 1, 2), (2, 2)):
        check_encoder_chunks(build(stride=stride), chunks)
        check_decoder_chunks(build(stride=stride), chunks)


def test_the_state_is_bounded():
    encoder = build().encoder
    sizes, state = [], None
    for frames in (9, 4, 8, 40):
        state = encoder.step(torch.zeros(1, 3, frames, 32, 32), state)[1]
        sizes.append(sum(kept.untyped_storage().nbytes() for kept in state.values()))
    assert len(set(sizes)) == 1


def test_a_state_can_be_used_twice():
    """`step` returns another state and leaves the given one as it was."""
    encoder = build().encoder
    _, state = encoder.step(torch.rand(1, 3, 5, 16, 16))
    later = torch.rand(1, 3, 4, 16, 16)
    assert torch.equal(encoder.step(later, state)[0], encoder.step(later, state)[0])
