"""Questions about synthetic clips: the text alone does not reveal the answers; prompts and scoring."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from scipy import stats

from fewtokens.data.scenes import COLORS
from fewtokens.data.videoqa import KINDS, Question, SceneConfig, VideoQA
from fewtokens.evaluation.videoqa import normalize, prompt, row, score, summarize, target, text_only


def questions(split: str, items: int) -> list[Question]:
    return VideoQA(SceneConfig(seed=5), split, items).questions()


def test_answers_are_balanced():
    """For each wording all answers are equally frequent, and so are the positions of the correct choice."""
    answers: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    possible: dict[tuple[str, str], int] = {}
    positions: dict[int, Counter[int]] = defaultdict(Counter)
    for question in questions("train", 6000):
        key = question.kind, question.attribute
        answers[key][question.answers.index(question.answer)] += 1
        possible[key] = len(question.answers)
        if question.choices:
            positions[len(question.choices)][question.choices.index(question.answer)] += 1
    pvalues = [stats.chisquare([counts[n] for n in range(possible[key])]).pvalue for key, counts in answers.items()]
    pvalues += [stats.chisquare([counts[n] for n in range(number)]).pvalue for number, counts in positions.items()]
    assert len(pvalues) > 15
    assert min(pvalues) > 1e-3


def test_the_text_does_not_reveal_the_answers():
    summary = text_only(questions("train", 6000), questions("test", 6000))
    assert summary["all"]["count"] == 6000
    assert abs(summary["all"]["accuracy"] - summary["all"]["chance"]) < 0.025
    assert set(summary["kinds"]) == set(KINDS)
    for kind in summary["kinds"].values():
        assert abs(kind["accuracy"] - kind["chance"]) < 0.07


def test_the_text_only_baseline_finds_leaks():
    """If answers follow from the text, it is far above chance."""
    biased = [
        q
        for q in questions("train", 12000)
        if q.kind != "shape" or q.answer == ("star" if "red" in q.question else "cross")
    ]
    summary = text_only(biased[:3000], biased[3000:])
    assert summary["kinds"]["shape"]["accuracy"] > 0.8
    same_position = [
        q for q in questions("train", 12000) if q.kind == "count" and q.choices and q.choices[2] == q.answer
    ]
    assert text_only(same_position[:100], same_position[100:])["all"]["accuracy"] > 0.8
    with pytest.raises(ValueError, match="needs questions"):
        text_only([], biased)
    with pytest.raises(ValueError, match="no question of kind count"):
        text_only(biased[:1], same_position)


CHOICE = Question(
    "color", "choice", "What color is the star?", "red", ("blue", "red", "cyan", "white"), tuple(COLORS), "color",
    ("star",), ("blue", "cyan", "white"),
)  # fmt: skip
OPEN = Question("count", "open", "How many objects are there?", "3", (), tuple("12345"), "object", (), ())


def test_prompts_and_targets():
    assert prompt(CHOICE) == "What color is the star?\nA. blue\nB. red\nC. cyan\nD. white\nAnswer with the letter."
    assert prompt(OPEN) == "How many objects are there?\nAnswer with one word."
    assert (target(CHOICE), target(OPEN)) == ("B", "3")
    assert (CHOICE.chance, OPEN.chance) == (0.25, 0.2)
    for question in questions("val", 100):
        assert score(target(question), question)
        assert score(question.answer, question)


@pytest.mark.parametrize(
    "reply", ["B", "b", " B. ", "(B)", "(b).", "B)", "B. red", "B: Red.", "red", "The red.", "RED"]
)
def test_correct_choices(reply):
    assert score(reply, CHOICE)


@pytest.mark.parametrize("reply", ["", "A", "E", "blue", "B. blue", "A. red", "red blue", "B or C", "I think B", "?"])
def test_wrong_choices(reply):
    assert not score(reply, CHOICE)


def test_open_answers():
    assert all(score(reply, OPEN) for reply in ("3", "three", " Three.", "the 3"))
    assert not any(score(reply, OPEN) for reply in ("", "4", "3 objects", "33", "B", "3 or 4"))
    assert normalize("  The RED, star! ") == "red star"


def test_summary():
    rows = [row(reply, CHOICE) for reply in ("B", "A", "red", "C")] + [row("3", OPEN), row("x", OPEN)]
    summary = summarize(rows)
    assert summary["all"] == {"accuracy": 0.5, "chance": pytest.approx((4 * 0.25 + 2 * 0.2) / 6), "count": 6}
    assert summary["kinds"]["color"] == {"accuracy": 0.5, "chance": 0.25, "count": 4}
    assert summary["formats"]["open"] == {"accuracy": 0.5, "chance": pytest.approx(0.2), "count": 2}
    with pytest.raises(ValueError, match="at least one question"):
        summarize([])
