"""Builds a scene in which the answer to a question is true and all other answers are false.

Objects that are visible at the same time never overlap or touch, except those that collide. Visible objects are fully
inside the frame, except the one that leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from fewtokens.data.questions import DIRECTIONS, VALUES, Question, SceneConfig
from fewtokens.data.scenes import BACKGROUNDS, COLORS, DIGITS, SHAPES, Actor, Background

# Positions tried per object, and attempts to build a scene, each with slower objects than the last.
_TRIES, _ATTEMPTS = 64, 200
# Shapes that fill their box along both axes, so that the objects touch when their boxes do.
_COLLIDERS = ("circle", "square", "cross", "diamond")
_DEFAULT_SIDES = (0.24, 0.29)


class _CrowdedError(Exception):
    """There is no free position for an object."""


class _Stage:
    """Places objects so that they do not overlap."""

    def __init__(
        self, rng: np.random.Generator, config: SceneConfig, camera: NDArray[np.float64], speed: float
    ) -> None:
        self.rng, self.config, self.speed = rng, config, speed
        self.camera = camera * speed
        self.frames = config.frames
        self.phase = np.linspace(0, 1, config.frames)[:, None]
        self.actors: list[Actor] = []
        self.gap = max(0.03, 1.5 / config.size)

    def side(self, low: float, high: float, look: str = "") -> float:
        """Samples a side of at least 8 pixels; digits are larger."""
        factor = 1.2 if look in DIGITS else 1.0
        return max(float(self.rng.uniform(low, high)) * factor, 8 / self.config.size)

    def free(self, paths: NDArray[np.float64], side: float, shown: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether each of the paths [K,T,2] keeps its distance from all other objects."""
        clear = np.ones(len(paths), bool)
        for other in self.actors:
            both = shown & other.shown
            distance = np.abs(paths[:, both] - other.path[both]).max(2)
            clear &= (distance > (side + other.side) / 2 + self.gap).all(1)
        return clear

    def inside(self, paths: NDArray[np.float64], side: float) -> NDArray[np.bool_]:
        return np.asarray((np.abs(paths - 0.5) <= 0.5 - side / 2).all((1, 2)))

    def put(self, look: str, color: str, path: NDArray[np.float64], side: float, shown: NDArray[np.bool_]) -> None:
        self.actors.append(Actor(look, color, side, path, shown, int(self.rng.integers(1 << 30))))

    def add(
        self,
        look: str,
        color: str,
        *,
        sides: tuple[float, float] = _DEFAULT_SIDES,
        travel: NDArray[np.float64] | None = None,
        shown: NDArray[np.bool_] | None = None,
        needed: bool = True,
    ) -> None:
        """Adds an object that rests or moves at constant velocity.

        Args:
            look: name of a shape, or a digit.
            color: name of a color.
            sides: range of the side.
            travel: [2], displacement over the clip. Default: random.
            shown: bool [T], whether it is visible in each frame. Default: always.
            needed: raise `_CrowdedError` if there is no free position; otherwise add nothing.
        """
        side = self.side(*sides, look)
        shown = np.ones(self.frames, bool) if shown is None else shown
        travels = self.travels() if travel is None else np.repeat(travel[None], _TRIES, 0)
        room = 1 - side - np.abs(travels)
        start = side / 2 + np.maximum(-travels, 0) + self.rng.random((_TRIES, 2)) * room
        paths = start[:, None] + travels[:, None] * self.phase
        free = np.flatnonzero((room >= 0).all(1) & self.free(paths, side, shown))
        if len(free):
            self.put(look, color, paths[free[0]], side, shown)
        elif needed:
            raise _CrowdedError

    def travels(self) -> NDArray[np.float64]:
        """Samples displacements [K,2] over the clip, all zero or none, plus the motion of the camera."""
        angle, distance = self.rng.uniform(0, 2 * np.pi, _TRIES), self.rng.uniform(0.15, 0.45, _TRIES) * self.speed
        # The fastest are tried first; slower ones fit more often.
        distance *= np.linspace(1, 0.2, _TRIES) * (self.rng.random() < 0.6)
        return np.stack([np.sin(angle), np.cos(angle)], 1) * distance[:, None] + self.camera


def build_scene(question: Question, config: SceneConfig, rng: np.random.Generator) -> tuple[list[Actor], Background]:
    """Samples the scene of a question.

    Returns:
        The objects in random order, and the background.
    """
    moving = config.camera == "moving" or (config.camera == "both" and rng.random() < 0.5)
    angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.12, 0.25)
    camera = np.array([np.sin(angle), np.cos(angle)]) * distance * moving
    kind, seed = str(rng.choice(BACKGROUNDS)), int(rng.integers(1 << 30))
    for attempt in range(_ATTEMPTS):
        scene = _Stage(rng, config, camera, 0.93**attempt)
        try:
            _SCENES[question.kind](scene, question)
        except _CrowdedError:
            continue
        actors = [scene.actors[n] for n in rng.permutation(len(scene.actors))]
        return actors, Background(kind, (float(scene.camera[0]), float(scene.camera[1])), seed)
    raise AssertionError(f"no room for the objects of {question}")


def _others(rng: np.random.Generator, names: Iterable[str], excluded: Iterable[str]) -> list[str]:
    """The names that are not excluded, in random order."""
    excluded = set(excluded)
    return rng.permutation([name for name in names if name not in excluded]).tolist()


def _cast(rng: np.random.Generator, question: Question) -> list[tuple[str, str]]:
    """(look, color) of the answer and then of the foils, all different in both."""
    values = (question.answer, *question.foils)
    if question.attribute == "color":
        return list(zip(rng.permutation(SHAPES).tolist(), values, strict=False))
    looks = VALUES["digit"] if question.attribute == "digit" else SHAPES
    assert set(values) <= set(looks)
    return list(zip(values, rng.permutation(list(COLORS)).tolist(), strict=False))


def _named(stage: _Stage, question: Question) -> None:
    """The shape of a color, color of a shape, or digit of a color; the foils are also shown."""
    (name,) = question.named
    values = (question.answer, *question.foils)
    if question.attribute == "color":
        looks = _others(stage.rng, SHAPES, [name])
        cast = list(zip([name, *looks], values, strict=False))
    else:
        cast = list(zip(values, [name, *_others(stage.rng, COLORS, [name])], strict=False))
    for n, (look, color) in enumerate(cast):
        stage.add(look, color, needed=n < 2)


def _digit(stage: _Stage, question: Question) -> None:
    if question.named:
        return _named(stage, question)
    colors = _others(stage.rng, COLORS, [])
    stage.add(question.answer, colors[0])
    for look, color in zip(_others(stage.rng, SHAPES, [])[: stage.rng.integers(4)], colors[1:], strict=False):
        stage.add(look, color, needed=False)


def _direction(stage: _Stage, question: Question) -> None:
    color, shape = question.named
    stage.add(shape, color, travel=np.array(DIRECTIONS[question.answer]) * stage.rng.uniform(0.35, 0.6))
    looks, colors = _others(stage.rng, SHAPES, [shape]), _others(stage.rng, COLORS, [color])
    for n, (direction, look, other) in enumerate(zip(question.foils, looks, colors, strict=False)):
        travel = np.array(DIRECTIONS[direction]) * stage.rng.uniform(0.2, 0.5) * stage.speed + stage.camera
        stage.add(look, other, travel=travel, needed=n == 0)


def _count(stage: _Stage, question: Question) -> None:
    """The objects that are counted, and up to two others."""
    rng, count = stage.rng, int(question.answer)
    looks, colors = rng.choice(SHAPES, count + 2).tolist(), rng.choice(list(COLORS), count + 2).tolist()
    extra = int(rng.integers(3)) if question.named else 0
    if question.attribute == "shape":
        looks = [question.named[0]] * count + _others(rng, SHAPES, question.named)[:2]
    elif question.attribute == "color":
        colors = [question.named[0]] * count + _others(rng, COLORS, question.named)[:2]
    for n, (look, color) in enumerate(zip(looks[: count + extra], colors, strict=False)):
        stage.add(look, color, sides=(0.17, 0.21), needed=n < count)


def _order(stage: _Stage, question: Question) -> None:
    """Four objects appear in turn and stay."""
    rng, frames = stage.rng, stage.frames
    step = frames // 8
    starts = (np.sort(rng.permutation(7)[:4]) * step + rng.integers(step)).tolist()
    if question.attribute == "pair":
        later = question.foils[0]
        others = _others(rng, COLORS, question.named)[:2]
        ranks = rng.permutation(4)
        first, second = np.sort(ranks[:2])
        colors = {first: question.answer, second: later, ranks[2]: others[0], ranks[3]: others[1]}
        cast = list(zip(rng.permutation(SHAPES).tolist(), [colors[n] for n in range(4)], strict=False))
    else:
        cast = _cast(rng, question)
    for (look, color), start in zip(cast, starts, strict=True):
        stage.add(look, color, shown=np.arange(frames) >= start)


def _moment(stage: _Stage, question: Question) -> None:
    """Four objects, one at a time; the answer is the object in the frame of the question."""
    rng, frames, cast = stage.rng, stage.frames, _cast(stage.rng, question)
    shortest = max(2, frames // 6)
    spare = frames - 4 * shortest
    # The first of 32 random divisions of the clip in which the frame is not next to a change, if there is one.
    cuts = np.sort(rng.integers(0, spare + 1, (32, 3)), 1) + shortest * np.arange(1, 4)
    clear = ((cuts != question.frame) & (cuts != question.frame + 1)).all(1)
    cut = cuts[np.argmax(clear)]
    part = np.searchsorted(cut, np.arange(frames), side="right")
    target = part[question.frame]
    order = rng.permutation([n for n in range(4) if n != target]).tolist()
    for (look, color), index in zip(cast, [target, *order], strict=True):
        stage.add(look, color, shown=part == index)


def _needle(stage: _Stage, question: Question) -> None:
    """One object in one frame, neither the first nor the last; the foils are always visible."""
    frame = int(stage.rng.integers(1, stage.frames - 1))
    for n, (look, color) in enumerate(_cast(stage.rng, question)):
        shown = np.arange(stage.frames) == frame if n == 0 else None
        stage.add(look, color, shown=shown, needed=n < 2)


def _collision(stage: _Stage, question: Question) -> None:
    """Two objects collide and move apart; the others do not collide.

    If the two objects of the question do not collide, another pair does.
    """
    rng = stage.rng
    stage.gap = max(0.07, 2.5 / stage.config.size)
    looks = rng.permutation(_COLLIDERS).tolist()
    others = _others(rng, COLORS, (*question.named, question.answer))
    if question.attribute == "which":
        pair = [question.named[0], question.answer]
        rest = list(question.foils[:2])
    elif question.answer == "yes":
        pair, rest = list(question.named), others[:2]
    else:
        colliding, single = rng.permutation(question.named).tolist()
        pair, rest = [colliding, others[0]], [single, others[1]]
    _collide(stage, looks[:2], rng.permutation(pair).tolist())
    for n, (look, color) in enumerate(zip(looks[2:], rest, strict=True)):
        stage.add(look, color, sides=(0.18, 0.23), needed=n == 0)


def _collide(stage: _Stage, looks: list[str], colors: list[str]) -> None:
    """Adds two objects that approach along a row or a column, overlap slightly in one frame, and move apart."""
    rng, frames = stage.rng, stage.frames
    sides = [stage.side(0.18, 0.23) for _ in looks]
    axis = int(rng.integers(2))
    touch = int(rng.integers(frames // 4, 3 * frames // 4))
    distance = np.abs(np.arange(frames) - touch) / (frames - 1)
    speeds = rng.uniform(0.2, 0.5, (2, _TRIES)) * max(stage.speed, 0.4)
    middle = rng.uniform(0.2, 0.8, (_TRIES, 2))
    paths = []
    for n, sign in enumerate((-1, 1)):
        path = np.repeat(middle[:, None], frames, 1) + stage.camera * (stage.phase - 0.5)
        path[:, :, axis] += sign * (0.4 * sides[n] + speeds[n][:, None] * distance)
        paths.append(path)
    inside = np.flatnonzero(stage.inside(paths[0], sides[0]) & stage.inside(paths[1], sides[1]))
    if not len(inside):
        raise _CrowdedError
    shown = np.ones(frames, bool)
    for look, color, path, side in zip(looks, colors, paths, sides, strict=True):
        stage.put(look, color, path[inside[0]], side, shown)


def _leave(stage: _Stage, question: Question) -> None:
    """One object leaves the frame at the latest in the last frame; the others stay inside."""
    rng, frames = stage.rng, stage.frames
    (look, color), *others = _cast(rng, question)
    side = stage.side(*_DEFAULT_SIDES)
    axis, forward = int(rng.integers(2)), bool(rng.integers(2))
    exit_frame = int(rng.integers(frames // 2, frames - 1))  # the first frame without it
    start = rng.uniform(0.3, 0.6)
    along = start + (1 + side / 2 + 0.01 - start) * np.arange(frames) / exit_frame
    path = np.empty((frames, 2))
    path[:, axis] = along if forward else 1 - along
    path[:, 1 - axis] = rng.uniform(side / 2, 1 - side / 2)
    stage.put(look, color, path, side, np.arange(frames) < exit_frame)
    for n, (other_look, other_color) in enumerate(others):
        stage.add(other_look, other_color, needed=n == 0)


_SCENES: dict[str, Callable[[_Stage, Question], None]] = {
    "shape": _named,
    "color": _named,
    "digit": _digit,
    "direction": _direction,
    "count": _count,
    "order": _order,
    "moment": _moment,
    "needle": _needle,
    "collision": _collision,
    "leave": _leave,
}
