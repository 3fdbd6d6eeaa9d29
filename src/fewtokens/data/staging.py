"""A scene in which the answer of a question is true, and no other is.

Objects that are shown at the same time never overlap nor touch, but for those that collide; all of an object is in
the picture whenever it is shown, but for the one that leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from fewtokens.data.questions import VALUES, WAYS, Question, SceneConfig
from fewtokens.data.scenes import BACKGROUNDS, COLOURS, DIGITS, SHAPES, Actor, Background

# So many places are tried at once, and so many times is a scene begun anew, each time with slower objects.
_TRIES, _ROUNDS = 64, 200
# Shapes that fill their box along both axes, so that boxes that meet are objects that meet.
_COLLIDERS = ("circle", "square", "cross", "diamond")
_USUAL = (0.24, 0.29)


class _CrowdedError(Exception):
    """An object found no place."""


class _Stage:
    """Puts objects where they are in nobody's way."""

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
        """A side that is at least 8 pixels; digits are larger."""
        large = 1.2 if look in DIGITS else 1.0
        return max(float(self.rng.uniform(low, high)) * large, 8 / self.config.size)

    def free(self, paths: NDArray[np.float64], side: float, shown: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Of paths [K,T,2], those that keep clear of all others."""
        clear = np.ones(len(paths), bool)
        for other in self.actors:
            both = shown & other.shown
            apart = np.abs(paths[:, both] - other.path[both]).max(2)
            clear &= (apart > (side + other.side) / 2 + self.gap).all(1)
        return clear

    def inside(self, paths: NDArray[np.float64], side: float) -> NDArray[np.bool_]:
        return np.asarray((np.abs(paths - 0.5) <= 0.5 - side / 2).all((1, 2)))

    def put(self, look: str, colour: str, path: NDArray[np.float64], side: float, shown: NDArray[np.bool_]) -> None:
        self.actors.append(Actor(look, colour, side, path, shown, int(self.rng.integers(1 << 30))))

    def add(
        self,
        look: str,
        colour: str,
        *,
        sides: tuple[float, float] = _USUAL,
        travel: NDArray[np.float64] | None = None,
        shown: NDArray[np.bool_] | None = None,
        needed: bool = True,
    ) -> None:
        """An object that stands or moves evenly over the clip; `travel` [2] is how far, drawn where not said."""
        side = self.side(*sides, look)
        shown = np.ones(self.frames, bool) if shown is None else shown
        way = self.travels() if travel is None else np.repeat(travel[None], _TRIES, 0)
        room = 1 - side - np.abs(way)
        start = side / 2 + np.maximum(-way, 0) + self.rng.random((_TRIES, 2)) * room
        paths = start[:, None] + way[:, None] * self.phase
        good = np.flatnonzero((room >= 0).all(1) & self.free(paths, side, shown))
        if len(good):
            self.put(look, colour, paths[good[0]], side, shown)
        elif needed:
            raise _CrowdedError

    def travels(self) -> NDArray[np.float64]:
        """[K,2]: still in the world, or some way; the camera's motion is added."""
        turn, far = self.rng.uniform(0, 2 * np.pi, _TRIES), self.rng.uniform(0.15, 0.45, _TRIES) * self.speed
        # The fastest are tried first; slower ones find room more often.
        far *= np.linspace(1, 0.2, _TRIES) * (self.rng.random() < 0.6)
        return np.stack([np.sin(turn), np.cos(turn)], 1) * far[:, None] + self.camera


def stage(question: Question, config: SceneConfig, rng: np.random.Generator) -> tuple[list[Actor], Background]:
    """Draws the scene of a question.

    Returns:
        The objects in a drawn order, and the background.
    """
    moving = config.camera == "moving" or (config.camera == "both" and rng.random() < 0.5)
    turn, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.12, 0.25)
    camera = np.array([np.sin(turn), np.cos(turn)]) * far * moving
    kind, seed = str(rng.choice(BACKGROUNDS)), int(rng.integers(1 << 30))
    for round_ in range(_ROUNDS):
        made = _Stage(rng, config, camera, 0.93**round_)
        try:
            _SCENES[question.kind](made, question)
        except _CrowdedError:
            continue
        actors = [made.actors[n] for n in rng.permutation(len(made.actors))]
        return actors, Background(kind, (float(made.camera[0]), float(made.camera[1])), seed)
    raise AssertionError(f"no room for the objects of {question}")


def _others(rng: np.random.Generator, names: Iterable[str], without: Iterable[str]) -> list[str]:
    """The names that are left, in a drawn order."""
    without = set(without)
    return rng.permutation([name for name in names if name not in without]).tolist()


def _cast(rng: np.random.Generator, question: Question) -> list[tuple[str, str]]:
    """(look, colour) of the answer and then of the foils, all different in both."""
    values = (question.answer, *question.foils)
    if question.attribute == "colour":
        return list(zip(rng.permutation(SHAPES).tolist(), values, strict=False))
    looks = VALUES["digit"] if question.attribute == "digit" else SHAPES
    assert set(values) <= set(looks)
    return list(zip(values, rng.permutation(list(COLOURS)).tolist(), strict=False))


def _named(stage: _Stage, question: Question) -> None:
    """Shape of a colour, colour of a shape, digit of a colour: the foils stand by."""
    (name,) = question.named
    values = (question.answer, *question.foils)
    if question.attribute == "colour":
        looks = _others(stage.rng, SHAPES, [name])
        cast = list(zip([name, *looks], values, strict=False))
    else:
        cast = list(zip(values, [name, *_others(stage.rng, COLOURS, [name])], strict=False))
    for number, (look, colour) in enumerate(cast):
        stage.add(look, colour, needed=number < 2)


def _digit(stage: _Stage, question: Question) -> None:
    if question.named:
        return _named(stage, question)
    colours = _others(stage.rng, COLOURS, [])
    stage.add(question.answer, colours[0])
    for look, colour in zip(_others(stage.rng, SHAPES, [])[: stage.rng.integers(4)], colours[1:], strict=False):
        stage.add(look, colour, needed=False)


def _direction(stage: _Stage, question: Question) -> None:
    colour, shape = question.named
    stage.add(shape, colour, travel=np.array(WAYS[question.answer]) * stage.rng.uniform(0.35, 0.6))
    looks, colours = _others(stage.rng, SHAPES, [shape]), _others(stage.rng, COLOURS, [colour])
    for number, (way, look, other) in enumerate(zip(question.foils, looks, colours, strict=False)):
        travel = np.array(WAYS[way]) * stage.rng.uniform(0.2, 0.5) * stage.speed + stage.camera
        stage.add(look, other, travel=travel, needed=number == 0)


def _count(stage: _Stage, question: Question) -> None:
    """So many objects of the kind that is counted, and up to two others."""
    rng, number = stage.rng, int(question.answer)
    looks, colours = rng.choice(SHAPES, number + 2).tolist(), rng.choice(list(COLOURS), number + 2).tolist()
    extra = int(rng.integers(3)) if question.named else 0
    if question.attribute == "shape":
        looks = [question.named[0]] * number + _others(rng, SHAPES, question.named)[:2]
    elif question.attribute == "colour":
        colours = [question.named[0]] * number + _others(rng, COLOURS, question.named)[:2]
    for n, (look, colour) in enumerate(zip(looks[: number + extra], colours, strict=False)):
        stage.add(look, colour, sides=(0.17, 0.21), needed=n < number)


def _order(stage: _Stage, question: Question) -> None:
    """Four objects appear one after the other and stay."""
    rng, frames = stage.rng, stage.frames
    step = frames // 8
    starts = (np.sort(rng.permutation(7)[:4]) * step + rng.integers(step)).tolist()
    if question.attribute == "pair":
        later = question.foils[0]
        others = _others(rng, COLOURS, question.named)[:2]
        at = rng.permutation(4)
        first, second = np.sort(at[:2])
        colours = {first: question.answer, second: later, at[2]: others[0], at[3]: others[1]}
        cast = list(zip(rng.permutation(SHAPES).tolist(), [colours[n] for n in range(4)], strict=False))
    else:
        cast = _cast(rng, question)
    for (look, colour), start in zip(cast, starts, strict=True):
        stage.add(look, colour, shown=np.arange(frames) >= start)


def _moment(stage: _Stage, question: Question) -> None:
    """Four objects, one at a time; the answer is the one in the frame that is meant."""
    rng, frames, cast = stage.rng, stage.frames, _cast(stage.rng, question)
    shortest = max(2, frames // 6)
    spare = frames - 4 * shortest
    # Of some ways to divide the clip, one where the frame is not beside a change, if there is any.
    cuts = np.sort(rng.integers(0, spare + 1, (32, 3)), 1) + shortest * np.arange(1, 4)
    clear = ((cuts != question.frame) & (cuts != question.frame + 1)).all(1)
    cut = cuts[np.argmax(clear)]
    part = np.searchsorted(cut, np.arange(frames), side="right")
    meant = part[question.frame]
    order = rng.permutation([n for n in range(4) if n != meant]).tolist()
    for (look, colour), at in zip(cast, [meant, *order], strict=True):
        stage.add(look, colour, shown=part == at)


def _needle(stage: _Stage, question: Question) -> None:
    """One object for one frame, not the first nor the last; the foils are there all the time."""
    frame = int(stage.rng.integers(1, stage.frames - 1))
    for number, (look, colour) in enumerate(_cast(stage.rng, question)):
        shown = np.arange(stage.frames) == frame if number == 0 else None
        stage.add(look, colour, shown=shown, needed=number < 2)


def _collision(stage: _Stage, question: Question) -> None:
    """Two objects meet, and go back; others meet nobody. Where the two that are asked for do not, another pair does."""
    rng = stage.rng
    stage.gap = max(0.07, 2.5 / stage.config.size)
    looks = rng.permutation(_COLLIDERS).tolist()
    strangers = _others(rng, COLOURS, (*question.named, question.answer))
    if question.attribute == "which":
        pair = [question.named[0], question.answer]
        rest = list(question.foils[:2])
    elif question.answer == "yes":
        pair, rest = list(question.named), strangers[:2]
    else:
        meets, lone = rng.permutation(question.named).tolist()
        pair, rest = [meets, strangers[0]], [lone, strangers[1]]
    _meet(stage, looks[:2], rng.permutation(pair).tolist())
    for number, (look, colour) in enumerate(zip(looks[2:], rest, strict=True)):
        stage.add(look, colour, sides=(0.18, 0.23), needed=number == 0)


def _meet(stage: _Stage, looks: list[str], colours: list[str]) -> None:
    """Two objects come together along a row or a column, overlap a little in one frame, and part again."""
    rng, frames = stage.rng, stage.frames
    sides = [stage.side(0.18, 0.23) for _ in looks]
    axis = int(rng.integers(2))
    touch = int(rng.integers(frames // 4, 3 * frames // 4))
    away = np.abs(np.arange(frames) - touch) / (frames - 1)
    speeds = rng.uniform(0.2, 0.5, (2, _TRIES)) * max(stage.speed, 0.4)
    middle = rng.uniform(0.2, 0.8, (_TRIES, 2))
    both = []
    for number, sign in enumerate((-1, 1)):
        path = np.repeat(middle[:, None], frames, 1) + stage.camera * (stage.phase - 0.5)
        path[:, :, axis] += sign * (0.4 * sides[number] + speeds[number][:, None] * away)
        both.append(path)
    good = np.flatnonzero(stage.inside(both[0], sides[0]) & stage.inside(both[1], sides[1]))
    if not len(good):
        raise _CrowdedError
    shown = np.ones(frames, bool)
    for look, colour, path, side in zip(looks, colours, both, sides, strict=True):
        stage.put(look, colour, path[good[0]], side, shown)


def _leave(stage: _Stage, question: Question) -> None:
    """One object moves out and stays out for the last frame at least; the others stay in."""
    rng, frames = stage.rng, stage.frames
    (look, colour), *others = _cast(rng, question)
    side = stage.side(*_USUAL)
    axis, ahead = int(rng.integers(2)), bool(rng.integers(2))
    out = int(rng.integers(frames // 2, frames - 1))  # The first frame without it.
    start = rng.uniform(0.3, 0.6)
    along = start + (1 + side / 2 + 0.01 - start) * np.arange(frames) / out
    path = np.empty((frames, 2))
    path[:, axis] = along if ahead else 1 - along
    path[:, 1 - axis] = rng.uniform(side / 2, 1 - side / 2)
    stage.put(look, colour, path, side, np.arange(frames) < out)
    for number, (other, another) in enumerate(others):
        stage.add(other, another, needed=number == 0)


_SCENES: dict[str, Callable[[_Stage, Question], None]] = {
    "shape": _named,
    "colour": _named,
    "digit": _digit,
    "direction": _direction,
    "count": _count,
    "order": _order,
    "moment": _moment,
    "needle": _needle,
    "collision": _collision,
    "leave": _leave,
}
