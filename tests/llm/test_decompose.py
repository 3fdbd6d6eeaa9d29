"""Questions answered by way of simpler ones: the prompts, the order, the cost, and what a model may write."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from fewtokens.llm import Answer, Session, ask_in_parts, load
from fewtokens.llm.decompose import read_questions
from fewtokens.video import synthetic
from tests.llm.saved import save

CLIP = synthetic("static", frames=4, size=(64, 96))


class Scripted:
    """Answers the prompts in turn; `asked` records them."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.asked, self.model = list(texts), [], nn.Module()
        self.processor = SimpleNamespace(render=self._render)

    def _render(self, text: str) -> None:
        if "<video>" in text:
            raise ValueError("a special token")

    def ask(self, video, question, max_new_tokens=128, on_text=None):
        self.asked.append(question)
        text = self.texts[len(self.asked) - 1]
        if on_text is not None:
            on_text(text)
        length = len(self.asked)
        return Answer(text, 4, 8, 10 * length, 2, {"prefill": float(length)}, 0.5)


def test_the_model_writes_and_answers_the_parts():
    session = Scripted("1. Who is there?\n2) What is red?\n- Why?\n", "a man", "a\n hat", "because")
    pieces, parts = [], []
    found = ask_in_parts(session, CLIP, "Why red?", 2, on_text=pieces.append, on_part=lambda *part: parts.append(part))
    first, *between, last = session.asked
    assert "Why red?" in first and "Write 2 simpler questions" in first
    assert between == ["Who is there?", "What is red?"]
    assert last.endswith("Why red?") and "Who is there? a man\nWhat is red? a hat\n" in last
    assert parts == [("Who is there?", "a man"), ("What is red?", "a\n hat")] and pieces == ["because"]
    assert found.answer.text == "because" and [name for name, _ in found.parts] == between
    # k + 1 answers, and the call that wrote the questions.
    assert len(found.calls) == 4 and found.prompt_tokens == 10 + 20 + 30 + 40
    assert found.seconds == pytest.approx(1 + 2 + 3 + 4 + 4 * 0.5)


@pytest.mark.parametrize("text", ["", "1.\n 2.\n---", "Why red?\n why <video>"])
def test_a_model_that_writes_no_question(text):
    session = Scripted(text, "because")
    found = ask_in_parts(session, CLIP, "Why red?", 3)
    assert session.asked[1:] == ["Why red?"] and found.parts == [] and len(found.calls) == 2


def test_an_answer_that_cannot_be_part_of_a_prompt():
    session = Scripted("Who?", "<video>", "because")
    ask_in_parts(session, CLIP, "Why red?", 3)
    assert session.asked[1:] == ["Who?", "Why red?"]


def test_lists_of_questions():
    text = " 1.  Who?\n2: What  is\tred?\n* Who?\n(3) 3 of them?\n\n• 12\n2020 or later?"
    assert read_questions(Scripted(), text, "Why?") == ["Who?", "What is red?", "3 of them?", "2020 or later?"]


def test_a_model_of_transformers(tmp_path):
    session = Session(*load(save("llava_onevision", tmp_path), device="cpu"), "kmeans(keep=5)", 4)
    found = ask_in_parts(session, CLIP, "what happens", 2, 6)
    assert 2 <= len(found.calls) <= 4 and all(call.tokens == 5 for call in found.calls)
    assert found.split.seconds["encode"] > 0 and found.answer.seconds["encode"] == 0  # encoded once
    plain = session.ask(CLIP, "what happens", 6)
    assert found.parts or found.answer.text == plain.text
    for parts in (0, True, 1.5):
        with pytest.raises(ValueError, match="at least 1"):
            ask_in_parts(session, CLIP, "what happens", parts)
    with pytest.raises(ValueError, match="question must be one string"):
        ask_in_parts(session, CLIP, 3, 2)
