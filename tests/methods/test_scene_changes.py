"""One frame per scene, on scenes with known cuts."""

from __future__ import annotations

import torch

from fewtokens.methods.selection.scene_changes import SceneChanges

# Unit vectors whose cosines are the similarities of the example of the specification.
SIMILARITY = torch.tensor([0.9, 0.8, 0.2, 0.85, 0.9, 0.3, 0.95, 0.6])
ANGLES = torch.cat([torch.zeros(1), SIMILARITY.double().acos().cumsum(0)])
FEATURES = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)


def test_cuts_of_the_specification():
    times = torch.arange(9)
    published = SceneChanges().select(times, features=FEATURES)
    assert published.why["cuts"].tolist() == [2, 5]
    assert published.index.tolist() == [1, 4, 7]  # the middle of 0..2, 3..5 and 6..8
    assert SceneChanges(4).select(times, features=FEATURES).why["cuts"].tolist() == [2, 5, 7]


def test_long_scenes_are_halved_if_there_are_too_few():
    assert SceneChanges(4).select(torch.arange(16), features=torch.ones(16, 3)).index.tolist() == [1, 5, 9, 13]


def test_middle_frames_of_pictures():
    scene = torch.tensor([0] * 10 + [1] * 6 + [2] * 14)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (3, 3, 16, 16), generator=generator).byte()
    selection = SceneChanges(3).select(torch.arange(30), pictures[scene])
    assert selection.index.tolist() == [4, 12, 22]
