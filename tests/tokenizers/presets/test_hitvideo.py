"""HiTVideo: bits by depth, conditioning of the finer ones on the coarser, which hold the coarse content."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from fewtokens.tokenizers import Tokenizer, create_tokenizer
from fewtokens.video import synthetic


def build() -> Tokenizer:
    torch.manual_seed(0)
    return create_tokenizer("hitvideo", tiny=True).eval()


def clips(seed: int = 0) -> torch.Tensor:
    """Two different clips [2,9,3,32,32], uint8."""
    return torch.stack([synthetic(kind, frames=9, size=(32, 32), seed=seed).frames for kind in ("pan", "shapes")])


def test_bits_of_the_depths():
    tokenizer = build()
    tokens = tokenizer.encode(clips())
    counts = (tokens.codes >= 0).sum(1)
    # 9 frames of 32 x 32 pixels: 3 rows of 4 x 4 cells, 2 of 2 x 2, and 2 of 1.
    assert counts.tolist() == [[48, 8, 2]] * 2
    assert abs(float(tokenizer.bits(tokens)[0]) - tokenizer.layout(9, 32, 32).bits) < 1e-6
    assert abs(tokenizer.layout(9, 32, 32).bits - 58 * math.log2(64000)) < 1e-6


def test_published_clip():
    with torch.device("meta"):
        tokenizer = create_tokenizer("hitvideo")
    codes = 17 * 32 * 32 + 9 * 16 * 16 + 9 * 8 * 8
    assert abs(tokenizer.layout(65, 256, 256).bits - codes * math.log2(64000)) < 1e-6


def test_a_finer_depth_is_quantized_given_the_coarser():
    """The same features with another coarse code have other fine codes."""
    quantizer = build().quantizer
    tokens = build().pipeline(clips()[:1])
    features = torch.randn(1, 48, 32)
    before = quantizer.quantize(features, None, tokens.grid).codes
    with torch.no_grad():
        quantizer.heads[2].bias.add_(5)  # moves the codes of the coarsest depth alone
    after = quantizer.quantize(features, None, tokens.grid).codes
    assert not torch.equal(before[:, :2, 2], after[:, :2, 2])
    assert not torch.equal(before[..., 0], after[..., 0])


def test_coarse_depths_decode_alone():
    tokenizer = build()
    tokens = tokenizer.encode(clips())
    top = tokens.codes.clone()
    top[..., 0] = -1
    decoded = tokenizer.decode(tokens.replace(codes=top))
    assert decoded.isfinite().all()
    assert float(tokenizer.bits(tokens.replace(codes=top))[0]) < float(tokenizer.bits(tokens)[0]) / 5


def test_coarse_codes_with_the_fine_codes_of_another_clip_keep_the_content(monkeypatch):
    """After 40 steps. Without `dropout` the result is correlated with the clip of the fine codes instead.

    So few steps do not show that fine codes raise PSNR: `benchmarks/tokenizer_laws.py` does.
    """
    torch.manual_seed(0)
    tokenizer = create_tokenizer("hitvideo", tiny=True).train()
    pool = torch.cat([clips(seed) for seed in range(16)]).float() / 255
    optimizer = torch.optim.Adam(tokenizer.parameters(), 3e-3)
    for _ in range(40):
        batch = pool[torch.randint(len(pool), (4,))]
        loss = (tokenizer(batch).frames - (2 * batch - 1)).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokenizer.eval()
    test = torch.cat([clips(seed) for seed in range(100, 104)]).float() / 255
    tokens = tokenizer.encode(test)
    for finer in (1, 2):
        codes = tokens.codes.clone()
        codes[..., :finer] = codes[..., :finer].roll(1, 0)
        decoded = tokenizer.decode(tokens.replace(codes=codes))
        own, other = correlation(decoded, test), correlation(decoded, test.roll(1, 0))
        assert bool((own > other).all())
        assert float(own.mean()) > 0.4
        assert float(other.mean()) < 0
    # The conditioning is of use: without what the finer depths receive from the coarser, the error of each clip rises.
    whole = (tokenizer.decode(tokens) - test).square().flatten(1).mean(1)
    enlarge = tokenizer.quantizer._enlarged
    monkeypatch.setattr(tokenizer.quantizer, "_enlarged", lambda *args: torch.zeros_like(enlarge(*args)))
    ablated = (tokenizer.decode(tokenizer.encode(test)) - test).square().flatten(1).mean(1)
    assert bool((ablated > whole).all())


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The correlation of the means of blocks of 8 x 8 pixels of videos [B,T,3,H,W]; [B]."""
    x, y = (F.avg_pool2d(video.flatten(0, 1), 8).reshape(len(video), -1) for video in (a, b))
    return torch.cosine_similarity(x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True))
