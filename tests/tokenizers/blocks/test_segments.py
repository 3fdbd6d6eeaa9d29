"""Segments: assignment, boxes, softmax within segments, superpixels."""

from __future__ import annotations

import torch

from fewtokens.core.grid import Grid
from fewtokens.tokenizers.blocks.segments import assign, boxes, softmax, superpixels


def test_one_segment_per_label_and_frame():
    labels = torch.tensor([[[[7, 7], [-2, 7]], [[7, 7], [7, 7]]], [[[5, 4], [3, 10**15]], [[0, 0], [1, 1]]]])
    assignment, count = assign(labels)
    assert assignment.tolist() == [[1, 1, 0, 1, 2, 2, 2, 2], [2, 1, 0, 3, 4, 4, 5, 5]]
    assert count.tolist() == [3, 6]


def test_boxes_of_pixels_of_segments_and_of_none():
    assignment = torch.tensor([[-1, 0, 0, -1, 1, -1], [0, 0, 0, 0, 0, 0]])
    found = boxes(assignment, Grid(1, 2, 3), 2)
    assert found.tolist() == [[[0, 1, 1, 3], [1, 1, 2, 2]], [[0, 0, 2, 3], [0, 0, 0, 0]]]


def test_softmax_over_each_segment():
    torch.manual_seed(0)
    logits, assignment = 30 * torch.randn(2, 9, 3), torch.randint(3, (2, 9))
    found = softmax(logits, assignment, 4)
    for b in range(2):
        for n in range(3):
            own = assignment[b] == n
            torch.testing.assert_close(found[b, own], logits[b, own].softmax(0))


def test_superpixels_are_squares_of_one_color_and_follow_edges():
    flat = superpixels(torch.full((1, 1, 3, 16, 20), 0.5), 8)[0, 0]
    y, x = torch.meshgrid(torch.arange(16) // 8, torch.arange(20) // 8, indexing="ij")
    # The last column of centers is nearer to its neighbors than a full square.
    assert torch.equal(flat[:, :8], (3 * y + x)[:, :8])
    frames = torch.zeros(2, 1, 3, 16, 16)
    frames[0, ..., 5:] = 1
    labels = superpixels(frames, 8)[0, 0]
    assert not set(labels[:, :5].flatten().tolist()) & set(labels[:, 5:].flatten().tolist())
