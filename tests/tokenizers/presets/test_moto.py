"""Moto: eight tokens per pair, the first frame as side information, codes of motion, a perceptual gradient."""

from __future__ import annotations

import pytest
import torch

from fewtokens.tokenizers import create_tokenizer, get_preset
from fewtokens.tokenizers.encoders.frozen import Frozen


def build():
    torch.manual_seed(0)
    return create_tokenizer("moto", tiny=True)


def pairs(shifts: list[int], seed: int = 0) -> torch.Tensor:
    """Smooth random textures on a torus and the same moved to the right, [B,2,3,32,32] in 0..1."""
    noise = torch.rand(len(shifts), 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    first = torch.nn.functional.interpolate(noise, 32, mode="bicubic").clamp(0, 1)
    second = torch.stack([image.roll(shift, -1) for image, shift in zip(first, shifts, strict=True)])
    return torch.stack([first, second], 1)


def test_published_tokens_and_bits():
    with torch.device("meta"):
        published = create_tokenizer("moto")
    layout = published.layout(*get_preset("moto").clip)
    assert (layout.grid, layout.tokens, layout.bits) == ((1, 14, 14), 8, 8 * 7)
    # Four layers of 768 channels, and a ViT-B without its class token and positions, as in the paper.
    queries, decoder = (sum(p.numel() for p in part.parameters()) for part in (published.methods[0], published.decoder))
    assert queries / 1e6 == pytest.approx(4 * 7.09, rel=0.01)
    assert decoder / 1e6 == pytest.approx(85.1 + 1.8, rel=0.01)


def test_the_first_frame_is_side_information():
    """The second frame follows from the first one and the codes alone, so that codes can be given another first frame.

    That it moves as the encoded pair does takes 2,000 steps of training: benchmarks/tokenizer_laws.py.
    """
    tokenizer = build().eval()
    clips = pairs([8, -8])
    tokens = tokenizer.encode(clips)
    assert torch.allclose(tokenizer.decode(tokens)[:, 0], clips[:, 0], atol=1e-6)
    assert torch.equal(tokenizer.decode(tokens, side=clips[:, 0]), tokenizer.decode(tokens))
    # The second frame depends on the tokens and the side only.
    other = tokenizer.decode(tokens.replace(prefix=None), side=clips[:, 0].flip(0))
    assert torch.allclose(other[:, 0], clips[:, 0].flip(0), atol=1e-6)
    assert torch.equal(other, tokenizer.decode(tokens.replace(features=tokens.features * 0), side=clips[:, 0].flip(0)))
    assert float(tokenizer.bits(tokens)[0]) == 8 * 4
    with pytest.raises(ValueError, match="first one must be given"):
        tokenizer.decode(tokens.replace(prefix=None))
    with pytest.raises(ValueError, match="side must be"):
        tokenizer.decode(tokens, side=clips[:1, 0])


def test_a_long_video_is_encoded_in_pairs():
    tokenizer = build().eval()
    video = torch.cat([*pairs([8, 4, 0])])[:5, :, :30]
    tokens = tokenizer.encode(video)
    assert tokens.B == 3
    assert tokenizer.decode(tokens).shape == (1, 5, 3, 30, 32)
    assert torch.allclose(tokenizer.decode(tokens)[0, ::2], video[::2], atol=1e-6)


def test_codes_tell_the_motion_and_pairs_without_motion_share_few():
    tokenizer = build().train()
    optimizer = torch.optim.Adam([p for p in tokenizer.parameters() if p.requires_grad], 2e-3)
    shifts = [0, 8] * 8
    for step in range(80):
        clips = pairs(shifts, seed=step)
        out = tokenizer(clips)
        loss = (out.frames - (2 * clips - 1)).square().mean() + sum(out.losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokenizer.eval()
    clips = {shift: pairs([shift] * 16, seed=1000) for shift in (0, 8)}
    tokens = {shift: tokenizer.encode(clip) for shift, clip in clips.items()}
    still, moving = ({tuple(codes) for codes in found.codes[..., 0].tolist()} for found in tokens.values())
    assert len(still) <= 8  # of 16 images
    assert still != moving
    # The codes move the first frame: the second one is closer than if it were repeated.
    error = (tokenizer.decode(tokens[8])[:, 1] - clips[8][:, 1]).square().mean()
    assert float(error) < 0.6 * float((clips[8][:, 0] - clips[8][:, 1]).square().mean())


def test_a_perceptual_loss_has_a_gradient():
    tokenizer, network = build().train(), Frozen(seed=1)
    clips = pairs([8])
    decoded = tokenizer(clips).frames.transpose(1, 2)
    loss = (network.latents(decoded) - network.latents((2 * clips - 1).transpose(1, 2))).square().mean()
    loss.backward()
    assert float(tokenizer.decoder.head.weight.grad.norm()) > 0
    assert float(tokenizer.methods[0].queries.grad.norm()) > 0
