"""LLaMA-VID against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewtokens.methods.learned.llama_vid import LlamaVid
from tests.helpers.clips import clip
from tests.helpers.resamplers import C, build, linear, run_method, softmax, text_features, to_numpy, video


def test_llama_vid_against_loops():
    method, tokens, text = build("llama_vid"), video(), text_features()
    out = run_method(method, tokens, text)
    assert out.count.tolist() == [4 * 5] * 2
    for b in range(2):
        for t in range(4):
            x = to_numpy(tokens.features[b]).reshape(4, 12, C)[t]
            q, k = linear(to_numpy(text[b]), method.query), linear(x, method.key)
            probs = np.mean([softmax(k @ q[row] / math.sqrt(C)) for row in range(3)], 0)
            features = [linear(probs @ x, method.context)]
            square = x.reshape(3, 4, C)
            # Adaptive pooling of 3 rows to 2 uses the middle row twice.
            for rows in (slice(0, 2), slice(1, 3)):
                for columns in (slice(0, 2), slice(2, 4)):
                    features.append(linear(square[rows, columns].mean((0, 1)), method.content))
            np.testing.assert_allclose(
                to_numpy(out.features[b, t * 5 : t * 5 + 5]), np.array(features), rtol=1e-6, atol=1e-9
            )
            np.testing.assert_allclose(to_numpy(out.cell_weights()[b, t * 5, t * 12 : t * 12 + 12]), probs, rtol=1e-6)


def test_two_tokens_per_frame():
    out = LlamaVid(dim=C)(clip(C=C), text=torch.randn(2, 1, C))
    assert out.count.tolist() == [8, 8]
    assert out.positions[0, :, 0].tolist() == pytest.approx([0, 0, 1, 1, 2, 2, 3, 3])
