"""Small token clips with video-like features, and the cues that methods require."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.batch import join_frames, split_frames
from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens

# Number of blocks of the simulated encoder.
DEPTH = 12


def clip(
    T: int = 4, H: int = 5, W: int = 6, C: int = 24, B: int = 2, *, seed: int = 0, lengths: list[int] | None = None
) -> Tokens:
    """A static random background with a third of the cells changing per frame, plus a little noise.

    Default: B=2 videos of T=4 frames of H=5 rows and W=6 columns, one token per cell (N=120), C=24 channels in float32.
    The same `seed` (default 0) gives the same features. `lengths`: real frames of each video; the others are padding.
    """
    generator = torch.Generator().manual_seed(seed)
    static = torch.randn(B, 1, H, W, C, generator=generator)
    fresh = torch.randn(B, T, H, W, C, generator=generator)
    changes = torch.rand(B, T, H, W, 1, generator=generator) < 0.33
    noise = 0.02 * torch.randn(B, T, H, W, C, generator=generator)
    grid = Grid(T, H, W, torch.arange(T) / 8, None if lengths is None else torch.tensor(lengths))
    tokens = Tokens.from_cells((torch.where(changes, fresh, static) + noise).flatten(1, 3), grid)
    return tokens.replace(features=tokens.features.masked_fill(~tokens.mask[..., None], 0))


def cues(tokens: Tokens) -> dict[str, Tensor]:
    """Every cue, derived from the features, so that a sample has the same cues alone and in a batch."""
    x = tokens.features.float()
    pixels = (x[..., :12].unflatten(2, (1, 12)) * 0.25 + 0.5).clamp(0, 1)
    frames = tokens.grid.T
    per_frame = x.unflatten(1, (frames, -1)).mean(2) if tokens.grid.cells == tokens.N else x[:, :1]
    return {
        "pixels": pixels.expand(-1, -1, 2, -1),
        "keys": x[..., :8],
        "attention": x[..., 0].sigmoid(),
        "sharpness": -x[..., 0].sigmoid(),
        "shift": x[..., 1].abs(),
        "frame_global": per_frame,
        "text": x[:, :1],
    }


def run_method(method, tokens: Tokens, *, blocks: int = DEPTH, **extra: Tensor) -> Tokens:
    """Runs a method; one of stage "encoder" runs per frame in the first `blocks` of the 12 encoder blocks."""
    if method.stage == "encoder":
        frames = split_frames(tokens)
        for layer in range(blocks):
            available = cues(frames)
            frames = method(
                frames, **{name: available[name] for name in method.needs}, layer=layer, depth=DEPTH, **extra
            )
        return join_frames(frames.sort_by_position(), tokens.grid.T, tokens.grid)
    available = cues(tokens)
    return method(tokens, **{name: available[name] for name in method.needs}, **extra)


def assert_same_tokens(a: Tokens, b: Tokens, tolerance: float = 1e-5) -> None:
    """Asserts that two `Tokens` are equal, except for padding."""
    assert torch.equal(a.count, b.count)
    n = int(a.count.max())
    assert torch.equal(a.mask[:, :n], b.mask[:, :n])
    assert torch.equal(a.assignment, b.assignment)
    torch.testing.assert_close(a.sizes[:, :n], b.sizes[:, :n])
    torch.testing.assert_close(a.positions[:, :n], b.positions[:, :n], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(a.features[:, :n], b.features[:, :n], rtol=tolerance, atol=tolerance)
