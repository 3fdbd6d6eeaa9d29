"""Max-min selection against loops and the published code."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core import registry
from fewtokens.core.batch import collate
from fewtokens.core.tokens import Tokens
from fewtokens.methods.pruning.max_min import MaxMin
from tests.helpers import naive
from tests.helpers.clips import clip
from tests.helpers.naive import cosine


class TestMaxMin:
    @pytest.mark.parametrize("keep", [1, 2, 9, 40])
    def test_against_loops(self, keep):
        tokens = clip(2, 4, 5, 8, 1)
        x = torch.nn.functional.normalize(tokens.features[0].double(), dim=1).numpy()
        mean = x.mean(0)
        survivors = [min(range(40), key=lambda n: cosine(x[n], mean))]
        while len(survivors) < keep:
            rest = [n for n in range(40) if n not in survivors]
            survivors.append(min(rest, key=lambda n: max(cosine(x[n], x[m]) for m in survivors)))
        out = MaxMin(keep)(tokens)
        assert (out.assignment[0] >= 0).nonzero().flatten().tolist() == sorted(survivors)


@pytest.mark.parametrize(
    ("angles", "keep", "survivors"),
    [((0, 5, 60, 65, 120, 180), 4, [0, 3, 4, 5]), ((0, 0, 0, 90), 3, [0, 1, 3])],
)
def test_the_published_selection_by_hand(angles, keep, survivors):
    """DivPrune; of the duplicates in the second example, its code selects one twice."""
    turns = torch.tensor(angles, dtype=torch.float32).deg2rad()
    image = Tokens.from_cells(torch.stack([turns.cos(), turns.sin()], 1).reshape(1, 1, 2, -1, 2))
    out = MaxMin(keep, start="isolated")(image)
    assert (out.assignment[0] >= 0).nonzero().flatten().tolist() == survivors


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("keep", [0.6, 0.25])
def test_budgets_against_loops(keep, seed):
    """In the form timed by the speed benchmark."""
    tokens, x = naive.video(seed=seed)
    (method,) = registry.build(f"max_min({keep})")
    naive.assert_same_tokens(method(tokens), naive.max_min(x, method.planned_count(tokens.grid)))


@pytest.mark.parametrize("candidates", [1, 8, 96])
@pytest.mark.parametrize("start", ["mean", "isolated"])
def test_a_padded_batch_equals_single_steps(start, candidates, monkeypatch):
    """Candidates that are brought up to date together are selected in the order of one pass per token."""
    monkeypatch.setattr("fewtokens.methods.pruning.max_min._NUM_CANDIDATES", candidates)
    videos = [clip(t, 6, 7, 8, 1, seed=t) for t in (5, 12)]
    out = MaxMin(0.3, start=start)(collate(videos))
    for row, video in enumerate(videos):
        x = torch.nn.functional.normalize(video.features[0].double(), dim=1)
        near = x @ x.mean(0) if start == "mean" else (x @ x.T).fill_diagonal_(-torch.inf).amax(1)
        survivors = [int(near.argmin())]
        near = x @ x[survivors[0]]
        while len(survivors) < round(0.3 * len(x)):
            near[survivors] = torch.inf
            survivors.append(int(near.argmin()))
            near = torch.maximum(near, x @ x[survivors[-1]])
        kept = (out.assignment[row, : len(x)] >= 0).nonzero().flatten()
        assert kept.tolist() == sorted(survivors)


@pytest.mark.parametrize("spec", ["max_min(0.25, {})", "tome(0.25, {})", "dpc_knn(0.25, {})"])
def test_a_long_video_is_reduced_in_windows(spec):
    """Each window by itself, with its part of the budget; a video of one window is not changed."""
    video = clip(8, 4, 5, 8, 1)
    (windowed,), (full,) = registry.build(spec.format("window=4")), registry.build(spec.format("window=None"))
    out = windowed(video)
    assert out.count.tolist() == [40]
    cells = video.features.reshape(1, 8, 4, 5, 8)
    short = Tokens.from_cells(cells[:, :4])
    parts = [full(short), full(Tokens.from_cells(cells[:, 4:]))]
    torch.testing.assert_close(out.features[0], torch.cat([part.features[0] for part in parts]))
    assert torch.equal(windowed(short).features, full(short).features)
    with pytest.raises(ValueError, match="window must be at least 1"):
        registry.build(spec.format("window=0"))
