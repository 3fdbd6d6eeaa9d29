"""Answers a question by way of simpler ones, which the language model itself writes and answers first.

print(ask_in_parts(session, "clip.mp4", "Why does she leave?", parts=4).answer.text)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fewtokens.llm.answer import Answer, check_question
from fewtokens.llm.session import Session
from fewtokens.video import Video

# What the model is asked; ours.
SPLIT = (
    "Do not answer this question about the video yet: {question}\n"
    "Write {parts} simpler questions about the video whose answers help to answer it, one per line."
)
JOIN = "These answers about the video may help:\n{context}\nNow answer: {question}"
# A bullet or the number of an item of a list.
_ITEM = re.compile(r"^\s*(?:[-*•]|\(?\d{1,2}[.):])\s*")


@dataclass
class Decomposed:
    """The answer to a question by way of simpler ones, and all calls of the language model.

    Attributes:
        answer: the answer to the question, whose prompt has the other answers.
        split: the call that wrote the simpler questions.
        parts: the simpler questions and their answers; empty if the model wrote none, so that the question alone was
            asked.
    """

    answer: Answer
    split: Answer
    parts: list[tuple[str, Answer]]

    @property
    def calls(self) -> list[Answer]:
        """All calls, in order: the one that wrote the questions, one for each of them, and the last."""
        return [self.split, *(answer for _, answer in self.parts), self.answer]

    @property
    def prompt_tokens(self) -> int:
        """The number of tokens of all prompts."""
        return sum(call.prompt_tokens for call in self.calls)

    @property
    def seconds(self) -> float:
        """Seconds of all calls: the time to the first token and the generation."""
        return sum(call.first_token + call.generation_seconds for call in self.calls)


def ask_in_parts(
    session: Session,
    video: str | Path | Video,
    question: str,
    parts: int,
    max_new_tokens: int = 128,
    on_text: Callable[[str], None] | None = None,
    on_part: Callable[[str, str], None] | None = None,
) -> Decomposed:
    """Answers a question with the answers to simpler ones in its prompt.

    The question decomposition of D-CoDe (EMNLP 2025), by calls of the session's own model: one that writes the
    questions, one for each of them, and the last; the wording of the prompts is ours. All see the video, which is
    encoded once, unless its frames are selected by the question. If the model writes no question, only the question
    itself is asked. A weak model may be misled by its own answers.

    Args:
        session: answers all questions.
        video, question, max_new_tokens, on_text: as `Session.ask`; `on_text` gets the last answer.
        parts: the maximum number of simpler questions, at least 1.
        on_part: called with each simpler question and its answer.

    Raises:
        ValueError: as `Session.ask`, or `parts` is below 1.
    """
    if isinstance(parts, bool) or not isinstance(parts, int) or parts < 1:
        raise ValueError(f"the number of simpler questions must be at least 1, got {parts!r}")
    check_question(session.model, question, max_new_tokens)
    split = session.ask(video, SPLIT.format(question=question, parts=parts), max_new_tokens)
    answered = []
    for simpler in read_questions(session, split.text, question)[:parts]:
        answered.append((simpler, session.ask(video, simpler, max_new_tokens)))
        if on_part is not None:
            on_part(simpler, answered[-1][1].text)
    context = "\n".join(f"{simpler} {_one_line(answer.text)}" for simpler, answer in answered)
    # An answer that spells a special token of the model cannot be part of a prompt.
    joined = JOIN.format(context=context, question=question)
    prompt = joined if answered and _is_valid(session, joined) else question
    return Decomposed(session.ask(video, prompt, max_new_tokens, on_text), split, answered)


def read_questions(session: Session, text: str, question: str) -> list[str]:
    """Returns the different questions of a list that a model wrote, one per line, without numbers and bullets.

    Lines without a letter, the question itself, and lines that spell a special token of the model are left out.
    """
    lines = [_one_line(_ITEM.sub("", line)) for line in text.splitlines()]
    different = dict.fromkeys(line for line in lines if any(letter.isalpha() for letter in line))
    return [line for line in different if line != _one_line(question) and _is_valid(session, line)]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _is_valid(session: Session, text: str) -> bool:
    try:
        session.processor.render(text)
    except ValueError:
        return False
    return True
