"""PPLLaVA against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewtokens.methods.learned.ppllava import PpLlava
from tests.helpers.clips import clip
from tests.helpers.resamplers import C, array, build, compare, linear, query, run, softmax, video


@pytest.mark.parametrize("lengths", [None, [4, 3]])
def test_ppllava_against_loops(lengths):
    method, tokens, text = build("ppllava"), video(lengths=lengths), query()
    out = run(method, tokens, text)
    for b, T in enumerate(lengths or [4, 4]):
        x = array(tokens.features[b])
        asked = array(text[b]).mean(0)
        logits = np.zeros(T * 12)
        for n in range(T * 12):
            y = linear(x[n], method.to_text)
            logits[n] = y @ asked / math.sqrt((y @ y + 1e-6) * (asked @ asked + 1e-6)) / 0.3
        whole = softmax(logits).reshape(T, 3, 4)  # over the whole video, as the paper writes it
        rows, cells = [], x[: T * 12].reshape(T, 3, 4, C)
        for t in range(0, T, 2):
            for row in range(0, 3, 2):
                for column in range(0, 4, 3):
                    here = np.zeros((T, 3, 4))
                    window = (slice(t, t + 2), slice(row, row + 2), slice(column, column + 3))
                    here[window] = whole[window] / whole[window].sum()
                    rows.append(here.flatten())
        weights = np.array(rows)
        assert int(out.count[b]) == len(weights) == 8
        features = weights @ cells.reshape(-1, C)
        compare(out[b], 0, features, weights, array(tokens.positions[b, : T * 12]))


def test_ppllava_far_from_the_text_is_still_a_mean():
    """At tau=0.01 a softmax over the whole video is zero in float32 in windows unlike the text."""
    tokens = clip(2, 3, 6, C, 1)
    text = tokens.features[:, :1]
    tokens = tokens.replace(features=torch.cat([text.expand(-1, 18, -1), -text.expand(-1, 18, -1)], 1))
    out = PpLlava((1, 3, 3), dim=C)(tokens, text=text)
    torch.testing.assert_close(out.features[0, 2:], -text[0].expand(2, -1))
    assert out.sizes.tolist() == [[9.0] * 4]
