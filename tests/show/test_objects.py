"""Masks and joints over frames."""

from __future__ import annotations

import torch

from fewtokens.data.masks import palette
from fewtokens.show.objects import fit_height, overlay_joints, overlay_objects


def test_objects_are_tinted_and_the_truth_is_outlined():
    frames = torch.full((2, 3, 20, 30), 100, dtype=torch.uint8)
    masks = torch.zeros(2, 20, 30, dtype=torch.uint8)
    masks[1, 5:10, 5:10] = 2
    drawn = overlay_objects(frames, masks)
    assert torch.equal(drawn[0], frames[0])
    assert drawn[1, :, 7, 7].tolist() == [50 + int(c) // 2 for c in palette()[2]]
    assert drawn[1, :, 12, 7].tolist() == [100, 100, 100]
    truth = torch.zeros_like(masks)
    truth[1, 5:10, 8:14] = 2
    outlined = overlay_objects(frames, masks, truth)
    white = (outlined == 255).all(1)
    assert white[1, 7].nonzero().flatten().tolist() == [7, 8, 13, 14] and not white[0].any()


def test_joints_and_their_truth():
    frames = torch.zeros(1, 3, 60, 60, dtype=torch.uint8)
    joints = torch.tensor([[[20.0, 30.0], [-1.0, -1.0]]])
    drawn = overlay_joints(frames, joints, torch.tensor([[[20.0, 30.0], [50.0, 10.0]]]))
    assert drawn[0, :, 30, 20].tolist() == palette()[1].tolist()
    assert (drawn[0, :, 10, 47] == 255).all()
    # The joint that was not seen is not drawn; its truth is a ring.
    assert not drawn[0, :, 10, 50].any() and not drawn[0, :, :5, :5].any()


def test_frames_of_several_sizes_fit_one_stack():
    rows = [torch.zeros(2, 3, 20, 40, dtype=torch.uint8), torch.zeros(1, 3, 40, 20, dtype=torch.uint8)]
    stack = fit_height(rows, height=10)
    assert stack.shape == (3, 3, 10, 20)
    assert (stack[2, :, :, 5:] == 255).all() and not stack[2, :, :, :5].any()
