"""PruMerge against loops, and the numbers of its published code on small examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewtokens.core.attention_rule import AttentionRule
from fewtokens.core.batch import collate
from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.merging.prumerge import PruMerge
from tests.helpers.clips import assert_same_tokens, clip, cues
from tests.helpers.naive import cosine


def frame_tokens(x, keys, attention, kept: list[int], neighbors: int, normalize: bool) -> list[np.ndarray]:
    """The tokens of one frame: those kept, in order, and the one of the rest."""
    rows, everything = [], list(range(len(x)))
    if kept == everything:
        return list(x)
    for cell in kept:
        others = [other for other in everything if other != cell]
        near = sorted(others, key=lambda other: -cosine(keys[cell], keys[other]))[:neighbors]
        total = x[cell] + sum(attention[other] * x[other] for other in near)
        rows.append(total / (1 + sum(attention[other] for other in near)) if normalize else total)
    rest = [cell for cell in everything if cell not in kept]
    total = sum(attention[cell] * x[cell] for cell in rest)
    return [*rows, total / sum(attention[cell] for cell in rest) if normalize else total]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("options", [{"keep": 4}, {"keep": 13}, {}, {"plus": True}])
def test_against_loops(options, normalize):
    tokens = clip(3, 4, 5, 16, 1)
    given = cues(tokens)
    given["attention"] = given["attention"] ** 24 / 4  # a few exceptional ones
    expected = []
    for t in range(3):
        frame = slice(20 * t, 20 * t + 20)
        x, keys = tokens.features[0, frame].double().numpy(), given["keys"][0, frame].double().numpy()
        a = given["attention"][0, frame].double().numpy()
        by_attention = sorted(range(20), key=lambda cell: -a[cell])
        if "keep" in options:
            budget = (t + 1) * options["keep"] // 3 - t * options["keep"] // 3
            kept = by_attention[: budget - (budget > 1)]
        else:
            low, high = np.percentile(a, 25), np.percentile(a, 75)
            kept = [cell for cell in range(20) if a[cell] > high + 1.5 * (high - low)] or by_attention[:1]
            if options:
                kept = [*kept, *range(0, 20, max(1, int(int(20 / len(kept)) / 3)))]
        rows = frame_tokens(x, keys, a, sorted(set(kept)), 5, normalize)
        expected += rows[:1] if "keep" in options and budget == 1 else rows
    out = PruMerge(**options, neighbors=5, normalize=normalize)(
        tokens, attention=given["attention"], keys=given["keys"]
    )
    assert out.N == len(expected) == options.get("keep", out.N)
    # The token of the rest comes at its mean position.
    distance = torch.cdist(out.features[0].double(), torch.tensor(np.stack(expected)))
    assert sorted(distance.argmin(1).tolist()) == list(range(out.N))
    assert float(distance.amin(1).max()) < 1e-5
    assert bool((out.assignment >= 0).all()) or "keep" in options


def exceptional(attention: torch.Tensor, **options: bool) -> list[int]:
    n = attention.shape[1]
    features = torch.randn(1, n, 4, generator=torch.Generator().manual_seed(0))
    tokens = Tokens.from_cells(features, Grid(1, 1, n))
    out = PruMerge(neighbors=0, **options)(tokens, attention=attention, keys=features)
    kept = [row for row in range(out.N) if int((out.assignment[0] == row).sum()) == 1]
    cells = [(out.assignment[0] == row).nonzero().item() for row in kept]
    assert all(torch.equal(out.features[0, row], features[0, cell]) for row, cell in zip(kept, cells, strict=True))
    return cells


def test_exceptional_attention():
    """Quartiles 0.01 and 0.02, so that the limit is 0.035."""
    attention = torch.tensor([[0.01] * 10 + [0.02, 0.03, 0.2, 0.3, 0.01, 0.02]])
    assert exceptional(attention) == [12, 13]
    assert exceptional(torch.full((1, 16), 0.1)) == [0]


@pytest.mark.parametrize(("share", "stride", "positions"), [(1 / 8, 2, 288), (0.05, 6, 96)])
def test_tokens_at_a_regular_distance(share, stride, positions):
    attention = torch.full((1, 576), 0.001)
    attention[0, torch.arange(1, 576, 576 // int(576 * share))[: int(576 * share)]] = 0.5
    regular = set(range(0, 576, stride))
    assert len(regular) == positions
    first = set(exceptional(attention))
    assert len(first) == int(576 * share)
    assert set(exceptional(attention, plus=True)) == first | regular


def test_a_full_budget_changes_nothing():
    tokens = clip(2, 3, 4, 16, 1)
    given = {name: cues(tokens)[name] for name in ("attention", "keys")}
    assert torch.equal(PruMerge(1.0)(tokens, **given).features, tokens.features)


def test_videos_of_unequal_lengths():
    videos = [clip(T, 4, 5, 16, 1, seed=T) for T in (2, 5)]
    both = collate(videos)
    for method in (PruMerge(0.3), PruMerge(), PruMerge(plus=True)):
        names = method.needs
        out = method(both, **{name: cues(both)[name] for name in names})
        for number, tokens in enumerate(videos):
            assert_same_tokens(out[number], method(tokens, **{name: cues(tokens)[name] for name in names}))


def test_invalid_arguments():
    with pytest.raises(ValueError, match="plus has no effect with keep"):
        PruMerge(0.5, plus=True)
    with pytest.raises(ValueError, match="neighbors must be at least 0"):
        PruMerge(neighbors=-1)
    assert PruMerge().attention_rule == AttentionRule(("class", "received"), "last", "joined")
