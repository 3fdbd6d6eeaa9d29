"""Questions about made clips: the answer is drawn first, alone, and only then a scene in which it is true.

Wording, what is named in it, answer, wrong answers and their places are drawn independently of each other, each
uniformly. So a question says nothing of its answer beyond the list of what is possible.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewtokens.data.scenes import COLOURS, DIGITS, SHAPES, SPLITS

KINDS = ("shape", "colour", "digit", "direction", "count", "order", "moment", "needle", "collision", "leave")
FORMATS = ("choice", "open")
CAMERAS = ("both", "static", "moving")
WAYS = {"left": (0.0, -1.0), "right": (0.0, 1.0), "up": (-1.0, 0.0), "down": (1.0, 0.0)}
COUNTS = tuple("12345")
LETTERS = "ABCD"
VALUES = {"shape": SHAPES, "colour": tuple(COLOURS), "digit": DIGITS}


@dataclass(frozen=True)
class SceneConfig:
    """What all clips of a set have in common.

    Attributes:
        size: side in pixels, at least 32.
        frames: 8 to 128.
        fps: frames each second; frame n is at second n / fps.
        seed: another seed, another set; the splits of one seed have no clip in common.
        camera: "static", "moving" or "both", half of each.
        digits: whether handwritten digits may be asked for; they need scikit-learn.

    Raises:
        ValueError: a value outside of these.
    """

    size: int = 64
    frames: int = 16
    fps: float = 2.0
    seed: int = 0
    camera: str = "both"
    digits: bool = True

    def __post_init__(self) -> None:
        if not 8 <= self.frames <= 128:
            raise ValueError(f"a clip must have 8 to 128 frames, got {self.frames}")
        if self.size < 32:
            raise ValueError(f"the size must be at least 32 pixels for shapes to be told apart, got {self.size}")
        if not 0 < self.fps <= 1000:
            raise ValueError(f"fps must be above 0 and at most 1000, got {self.fps}")
        if self.seed < 0:
            raise ValueError(f"the seed must not be negative, got {self.seed}")
        if self.camera not in CAMERAS:
            raise ValueError(f"the camera must be one of {', '.join(CAMERAS)}, got {self.camera!r}")


@dataclass(frozen=True)
class Question:
    """A question without its clip.

    Attributes:
        kind: one of `KINDS`.
        format: "choice" or "open".
        question: the text, without the choices.
        answer: the right one, one word or number.
        choices: the answers to choose from, with the right one at a random place (two or four); () where open.
        answers: everything that could have been the answer to this text, all equally likely.
        attribute: what the wording asks for ("shape", "colour", "digit", "pair", ...).
        named: colours, shapes that the text names.
        foils: wrong answers that the scene shows as well where it can.
        frame: the frame meant by "at second ...", or -1.
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
        """How often a guess is right."""
        return 1 / len(self.choices or self.answers)


TEXTS = {
    "shape shape": ("Which shape is the {0} object?", "What is the shape of the {0} object?"),
    "colour colour": ("What colour is the {0}?", "Which colour does the {0} have?"),
    "digit single": ("Which handwritten digit is shown?", "What digit can be seen?"),
    "digit coloured": ("Which digit is {0}?", "What is the {0} handwritten digit?"),
    "direction way": (
        "Which way does the {0} {1} move in the picture: left, right, up or down?",
        "Does the {0} {1} move left, right, up or down in the picture?",
    ),
    "count object": ("How many objects are there?", "How many objects does the clip show?"),
    "count shape": ("How many {0} are there?", "How many {0} does the clip show?"),
    "count colour": ("How many {0} objects are there?", "How many objects are {0}?"),
    "order pair": (
        "Which object appeared first, the {0} one or the {1} one?",
        "What came first: the {0} object or the {1} object?",
    ),
    "order shape": ("Which shape appeared first?", "Of what shape is the object that came first?"),
    "order colour": ("What is the colour of the object that appeared first?", "Of what colour is what came first?"),
    "moment shape": ("Which shape is there at second {0}?", "What is the shape of the object at second {0}?"),
    "moment colour": (
        "Which colour has the object that is there at second {0}?",
        "What is the colour of the object at second {0}?",
    ),
    "needle shape": ("Which shape is shown for a single frame?", "An object flashes up once. What is its shape?"),
    "needle colour": (
        "Of what colour is the object that is shown for a single frame?",
        "An object flashes up once. What is its colour?",
    ),
    "needle digit": ("Which digit is shown for a single frame?", "A digit flashes up once. Which one?"),
    "collision which": (
        "Of what colour is the object that the {0} object collides with?",
        "The {0} object touches another one. What is the colour of that one?",
    ),
    "collision whether": (
        "Do the {0} object and the {1} object collide?",
        "Does the {0} object touch the {1} one?",
    ),
    "leave shape": ("Which shape leaves the picture?", "Of what shape is the object that leaves the picture?"),
    "leave colour": (
        "What is the colour of the object that leaves the picture?",
        "Of what colour is the object that moves out of the picture?",
    ),
}
_ATTRIBUTES = {
    kind: tuple(key.split()[1] for key in TEXTS if key.split()[0] == kind and key != "needle digit") for kind in KINDS
}


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def key_of(split: str, number: int, config: SceneConfig, part: int) -> list[int]:
    """The seed of one part (0: the question, 1: the scene) of one clip."""
    if split not in SPLITS:
        raise ValueError(f"the split must be one of {', '.join(SPLITS)}, got {split!r}")
    if number < 0:
        raise ValueError(f"the number of a clip must not be negative, got {number}")
    return [config.seed, SPLITS.index(split), number, part]


def check_kinds(kinds: tuple[str, ...] | None, formats: tuple[str, ...], config: SceneConfig) -> tuple[str, ...]:
    """The kinds meant: all that the config allows where none are said.

    Raises:
        ValueError: no such kind or format, or digits without digits.
    """
    found = tuple(kind for kind in KINDS if config.digits or kind != "digit") if kinds is None else tuple(kinds)
    for given, known, what in ((found, KINDS, "kind"), (tuple(formats), FORMATS, "format")):
        if not given or not set(given) <= set(known):
            raise ValueError(f"each {what} must be one of {', '.join(known)}, got {', '.join(given) or 'none'}")
    if "digit" in found and not config.digits:
        raise ValueError("questions of kind 'digit' need SceneConfig(digits=True)")
    return found


def make_question(
    split: str,
    number: int,
    config: SceneConfig | None = None,
    *,
    kinds: tuple[str, ...] | None = None,
    formats: tuple[str, ...] = FORMATS,
) -> Question:
    """The question of a clip, without drawing the clip. The kinds take turns, all else is drawn.

    Args:
        split: "train", "val" or "test".
        number: of the clip, from 0.
        kinds: some of `KINDS`; None is all.
        formats: "choice", "open" or both.

    Raises:
        ValueError: no such split, kind or format; a negative number.
    """
    config = config or SceneConfig()
    kinds = check_kinds(kinds, formats, config)
    rng = np.random.default_rng(key_of(split, number, config, 0))
    kind = kinds[number % len(kinds)]
    attributes = _ATTRIBUTES[kind] + (("digit",) if kind == "needle" and config.digits else ())
    attribute = attributes[rng.integers(len(attributes))]
    texts = TEXTS[f"{kind} {attribute}"]
    text = texts[rng.integers(len(texts))]
    frame = -1
    colours, shapes = rng.permutation(list(COLOURS)).tolist(), rng.permutation(SHAPES).tolist()
    named: tuple[str, ...] = {
        "shape shape": (colours[0],),
        "colour colour": (shapes[0],),
        "digit coloured": (colours[0],),
        "direction way": (colours[0], shapes[0]),
        "count shape": (shapes[0],),
        "count colour": (colours[0],),
        "order pair": (colours[0], colours[1]),
        "collision which": (colours[0],),
        "collision whether": (colours[0], colours[1]),
    }.get(f"{kind} {attribute}", ())
    words: tuple[str, ...] = tuple(plural(name) if kind == "count" and name in SHAPES else name for name in named)
    if kind == "moment":
        frame = _moment(rng, config)
        words = (f"{round(frame / config.fps, 3):g}",)
    answers = _answers(kind, attribute, named)
    order = [answers[n] for n in rng.permutation(len(answers))]
    answer, foils = order[0], tuple(order[1 : len(LETTERS)])
    format = formats[rng.integers(len(formats))]
    shuffled = [(answer, *foils)[n] for n in rng.permutation(1 + len(foils))]
    choices = tuple(shuffled) if format == "choice" else ()
    return Question(kind, format, text.format(*words), answer, choices, answers, attribute, named, foils, frame)


def _answers(kind: str, attribute: str, named: tuple[str, ...]) -> tuple[str, ...]:
    """Everything that can be the answer."""
    if kind in ("digit", "direction", "count"):
        return {"digit": DIGITS, "direction": tuple(WAYS), "count": COUNTS}[kind]
    if attribute == "pair":
        return named
    if attribute == "whether":
        return ("yes", "no")
    if attribute == "which":
        return tuple(colour for colour in COLOURS if colour not in named)
    return VALUES[attribute]


def _moment(rng: np.random.Generator, config: SceneConfig) -> int:
    """A frame at a whole second, or any frame where there are fewer than four of those."""
    times = np.arange(config.frames) / config.fps
    whole = np.flatnonzero(times == np.rint(times))
    return int(rng.choice(whole if len(whole) >= 4 else np.arange(config.frames)))
