"""The decoders of TiTok and LARP: other sizes, prefixes, gradients, errors. Their results: test_released."""

from __future__ import annotations

import pytest
import torch

from fewtokens.tokenizers import Tokenizer
from fewtokens.tokenizers.registry import build_part

TITOK = (
    "tubelet(16, stride=(1, 4, 4), positions=(1, 2, 2)) | learned_queries(4, num_layers=1, heads=2, channels=6, "
    "style='titok') | tail_drop(4) > titok(width=32, patch=4, grid=(2, 2), num_tokens=4, num_layers=1, heads=2, "
    "vqgan=((8, 6), (32, 32, 32)))"
)
LARP = (
    "tubelet(16, stride=(2, 4, 4), positions='sine') | learned_queries(4, num_layers=1, heads=2, channels=6, "
    "style='larp') > larp(width=16, stride=(2, 4, 4), num_layers=1, heads=2)"
)


@pytest.mark.parametrize("spec", [TITOK, LARP, TITOK.replace(", vqgan=((8, 6), (32, 32, 32))", "")])
def test_other_sizes_and_gradients(spec):
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_spec(spec)
    step = tokenizer(torch.rand(2, 2, 3, 12, 20))
    assert step.frames.shape == (2, 2, 3, 12, 20)
    step.frames.square().mean().backward()
    without = {name for name, p in tokenizer.named_parameters() if p.grad is None or not bool(p.grad.any())}
    assert not without


@torch.no_grad()
def test_a_prefix_equals_fewer_tokens():
    """Dropped tokens are left out: what they were has no effect."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_spec(TITOK).eval()
    image = torch.rand(1, 3, 8, 8)
    padded = tokenizer.encode(image)
    tokenizer.methods[-1].set_budget(2)
    prefix = tokenizer.encode(image)
    assert (padded.N, prefix.N) == (4, 2)
    mask = torch.tensor([[True, True, False, False]])
    torch.testing.assert_close(tokenizer.decoder(padded.replace(mask=mask)), tokenizer.decoder(prefix))
    assert not torch.allclose(tokenizer.decoder(padded), tokenizer.decoder(prefix))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("titok(patch=8, vqgan=((8, 6), (32, 32)))", r"levels whose number n fits the patch, 2\^\(n - 1\) = 8"),
        ("titok(patch=2, vqgan=((8, 6), (32, 30)))", "widths must be multiples of 32"),
        ("titok(num_layers=0)", "num_layers must be an integer of at least 1"),
        ("larp(width=18)", "width must be a multiple of 4"),
        ("omnitokenizer(layers=(('full', 2),))", "layers must be of the kinds space, window8 and time"),
        ("omnitokenizer(width=36, heads=4)", "each of 4 heads must have a multiple of 4 channels"),
    ],
)
def test_errors(spec, message):
    with pytest.raises(ValueError, match=message):
        build_part("decoders", spec)


@torch.no_grad()
def test_more_tokens_than_positions():
    tokenizer = Tokenizer.from_spec(TITOK.replace("num_tokens=4", "num_tokens=3")).eval()
    with pytest.raises(ValueError, match="titok was built for 3 tokens, got 4; set num_tokens"):
        tokenizer.decode(tokenizer.encode(torch.rand(1, 3, 8, 8)))


@pytest.mark.parametrize("scrambled", [False, True])
@torch.no_grad()
def test_omnitokenizer_is_causal_unless_scrambled(scrambled):
    torch.manual_seed(0)
    encoder = build_part(
        "encoders", f"omnitokenizer(16, stride=(2, 4, 4), layers=(('window2', 1), ('time', 1)), heads=2, {scrambled=})"
    )
    x = torch.randn(1, 3, 5, 12, 8)  # a window extends past the edge
    changed = x.clone()
    changed[:, :, 3:] = 0
    same = (encoder.latents(x) == encoder.latents(changed)).all(1)[0].flatten(1).all(1).tolist()
    assert encoder.causal == (not scrambled)
    assert same == ([False] * 3 if scrambled else [True, True, False])
