"""LION-FS: ten tokens of a frame, mixed from two encoders."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.memory.lion_fs import LionFS
from tests.helpers.frames import stream


def pooled(frame: torch.Tensor) -> torch.Tensor:
    """The ten tokens of a frame of 6 x 9 cells [54,C], by loops."""
    cells = frame.view(6, 9, -1)
    parts = [cells[2 * y : 2 * y + 2, 3 * x : 3 * x + 3].mean((0, 1)) for y in range(3) for x in range(3)]
    return torch.stack([frame.mean(0), *parts])


def two_sets(T: int, seed: int = 0) -> tuple[Tokens, Tokens, Tokens]:
    """Frames of two encoders with 4 channels, and both in the channels of one."""
    first, second = stream(T, H=6, W=9, seed=seed), stream(T, H=6, W=9, seed=seed + 100)
    return first, second, first.replace(features=torch.cat([first.features, second.features], 2))


def trained(cap: int = 8) -> LionFS:
    torch.manual_seed(0)
    memory = LionFS(cap, dim=4, sets=2)
    torch.nn.init.normal_(memory.router[2].weight)
    return memory.eval()


@torch.no_grad()
def test_ten_tokens_of_one_encoder():
    memory, video = LionFS(dim=4), stream(3, H=6, W=9)
    out = memory.read(memory.push(video)).check()
    expected = torch.cat([pooled(frame) for frame in video.features[0].split(54)])
    torch.testing.assert_close(out.features[0], expected)
    assert not list(memory.parameters()) and not memory.untrained
    # The mean is at the center, the others at the centers of their cells.
    places = [[2.5, 4], *([y, x] for y in (0.5, 2.5, 4.5) for x in (1, 4, 7))]
    torch.testing.assert_close(out.positions[0, :10, 1:], torch.tensor(places))


@torch.no_grad()
def test_two_encoders_are_mixed_token_by_token():
    memory = trained()
    first, second, video = two_sets(3)
    out = memory.read(memory.push(video)).check()
    assert out.N == 30 and out.C == 4  # as many as of one encoder
    for t in range(3):
        a, b = (pooled(tokens.features[0, 54 * t : 54 * t + 54]) for tokens in (first, second))
        logits = memory.router(a[0])
        for n in range(10):
            x, y = logits[2 * n], logits[2 * n + 1]
            weight = x.exp() / (x.exp() + y.exp())
            torch.testing.assert_close(out.features[0, 10 * t + n], weight * a[n] + (1 - weight) * b[n])
    # Without training, the average.
    untrained = LionFS(dim=4, sets=2)
    mean = LionFS(dim=4).push(first.replace(features=(first.features + second.features) / 2))
    torch.testing.assert_close(untrained.push(video).slots.features, mean.slots.features)
    assert untrained.untrained


@torch.no_grad()
def test_the_state_is_bounded():
    memory = trained(3)
    state = memory.push(two_sets(20)[2])
    size = state.nbytes
    later = two_sets(20, seed=1)[2]
    assert memory.push(later.replace(grid=Grid(20, 6, 9)), state).nbytes == size
    assert memory.read(state).N == 30
    assert float(memory.read(state).sizes.sum()) == pytest.approx(40 * 54)


def test_gradients_reach_the_router():
    memory = trained(2)
    memory.read(memory.push(two_sets(6)[2])).features.square().sum().backward()
    assert all(bool((p.grad != 0).any()) for p in memory.parameters())


def test_arguments():
    with pytest.raises(ValueError, match="sets must be 1 or 2, got 3"):
        LionFS(sets=3)
    with pytest.raises(ValueError, match="2 encoders of 4 channels, but these tokens have 4"):
        trained().push(stream(1, H=3, W=3))
