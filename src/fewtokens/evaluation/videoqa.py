"""Prompts for questions about clips, scores of predictions, and a baseline that reads only the text.

Scoring is exact match after normalizing both sides, without a judge; a prediction that cannot be parsed is wrong.
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
_CHOICE = re.compile(r"\(?([a-z])\)?\s*(?:[.:)]\s*(.*))?", re.DOTALL)


def prompt(question: Question) -> str:
    """Returns the prompt: the question, its choices on lines like "A. red", and the format of the answer."""
    if not question.choices:
        return f"{question.question}\nAnswer with one word."
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False)]
    return "\n".join([question.question, *lines, "Answer with the letter."])


def target(question: Question) -> str:
    """Returns the expected answer: the letter or, without choices, the word."""
    return LETTERS[question.choices.index(question.answer)] if question.choices else question.answer


def normalize(text: str) -> str:
    """Converts text to lowercase without punctuation and articles, with numbers as digits."""
    words = re.sub(r"[^\w\s]|_", " ", text.lower()).split()
    return " ".join(_NUMBERS.get(word, word) for word in words if word not in ("a", "an", "the"))


def score(predicted: str, question: Question) -> bool:
    """Returns whether a prediction is correct.

    If B is "red", the predictions "B", "b.", "(B)", "B. red" and "red" are correct; all others, such as "B. blue", are
    wrong. An open answer must be exactly the word of the answer.
    """
    if question.choices:
        match = _CHOICE.fullmatch(predicted.strip().lower())
        if match:
            letter, words = match[1].upper(), normalize(match[2] or "")
            return letter == target(question) and words in ("", normalize(question.answer))
    return normalize(predicted) == normalize(question.answer)


def row(predicted: str, question: Question) -> dict[str, Any]:
    """Returns the row of one prediction for `summarize`."""
    return {
        "kind": question.kind,
        "format": question.format,
        "right": score(predicted, question),
        "chance": question.chance,
    }


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Computes accuracies over the rows of `row`.

    Returns:
        "all", "kinds" (by kind) and "formats" (by format), each {"accuracy", "chance" (accuracy of random guessing),
        "count"}; kinds and formats in order of first appearance.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("no predictions to summarize; ask at least one question")
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {"kinds": defaultdict(list), "formats": defaultdict(list)}
    for prediction in rows:
        groups["kinds"][prediction["kind"]].append(prediction)
        groups["formats"][prediction["format"]].append(prediction)
    summary: dict[str, Any] = {"all": _means(rows)}
    return summary | {key: {name: _means(part) for name, part in parts.items()} for key, parts in groups.items()}


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, float | int]:
    return {
        "accuracy": float(np.mean([row["right"] for row in rows])),
        "chance": float(np.mean([row["chance"] for row in rows])),
        "count": len(rows),
    }


def text_only(train: Sequence[Question], test: Sequence[Question]) -> dict[str, Any]:
    """Scores a text-only baseline, which reads the questions but not the clips.

    It is trained only on the questions and answers of `train`. If the same text and choices occurred at least three
    times, it returns their most frequent answer; otherwise the most likely answer by naive Bayes, one model per kind of
    question, over the words of the text, their positions and the choices; for choices, also over the frequency of each
    position of the correct choice.

    Returns:
        The result of `summarize`. If the text does not leak the answers, "accuracy" is about "chance".

    Raises:
        ValueError: no questions to train or to test on, or a kind in `test` that is not in `train`.
    """
    if not train or not test:
        raise ValueError("the text-only baseline needs questions to train on and questions to test on")
    answers: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for question in train:
        answers[question.question, *sorted(question.choices)][question.answer] += 1
    kinds = {
        kind: _Bayes([question for question in train if question.kind == kind])
        for kind in {question.kind for question in train}
    }
    if missing := sorted({question.kind for question in test} - kinds.keys()):
        raise ValueError(f"the training questions contain no question of kind {', '.join(missing)}; add some")
    rows = []
    for question in test:
        counts = answers.get((question.question, *sorted(question.choices)), Counter())
        guess = counts.most_common(1)[0][0] if counts.total() >= 3 else kinds[question.kind].guess(question)
        rows.append(row(guess, question))
    return summarize(rows)


class _Bayes:
    """Naive Bayes from the text of a question to its answer, with add-one smoothing."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.answers = sorted({question.answer for question in questions})
        self.answer_index = {answer: n for n, answer in enumerate(self.answers)}
        features = sorted({feature for question in questions for feature in self.features(question)})
        self.feature_index = {feature: n for n, feature in enumerate(features)}
        feature_counts = np.ones((len(self.answers), len(features)))
        answer_counts, position_counts = np.ones(len(self.answers)), np.ones(len(LETTERS))
        for question in questions:
            answer = self.answer_index[question.answer]
            answer_counts[answer] += 1
            feature_counts[answer, [self.feature_index[feature] for feature in self.features(question)]] += 1
            if question.choices:
                position_counts[question.choices.index(question.answer)] += 1
        self.log_prior, self.log_position = np.log(answer_counts), np.log(position_counts)
        self.log_likelihood = np.log(feature_counts / (answer_counts + 1)[:, None])

    def features(self, question: Question) -> set[str]:
        words = re.findall(r"\w+", question.question.lower())
        choices = [f"choice {choice}" for choice in question.choices]
        return {*words, *(f"{n} {word}" for n, word in enumerate(words)), *choices}

    def guess(self, question: Question) -> str:
        features = sorted(self.features(question))
        columns = [self.feature_index[feature] for feature in features if feature in self.feature_index]
        scores = self.log_prior + self.log_likelihood[:, columns].sum(1)
        if not question.choices:
            return self.answers[int(scores.argmax())]
        choice_scores = [
            (scores[self.answer_index[choice]] if choice in self.answer_index else -np.inf) + self.log_position[n]
            for n, choice in enumerate(question.choices)
        ]
        return question.choices[int(np.argmax(choice_scores))]
