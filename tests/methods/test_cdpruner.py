"""CDPruner on the example of the specification, and against determinants."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fewtokens.core.batch import collate
from fewtokens.core.tokens import Tokens
from fewtokens.methods.pruning.cdpruner import CdPruner, greedy_dpp
from tests.helpers.clips import clip

ROWS = torch.tensor(
    [[1.0, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 0.9, 0.1], [0, 0, 1], [0.5, 0.5, 0.5]]
)  # fmt: skip
RELEVANCE = torch.tensor([0.2, 0.9, 0.5, 0.6, 0.1, 0.4])


def scaled(relevance: torch.Tensor) -> torch.Tensor:
    return (relevance - relevance.amin() + 1e-6) / (relevance.amax() - relevance.amin())


@pytest.mark.parametrize(("sign", "survivors"), [(1, [1, 3, 5]), (-1, [0, 2, 4])])
def test_an_image_by_hand(sign, survivors):
    r = scaled(sign * RELEVANCE)
    if sign > 0:
        torch.testing.assert_close(r, torch.tensor([0.125, 1, 0.5, 0.625, 0, 0.375]), atol=1e-5, rtol=0)
    kept = greedy_dpp(ROWS[None], r[None], torch.ones(1, 6, dtype=torch.bool), torch.tensor([3]))
    assert kept[0].nonzero().flatten().tolist() == survivors


def test_without_relevance_it_maximizes_the_determinant():
    kept = greedy_dpp(ROWS[None], torch.ones(1, 6), torch.ones(1, 6, dtype=torch.bool), torch.tensor([3]))
    assert kept[0].nonzero().flatten().tolist() == [0, 2, 4]


def by_determinants(x: torch.Tensor, r: torch.Tensor, count: int) -> list[int]:
    """Greedy selection by the determinant of the kernel of the selected rows."""
    x = F.normalize(x.double(), dim=1) * r.double()[:, None]
    kept: list[int] = []
    for _ in range(count):
        rest = [n for n in range(len(x)) if n not in kept]
        kept.append(max(rest, key=lambda n: round(float(torch.linalg.det(x[[*kept, n]] @ x[[*kept, n]].T)), 9)))
    return sorted(kept)


@pytest.mark.parametrize("relevance", ["text", "negative", "none"])
def test_a_padded_batch_against_determinants(relevance):
    videos = [clip(t, 3, 4, 16, 1, seed=t) for t in (2, 1)]
    text = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(5))
    out = CdPruner(9, relevance=relevance)(collate(videos), **({} if relevance == "none" else {"text": text}))
    for row, video in enumerate(videos):
        x = video.features[0]
        score = (F.normalize(x, dim=1) @ F.normalize(text[row], dim=1).T).mean(1)
        r = torch.ones(len(x)) if relevance == "none" else scaled(-score if relevance == "negative" else score)
        kept = (out.assignment[row, : len(x)] >= 0).reshape(-1, 12)
        assert int(kept.sum()) == 9
        frames = r.reshape(-1, 12).sum(1)
        if len(frames) == 2 and relevance != "none":
            assert (kept[0].sum() > kept[1].sum()) == (frames[0] > frames[1])
        for t, frame in enumerate(kept):
            part = slice(12 * t, 12 * t + 12)
            assert frame.nonzero().flatten().tolist() == by_determinants(x[part], r[part], int(frame.sum()))


def test_duplicates_are_selected_once_and_last():
    """The published code selects an index twice here."""
    angles = torch.tensor([0.0, 0, 90, 90, 0, 90]).deg2rad()
    rows = torch.stack([angles.cos(), angles.sin()], 1)
    for count in range(1, 7):
        kept = greedy_dpp(rows[None], torch.ones(1, 6), torch.ones(1, 6, dtype=torch.bool), torch.tensor([count]))
        assert int(kept.sum()) == count
    image = Tokens.from_cells(rows.reshape(1, 1, 2, 3, 2))
    out = CdPruner(3, relevance="none")(image)
    assert (out.assignment[0] >= 0).nonzero().flatten().tolist() == [0, 1, 2]


def test_text_of_another_space_is_an_error():
    video = clip(1, 2, 2, 8, 1)
    with pytest.raises(ValueError, match="the cue text has 5 channels, the tokens have 8"):
        CdPruner(2)(video, text=torch.zeros(1, 1, 5))
    with pytest.raises(ValueError, match="relevance must be one of text, negative, none"):
        CdPruner(2, relevance="clip")
