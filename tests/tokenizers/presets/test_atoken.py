"""AToken: published tokens and bits of both forms, images are videos of one frame."""

from __future__ import annotations

import torch

from fewtokens.tokenizers import Tokenizer, get_preset
from tests.tokenizers.presets.tiny import build, clips, published


def test_published_size():
    _, layout = published("atoken")
    assert layout.grid == (4, 16, 16)
    assert (layout.tokens, layout.bits) == (1024, 1024 * 48 * 32)


@torch.no_grad()
def test_an_image_equals_a_video_of_one_frame():
    tokenizer, frames = build("atoken"), clips("atoken", batch=1)
    image, video = tokenizer.encode(frames[0, 0]), tokenizer.encode(frames[:, :1])
    assert torch.equal(image.features, video.features)
    assert image.grid.shape == (1, 4, 4)
    assert torch.equal(tokenizer.decode(image), tokenizer.decode(video))
    assert tokenizer.decode(image).shape == (1, 1, 3, 32, 32)


@torch.no_grad()
def test_the_discrete_form_has_8_codes_of_6_levels_of_4():
    torch.manual_seed(0)
    spec = get_preset("atoken").tiny.replace("gaussian(48, kl=1e-8)", "fsq((4, 4, 4, 4, 4, 4), groups=8)")
    tokenizer = Tokenizer.from_spec(spec).eval()
    tokens = tokenizer.encode(clips("atoken"))
    assert tokens.codes.shape == (2, 16, 8)
    assert tokenizer.layout(16, 256, 256).bits == tokenizer.layout(16, 256, 256).tokens * 96
    # The codes of a token are those of 8 groups of 6 channels, the first of which counts fastest.
    channels = tokenizer.quantizer.project_in(tokenizer.encoder(clips("atoken"))[0].features)
    half = 3 * 1.001 / 2
    levels = (half * (channels + torch.atanh(torch.tensor(0.5 / half))).tanh() - 0.5).round() + 2
    expected = (levels.unflatten(-1, (8, 6)) * 4 ** torch.arange(6)).sum(-1).long()
    assert torch.equal(tokens.codes, expected)
