"""From a spec to the frames of a video: candidates, scores and the decision of the selector."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from fewtokens.core import registry
from fewtokens.core.identity import identity
from fewtokens.core.selection import FrameSelector, Selection, among, chunks
from fewtokens.selection.scorers import PixelScorer, Scorer, load_scorer
from fewtokens.video.footage import Choice, Footage, SmallFrames
from fewtokens.video.select import select_frames

# Candidates per second if a source has no index of keyframes.
_WITHOUT_KEYFRAMES = 1.0


class Recent:
    """The most recently used values by key, for several threads.

    Args:
        size: maximum number of values.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._values: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable | None, make: Callable[[], Any]) -> Any:
        """Returns the value of a key, which is made if it is missing; None is no key."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        if key is not None:
            with self._lock:
                self._values[key] = value
                while len(self._values) > self.size:
                    self._values.popitem(last=False)
        return value

    def clear(self) -> None:
        """Forgets all values."""
        with self._lock:
            self._values.clear()


# Features of the candidates of a file, and scores for a question.
FEATURES, SCORES = Recent(8), Recent(64)


def load_selector(select: str | FrameSelector) -> FrameSelector:
    """Returns a frame selector for a spec such as "aks(keep=32)".

    Raises:
        ValueError: the spec is invalid, or of methods that do not select frames.
    """
    if isinstance(select, FrameSelector):
        return select
    if not isinstance(select, str):
        raise ValueError(f"select must be the spec of a frame selector or a FrameSelector, got {type(select).__name__}")
    methods = registry.build(select)
    if len(methods) != 1 or not isinstance(methods[0], FrameSelector):
        raise ValueError(
            f"{select!r} does not select frames; use one of {', '.join(registry.selector_names())} "
            "(fewtokens methods --stage frames)"
        )
    return methods[0]


def candidate_frames(selector: FrameSelector, times: Tensor, keyframes: Tensor | None) -> Tensor:
    """Returns the indices of the frames among which a selector selects, int64 [T].

    Args:
        selector: the selector; its `rate` and `max_candidates` decide.
        times: float64 [n], seconds of all frames.
        keyframes: int64 [m], indices of the keyframes; None if unknown, then "keyframes" is one frame per second.
    """
    if selector.rate == "keyframes" and keyframes is not None:
        index = keyframes
    elif selector.rate == "all":
        index = torch.arange(len(times))
    else:
        fps = _WITHOUT_KEYFRAMES if isinstance(selector.rate, str) else selector.rate
        seconds = times.numpy()
        index = torch.from_numpy(select_frames(seconds, None, fps, float(seconds[0]), None, "video"))
    most = selector.max_candidates(float(times[-1] - times[0]))
    return index if most is None or len(index) <= most else index[selector.thin(len(index), most)]


def make_chooser(
    select: str | FrameSelector, question: str | None, scorer: str | Scorer | None
) -> Callable[[Footage], Choice]:
    """Returns the function that selects the frames of a `Footage`, for `fewtokens.read`.

    Raises:
        ValueError: an argument is invalid, or a question or a scorer is missing.
    """
    selector = load_selector(select)
    check_cues(selector, question, scorer)
    loaded = PixelScorer() if scorer is None else load_scorer(scorer)
    name = scorer if isinstance(scorer, str) else None if scorer is None else loaded.id

    def choose(footage: Footage) -> Choice:
        index = candidate_frames(selector, footage.times, footage.keyframes)
        thumbnails = footage.thumbnails(index, loaded.size)
        key = None if footage.name == "array" else _key(footage.name, thumbnails, loaded)
        selection = _select(selector, thumbnails, question, loaded, key)
        arguments = {"select": selector.spec, "question": question, "scorer": name}
        selection = among(selection, index)
        return Choice(selection.index, selection, arguments)

    return choose


def check_cues(selector: FrameSelector, question: str | None, scorer: str | Scorer | None) -> None:
    """Checks that a selector has what it needs, before any model is loaded.

    Raises:
        ValueError: a question or a scorer is missing, or is given without effect.
    """
    if "relevance" in selector.needs and scorer is None:
        raise ValueError(
            f"{selector.name} selects by relevance and requires a scorer: scorer='clip:FOLDER' (--scorer) with a "
            "question, or 'features' without one"
        )
    # Anything else is refused when the scorer is loaded.
    named = str(scorer) == "model" or str(scorer).startswith("clip:")
    by_text = scorer.needs_question if isinstance(scorer, Scorer) else named
    if (("relevance" in selector.needs and by_text) or "question" in selector.needs) and not (question or "").strip():
        raise ValueError(f"{selector.name} selects by a question: question='...' (--question)")


def select_among(
    selector: FrameSelector,
    frames: Tensor,
    times: Tensor,
    *,
    question: str | None = None,
    scorer: str | Scorer | None = None,
) -> Selection:
    """Selects among frames in memory.

    Args:
        selector: the selector. Its `rate` applies to the times.
        frames: uint8 [n,3,H,W], or float in 0..1.
        times: [n], seconds.
        question, scorer: see `fewtokens.read`.

    Returns:
        The selection; its indices are those of `frames`.
    """
    check_cues(selector, question, scorer)
    loaded = PixelScorer() if scorer is None else load_scorer(scorer)
    times = torch.as_tensor(times, dtype=torch.float64)
    index = candidate_frames(selector, times, None if selector.rate != "keyframes" else torch.arange(len(times)))
    if frames.is_floating_point():
        frames = (frames.clamp(0, 1) * 255).round().byte()
    thumbnails = SmallFrames(
        times[index], index.numpy(), loaded.size, lambda part, _: frames[torch.from_numpy(part)].cpu()
    )
    return among(_select(selector, thumbnails, question, loaded, None), index)


def _select(
    selector: FrameSelector, thumbnails: SmallFrames, question: str | None, scorer: Scorer, key: str | None
) -> Selection:
    """Runs a selector with the features and the relevance that it needs."""
    scored = "relevance" in selector.needs
    features = relevance = None
    if "features" in selector.needs or (scored and scorer.compares_features):
        features = FEATURES.get(key, lambda: torch.cat([scorer.features(part) for part in chunks(thumbnails)]))
    if scored:
        text = question if scorer.needs_question or "question" in selector.needs else None
        relevance = SCORES.get(
            None if key is None else (key, text),
            lambda: scorer.score(thumbnails, question, features if scorer.compares_features else None),
        )
    return selector.select(thumbnails.times, thumbnails, question=question, relevance=relevance, features=features)


def _key(name: str, thumbnails: SmallFrames, scorer: Scorer) -> str:
    """What the features and scores of a file depend on, except for the question."""
    frames = hashlib.sha256(thumbnails.index.tobytes()).hexdigest()
    return identity([name], (frames, str(scorer.size), scorer.id))
