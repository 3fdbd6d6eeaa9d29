"""MAGVIT: published numbers, and inflation of a network of images."""

from __future__ import annotations

import torch

from fewtokens.tokenizers import create_tokenizer, get_preset
from fewtokens.tokenizers.blocks.inflate import inflate
from tests.tokenizers.streaming import millions, noise, random_cells


def test_published_numbers():
    preset = get_preset("magvit")
    with torch.device("meta"):
        tokenizer = create_tokenizer("magvit")
    layout = tokenizer.layout(*preset.clip)
    assert (layout.tokens, layout.bits) == (preset.tokens, 10 * 1024)
    codebook = 1024 * 256 / 1e6
    assert round(millions(tokenizer) + codebook) == preset.parameters


def test_it_is_not_causal():
    tokenizer = create_tokenizer("magvit", tiny=True).eval()
    x = noise(8, 32, 32)
    changed = torch.cat([x[:, :, :4], -x[:, :, 4:]], 2)
    assert not torch.equal(tokenizer.encoder.latents(x)[:, :, 0], tokenizer.encoder.latents(changed)[:, :, 0])
    assert not tokenizer.encoder.causal and not tokenizer.encoder.streams


@torch.no_grad()
def test_an_inflated_network_treats_a_still_video_as_its_image():
    parts = "width=8, depth=1, mult=(1, 2), strides=((1, 2, 2),)"
    image = create_tokenizer(f"magvit(8, {parts}) | vq(16) > magvit({parts})").eval()
    video = create_tokenizer(f"magvit(8, {parts.replace('(1, 2, 2)', '(2, 2, 2)')}) | vq(16) > magvit("
                             f"{parts.replace('(1, 2, 2)', '(2, 2, 2)')})").eval()  # fmt: skip
    inflate(video, image)
    frame = noise(1, 16, 16)
    still = frame.expand(-1, -1, 4, -1, -1)
    single = image.encoder.latents(frame)
    torch.testing.assert_close(video.encoder.latents(still), single.expand(-1, -1, 2, -1, -1), atol=1e-5, rtol=1e-5)
    tokens, one = random_cells(8, 1, 8), random_cells(8, 1, 8)
    still_frames = video.decoder(tokens)
    torch.testing.assert_close(still_frames, image.decoder(one).expand(-1, 2, -1, -1, -1), atol=1e-5, rtol=1e-5)
