"""Short clips that are made, with questions whose answer is certain.

Coloured shapes and handwritten digits (scikit-learn's) stand, move, appear, collide and leave before a plain, shaded or
textured background; the camera stands or moves. What a question asks for is never hidden, is in the picture whenever
it has to be, and is a sixth of the picture wide or more. Directions are meant in the picture, whatever the camera does.

========== ============================================================== ==========================================
kind       asked                                                          in the scene
========== ============================================================== ==========================================
shape      the shape of the red object                                    other shapes in other colours
colour     the colour of the circle                                       other colours on other shapes
digit      which digit there is, or which one is red                      shapes, or other digits in other colours
direction  which way an object moves: left, right, up, down               others that move other ways
count      how many objects, stars or red objects: 1 to 5                 up to two that are not counted
order      what appeared first; which of two                              others that appear before or after
moment     what is there at second S                                      four objects, one at a time
needle     what is shown for a single frame                               the wrong answers, all the time
collision  with what the red object collides; whether two do              a pair that collides, others that do not
leave      what leaves the picture                                        others that move and stay in it
========== ============================================================== ==========================================
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fewtokens.core.shapes import by_shape
from fewtokens.data.questions import FORMATS, KINDS, Question, SceneConfig, check_kinds, key_of, make_question
from fewtokens.data.scenes import SPLITS, render
from fewtokens.data.staging import stage

__all__ = ["FORMATS", "KINDS", "SPLITS", "Example", "Question", "SceneConfig", "VideoQA", "make_clip", "make_question"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Example(Question):
    """A question with its clip.

    Attributes:
        frames: uint8 [T,3,H,W].
        times: float64 [T], seconds.
    """

    frames: Tensor
    times: Tensor

    __repr__ = by_shape

    # Equal is only what is the same object: equal questions may have other clips.
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
    """One clip and its question; what it is follows from the arguments alone.

    Args:
        split: "train", "val" or "test".
        number: of the clip, from 0.
        kinds: some of `KINDS`, which take turns; None is all.
        formats: "choice", "open" or both.

    Raises:
        ValueError: no such split, kind or format; a negative number; digits without scikit-learn.
    """
    config = config or SceneConfig()
    question = make_question(split, number, config, kinds=kinds, formats=formats)
    rng = np.random.default_rng(key_of(split, number, config, 1))
    actors, background = stage(question, config, rng)
    frames = render(actors, background, config.frames, config.size, split)
    times = torch.arange(config.frames, dtype=torch.float64) / config.fps
    return Example(**{f.name: getattr(question, f.name) for f in fields(Question)}, frames=frames, times=times)


class VideoQA(Dataset[Example]):
    """A set of made clips with questions, each drawn when it is asked for.

    Args:
        config: of all clips.
        split: "train", "val" or "test".
        items: how many.
        kinds: some of `KINDS`, which take turns; None is all (but for "digit" where the config has no digits).
        formats: "choice", "open" or both.

    Raises:
        ValueError: no such split, kind or format; no item.
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
        key_of(split, 0, self.config, 0)

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, number: int) -> Example:
        return make_clip(self.split, self._checked(number), self.config, kinds=self.kinds, formats=self.formats)

    def question(self, number: int) -> Question:
        """The question of an item, without its clip."""
        number = self._checked(number)
        return make_question(self.split, number, self.config, kinds=self.kinds, formats=self.formats)

    def questions(self) -> list[Question]:
        """All questions, without their clips."""
        return [self.question(number) for number in range(self.items)]

    def _checked(self, number: int) -> int:
        if not -self.items <= number < self.items:
            raise IndexError(f"there are {self.items} clips, none with number {number}")
        return number % self.items
