"""From a spec to the frames of a video: candidates, scores and the decision of the selector."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from fewtokens.core import registry
from fewtokens.core.checks import check_near
from fewtokens.core.identity import identity
from fewtokens.core.selection import FrameSelector, Selection, among, chunks
from fewtokens.selection.scorers import PixelScorer, Scorer, load_scorer
from fewtokens.selection.store import cache_folder, file_digest, stored
from fewtokens.version import __version__
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
    select: str | FrameSelector, question: str | None, scorer: str | Scorer | None, near: float = 0.0
) -> Callable[[Footage], Choice]:
    """Returns the function that selects the frames of a `Footage`, for `fewtokens.read`.

    Raises:
        ValueError: an argument is invalid, or a question or a scorer is missing.
    """
    selector = load_selector(select)
    check_cues(selector, question, scorer)
    check_near(near)
    loaded = PixelScorer() if scorer is None else load_scorer(scorer)
    name = scorer if isinstance(scorer, str) else None if scorer is None else loaded.id

    def choose(footage: Footage) -> Choice:
        index = candidate_frames(selector, footage.times, footage.keyframes)
        thumbnails = footage.thumbnails(index, loaded.size, near)
        cached = footage.name != "array" and {"features", "relevance"} & set(selector.needs)
        key = _Key.of(footage, thumbnails, loaded) if cached else None
        selection = _select(selector, footage.times[index], thumbnails, question, loaded, key)
        arguments = {"select": selector.spec, "question": question, "scorer": name, **({"near": near} if near else {})}
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
    times = torch.as_tensor(times.cpu() if isinstance(times, Tensor) else times, dtype=torch.float64)
    index = candidate_frames(selector, times, None if selector.rate != "keyframes" else torch.arange(len(times)))
    if frames.is_floating_point():
        frames = (frames.clamp(0, 1) * 255).round().byte()
    thumbnails = SmallFrames(
        times[index], index.numpy(), loaded.size, lambda part, _: frames[torch.from_numpy(part)].cpu()
    )
    return among(_select(selector, times[index], thumbnails, question, loaded, None), index)


def _select(
    selector: FrameSelector,
    times: Tensor,
    thumbnails: SmallFrames,
    question: str | None,
    scorer: Scorer,
    key: _Key | None,
) -> Selection:
    """Runs a selector with the features and the relevance that it needs.

    Args:
        times: float64 [T], seconds of the candidates.
        thumbnails: T small frames; several candidates may share one, which is encoded and scored once.
        key: what features and scores depend on, except for the question; None to compute them each time.
    """
    distinct, which = thumbnails.distinct()

    def features() -> Tensor:
        return _remember(
            FEATURES, key, None, len(distinct), lambda: torch.cat([scorer.features(part) for part in chunks(distinct)])
        )

    def score() -> Tensor:
        if scorer.compares_features:  # which may depend on the order of all candidates
            return scorer.score(thumbnails, question, features()[which])
        return scorer.score(distinct, question, None)[which]

    relevance = None
    if "relevance" in selector.needs:
        text = question if scorer.needs_question or "question" in selector.needs else None
        relevance = _remember(SCORES, key, f"question {text!r}", len(times), score)
    compared = features()[which] if "features" in selector.needs else None
    return selector.select(times, thumbnails, question=question, relevance=relevance, features=compared)


@dataclass(frozen=True)
class _Key:
    """What the features and scores of a file depend on, except for the question.

    Attributes:
        memory: in this process.
        disk: in any process; None if they are not kept on disk.
    """

    memory: str
    disk: str | None

    @staticmethod
    def of(footage: Footage, thumbnails: SmallFrames, scorer: Scorer) -> _Key:
        frames = hashlib.sha256(thumbnails.index.tobytes()).hexdigest()
        reading = (frames, str(footage.stream), str(scorer.size), scorer.id)
        memory = identity([footage.name], reading)
        own = {**vars(type(scorer)), **vars(scorer)}
        if not own.get("lasting") or cache_folder() is None:
            return _Key(memory, None)
        return _Key(memory, identity([], (file_digest(footage.name), *reading, __version__)))


def _remember(recent: Recent, key: _Key | None, text: str | None, length: int, make: Callable[[], Tensor]) -> Tensor:
    """Returns values [length,...] from memory, from disk, or from `make`; `text` is what else they depend on."""
    if key is None:
        return make()
    on_disk = key.disk
    return recent.get(
        (key.memory, text), make if on_disk is None else lambda: stored(f"{on_disk} {text}", length, make)
    )
