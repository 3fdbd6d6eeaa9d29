"""J and F against the official values and against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewtokens.data.dense_sets import davis_sequences
from fewtokens.data.masks import read_masks
from fewtokens.evaluation.davis import (
    TABLE,
    boundary,
    boundary_f,
    dilate,
    jaccard,
    mean_numbers,
    official_table,
    score,
    tolerance,
)
from tests.helpers.data import data_path

# J, F, recall and decay of J of OSVOS; J and F of the first mask on all frames. Computed with the official code.
ORACLE = {
    "blackswan": (0.9430, 0.9741, 1.0, 0.0014, 0.5450, 0.3340),
    "car-roundabout": (0.8895, 0.8269, 1.0, 0.1368, 0.7308, 0.4403),
    "car-shadow": (0.9284, 0.9174, 1.0, 0.1103, 0.4077, 0.2523),
    "breakdance": (0.7272, 0.7560, 0.9512, 0.1410, 0.2159, 0.1883),
    "dog": (0.7108, 0.6911, 0.7241, 0.1482, 0.3271, 0.1827),
    "drift-straight": (0.6655, 0.7068, 0.7292, 0.6199, 0.0598, 0.0971),
}


@pytest.mark.parametrize("name", ["car-shadow", "drift-straight"])
def test_against_official_values(name):
    assert_oracle(name)


def assert_oracle(name):
    root = data_path("davis2016", "DAVIS")
    (files,) = [sequence for sequence in davis_sequences(root)[0] if sequence.name == name]
    truth = read_masks(files.labels)
    osvos = read_masks(sorted(data_path("osvos", name).glob("*.png")))
    expected = ORACLE[name]
    scores = mean_numbers(score(osvos, truth))
    static = mean_numbers(score(truth[:1].expand_as(truth), truth))
    values = (scores["j"], scores["f"], scores["j_recall"], scores["j_decay"], static["j"], static["f"])
    assert values == pytest.approx(expected, abs=1e-4)


def slow_boundary(mask):
    """Pixel by pixel, as the official code defines it."""
    H, W = mask.shape
    out = np.zeros_like(mask)
    for y in range(H):
        for x in range(W):
            right = mask[y, x + 1] if x + 1 < W else mask[y, x]
            below = mask[y + 1, x] if y + 1 < H else mask[y, x]
            diagonal = mask[y + 1, x + 1] if y + 1 < H and x + 1 < W else mask[y, x]
            out[y, x] = (mask[y, x] ^ right) | (mask[y, x] ^ below) | (mask[y, x] ^ diagonal)
    return out


def blobs(T=3, H=20, W=26, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.avg_pool2d(torch.rand(T, H + 4, W + 4, generator=g), 5, 1) > 0.52


@pytest.mark.parametrize(("size", "radius"), [((20, 26), 3), ((20, 26), 6), ((2, 9), 4), ((9, 2), 4), ((1, 1), 2)])
def test_boundary_and_disk_against_loops(size, radius):
    masks = blobs(3, *size)
    for mask, edge, wide in zip(masks, boundary(masks), dilate(masks, radius), strict=True):
        assert (edge.numpy() == slow_boundary(mask.numpy())).all()
        ys, xs = np.nonzero(mask.numpy())
        for y in range(mask.shape[0]):
            for x in range(mask.shape[1]):
                assert bool(wide[y, x]) == bool((((ys - y) ** 2 + (xs - x) ** 2) <= radius**2).any())


def test_tolerance():
    assert (tolerance(480, 854), tolerance(480, 880)) == (8, 9)


def test_empty_masks():
    nothing, something = torch.zeros(1, 40, 50, dtype=torch.bool), torch.zeros(1, 40, 50, dtype=torch.bool)
    something[:, 10:20, 10:20] = True
    assert jaccard(nothing, nothing).item() == boundary_f(nothing, nothing).item() == 1
    for a, b in ((nothing, something), (something, nothing)):
        assert jaccard(a, b).item() == boundary_f(a, b).item() == 0
    assert boundary_f(something, something).item() == 1


def test_objects_are_scored_separately():
    truth = torch.zeros(4, 30, 30, dtype=torch.uint8)
    truth[:, 2:10, 2:10], truth[:, 15:25, 15:25] = 1, 2
    predicted = truth.clone()
    predicted[1:, 15:25, 15:25] = 0
    first, second = score(predicted, truth)
    assert first.numbers()["j_and_f"] == 1
    assert second.numbers()["j"] == second.numbers()["f"] == 0
    assert mean_numbers([first, second])["j_and_f"] == 0.5
    with pytest.raises(ValueError, match="at least 3 frames"):
        score(truth[:2], truth[:2])


def test_the_official_table_and_void():
    """Decay is the mean of the first quarter minus that of the last; void pixels do not count."""
    truth = torch.zeros(10, 20, 20, dtype=torch.uint8)
    truth[:, 5:15, 5:15] = 1
    predicted = truth.clone()
    predicted[5:] = 0
    (scores,) = score(predicted, truth)
    table = official_table([scores.numbers()])
    assert tuple(table) == TABLE
    # 8 frames are scored, 4 of them are correct; quarters overlap by one frame, as in the official code.
    assert table["j_mean"] == table["j_recall"] == 0.5
    assert table["j_decay"] == table["f_decay"] == 1
    void = torch.zeros_like(truth, dtype=torch.bool)
    void[5:] = True
    (without,) = score(predicted, truth, void)
    assert without.numbers()["j_and_f"] == 1
    predicted[:, 5:15, 5:10] = 0
    void = torch.zeros_like(void)
    void[:, 5:15, 5:10] = True
    assert score(predicted, truth, void)[0].j[:4].tolist() == [1] * 4
    assert score(predicted, truth)[0].j[:4].tolist() == [0.5] * 4
