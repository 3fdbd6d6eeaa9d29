"""Scores of replies to the questions of public sets (`fewtokens.data.qa_sets`).

A reply that names no choice is wrong; lmms-eval draws a choice at random for NExT-QA and LongVideoBench. ActivityNet-QA
is scored by equal words; published numbers have gpt-3.5 as a judge and are not comparable.
"""

from __future__ import annotations

import re
import string
from collections import defaultdict
from collections.abc import Sequence

from fewtokens.data.qa_sets import Question


def find_letter(reply: str, choices: Sequence[str]) -> str | None:
    """The letter that a reply names, or None: "B", "(b)", "B. a cat", "The answer is B.", or just the text of a choice.

    A sentence that begins with the article "A" names no letter, nor does one with two different letters.
    """
    # Runs of spaces and of line ends become one, for the patterns below would try every part of them.
    said = "\n".join(" ".join(line.split()) for line in reply.splitlines() if line.strip())
    letters = string.ascii_uppercase[: len(choices)]
    if not letters:
        return None
    # An "A" before a word is an article, unless a reason follows.
    one = f"(?:A(?!\\s+(?!because|since|as\\b)[a-z])|[{letters[1:]}])" if len(letters) > 1 else "A"
    if match := re.match(rf"\(?([{letters}{letters.lower()}])\)?[.:,]?$", said):
        return match[1].upper()
    if match := re.match(rf"\(?([{letters}])(?:[.:,)]|\s*\n)(?!\s*(?:or|and)\b)", said):
        return match[1]
    if match := re.search(rf"\b(?i:answer|option|choice)(?:\s+(?i:is))?\s*(?::\s*)?\**\(?({one})\b", said):
        return match[1]
    for pattern in (rf"\(([{letters}])\)", rf"\b({one})\b"):
        if len(named := set(re.findall(pattern, said))) == 1:
            return str(named.pop())
        if named:
            return None
    same = [letter for letter, text in zip(letters, choices, strict=True) if normal(text) == normal(said)]
    return same[0] if len(same) == 1 else None


def normal(text: str) -> str:
    """Words in lower case without punctuation and articles, to compare open answers by."""
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def is_right(question: Question, reply: str) -> bool:
    """Whether a reply names the right letter or, without choices, has the words of the answer and no others.

    A reply out of which no letter can be read is wrong, not drawn at random as lmms-eval does. Open answers are strict:
    "yes, he is" is not "yes". Published numbers of ActivityNet-QA have gpt-3.5 as a judge and are not comparable.

    Raises:
        ValueError: the answer is not published.
    """
    if not question.answer:
        raise ValueError(f"question {question.id!r}: its answer is not published; take another split")
    if question.choices:
        return find_letter(reply, question.choices) == question.letter
    return normal(reply) == normal(question.answer)


def accuracy(questions: Sequence[Question], replies: Sequence[str]) -> dict[str, float]:
    """Shares of right replies: "all", and one for each kind and each group (see `is_right`)."""
    if len(questions) != len(replies) or not questions:
        raise ValueError(f"{len(replies)} replies to {len(questions)} questions; give one for each")
    right: dict[str, list[bool]] = defaultdict(list)
    for question, reply in zip(questions, replies, strict=True):
        hit = is_right(question, reply)
        for part in dict.fromkeys(("all", question.kind, question.group)):
            if part:
                right[part].append(hit)
    return {part: sum(hits) / len(hits) for part, hits in right.items()}
