"""Questions about clips to prompts, predictions to right or wrong, and how far the text alone leads.

Scoring is exact match after the same tidying on both sides. No judge, no guess: what cannot be read is wrong.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from fewtokens.data.questions import LETTERS, Question

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_NUMBERS = {word: str(number) for number, word in enumerate(_DIGITS)}
_CHOSEN = re.compile(r"\(?([a-z])\)?\s*(?:[.:)]\s*(.*))?", re.DOTALL)


def prompt(question: Question) -> str:
    """The text to ask: the question, its choices on lines "A. red", and in what form to answer."""
    if not question.choices:
        return f"{question.question}\nAnswer with one word."
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False)]
    return "\n".join([question.question, *lines, "Answer with the letter."])


def target(question: Question) -> str:
    """The text that a model should give: the letter, or the word."""
    return LETTERS[question.choices.index(question.answer)] if question.choices else question.answer


def normalize(text: str) -> str:
    """Small letters, without punctuation and articles; numbers in digits."""
    words = re.sub(r"[^\w\s]|_", " ", text.lower()).split()
    return " ".join(_NUMBERS.get(word, word) for word in words if word not in ("a", "an", "the"))


def score(predicted: str, question: Question) -> bool:
    """Whether a prediction is right.

    Of a choice "B", "b.", "(B)", "B. red" and "red" are all accepted where B is "red"; "B. blue" is wrong, and so is
    all else. An open answer must be the answer's word and no other.
    """
    if question.choices:
        chosen = _CHOSEN.fullmatch(predicted.strip().lower())
        if chosen:
            letter, words = chosen[1].upper(), normalize(chosen[2] or "")
            return letter == target(question) and words in ("", normalize(question.answer))
    return normalize(predicted) == normalize(question.answer)


def row(predicted: str, question: Question) -> dict[str, Any]:
    """What `summarize` needs of one prediction."""
    return {
        "kind": question.kind,
        "format": question.format,
        "right": score(predicted, question),
        "chance": question.chance,
    }


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracies of rows made by `row`.

    Returns:
        "all", "kinds" (by kind) and "formats" (by format), each {"accuracy", "chance" (what guessing gives), "count"};
        kinds and formats in the order in which they come first.

    Raises:
        ValueError: no row.
    """
    if not rows:
        raise ValueError("there is no prediction to summarize; ask at least one question")
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {"kinds": defaultdict(list), "formats": defaultdict(list)}
    for one in rows:
        groups["kinds"][one["kind"]].append(one)
        groups["formats"][one["format"]].append(one)
    found: dict[str, Any] = {"all": _means(rows)}
    return found | {what: {name: _means(part) for name, part in parts.items()} for what, parts in groups.items()}


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, float | int]:
    return {
        "accuracy": float(np.mean([one["right"] for one in rows])),
        "chance": float(np.mean([one["chance"] for one in rows])),
        "count": len(rows),
    }


def text_only(train: Sequence[Question], test: Sequence[Question]) -> dict[str, Any]:
    """How often a guesser is right that sees the questions and never the clips.

    It learns from the questions and answers of `train` alone. Where the very same text and choices came three times or
    more, it says what was most often right there; else what is likeliest by naive Bayes over the words of the text,
    their places and the choices, for this kind of question; for a choice, times how often each place was right.

    Returns:
        As `summarize`: "chance" is what a blind guess gives, and "accuracy" should be no higher but by luck.

    Raises:
        ValueError: nothing to learn from or to test on, or a kind in the test that is not in the training.
    """
    if not train or not test:
        raise ValueError("the text-only guesser needs questions to learn from and questions to test on")
    same: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for one in train:
        same[one.question, *sorted(one.choices)][one.answer] += 1
    kinds = {kind: _Bayes([one for one in train if one.kind == kind]) for kind in {one.kind for one in train}}
    if strange := sorted({one.kind for one in test} - kinds.keys()):
        raise ValueError(f"the guesser has seen no question of kind {', '.join(strange)}; train it on some")
    rows = []
    for one in test:
        seen = same.get((one.question, *sorted(one.choices)), Counter())
        guess = seen.most_common(1)[0][0] if seen.total() >= 3 else kinds[one.kind].guess(one)
        rows.append(row(guess, one))
    return summarize(rows)


class _Bayes:
    """Naive Bayes from what stands in a question to its answer, with one added to each count."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.answers = sorted({one.answer for one in questions})
        self.number = {answer: n for n, answer in enumerate(self.answers)}
        seen = sorted({feature for one in questions for feature in self.features(one)})
        self.feature = {feature: n for n, feature in enumerate(seen)}
        counts = np.ones((len(self.answers), len(seen)))
        often, places = np.ones(len(self.answers)), np.ones(len(LETTERS))
        for one in questions:
            often[self.number[one.answer]] += 1
            counts[self.number[one.answer], [self.feature[feature] for feature in self.features(one)]] += 1
            if one.choices:
                places[one.choices.index(one.answer)] += 1
        self.prior, self.place = np.log(often), np.log(places)
        self.likely = np.log(counts / (often + 1)[:, None])

    def features(self, question: Question) -> set[str]:
        words = re.findall(r"\w+", question.question.lower())
        choices = [f"choice {choice}" for choice in question.choices]
        return {*words, *(f"{n} {word}" for n, word in enumerate(words)), *choices}

    def guess(self, question: Question) -> str:
        known = [self.feature[feature] for feature in sorted(self.features(question)) if feature in self.feature]
        scores = self.prior + self.likely[:, known].sum(1)
        if not question.choices:
            return self.answers[int(scores.argmax())]
        of_choices = [
            (scores[self.number[choice]] if choice in self.number else -np.inf) + self.place[place]
            for place, choice in enumerate(question.choices)
        ]
        return question.choices[int(np.argmax(of_choices))]
