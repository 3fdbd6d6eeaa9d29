"""J and F against the official numbers, and propagation against a slow version and by its laws."""

from __future__ import annotations

import pytest

from fewtokens.evaluate.davis import (
    mean_numbers,
    read_masks,
    score,
    sequences,
)
from tests.data import data_path

# J, F, recall and decay of J of OSVOS; J and F of the first mask held still. By the official code.
ORACLE = {
    "blackswan": (0.9430, 0.9741, 1.0, 0.0014, 0.5450, 0.3340),
    "car-roundabout": (0.8895, 0.8269, 1.0, 0.1368, 0.7308, 0.4403),
    "car-shadow": (0.9284, 0.9174, 1.0, 0.1103, 0.4077, 0.2523),
    "breakdance": (0.7272, 0.7560, 0.9512, 0.1410, 0.2159, 0.1883),
    "dog": (0.7108, 0.6911, 0.7241, 0.1482, 0.3271, 0.1827),
    "drift-straight": (0.6655, 0.7068, 0.7292, 0.6199, 0.0598, 0.0971),
}


@pytest.mark.parametrize("name", ["car-shadow", "drift-straight"])
def test_the_official_numbers(name):
    assert_oracle(name)


def assert_oracle(name):
    root = data_path("davis2016", "DAVIS")
    (files,) = [one for one in sequences(root) if one.name == name]
    truth = read_masks(files.masks)
    osvos = read_masks(sorted(data_path("osvos", name).glob("*.png")))
    expected = ORACLE[name]
    found = mean_numbers(score(osvos, truth))
    still = mean_numbers(score(truth[:1].expand_as(truth), truth))
    ours = (found["J"], found["F"], found["J recall"], found["J decay"], still["J"], still["F"])
    assert ours == pytest.approx(expected, abs=1e-4)
