"""FQGAN: the penalty on similar codes, separate branches, and that both are needed."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fewtokens.evaluation.reconstruction.metrics import psnr
from fewtokens.methods.ops.codes import orthogonality
from fewtokens.tokenizers import create_tokenizer, get_preset
from fewtokens.video import synthetic


def build():
    torch.manual_seed(0)
    return create_tokenizer("fqgan", tiny=True)


def images() -> torch.Tensor:
    """Four different images [4,1,3,32,32] in 0..1."""
    frames = [synthetic(kind, frames=2, size=(32, 32)).frames for kind in ("pan", "shapes")]
    return torch.cat(frames)[:, None].float() / 255


def test_published_numbers():
    preset = get_preset("fqgan")
    with torch.device("meta"):
        tokenizer = create_tokenizer("fqgan")
    layout = tokenizer.layout(*preset.clip)
    assert (layout.tokens, layout.bits) == (preset.tokens, 2 * 14 * 256)


def test_the_penalty_of_equal_orthogonal_and_random_codes():
    unit = F.normalize(torch.randn(1000, 8), dim=-1)
    other = torch.zeros(1000, 8)
    other[:, 0], other[:, 1] = -unit[:, 1], unit[:, 0]
    torch.testing.assert_close(orthogonality(torch.stack([unit, unit], -2)), torch.tensor(1.0))
    torch.testing.assert_close(orthogonality(torch.stack([unit, other], -2)), torch.tensor(0.0), atol=1e-6, rtol=0)
    random = orthogonality(torch.randn(100_000, 2, 8))
    torch.testing.assert_close(random, torch.tensor(1 / 8), atol=2e-3, rtol=0)


def test_the_semantic_loss_reaches_the_last_branch_alone():
    tokenizer = build().train()
    tokenizer(images()).losses["semantic"].backward()
    first, last = tokenizer.encoder.ends
    assert first[1].weight.grad is None or not bool(first[1].weight.grad.any())
    assert bool(last[1].weight.grad.any())
    assert tokenizer.encoder.trunk.layers[0].weight.grad.any()


@torch.no_grad()
def test_the_decoder_reads_the_codes_of_both_branches():
    tokenizer = build().eval()
    tokens = tokenizer.encode(images()[::2])
    assert bool((tokens.codes[0] != tokens.codes[1]).any(0).all())
    decoded = tokenizer.decode(tokens)
    for branch in range(2):
        codes = tokens.codes.clone()
        codes[0, :, branch] = tokens.codes[1, :, branch]
        changed = tokenizer.decode(tokens.replace(codes=codes))
        assert not torch.equal(changed[0], decoded[0])
        assert torch.equal(changed[1], decoded[1])


def test_without_the_codes_of_either_branch_psnr_is_lower():
    """After 60 steps on two images."""
    torch.manual_seed(2)
    tokenizer, frames = create_tokenizer("fqgan", tiny=True).train(), images()[::2]
    optimizer = torch.optim.Adam([p for p in tokenizer.parameters() if p.requires_grad], 2e-3)
    for _ in range(60):
        step = tokenizer(frames)
        optimizer.zero_grad()
        (sum(step.losses.values()) + (step.frames - (2 * frames - 1)).square().mean()).backward()
        optimizer.step()
    tokens = tokenizer.eval().encode(frames)
    whole = psnr(frames, tokenizer.decode(tokens)).mean()
    for branch in range(2):
        codes = tokens.codes.clone()
        codes[..., branch] = -1
        assert float(psnr(frames, tokenizer.decode(tokens.replace(codes=codes))).mean()) < float(whole) - 0.5
