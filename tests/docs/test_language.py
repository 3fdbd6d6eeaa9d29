"""The project's English: phrases that make a native reader stop are not in code, help, errors or documentation.

Each entry of `BANNED` is a regular expression and what to write instead. Source files are searched as text, so
comments, docstrings, messages and identifiers are all covered. Spelling is checked by codespell in `make lint`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fewtokens.cli.verbs import every_verb, find

ROOT = Path(__file__).parents[2]

BANNED = {
    r"anew": "again, from scratch",
    r"alike": "similar, equally",
    r"likeness(es)?": "similarity",
    r"(goes|gone|go|going|went) on (with|from)": "resumes, continues",
    r"where (not|none is|nothing is) (said|given)": "if not given; default",
    r"(what|that) is there( already)?": "existing",
    r"of everything( drawn)?": "name the thing: random seed",
    r"told( apart)?": "distinguished; recorded; message",
    r"so many": "the number of",
    r"neighbour\w*": "neighbor",
    r"\w*normalis\w*": "normalize",
    r"licence\w*": "license",
    r"colour\w*": "color",
    r"the house": "the architecture, the package",
    r"look(s|ed|ing)? at": "reads, checks, depends on, attends to",
    r"beside": "next to, in addition to",
    r"(lies|lie|lay) (in|beside|there)": "is in",
    r"of (its|their) own": "separate, its",
    r"(not )?to be had": "available",
    r"(is|are|be|hold|holds) (it )?(held )?against": "compared with",
    r"hangs? together": "connected",
    r"put right": "corrected, fixed",
    r"(is|are|was|were) drawn (from|of|at|by|anew)": "sampled from",
    r"gives? back|given back": "returns, reconstructs",
    r"an? (folder|file|line|row|page|token) each\b": "one per",
    r"stood for( by)?": "represented by",
    r"puts? together|put together": "assembled, concatenated, combined",
    r"take(s)? part": "is included",
    r"asked (for|of)": "requested",
    r"said": "a noun for the value; specified, stated",
    r"wanted": "requested, expected",
    r"(tokens|rows|cells) at hand": "current tokens",
    r"made ahead": "precomputed",
    r"(is|are) not there": "does not exist, is missing",
    r"a few first": "the first few",
    r"where there (is|are) (no|none|not)": "without, if there is no",
    r"mend(s|ed|ing)?": "fixes, corrects",
    r"one after the other": "sequentially",
    r"one by one": "individually, in turn",
    r"as it is": "unchanged",
    r"nothing beside": "nothing else",
    r"in their turn": "in turn",
    r"of whatever kind": "of any type",
    r"is worth(?! 1/2)": "scores; saves",
    r"what (it|they) (gives?|takes?|needs?) (back|in)": "name the output or input",
    r"by (the )?name alone": "by name only",
    r"at all times": "always",
    r"for good": "permanently",
    r"much the same": "similar",
    r"not much": "little; few",
    r"makes? (files|it|them) again": "overwrites",
    r"with commas": "comma-separated",
    r"(here|there)(in|of|by|with|upon|after)": "say in, of, by what",
}
PATTERNS = {phrase: re.compile(rf"\b(?:{phrase})\b", re.IGNORECASE) for phrase in BANNED}


def readable(path: Path) -> str:
    """The text of a file; of a page without its inline code, which may quote names of earlier versions."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r"`[^`\n]+`", "`code`", text) if path.suffix == ".md" else text


def findings(text: str) -> list[tuple[int, str, str]]:
    """(line, phrase, what to write instead) of every banned phrase; line breaks count as spaces."""
    lines = [0, *(match.end() for match in re.finditer("\n", text))]
    # A phrase may be broken over two lines of a docstring or comment.
    flat = re.sub(r"\n[ #>*]*", lambda match: " " * len(match[0]), text)
    hits = []
    for phrase, pattern in PATTERNS.items():
        for match in re.finditer(pattern.pattern.replace(" ", r"\s+"), flat, re.IGNORECASE):
            line = sum(start <= match.start() for start in lines)
            hits.append((line, " ".join(match[0].split()), BANNED[phrase]))
    return sorted(hits)


def sources() -> list[Path]:
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "mkdocs.yml", "Makefile")]
    docs = [path for path in (ROOT / "docs").rglob("*") if path.suffix in (".md", ".py", ".ipynb")]
    generated = ROOT / "docs" / "methods"
    code = [path for folder in ("src", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")]
    reports = (ROOT / "benchmarks" / "results").glob("*.md")
    # It lists names of earlier versions.
    excluded = {ROOT / "src" / "fewtokens" / "core" / "legacy.py"}
    paths = (*pages, *docs, *code, *reports)
    return [path for path in paths if path.exists() and generated not in path.parents and path not in excluded]


def helps(*names: str) -> str:
    """The help of a verb with that of its parameters."""
    verb = find(*names)
    params = verb.command(names[-1], "").params
    return "\n\n".join([verb.help, *(str(param.help) for param in params if getattr(param, "help", None))])


def test_no_banned_phrase_in_code_and_pages():
    paths = sources()
    assert len(paths) > 200
    problems = [
        f"{path.relative_to(ROOT)}:{line}: {phrase!r}; better: {better}"
        for path in paths
        for line, phrase, better in findings(readable(path))
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("names", every_verb(), ids=" ".join)
def test_no_banned_phrase_in_the_help_of_any_verb(names):
    text = helps(*names)
    assert len(text) > 100
    assert findings(text) == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("A run that is\n    there is gone on\n    with.", 1),
        ("ok\nMake files anew.", 2),
        ("# Of everything\n# drawn.", 1),
        ("normalised = 1", 1),
        ("The value as it\n* is.", 1),
    ],
)
def test_a_phrase_is_noticed_also_over_two_lines(text, line):
    assert line in [found for found, *_ in findings(text)]


def test_ordinary_sentences_pass():
    assert findings("Resumes if the folder already contains a run.\nComma-separated names. Random seed.") == []
