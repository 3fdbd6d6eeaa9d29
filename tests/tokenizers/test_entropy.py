"""Entropy of codes, and an arithmetic coder whose length is the cross-entropy within 1 %."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewtokens.tokenizers.entropy import compress, cross_entropy_bits, decompress, entropy_bits


class TestEntropy:
    def test_equal_frequencies(self):
        assert entropy_bits(torch.arange(8).repeat(5)[:, None]) == pytest.approx(40 * 3)

    def test_two_codebooks_padding_and_no_code(self):
        codes = torch.tensor([[[0, 1], [1, -1], [1, 1], [0, 2], [7, 7]]])
        mask = torch.tensor([[True, True, True, True, False]])
        second = -(2 * math.log2(2 / 3) + math.log2(1 / 3))
        assert entropy_bits(codes, mask) == pytest.approx(4 + second)

    def test_one_value_needs_nothing(self):
        assert entropy_bits(torch.full((9, 1), 3)) == 0


class TestCoder:
    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("constriction")

    def check(self, codes, size, probabilities=None):
        data = compress(codes, size, probabilities)
        assert np.array_equal(decompress(data, len(codes), size, probabilities), codes)
        bits = cross_entropy_bits(codes, size, probabilities)
        assert abs(8 * len(data) - bits) <= 0.01 * bits + 64
        return bits

    @pytest.mark.parametrize("size", [2, 240, 64000, 2**18])
    def test_skewed_codes_with_the_true_prior(self, size):
        rng = np.random.default_rng(0)
        prior = 1 / np.arange(1, size + 1) ** 1.1
        codes = rng.choice(size, 20000, p=prior / prior.sum())
        bits = self.check(codes, size, prior)
        assert bits == pytest.approx(-np.log2(prior[codes] / prior.sum()).sum())

    def test_a_prior_for_each_code(self):
        rng = np.random.default_rng(0)
        prior = rng.random((5000, 16)) ** 4
        codes = np.array([rng.choice(16, p=row / row.sum()) for row in prior])
        assert self.check(codes, 16, prior) < 5000 * 3.5

    def test_the_adaptive_prior_learns_the_frequencies(self):
        codes = np.random.default_rng(0).choice(64, 20000, p=np.arange(64) / 2016)
        bits = self.check(codes, 64)
        assert bits < 1.01 * entropy_bits(torch.from_numpy(codes)[:, None])

    def test_a_single_value_needs_no_bits(self):
        assert compress([0, 0, 0], 1) == b"" and cross_entropy_bits([0, 0, 0], 1) == 0
        assert decompress(b"", 3, 1).tolist() == [0, 0, 0]

    def test_no_codes(self):
        assert len(decompress(compress([], 5), 0, 5)) == 0


@pytest.mark.parametrize(
    ("codes", "prior", "message"),
    [
        ([0, 5], None, "in 0..4"),
        ([0, -1], None, "leave out those of -1"),
        ([0], [0.5, 0.5], "probabilities must be"),
        ([0], [0, 0, 0, 0, 0], "not all zero"),
        ([0], [1, 1, 1, 1, np.nan], "finite"),
    ],
)
def test_refusals(codes, prior, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy_bits(codes, 5, prior)
