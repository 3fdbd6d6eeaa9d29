"""KFFocus: the key frames of scenes with known cuts."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.selection.kffocus import Kffocus


def test_one_key_frame_per_scene_has_many_tokens():
    """The middle frame of each scene is the one most similar to its mean, by construction."""
    lengths, codes = [9, 15, 11], torch.eye(3)
    rows = []
    for length, code in zip(lengths, codes, strict=True):
        offset = (torch.arange(length) - length // 2) / length * 0.3
        rows.append(torch.cat([code.expand(length, 3), offset[:, None]], 1))
    selection = Kffocus(12).select(torch.arange(35), features=torch.cat(rows))
    assert selection.why["cuts"].tolist() == [8, 23]
    keys = selection.index[selection.why["key"]].tolist()
    assert keys == [4, 9 + 7, 24 + 5]
    counts = selection.tokens(16, 16)
    assert counts[selection.why["key"]].tolist() == [64] * 3
    assert counts[~selection.why["key"]].tolist() == [8] * 9
    few = Kffocus(12, key=63, other=7).select(torch.arange(35), features=torch.cat(rows)).tokens(16, 16)
    assert sorted({*few.tolist()}) == [6, 63]


def test_arguments():
    with pytest.raises(ValueError, match="must satisfy"):
        Kffocus(key=4, other=8)
