"""The features equal those that the authors' published code was run on."""

from __future__ import annotations

import pytest

from tests.helpers.published import waves


def test_waves_have_the_reference_values():
    expected = [0.1500000060, 0.9914709926, 1.0592974424, -0.1498702764, 0.6916007400]
    assert waves(2, 2, 2, 3).flatten()[:5].tolist() == pytest.approx(expected, abs=1e-6)
