"""The base class of frame selectors: inputs, budgets, sizes."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from fewtokens.core import registry
from fewtokens.core.selection import (
    Candidates,
    FrameSelector,
    Selection,
    among,
    evenly_spaced,
    full_size,
    pixel_features,
)
from fewtokens.methods.selection.aks import Aks
from fewtokens.methods.selection.uniform_frames import UniformFrames


class Last(FrameSelector):
    """The last frames, for a question."""

    def __init__(self, keep: float | int = 2, *, rate: float | str = "all") -> None:
        self.set_budget(keep, rate)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("question", "thumbnails")

    def choose(self, candidates: Candidates) -> Selection:
        assert candidates.thumbnails is not None and candidates.question
        return full_size(torch.arange(len(candidates))[-candidates.count :])


def thumbnails(T: int) -> Tensor:
    return torch.zeros(T, 3, 8, 8, dtype=torch.uint8)


def test_a_selector():
    selector = Last(3)
    selection = selector.select(torch.arange(7) / 10, thumbnails(7), question="What?")
    assert selection.index.tolist() == [4, 5, 6] and selection.full_size and len(selection) == 3
    assert selector.spec == "Last(keep=3, rate='all')" and selector.stage == "frames"
    assert repr(selection) == "Selection(index=int64[3], scale=float64[3, 2], why={})"
    assert among(selection, torch.arange(0, 70, 10)).index.tolist() == [40, 50, 60]


@pytest.mark.parametrize(("keep", "count"), [(1, 1), (2, 2), (50, 7), (1.0, 7), (0.5, 3), (0.29, 2), (0.01, 1)])
def test_budgets(keep, count):
    assert UniformFrames(keep).num_frames(7) == count


@pytest.mark.parametrize("keep", [0, 0.0, -1, 1.5, True, "3", float("nan"), float("inf"), None])
def test_other_budgets_are_refused(keep):
    with pytest.raises(ValueError, match=r"uniform_frames: keep must be a count of frames of at least 1") as caught:
        UniformFrames(keep)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rate", [0, -1.0, "each", True, None, float("nan"), 1e7])
def test_rates_are_checked(rate):
    with pytest.raises(ValueError, match="aks: rate must be the number of candidates per second"):
        Aks(rate=rate)


def test_inputs_are_checked():
    times, scores = torch.arange(6) / 2, torch.rand(6)
    aks, last = Aks(2), Last(2)
    broken = scores.clone()
    broken[4] = torch.nan
    for call, message in (
        (lambda: aks.select(times), "aks requires relevance: [T] score of each candidate"),
        (lambda: aks.select(times, relevance=broken), "aks: relevance must be finite, got nan for candidate 4 of 6"),
        (lambda: aks.select(times, relevance=scores[:3]), "aks: relevance must be [T], got [3]"),
        (lambda: aks.select(times.flip(0), relevance=scores), "aks: times must be seconds [T] in ascending order"),
        (lambda: aks.select(times[:0], relevance=scores[:0]), "aks: times must be seconds [T] in ascending order"),
        (lambda: last.select(times, thumbnails(6)), "Last requires a question"),
        (lambda: last.select(times, question="a"), "Last requires thumbnails: T small frames"),
        (lambda: last.select(times, thumbnails(5), question="a"), "Last: 5 thumbnails for 6 times"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


def test_duplicate_times_are_accepted():
    assert UniformFrames(2).select(torch.zeros(5)).index.tolist() == [0, 4]


def test_cells_of_scaled_frames():
    selection = Selection(torch.arange(3), torch.tensor([[1, 1], [0.5, 0.5], [0.01, 1 / 3]], dtype=torch.float64))
    assert selection.cells(14, 27).tolist() == [[14, 27], [7, 13], [1, 9]]
    assert selection.tokens(14, 27).tolist() == [378, 91, 9]
    assert not selection.full_size


def test_evenly_spaced_candidates():
    assert evenly_spaced(10, 4).tolist() == [0, 3, 6, 9] and evenly_spaced(5, 1).tolist() == [0]


def test_pixel_features_are_the_mean_colors_of_regions():
    pictures = torch.randint(0, 256, (260, 3, 8, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = pictures.float().unflatten(3, (8, 2)).mean(4) / 255 - 0.5
    torch.testing.assert_close(pixel_features(pictures), expected.flatten(1))


def test_selectors_are_listed_apart():
    assert "aks" in registry.selector_names() and "aks" not in registry.names()
    assert registry.list_methods(stage="frames") == registry.list_methods(kind="selection") == registry.selector_names()
    assert "aks" in registry.every_name() and registry.get_kind("aks") == "selection"
    aks, tome = registry.build("aks(keep=4) | tome", keep=0.5)
    assert (aks.keep, tome.keep) == (4, 0.5)
    assert [again.spec for again in registry.build(aks.spec)] == [aks.spec]
