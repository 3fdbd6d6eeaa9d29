"""Writes a page for each method, and an index by kind, from the registry and the committed results.

    python docs/generate.py [FOLDER] [--no-images]     # default: docs/methods; or: make docs

About a minute, most of it for the images. The pages are not committed: the text of a method is in its file alone.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import measured
import strips
from docstrings import escape, literal

from fewtokens.cli.methods import default_of, describe
from fewtokens.core import registry
from fewtokens.core.files import atomic_file
from fewtokens.core.method import CUES, STAGES
from fewtokens.core.selection import NEEDS

FOLDER = Path(__file__).parent / "methods"
KINDS = {
    "baselines": "Simple methods that every comparison runs at the same budget.",
    "pruning": "Keep some tokens unchanged and drop the others.",
    "merging": "Replace similar tokens by their mean.",
    "clustering": "Group all tokens of a video, and keep one for each group.",
    "pooling": "Average fixed regions.",
    "learned": "Compute new tokens with trained parameters.",
    "selection": "Select the frames that are read.",
    "memory": "Keep an endless stream in bounded memory.",
    "quantizers": "Give each token discrete codes.",
    "layers": "Drop or merge visual tokens inside the layers of a language model.",
    "other packages": "Registered by installed packages.",
}


def signature(name: str) -> str:
    """The call of the class: `Tome(keep: float | int | str = 0.25)`."""
    kind = registry.get(name)
    inside = inspect.signature(kind, eval_str=True).replace(return_annotation=inspect.Signature.empty)
    line = f"{kind.__name__}{inside}"
    if len(line) <= 80:
        return line
    star = any(parameter.kind is parameter.KEYWORD_ONLY for parameter in inside.parameters.values())
    parts = [f"    {parameter},\n" for parameter in inside.parameters.values()]
    if star:
        parts.insert(sum(p.kind is not p.KEYWORD_ONLY for p in inside.parameters.values()), "    *,\n")
    return f"{kind.__name__}(\n{''.join(parts)})"


def sections(docstring: str) -> tuple[str, list[tuple[str, str]]]:
    """A docstring as its text and the entries of its "Args:", as (names, description)."""
    text, _, arguments = docstring.partition("\nArgs:\n")
    entries: list[tuple[str, str]] = []
    rest: list[str] = []
    for line in arguments.splitlines():
        if entry := re.fullmatch(r" {4}(\w[\w, ]*): (.*)", line):
            entries.append((entry[1], entry[2]))
        elif line.startswith("     ") and entries and not rest:
            names, words = entries[-1]
            entries[-1] = (names, f"{words} {line.strip()}")
        elif rest or line.strip():
            rest.append(line)
    text = "\n".join([text, "", *rest]).strip()
    return re.sub(r"^(Attributes|Returns|Raises|Shape|Note):$", r"**\1**\n", text, flags=re.M), entries


def arguments_table(name: str, entries: Sequence[tuple[str, str]]) -> str:
    """The arguments with their types, defaults and meanings."""
    lines = ["| argument | type | default | meaning |", "|---|---|---|---|"]
    parameters = inspect.signature(registry.get(name), eval_str=False).parameters
    meanings = {each: words for names, words in entries for each in re.findall(r"\w+", names)}
    for each, parameter in parameters.items():
        words = meanings.get(each, "")
        shown = default_of(name, each, words)
        # The table has a column for it.
        default = re.escape(shown.strip("'"))
        words = re.sub(rf'[.;,]? (Default: |Defaults to )(None, )?"?{default}"?\.?$', ".", words)
        # At the outer level only: Sequence[float | int] is one type.
        types = " or ".join(
            f"`{part.replace(' | ', ' or ')}`" for part in re.split(r" \| (?![^\[]*\])", str(parameter.annotation))
        )
        cells = (
            f"`{each}`",
            types,
            f"`{shown}`" if shown != "see text" else shown,
            cross_references(escape(words), name),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n" if parameters else "None.\n"


def facts(name: str) -> dict[str, str]:
    """The properties that a method declares, by label; labels without a value are excluded."""
    about = describe(name)
    of_tokens = about["stage"] not in ("frames", "llm")
    meanings = CUES | NEEDS
    values = {
        "kind": registry.get_kind(name),
        "stage": f"{about['stage']}: {STAGES[about['stage']]}",
        "needs": "; ".join(f"`{cue}`: {meanings[cue]}" for cue in about["needs"])
        or ("only the times" if about["stage"] == "frames" else "only the tokens"),
        "budget": about["budget"] if of_tokens else "",
        "streaming": about["streaming"] if of_tokens else "",
        "trained": "yes" if about["trainable"] else "no",
        "paper": about["paper"],
        "cost": escape(about["cost"]),
        "implementation": "" if about["license"] == "none needed" else about["license"],
    }
    return {label: value for label, value in values.items() if value}


def cross_references(text: str, name: str) -> str:
    """Names of other methods in code marks as links to their pages."""
    others = {*registry.every_name()} - {name}
    return re.sub(r"`(\w+)`", lambda code: f"[{code[0]}]({code[1]}.md)" if code[1] in others else code[0], text)


def linked(paper: str) -> str:
    """A paper with its arXiv id as a link."""
    return re.sub(r"(?:arXiv[: ])?\b(\d{4}\.\d{4,5})\b", r"[arXiv \1](https://arxiv.org/abs/\1)", paper)


def page(name: str, image: strips.Strip | None = None) -> str:
    """The page of one method."""
    text, entries = sections(describe(name)["description"])
    text = literal(text)
    first, _, rest = text.partition("\n\n")
    about = facts(name) | {"paper": linked(facts(name).get("paper", ""))}
    table = "\n".join(f"| {label} | {value.replace('|', chr(92) + '|')} |" for label, value in about.items() if value)
    parts = [f"# {name}", first]
    if image is not None and image.image is not None:
        parts.append(f"![{name} on a clip]({name}.webp)\n\n*{image.text}*{{ .caption }}")
    elif image is not None:
        parts.append(image.text)
    if rest:
        parts.append(cross_references(rest, name))
    parts += [f"| | |\n|---|---|\n{table}", "## Arguments", f"```python\n{signature(name)}\n```"]
    parts.append(arguments_table(name, entries))
    for heading, measurement in (
        ("Measured", measured.bench(name)),
        ("In a video language model", measured.questions(name)),
        ("Fidelity", measured.fidelity(name)),
        ("Speed", measured.speed(name)),
    ):
        if measurement:
            parts += [f"## {heading}", measurement]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def index(names: list[str]) -> str:
    """All methods by kind, each with its first sentence."""
    guide = "To find one for your videos, encoder and budget, read [Choose a method](../guides/choose_a_method.md)."
    parts = ["# Methods\n", f"{guide}\n"]
    for kind, meaning in KINDS.items():
        rows = [
            f"* [`{name}`]({name}.md): {escape(describe(name)['summary'])}" for name in names if kind_of(name) == kind
        ]
        if rows:
            parts += [f"## {kind.capitalize()}\n", f"{meaning}\n", *rows, ""]
    return "\n".join(parts)


def kind_of(name: str) -> str:
    """The kind of a method, one of `KINDS`."""
    kind = registry.get_kind(name)
    assert kind in KINDS, f"docs/generate.py has no line for the kind {kind}"
    return kind


def write(folder: Path, *, images: bool = True, only: Sequence[str] = ()) -> list[str]:
    """Writes the pages and the index, and removes pages of methods that no longer exist; returns the names.

    Args:
        folder: where to write.
        images: whether to draw what each method does to a clip.
        only: names of the methods whose pages are written; empty for all of them.
    """
    names = registry.every_name()
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"index.md": index(names)}
    pictures = set()
    for name in only or names:
        image = strips.strip(name) if images else None
        if image is not None and image.image is not None:
            strips.save(image.image, folder / f"{name}.webp")
            pictures.add(f"{name}.webp")
        texts[f"{name}.md"] = page(name, image)
    for name, text in texts.items():
        with atomic_file(folder / name) as path:
            path.write_text(text, encoding="utf-8")
    for old in (*folder.glob("*.md"), *folder.glob("*.webp")):
        if old.name not in texts and old.name not in pictures:
            old.unlink()
    return names


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes a page for each method.")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--no-images", action="store_true")
    parser.add_argument("--only", nargs="+", choices=registry.every_name(), default=[], metavar="NAME")
    given = parser.parse_args()
    names = write(given.folder, images=not given.no_images, only=given.only)
    print(f"{given.folder}: {len(given.only or names)} methods")
