"""Scores replies to the questions of public data sets (`fewtokens.data.qa_sets`).

A reply that names no choice is wrong; lmms-eval picks a random choice instead for NExT-QA and LongVideoBench.
ActivityNet-QA is scored by exact match of the words; published numbers use gpt-3.5 as a judge and are not comparable.
"""

from __future__ import annotations

import re
import string
from collections import defaultdict
from collections.abc import Sequence

from fewtokens.data.qa_sets import Question


def find_letter(reply: str, choices: Sequence[str]) -> str | None:
    """Returns the letter that a reply names, or None.

    Replies such as "B", "(b)", "B. a cat", "The answer is B." and the text of a choice name a letter. A sentence that
    begins with the article "A", or that contains two different letters, does not.
    """
    # Runs of spaces and line breaks are collapsed, as the patterns below would try every part of them.
    text = "\n".join(" ".join(line.split()) for line in reply.splitlines() if line.strip())
    letters = string.ascii_uppercase[: len(choices)]
    if not letters:
        return None
    # An "A" before a word is an article, unless a reason follows.
    letter_pattern = f"(?:A(?!\\s+(?!because|since|as\\b)[a-z])|[{letters[1:]}])" if len(letters) > 1 else "A"
    if match := re.match(rf"\(?([{letters}{letters.lower()}])\)?[.:,]?$", text):
        return match[1].upper()
    # A choice such as "Team B" has the letter of its place.
    equal = [letter for letter, choice in zip(letters, choices, strict=True) if normalize(choice) == normalize(text)]
    if len(equal) == 1 and normalize(text):
        return equal[0]
    if match := re.match(rf"\(?([{letters}])(?:[.:,)]|\s*\n)(?!\s*(?:or|and)\b)", text):
        return match[1]
    if match := re.search(rf"\b(?i:answer|option|choice)(?:\s+(?i:is))?\s*(?::\s*)?\**\(?({letter_pattern})\b", text):
        return match[1]
    for pattern in (rf"\(([{letters}])\)", rf"\b({letter_pattern})\b"):
        if len(matches := set(re.findall(pattern, text))) == 1:
            return str(matches.pop())
        if matches:
            return None
    return None


def normalize(text: str) -> str:
    """Converts text to lowercase words without punctuation and articles, to compare open answers."""
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def check_published(question: Question) -> None:
    """Raises a ValueError if the answer to a question is not published."""
    if not question.answer:
        raise ValueError(f"question {question.id!r}: its answer is not published; use another split")


def is_correct(question: Question, reply: str) -> bool:
    """Returns whether a reply names the correct letter or, without choices, has exactly the words of the answer.

    A reply that names no letter is wrong; lmms-eval picks a random choice instead. Open answers are strict: "yes, he
    is" is not "yes". Published numbers of ActivityNet-QA use gpt-3.5 as a judge and are not comparable.

    Raises:
        ValueError: the answer is not published.
    """
    check_published(question)
    if question.choices:
        return find_letter(reply, question.choices) == question.letter
    return normalize(reply) == normalize(question.answer)


def accuracy(questions: Sequence[Question], replies: Sequence[str]) -> dict[str, float]:
    """Accuracy over all questions ("all") and for each kind and group of questions; see `is_correct`."""
    if len(questions) != len(replies) or not questions:
        raise ValueError(
            f"needs questions and one reply per question, got {len(replies)} replies to {len(questions)} questions"
        )
    results: dict[str, list[bool]] = defaultdict(list)
    for question, reply in zip(questions, replies, strict=True):
        correct = is_correct(question, reply)
        for name in dict.fromkeys(("all", question.kind, question.group)):
            if name:
                results[name].append(correct)
    return {name: sum(values) / len(values) for name, values in results.items()}
