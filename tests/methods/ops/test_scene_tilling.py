"""SceneTilling: the worked example of the paper's rule, and the stream against the whole video."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.ops.scene_tilling import SceneStream, scene_cuts, tilling_depth

SIMILARITY = torch.tensor([0.9, 0.8, 0.2, 0.85, 0.9, 0.3, 0.95, 0.6], dtype=torch.float64)


def test_depths():
    depth = torch.tensor([0, 0.1, 1.4, 0.05, 0, 1.25, 0, 0.35], dtype=torch.float64)
    torch.testing.assert_close(tilling_depth(SIMILARITY), depth)
    left = torch.tensor([0, 0.1, 0.7, 0, 0, 0.6, 0, 0.35], dtype=torch.float64)
    torch.testing.assert_close(tilling_depth(SIMILARITY, left_only=True), left)
    torch.testing.assert_close(tilling_depth(SIMILARITY.expand(3, 8)), depth.expand(3, 8))


def test_cuts():
    assert scene_cuts(SIMILARITY).tolist() == [2, 5]
    assert scene_cuts(SIMILARITY, left_only=True).tolist() == [2, 5]
    assert scene_cuts(SIMILARITY, count=3).tolist() == [2, 5, 7]
    assert scene_cuts(SIMILARITY, limit=1).tolist() == [2]
    assert scene_cuts(torch.full((9,), 0.7)).tolist() == []
    assert scene_cuts(torch.tensor([0.7])).tolist() == []


def by_definition(values: list[float]) -> list[float]:
    """Depths by walking from each value."""
    depths = []
    for i, value in enumerate(values):
        left = right = i
        while left > 0 and values[left - 1] >= values[left]:
            left -= 1
        while right + 1 < len(values) and values[right + 1] >= values[right]:
            right += 1
        depths.append(values[left] + values[right] - 2 * value)
    return depths


@pytest.mark.parametrize("digits", [1, 6])  # with many ties, and with none
def test_depths_by_definition(digits):
    torch.manual_seed(0)
    values = torch.rand(200, dtype=torch.float64).round(decimals=digits)
    torch.testing.assert_close(tilling_depth(values).tolist(), by_definition(values.tolist()))


def test_the_stream_knows_the_depths_before_the_last_climb():
    torch.manual_seed(0)
    values = torch.rand(100, dtype=torch.float64).round(decimals=1)
    values[-1] = 0.05  # a fall, so that all earlier depths are final
    stream = SceneStream()
    for value in values.tolist():
        stream.push(value)
    depth = tilling_depth(values)[:-1]
    count, mean, squares, *_ = stream.numbers
    assert count == 99
    assert mean == pytest.approx(float(depth.mean()))
    assert squares / 98 == pytest.approx(float(depth.var()))


def test_the_stream_cuts_at_the_bottom_of_deep_valleys():
    torch.manual_seed(0)
    values = 0.9 + 0.02 * torch.rand(300, dtype=torch.float64)
    values[[4, 60, 61, 150, 299]] = 0.2
    values[200:204] = torch.tensor([0.7, 0.5, 0.3, 0.6], dtype=torch.float64)  # a fade
    stream = SceneStream()
    found = {cut: step for step, value in enumerate(values.tolist()) if (cut := stream.push(value)) is not None}
    # 4 is within the warm-up, 61 is in the same valley as 60, and after 299 there is no climb yet.
    assert {cut for cut in found if values[cut] < 0.8} == {60, 150, 202}
    assert found[60] <= 62 and found[150] == 151 and found[202] == 203


def test_a_constant_stream_has_no_cut():
    stream = SceneStream()
    assert [stream.push(0.7) for _ in range(100)] == [None] * 100


def test_the_stream_does_not_depend_on_later_values():
    torch.manual_seed(1)
    values = torch.rand(80).tolist()
    streams = SceneStream(), SceneStream()
    assert [streams[0].push(v) for v in values[:50]] == [streams[1].push(v) for v in values[:50]]
    again = SceneStream(numbers=streams[1].numbers)
    assert [streams[0].push(v) for v in values[50:]] == [again.push(v) for v in values[50:]]
