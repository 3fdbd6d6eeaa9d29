"""PPLLaVA against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewtokens.methods.learned.ppllava import PpLlava
from tests.helpers.clips import clip
from tests.helpers.resamplers import C, build, compare, linear, run_method, softmax, text_features, to_numpy, video


@pytest.mark.parametrize("lengths", [None, [4, 3]])
def test_ppllava_against_loops(lengths):
    method, tokens, text = build("ppllava"), video(lengths=lengths), text_features()
    out = run_method(method, tokens, text)
    for b, T in enumerate(lengths or [4, 4]):
        x = to_numpy(tokens.features[b])
        prompt = to_numpy(text[b]).mean(0)
        logits = np.zeros(T * 12)
        for n in range(T * 12):
            y = linear(x[n], method.to_text)
            logits[n] = y @ prompt / math.sqrt((y @ y + 1e-6) * (prompt @ prompt + 1e-6)) / 0.3
        probs = softmax(logits).reshape(T, 3, 4)  # over the full video, as in the paper
        rows, cells = [], x[: T * 12].reshape(T, 3, 4, C)
        for t in range(0, T, 2):
            for row in range(0, 3, 2):
                for column in range(0, 4, 3):
                    weight = np.zeros((T, 3, 4))
                    window = (slice(t, t + 2), slice(row, row + 2), slice(column, column + 3))
                    weight[window] = probs[window] / probs[window].sum()
                    rows.append(weight.flatten())
        weights = np.array(rows)
        assert int(out.count[b]) == len(weights) == 8
        features = weights @ cells.reshape(-1, C)
        compare(out[b], 0, features, weights, to_numpy(tokens.positions[b, : T * 12]))


def test_ppllava_averages_windows_dissimilar_to_the_text():
    """At tau=0.01 a softmax over the full video underflows in float32 in windows dissimilar to the text."""
    tokens = clip(2, 3, 6, C, 1)
    text = tokens.features[:, :1]
    tokens = tokens.replace(features=torch.cat([text.expand(-1, 18, -1), -text.expand(-1, 18, -1)], 1))
    out = PpLlava((1, 3, 3), dim=C)(tokens, text=text)
    torch.testing.assert_close(out.features[0, 2:], -text[0].expand(2, -1))
    assert out.sizes.tolist() == [[9.0] * 4]
