"""VideoITG: the rule of sampling and the loss of the specification, and a head that learns planted frames."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core import registry
from fewtokens.core.method import save_weights
from fewtokens.methods.selection.videoitg import Videoitg, positive_weight


def with_head(**arguments) -> Videoitg:
    """Scores a frame by its first channel."""
    selector = Videoitg(dim=2, **arguments)
    selector.load_state_dict({"head.weight": torch.tensor([[10.0, 0.0]]), "head.bias": torch.zeros(1)})
    return selector


def test_candidates_of_the_specification():
    assert Videoitg().thin(10, 4).tolist() == [2, 4, 6, 9]
    assert Videoitg().max_candidates(1e5) == 512


@pytest.mark.parametrize(("positive", "total", "weight"), [(4, 100, 4.899), (1, 100, 5), (50, 100, 1), (0, 9, 1)])
def test_weights_of_the_specification(positive, total, weight):
    assert positive_weight(positive, total) == pytest.approx(weight, abs=1e-3)


def test_a_certain_head_ranks_by_its_logits():
    """Sigmoids of logits above 17 are all 1.0 in float32."""
    angle = torch.linspace(1, 0, 10)
    features = torch.stack([angle.cos(), angle.sin()], 1)
    selector = with_head(keep=2)
    selector.load_state_dict({"head.weight": torch.tensor([[40.0, 0.0]]), "head.bias": torch.zeros(1)})
    selection = selector.select(torch.arange(10), features=features)
    assert selection.index.tolist() == [8, 9]
    assert selection.why["scores"].max() <= 1


def test_suppression_of_neighbors():
    score = torch.tensor([0.1, 0.5, 0.9, 0.8, 0.2, 0.3, 0.6, 0.4])
    features = torch.stack([score, (1 - score**2).sqrt()], 1)
    times = torch.arange(8) / 2
    assert with_head(keep=3).select(times, features=features).index.tolist() == [2, 3, 6]
    assert with_head(keep=3, nms=0.6).select(times, features=features).index.tolist() == [2, 4, 6]
    # .9 at 1 s and .6 at 3 s; all others are within 1.5 s of these, so the best of them is next: .8 at 1.5 s.
    assert with_head(keep=3, nms=1.5).select(times, features=features).index.tolist() == [2, 3, 6]
    assert with_head(keep=2, nms=1.0).select(times, features=features).index.tolist() == [2, 6]


def test_a_head_learns_planted_frames(tmp_path):
    torch.manual_seed(0)
    kind, noise = torch.randn(16), torch.randn(200, 16)
    relevant = torch.zeros(200, dtype=torch.bool)
    relevant[[20, 60, 61, 150]] = True
    features = noise + relevant[:, None] * 2 * kind
    selector = Videoitg(4, dim=16)
    optimizer = torch.optim.Adam(selector.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        loss = selector.loss(features, relevant)
        loss.backward()
        optimizer.step()
    path = save_weights(selector, tmp_path / "head.safetensors")
    (again,) = registry.build(f"videoitg(4, dim=16, checkpoint={str(path)!r})")
    assert again.select(torch.arange(200), features=features).index.tolist() == [20, 60, 61, 150]


def test_errors():
    with pytest.raises(ValueError, match="nms must be at least 0"):
        Videoitg(nms=-1.0)
    with pytest.raises(ValueError, match="features of 192 channels, got 2"):
        Videoitg(1).select(torch.arange(3), features=torch.rand(3, 2))
