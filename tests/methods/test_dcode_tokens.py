"""D-CoDe's tokens against a loop, its chain of similar tokens, and its counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.merging.dcode_tokens import DcodeTokens
from tests.helpers.clips import clip


def by_loop(x: np.ndarray, share: float, tau: float) -> tuple[list[list[int]], np.ndarray]:
    """The members of each token of a frame [n,C], one token after the other, and their means."""
    norms = np.linalg.norm(x, axis=1)
    kept = sorted(sorted(range(len(x)), key=lambda i: -norms[i])[: max(1, int(len(x) * share))])
    groups: list[list[int]] = []
    for i in kept:
        for group in groups:
            if x[i] @ x[group[0]] / (norms[i] * norms[group[0]]) >= tau:
                group.append(i)
                break
        else:
            groups.append([i])
    return groups, np.stack([x[group].mean(0) for group in groups])


@pytest.mark.parametrize(("share", "tau"), [(0.5, 0.8), (0.7, 0.1), (1.0, -1.0), (0.02, 0.5)])
def test_against_a_loop(share, tau):
    tokens = clip(3, 6, 7, 4)
    out = DcodeTokens(share, tau=tau)(tokens).check()
    for b in range(2):
        expected = []
        for frame in tokens.features[b].reshape(3, 42, 4).double().numpy():
            groups, means = by_loop(frame, share, tau)
            order = sorted(range(len(groups)), key=lambda g: [np.mean([i // 7 for i in groups[g]]), g])
            expected.append({tuple(np.round(means[g], 4)) for g in order})
        actual = [
            {tuple(row) for row in np.round(out.features[b][out.mask[b] & (out.frame[b] == t)].double().numpy(), 4)}
            for t in range(3)
        ]
        assert [len(frame) for frame in actual] == [len(frame) for frame in expected]
        for left, right in zip(actual, expected, strict=True):
            np.testing.assert_allclose(sorted(left), sorted(right), atol=2e-4)


def frame(degrees: list[float], lengths: list[float] | None = None) -> Tokens:
    radians = torch.tensor([math.radians(angle) for angle in degrees])
    rows = torch.stack([radians.cos(), radians.sin()], 1) * torch.tensor(lengths or [1.0] * len(degrees))[:, None]
    return Tokens.from_cells(rows[None], Grid(1, 1, len(degrees)))


def test_a_chain_of_similar_tokens_loses_none():
    """a ~ b ~ c, but not a ~ c: b joins a, and c stays, where the published code deletes c for its similarity to b."""
    out = DcodeTokens(1.0, tau=math.cos(math.radians(36)))(frame([0, 35, 70]))
    assert out.assignment.tolist() == [[0, 0, 1]] and out.sizes.tolist() == [[2, 1]]
    torch.testing.assert_close(out.features[0, 1], frame([70]).features[0, 0])


def test_the_largest_norms_are_kept():
    out = DcodeTokens(0.5, tau=0.99)(frame([0, 60, 120, 180], [1, 3, 2, 4]))
    assert out.assignment.tolist() == [[-1, 0, -1, 1]]


def test_published_counts():
    """Of 576 different tokens 288 are left; of 576 equal ones, one."""
    different = torch.randn(1, 1, 24, 24, 2048, generator=torch.Generator().manual_seed(0))
    assert DcodeTokens()(Tokens.from_cells(different)).N == 288
    assert DcodeTokens()(Tokens.from_cells(torch.ones(1, 2, 24, 24, 8))).N == 2


def test_invalid_arguments():
    for arguments, message in [({"share": 0.0}, "share"), ({"share": 1.5}, "share"), ({"tau": 2.0}, "tau")]:
        with pytest.raises(ValueError, match=message):
            DcodeTokens(**arguments)
