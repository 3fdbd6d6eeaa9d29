"""The decoder with mask tokens: any size, the order of tokens, missing tokens."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core.grid import Grid
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers import Tokenizer

SPEC = (
    "tubelet(16, stride=(2, 4, 4)) | learned_queries(6, num_layers=1, heads=2) | fsq((4, 4, 4)) > "
    "mask_tokens(width=16, stride=(2, 4, 4), num_tokens=6, num_layers=2, heads=2)"
)


def build(spec: str = SPEC) -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer.from_spec(spec).eval()


def video(T: int = 4, height: int = 8, width: int = 12) -> torch.Tensor:
    return torch.rand(2, T, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(2, 4, 4), (4, 8, 12), (5, 7, 13)])
@pytest.mark.parametrize("positions", ["'sine'", "(2, 2, 3)"])
def test_the_number_of_tokens_does_not_depend_on_the_size(size, positions):
    tokenizer = build(SPEC.replace("num_tokens", f"positions={positions}, num_tokens"))
    tokens = tokenizer.encode(video(*size))
    assert tokens.count.tolist() == [6, 6]
    assert tokenizer.layout(*size).tokens == 6
    assert tokenizer.layout(*size).bits == 36  # 6 bits for each token and none for the assignment
    assert tokenizer.decode(tokens).shape == (2, size[0], 3, *size[1:])


@torch.no_grad()
def test_tokens_are_a_sequence():
    tokenizer = build()
    tokens = tokenizer.encode(video())
    swapped = tokens.codes[:, [1, 0, 2, 3, 4, 5]]
    assert not torch.equal(tokens.codes, swapped)
    assert not torch.allclose(tokenizer.decode(tokens), tokenizer.decode(tokens.replace(codes=swapped)), atol=1e-4)
    exchanged = tokenizer.decode(tokens.replace(codes=tokens.codes.flip(0)))
    assert torch.equal(exchanged, tokenizer.decode(tokens).flip(0))


@torch.no_grad()
def test_an_untrained_decoder_distinguishes_tokens():
    """Another order of the tokens changes its frames, not only other tokens."""
    decoder = build().decoder
    features, mask = torch.randn(2, 6, 16), torch.ones(2, 6, dtype=torch.bool)
    cells = torch.zeros(2, 12, dtype=torch.long)
    tokens = Tokens(features, torch.zeros(2, 6, 3), mask.float(), mask, cells, Grid(2, 2, 3))
    frames = decoder(tokens)
    order, content = (
        float((decoder(tokens.replace(features=other)) - frames).square().mean())
        for other in (features.flip(1), features.flip(0))
    )
    assert order > 0.03 * content


@torch.no_grad()
def test_a_shorter_sequence_equals_padding():
    decoder, features = build().decoder, torch.randn(1, 6, 16)

    def decode(n: int, count: int) -> torch.Tensor:
        mask = torch.arange(n)[None] < count
        cells = torch.zeros(1, 12, dtype=torch.long)
        return decoder(Tokens(features[:, :n], torch.zeros(1, n, 3), mask.float(), mask, cells, Grid(2, 2, 3)))

    torch.testing.assert_close(decode(4, 4), decode(6, 4), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(decode(4, 4), decode(6, 6), atol=1e-4)


def test_gradients_reach_every_parameter():
    tokenizer = build().train()
    tokens = tokenizer._encode(video())
    fewer = tokens.apply(Plan.keep(torch.arange(6).expand(2, -1) < 5))
    tokenizer.decoder(fewer).square().sum().backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


def test_too_many_tokens():
    tokenizer = build(SPEC.replace("num_tokens=6", "num_tokens=5"))
    with pytest.raises(ValueError, match="built for 5 tokens, got 6"):
        tokenizer.decode(tokenizer.encode(video()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("num_tokens=0", "num_tokens and num_layers"),
        ("heads=5", "heads must divide"),
        ("positions='rotary'", "positions must be sine"),
        ("positions=(2, 2)", "positions must be T, H and W"),
    ],
)
def test_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(f"tubelet(16) > mask_tokens({arguments})")
