"""TokenFlow: one index for two codebooks with weights, two decoders that read one half each, and the frozen teacher."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fewtokens.tokenizers import create_tokenizer, get_preset
from fewtokens.video import synthetic


def build():
    torch.manual_seed(0)
    return create_tokenizer("tokenflow", tiny=True)


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.cat([synthetic(kind, frames=2, size=(32, 32)).frames for kind in ("pan", "shapes")])[:, None] / 255


def test_published_codes_and_bits():
    with torch.device("meta"):
        published = create_tokenizer("tokenflow")
    layout = published.layout(*get_preset("tokenflow").clip)
    codes = sum(side**2 for side in (1, 2, 4, 6, 8, 10, 12, 14, 16))
    assert (codes, layout.bits) == (817, 817 * 15)
    clip = sum(p.numel() for p in published.encoder.vit.parameters())
    assert clip / 1e6 == pytest.approx(85.8, rel=0.01)  # the vision tower of 86.2 M without its last norm


def test_one_index_is_the_nearest_in_both_codebooks_together(frames):
    tokenizer = build().eval()
    x = tokenizer.encoder.latents((2 * frames - 1).transpose(1, 2))[:, :, 0]
    codes = tokenizer.encode(frames).codes
    semantic, detail = tokenizer.quantizer.codebook.table.split(8, 1)
    rest = x
    for level, side in enumerate((1, 2, 4)):
        pooled = F.adaptive_avg_pool2d(rest, side).flatten(2).mT
        distance = torch.cdist(pooled[..., :8], semantic) ** 2 + torch.cdist(pooled[..., 8:], detail) ** 2
        index = codes[:, : side * side, level]
        assert torch.equal(distance.argmin(-1), index)
        value = torch.cat([semantic[index], detail[index]], -1).mT.unflatten(2, (side, side))
        rest = rest - (value if side == 4 else F.interpolate(value, (4, 4), mode="bicubic"))


@pytest.mark.parametrize("weight", [0.0, 1.0, 1e8])
def test_the_weight_of_the_two_distances(frames, weight):
    """Detail times sqrt(w) gives its squared distance the weight w.

    At 0 the index is the nearest semantic entry, for a large weight the nearest entry of detail, at 1 neither.
    """
    tokenizer = build().eval()
    quantizer = tokenizer.quantizer
    x = tokenizer.encoder.latents((2 * frames - 1).transpose(1, 2)).flatten(2).mT
    # The coarsest scale: the mean of each half over the frame, with one code.
    (mean, detail_mean), (semantic, detail) = x.mean(1).split(8, 1), quantizer.codebook.table.detach().split(8, 1)
    scale = torch.cat([torch.ones(8), torch.full((8,), weight**0.5)])
    with torch.no_grad():
        quantizer.codebook.table.mul_(scale)
        codes = quantizer.quantize(x * scale, None, tokenizer.encoder.grid(1, 32, 32)).codes[:, 0, 0]
    nearest_semantic, nearest_detail = (
        torch.cdist(a.double(), b.double()).argmin(-1) for a, b in ((mean, semantic), (detail_mean, detail))
    )
    assert not torch.equal(nearest_semantic, nearest_detail)
    assert torch.equal(codes, nearest_semantic) == (weight == 0)
    assert torch.equal(codes, nearest_detail) == (weight > 1)


def test_each_decoder_reads_one_half(frames):
    tokenizer = build().eval()
    tokens = tokenizer.encode(frames)
    noise = torch.randn_like(tokens.features)
    other_semantic = tokens.replace(features=torch.cat([noise[..., :8], tokens.features[..., 8:]], -1))
    other_detail = tokens.replace(features=torch.cat([tokens.features[..., :8], noise[..., 8:]], -1))
    decoder = tokenizer.decoder
    assert torch.equal(decoder(tokens), decoder(other_semantic))
    assert not torch.allclose(decoder(tokens), decoder(other_detail))
    assert torch.equal(decoder.predict(tokens), decoder.predict(other_detail))
    assert not torch.allclose(decoder.predict(tokens), decoder.predict(other_semantic))


def test_both_losses_fall_and_the_teacher_stays(frames):
    tokenizer = build().train()
    before = {k: v.clone() for k, v in tokenizer.teacher.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in tokenizer.parameters() if p.requires_grad], 3e-3)
    history = []
    for _ in range(30):
        step = tokenizer(frames)
        error = (step.frames - (2 * frames - 1)).square().mean()
        history.append((float(error.detach()), float(step.losses["semantic"].detach())))
        optimizer.zero_grad()
        (error + sum(step.losses.values())).backward()
        optimizer.step()
    assert history[-1][0] < 0.7 * history[0][0]
    assert history[-1][1] < 0.5 * history[0][1]
    assert all(torch.equal(v, before[k]) for k, v in tokenizer.teacher.state_dict().items())
