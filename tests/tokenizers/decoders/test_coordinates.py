"""The decoder of coordinates: planes are read where they should be, subsets and the whole."""

from __future__ import annotations

import pytest
import torch

from fewtokens.tokenizers import Tokenizer

SPEC = (
    "tubelet(16, stride=(2, 4, 4)) | learned_queries(26, num_layers=1, heads=2, channels=4) > "
    "coordinates(width=12, stride=(2, 4, 4), planes=(4, 3, 2), num_layers=2, heads=2, samples=7{options})"
)


def build(options: str = "") -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer.from_spec(SPEC.replace("{options}", options)).eval()


def video() -> torch.Tensor:
    return torch.rand(2, 4, 3, 12, 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize(("attend", "equal"), [(False, True), (True, False)])
def test_a_subset_of_coordinates(attend, equal):
    """A subset equals the same patches of the whole only if coordinates do not attend to each other."""
    tokenizer = build(f", attend={attend}")
    tokens = tokenizer.encode(video())
    whole = tokenizer.decoder(tokens)
    picked = torch.tensor([[0.0, 0, 1], [3, 2, 0], [1, 1, 1]])
    patches = tokenizer.decoder.patches(tokens, picked.expand(2, -1, -1))
    for k, (t, y, x) in enumerate(picked.long().tolist()):
        expected = whole[:, t, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
        assert torch.allclose(patches[:, k], expected, atol=1e-5) == equal


@torch.no_grad()
def test_planes_are_read_at_the_coordinates():
    """As many cells as patches, so a coordinate reads exactly the cells (y,x), (y,t) and (x,t)."""
    tokenizer = build()
    tokens = tokenizer.encode(video())
    read = tokenizer.decoder._read(tokens, torch.tensor([[[3.0, 1, 1]], [[0, 2, 0]]]))
    features = tokens.features
    T, H, W = 4, 3, 2
    for b, (t, y, x) in enumerate([(3, 1, 1), (0, 2, 0)]):
        cells = [y * W + x, H * W + y * T + t, H * W + H * T + x * T + t]
        torch.testing.assert_close(read[b, 0], features[b, cells].flatten(), rtol=1e-5, atol=1e-6)
    # Halfway between two frames it is their mean.
    between = tokenizer.decoder._read(tokens, torch.tensor([[[1.5, 1, 1]]]).expand(2, -1, -1))[:, 0, 4:8]
    torch.testing.assert_close(between, features[:, [H * W + T + 1, H * W + T + 2]].mean(1), rtol=1e-5, atol=1e-6)


def test_training_compares_random_patches():
    tokenizer = build(", attend=False").train()
    frames = video()
    step = tokenizer(frames)
    assert step.frames is None
    step.losses["coordinates"].backward()
    assert all(float(p.grad.abs().max()) > 0 for p in tokenizer.parameters())
    # With at least as many samples as patches, it is the error of the whole video.
    tokenizer.decoder.samples = 1000
    loss = float(tokenizer(frames).losses["coordinates"].detach())
    with torch.no_grad():
        error = (tokenizer.decoder(tokenizer.eval().encode(frames)) - (2 * frames - 1)).square().mean()
    assert loss == pytest.approx(float(error), rel=1e-5)


def test_other_sizes_of_videos():
    tokenizer = build()
    for size in ((2, 12, 8), (6, 9, 13)):
        frames = torch.rand(1, size[0], 3, *size[1:])
        tokens = tokenizer.encode(frames)
        assert tokens.N == 26
        assert tokenizer.decode(tokens).shape == frames.shape


def test_wrong_number_of_tokens():
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_spec(SPEC.replace("queries(26", "queries(25").replace("{options}", ""))
    with pytest.raises(ValueError, match="planes of 26 tokens, got 25"):
        tokenizer.decode(tokenizer.encode(video()))


@pytest.mark.parametrize(
    ("options", "message"),
    [(", planes=(4, 3)", "planes must be"), (", samples=0", "at least 1"), (", heads=5", "multiple of heads")],
)
def test_invalid_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_spec(f"tubelet(stride=(4, 8, 8)) > coordinates({options[2:]})")
