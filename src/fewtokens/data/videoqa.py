"""Short synthetic clips with questions whose answer is unambiguous.

Colored shapes and handwritten digits (from scikit-learn) rest, move, appear, collide and leave in front of a uniform,
shaded or textured background; the camera is static or moves. The object in question is never occluded, is in the frame
whenever it has to be, and is at least a sixth of the frame wide. Directions are relative to the frame, also if the
camera moves.

========== ============================================================== ==========================================
kind       question                                                       other objects
========== ============================================================== ==========================================
shape      the shape of the red object                                    other shapes in other colors
color     the color of the circle                                        other shapes in other colors
digit      which digit is shown, or which one is red                      shapes, or other digits in other colors
direction  the direction of an object: left, right, up, down              objects with other directions
count      the number of objects, stars or red objects: 1 to 5            up to two that are not counted
order      which object appeared first, or which of two                   objects that appear before or after
moment     which object is shown at second S                              four objects, one at a time
needle     which object is shown for a single frame                       the wrong answers, all the time
collision  what the red object collides with; whether two collide         a pair that collides, others that do not
leave      which object leaves the frame                                  objects that move and stay in the frame
========== ============================================================== ==========================================
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fewtokens.core.shapes import shape_repr
from fewtokens.data.questions import FORMATS, KINDS, Question, SceneConfig, check_kinds, clip_seed, make_question
from fewtokens.data.scenes import SPLITS, render
from fewtokens.data.staging import build_scene

__all__ = ["FORMATS", "KINDS", "SPLITS", "Example", "Question", "SceneConfig", "VideoQA", "make_clip", "make_question"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Example(Question):
    """A question with its clip.

    Attributes:
        frames: uint8 [T,3,H,W].
        times: float64 [T], in seconds.
    """

    frames: Tensor
    times: Tensor

    __repr__ = shape_repr

    # Compared by identity: equal questions may have different clips.
    __eq__ = object.__eq__
    __hash__ = object.__hash__


def make_clip(
    split: str,
    number: int,
    config: SceneConfig | None = None,
    *,
    kinds: tuple[str, ...] | None = None,
    formats: tuple[str, ...] = FORMATS,
) -> Example:
    """Generates a clip and its question; the result depends only on the arguments.

    Args:
        split: "train", "val" or "test".
        number: index of the clip, from 0.
        config: settings of the set.
        kinds: a subset of `KINDS`, which alternate; None for all.
        formats: "choice", "open" or both.

    Raises:
        ValueError: there is no such split, kind or format, the index is negative, or digits are requested without
            scikit-learn.
    """
    config = config or SceneConfig()
    question = make_question(split, number, config, kinds=kinds, formats=formats)
    rng = np.random.default_rng(clip_seed(split, number, config, 1))
    actors, background = build_scene(question, config, rng)
    frames = render(actors, background, config.frames, config.size, split)
    times = torch.arange(config.frames, dtype=torch.float64) / config.fps
    return Example(**{f.name: getattr(question, f.name) for f in fields(Question)}, frames=frames, times=times)


class VideoQA(Dataset[Example]):
    """A dataset of synthetic clips with questions, each generated on access.

    Args:
        config: settings of the set.
        split: "train", "val" or "test".
        items: the number of clips.
        kinds: a subset of `KINDS`, which alternate; None for all (except "digit" if the config has no digits).
        formats: "choice", "open" or both.

    Raises:
        ValueError: there is no such split, kind or format, or `items` is below 1.
    """

    def __init__(
        self,
        config: SceneConfig | None = None,
        split: str = "train",
        items: int = 1000,
        *,
        kinds: tuple[str, ...] | None = None,
        formats: tuple[str, ...] = FORMATS,
    ) -> None:
        if items < 1:
            raise ValueError(f"items must be at least 1, got {items}")
        self.config, self.split, self.items = config or SceneConfig(), split, items
        self.kinds, self.formats = check_kinds(kinds, formats, self.config), tuple(formats)
        clip_seed(split, 0, self.config, 0)

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, number: int) -> Example:
        return make_clip(self.split, self._index(number), self.config, kinds=self.kinds, formats=self.formats)

    def question(self, number: int) -> Question:
        """The question of an item, without its clip."""
        number = self._index(number)
        return make_question(self.split, number, self.config, kinds=self.kinds, formats=self.formats)

    def questions(self) -> list[Question]:
        """All questions, without their clips."""
        return [self.question(number) for number in range(self.items)]

    def _index(self, number: int) -> int:
        if not -self.items <= number < self.items:
            raise IndexError(f"index {number} is out of range for {self.items} clips")
        return number % self.items
