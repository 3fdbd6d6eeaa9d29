"""Questions about synthetic clips. The answer is sampled first, independently, then a scene in which it is true.

The wording, the objects it names, the answer, the wrong answers and the order of the choices are sampled
independently and uniformly, so a question carries no information about its answer beyond the list of possible ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewtokens.data.scenes import COLORS, DIGITS, SHAPES, SPLITS

KINDS = ("shape", "color", "digit", "direction", "count", "order", "moment", "needle", "collision", "leave")
FORMATS = ("choice", "open")
CAMERAS = ("both", "static", "moving")
DIRECTIONS = {"left": (0.0, -1.0), "right": (0.0, 1.0), "up": (-1.0, 0.0), "down": (1.0, 0.0)}
COUNTS = tuple("12345")
LETTERS = "ABCD"
VALUES = {"shape": SHAPES, "color": tuple(COLORS), "digit": DIGITS}


@dataclass(frozen=True)
class SceneConfig:
    """The settings of a set of clips.

    Attributes:
        size: side of a frame in pixels, at least 32.
        frames: frames per clip, 8 to 128.
        fps: frames per second; frame n is at n / fps seconds.
        seed: random seed of the set; the splits of a seed have no clip in common.
        camera: "static", "moving" or "both" (half of each).
        digits: whether questions may be about handwritten digits, which require scikit-learn.

    Raises:
        ValueError: a value is out of range.
    """

    size: int = 64
    frames: int = 16
    fps: float = 2.0
    seed: int = 0
    camera: str = "both"
    digits: bool = True

    def __post_init__(self) -> None:
        if not 8 <= self.frames <= 128:
            raise ValueError(f"frames must be 8 to 128, got {self.frames}")
        if self.size < 32:
            raise ValueError(f"size must be at least 32 pixels to distinguish the shapes, got {self.size}")
        if not 0 < self.fps <= 1000:
            raise ValueError(f"fps must be above 0 and at most 1000, got {self.fps}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.camera not in CAMERAS:
            raise ValueError(f"camera must be one of {', '.join(CAMERAS)}, got {self.camera!r}")


@dataclass(frozen=True)
class Question:
    """A question without its clip.

    Attributes:
        kind: one of `KINDS`.
        format: "choice" or "open".
        question: the text, without the choices.
        answer: the correct answer, one word or number.
        choices: two or four answers to choose from, in random order; () for open questions.
        answers: all possible answers to this text, equally likely.
        attribute: the attribute in question ("shape", "color", "digit", "pair", ...).
        named: the colors and shapes that the text names.
        foils: wrong answers, which the scene also shows if possible.
        frame: the frame that "at second ..." refers to, or -1.
    """

    kind: str
    format: str
    question: str
    answer: str
    choices: tuple[str, ...]
    answers: tuple[str, ...]
    attribute: str
    named: tuple[str, ...]
    foils: tuple[str, ...]
    frame: int = -1

    @property
    def chance(self) -> float:
        """The accuracy of a random guess."""
        return 1 / len(self.choices or self.answers)


TEXTS = {
    "shape shape": ("Which shape is the {0} object?", "What is the shape of the {0} object?"),
    "color color": ("What color is the {0}?", "Which color does the {0} have?"),
    "digit single": ("Which handwritten digit is shown?", "What digit can be seen?"),
    "digit colored": ("Which digit is {0}?", "What is the {0} handwritten digit?"),
    "direction way": (
        "Which way does the {0} {1} move in the picture: left, right, up or down?",
        "Does the {0} {1} move left, right, up or down in the picture?",
    ),
    "count object": ("How many objects are there?", "How many objects does the clip show?"),
    "count shape": ("How many {0} are there?", "How many {0} does the clip show?"),
    "count color": ("How many {0} objects are there?", "How many objects are {0}?"),
    "order pair": (
        "Which object appeared first, the {0} one or the {1} one?",
        "What came first: the {0} object or the {1} object?",
    ),
    "order shape": ("Which shape appeared first?", "Of what shape is the object that came first?"),
    "order color": ("What is the color of the object that appeared first?", "What color is the first object?"),
    "moment shape": ("Which shape is there at second {0}?", "What is the shape of the object at second {0}?"),
    "moment color": (
        "Which color is the object at second {0}?",
        "What is the color of the object at second {0}?",
    ),
    "needle shape": ("Which shape is shown for a single frame?", "An object flashes up once. What is its shape?"),
    "needle color": (
        "What color is the object that is shown for a single frame?",
        "An object flashes up once. What is its color?",
    ),
    "needle digit": ("Which digit is shown for a single frame?", "A digit flashes up once. Which one?"),
    "collision which": (
        "What color is the object that the {0} object collides with?",
        "The {0} object touches another one. What is the color of that one?",
    ),
    "collision whether": (
        "Do the {0} object and the {1} object collide?",
        "Does the {0} object touch the {1} one?",
    ),
    "leave shape": ("Which shape leaves the picture?", "Of what shape is the object that leaves the frame?"),
    "leave color": (
        "What is the color of the object that leaves the frame?",
        "What color is the object that moves out of the frame?",
    ),
}
_ATTRIBUTES = {
    kind: tuple(key.split()[1] for key in TEXTS if key.split()[0] == kind and key != "needle digit") for kind in KINDS
}


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def clip_seed(split: str, number: int, config: SceneConfig, part: int) -> list[int]:
    """The seed of one part (0: the question, 1: the scene) of a clip."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if number < 0:
        raise ValueError(f"the index of a clip must not be negative, got {number}")
    return [config.seed, SPLITS.index(split), number, part]


def check_kinds(kinds: tuple[str, ...] | None, formats: tuple[str, ...], config: SceneConfig) -> tuple[str, ...]:
    """Validates kinds and formats.

    Returns:
        `kinds`; all kinds that the config allows if it is None.

    Raises:
        ValueError: there is no such kind or format, or "digit" is requested although the config has no digits.
    """
    requested = tuple(kind for kind in KINDS if config.digits or kind != "digit") if kinds is None else tuple(kinds)
    for values, valid, label in ((requested, KINDS, "kind"), (tuple(formats), FORMATS, "format")):
        if not values or not set(values) <= set(valid):
            raise ValueError(f"each {label} must be one of {', '.join(valid)}, got {', '.join(values) or 'none'}")
    if "digit" in requested and not config.digits:
        raise ValueError("questions of kind 'digit' require SceneConfig(digits=True)")
    return requested


def make_question(
    split: str,
    number: int,
    config: SceneConfig | None = None,
    *,
    kinds: tuple[str, ...] | None = None,
    formats: tuple[str, ...] = FORMATS,
) -> Question:
    """Generates the question of a clip without rendering the clip. Kinds alternate; everything else is random.

    Args:
        split: "train", "val" or "test".
        number: index of the clip, from 0.
        config: settings of the set.
        kinds: a subset of `KINDS`; None for all.
        formats: "choice", "open" or both.

    Raises:
        ValueError: there is no such split, kind or format, or the index is negative.
    """
    config = config or SceneConfig()
    kinds = check_kinds(kinds, formats, config)
    rng = np.random.default_rng(clip_seed(split, number, config, 0))
    kind = kinds[number % len(kinds)]
    attributes = _ATTRIBUTES[kind] + (("digit",) if kind == "needle" and config.digits else ())
    attribute = attributes[rng.integers(len(attributes))]
    texts = TEXTS[f"{kind} {attribute}"]
    text = texts[rng.integers(len(texts))]
    frame = -1
    colors, shapes = rng.permutation(list(COLORS)).tolist(), rng.permutation(SHAPES).tolist()
    named: tuple[str, ...] = {
        "shape shape": (colors[0],),
        "color color": (shapes[0],),
        "digit colored": (colors[0],),
        "direction way": (colors[0], shapes[0]),
        "count shape": (shapes[0],),
        "count color": (colors[0],),
        "order pair": (colors[0], colors[1]),
        "collision which": (colors[0],),
        "collision whether": (colors[0], colors[1]),
    }.get(f"{kind} {attribute}", ())
    words: tuple[str, ...] = tuple(plural(name) if kind == "count" and name in SHAPES else name for name in named)
    if kind == "moment":
        frame = _sample_frame(rng, config)
        words = (f"{round(frame / config.fps, 3):g}",)
    answers = _answers(kind, attribute, named)
    order = [answers[n] for n in rng.permutation(len(answers))]
    answer, foils = order[0], tuple(order[1 : len(LETTERS)])
    format = formats[rng.integers(len(formats))]
    shuffled = [(answer, *foils)[n] for n in rng.permutation(1 + len(foils))]
    choices = tuple(shuffled) if format == "choice" else ()
    return Question(kind, format, text.format(*words), answer, choices, answers, attribute, named, foils, frame)


def _answers(kind: str, attribute: str, named: tuple[str, ...]) -> tuple[str, ...]:
    """All possible answers."""
    if kind in ("digit", "direction", "count"):
        return {"digit": DIGITS, "direction": tuple(DIRECTIONS), "count": COUNTS}[kind]
    if attribute == "pair":
        return named
    if attribute == "whether":
        return ("yes", "no")
    if attribute == "which":
        return tuple(color for color in COLORS if color not in named)
    return VALUES[attribute]


def _sample_frame(rng: np.random.Generator, config: SceneConfig) -> int:
    """Samples a frame at a whole second, or any frame if there are fewer than four of those."""
    times = np.arange(config.frames) / config.fps
    whole = np.flatnonzero(times == np.rint(times))
    return int(rng.choice(whole if len(whole) >= 4 else np.arange(config.frames)))
