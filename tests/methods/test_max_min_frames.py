"""Greedy diversity of frames against a table of all distances."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fewtokens.methods.selection.max_min_frames import MaxMinFrames


def test_the_farthest_frame_is_added():
    x = F.normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    table = 1 - x @ x.T
    order = [int((x @ x.mean(0)).argmin())]
    while len(order) < 8:
        nearest = table[:, order].amin(1)
        nearest[order] = -1
        order.append(int(nearest.argmax()))
    selection = MaxMinFrames(8).select(torch.arange(40), features=x)
    assert selection.why["order"].tolist() == order
    assert selection.index.tolist() == sorted(order)


def test_one_frame_of_every_scene():
    colors = torch.tensor([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 0]], dtype=torch.uint8)
    scene = torch.tensor([0] * 20 + [1] * 3 + [0] * 15 + [2] * 2 + [3] * 20)
    thumbnails = colors[scene][:, :, None, None].expand(-1, 3, 16, 16)
    selection = MaxMinFrames(4).select(torch.arange(60), thumbnails)
    assert set(scene[selection.index].tolist()) == {0, 1, 2, 3}
