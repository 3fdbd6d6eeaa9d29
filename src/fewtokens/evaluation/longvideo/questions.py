"""Questions about a script, answered from the tokens of a memory alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import Tokens
from fewtokens.evaluation.longvideo.script import Script

# A needle, and the first and last second of a code, may be off by this many seconds.
TOLERANCE = 2.0
# The time in which a code has to come back, in seconds.
WINDOW = 600
# How long ago something was, in seconds.
DISTANCES = (
    ("0-1 min ago", 0, 60),
    ("1-10 min ago", 60, 600),
    ("10-60 min ago", 600, 3600),
    ("1-10 h ago", 3600, 36_000),
)


@dataclass(frozen=True, eq=False)
class Recall:
    """What a memory says happened: one row per slot, by time; several for a slot with the tokens of several frames.

    Attributes:
        code: int64 [M], the code nearest to each row.
        mean, first, last: float64 [M], seconds of its slot.
        num_scenes: number of codes of scenes; higher codes are needles.
    """

    code: Tensor
    mean: Tensor
    first: Tensor
    last: Tensor
    num_scenes: int

    __repr__ = shape_repr

    @staticmethod
    def from_tokens(
        tokens: Tokens,
        script: Script,
        video: int = 0,
        *,
        frame: int = 1,
        project: Callable[[Tensor], Tensor] | None = None,
    ) -> Recall:
        """Decodes what `Memory.read` returned for one video of a batch.

        Args:
            tokens: what was read.
            script: its `codes` are compared with the mean of up to `frame` consecutive tokens of a slot.
            video: index of the video.
            frame: number of tokens of a frame.
            project: maps these means [M,C] to the space of the codes. Default: the identity.
        """
        single = tokens[video]
        used = single.mask[0]
        slot = single.positions[0, used, 0].long()
        rank = torch.arange(len(slot)) - torch.searchsorted(slot, slot)
        rows, inverse = torch.stack([slot, rank // frame], 1).unique_consecutive(dim=0, return_inverse=True)
        slot = rows[:, 0]
        total = torch.zeros(len(slot), tokens.C).index_add(0, inverse, single.features[0, used].float())
        features = total / inverse.bincount()[:, None]
        similarity = F.normalize(features if project is None else project(features), dim=1) @ script.codes.T
        spans = torch.tensor(tokens.meta["spans"][video], dtype=torch.float64).reshape(-1, 2)
        assert single.grid.times is not None
        first, last = spans[slot].unbind(1)
        return Recall(similarity.argmax(1), single.grid.times.reshape(-1)[slot], first, last, script.num_scenes)

    def at(self, seconds: Tensor) -> Tensor:
        """Returns the code at each second: of the shortest slot that contains it, else of the nearest slot."""
        seconds = seconds.double()[:, None]
        distance = torch.maximum(self.first - seconds, seconds - self.last).clamp(min=0)
        # A length counts much less than a distance.
        return self.code[(distance + 1e-6 * (self.last - self.first)).argmin(1)]

    def runs(self, code: int, start: float = -torch.inf, stop: float = torch.inf) -> int:
        """Returns how often a code begins in the slots that overlap start..stop; a needle does not end a scene."""
        inside = (self.last >= start) & (self.first < stop) & (self.code < self.num_scenes)
        same = self.code[inside] == code
        return int((same & ~F.pad(same, (1, 0))[:-1]).sum())


def ask(recall: Recall | None, script: Script, *, questions: int = 100, seed: int = 0) -> dict[str, float]:
    """Asks all questions about one video.

    Args:
        recall: what the memory says; None for an answer without the video: always the most frequent one, or a guess.
        script: what happened.
        questions: number of questions of each kind.
        seed: random seed of the questions.

    Returns:
        Accuracy by kind, in 0..1, and the error of counts:
            far, near: which code at a second of the first half, and of the last minute. No second of a needle.
            order: which of two codes came first; in random order, so that a guess is right half of the time. NaN if the
                video has one code.
            first, last: the first and last second of a code, within 2 s.
            back: whether a code came back within a window of 10 minutes. Half of the answers are "yes", if the video
                has as many. NaN if all answers are the same.
            needle: whether a slot within 2 s of a needle has its code. NaN if there is none.
            count error: mean absolute error of the number of scenes of a code.
    """
    generator = torch.Generator().manual_seed(seed)
    end = script.seconds
    results: dict[str, float] = {}
    for kind, low, high in (("far", 0, max(1, end // 2)), ("near", max(0, end - 60), end)):
        second = torch.randint(low, high, (questions,), generator=generator)
        second = second[~torch.isin(second, script.needles)]
        truth = script.code(second)
        answers = truth.mode().values.expand_as(truth) if recall is None else recall.at(second)
        results[kind] = float((answers == truth).double().mean())

    present = script.scenes.unique().tolist()
    ends = script.ends
    facts = {code: (script.scenes == code).nonzero().squeeze(1) for code in present}
    first = {code: int(script.starts[index[0]]) for code, index in facts.items()}
    last = {code: int(ends[index[-1]]) - 1 for code, index in facts.items()}
    held = {} if recall is None else {code: recall.code == code for code in present}
    held = {code: mask for code, mask in held.items() if bool(mask.any())}

    points = []
    for _ in range(questions if len(present) > 1 else 0):
        order = torch.randperm(len(present), generator=generator)[:2].tolist()
        a, b = (present[index] for index in order)
        if a not in held or b not in held or recall is None:
            points.append(0.5)  # a guess
        else:
            says = float(recall.first[held[a]].min()) < float(recall.first[held[b]].min())
            points.append(float(says == (first[a] < first[b])))
    results["order"] = sum(points) / len(points) if points else float("nan")

    def within(values: dict[int, float], truth: dict[int, int]) -> float:
        return sum(abs(values[c] - truth[c]) <= TOLERANCE for c in present if c in values) / len(present)

    results["first"] = results["last"] = 0.0
    counts = {code: len(facts[code]) for code in present}
    middle = float(torch.tensor(list(counts.values())).median())
    guesses: dict[int, float] = dict.fromkeys(present, middle)
    if recall is not None:
        results["first"] = within({c: float(recall.first[mask].min()) for c, mask in held.items()}, first)
        results["last"] = within({c: float(recall.last[mask].max()) for c, mask in held.items()}, last)
        guesses = {code: recall.runs(code) for code in present}
    results["back"] = _came_back(recall, script, questions, generator)
    found = 0
    for index, needle in enumerate(script.needles.tolist()):
        code = script.num_scenes + index
        found += recall is not None and bool(
            ((recall.code == code) & ((recall.mean - needle).abs() <= TOLERANCE)).any()
        )
    results["needle"] = found / len(script.needles) if len(script.needles) else float("nan")
    results["count error"] = sum(abs(guesses[c] - counts[c]) for c in present) / len(present)
    return results


def ask_by_distance(
    recall: Recall | None, script: Script, *, questions: int = 100, seed: int = 0
) -> dict[str, float | None]:
    """Asks which code was there at a second, by how long ago that is.

    Args:
        recall, script, questions, seed: as for `ask`.

    Returns:
        Accuracy for each of `DISTANCES`; None where the video is shorter.
    """
    generator = torch.Generator().manual_seed(seed)
    results: dict[str, float | None] = {}
    for name, low, high in DISTANCES:
        results[name] = None
        if low < script.seconds:
            ago = torch.randint(low, min(high, script.seconds), (questions,), generator=generator)
            second = script.seconds - 1 - ago
            second = second[~torch.isin(second, script.needles)]
            truth = script.code(second)
            answers = truth.mode().values.expand_as(truth) if recall is None else recall.at(second)
            results[name] = float((answers == truth).double().mean())
    return results


def _came_back(recall: Recall | None, script: Script, questions: int, generator: torch.Generator) -> float:
    """Accuracy of whether a code occurs twice in a window; NaN if all answers are the same."""
    if script.seconds <= WINDOW:
        return float("nan")
    ends = script.ends
    asked: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
    for _ in range(20 * questions):
        start = int(torch.randint(0, script.seconds - WINDOW, (1,), generator=generator))
        codes = script.scenes[(ends > start) & (script.starts < start + WINDOW)]
        if len(codes):
            code = int(codes[int(torch.randint(len(codes), (1,), generator=generator))])
            truth = int((codes == code).sum()) > 1
            if len(asked[truth]) < questions // 2:
                asked[truth].append((code, start))
    number = min(len(part) for part in asked.values())
    if not number:
        return float("nan")
    points = [
        0.5 if recall is None else float((recall.runs(code, start, start + WINDOW) > 1) == truth)
        for truth, part in asked.items()
        for code, start in part[:number]
    ]
    return sum(points) / len(points)
