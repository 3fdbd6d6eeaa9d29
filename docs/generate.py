"""Writes a page for each method, and an index of them by kind, from the registry.

    python docs/generate.py [FOLDER]     # docs/methods if not given; or: make docs

A few seconds. The pages are not committed: what a method says of itself stands in its file alone.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

from fewtokens.cli.methods import describe
from fewtokens.core import registry
from fewtokens.core.files import whole_file
from fewtokens.core.method import CUES, STAGES

FOLDER = Path(__file__).parent / "methods"
KINDS = {
    "baselines": "Plain baselines, which every comparison runs at the same budget.",
    "pruning": "Keep some tokens as they are and drop the others.",
    "merging": "Replace similar tokens by their mean.",
    "clustering": "Group all tokens of a video, and let one stand for each group.",
    "pooling": "Average fixed regions.",
    "learned": "Make new tokens with parameters that are trained.",
    "selection": "Choose the frames that are read.",
    "memory": "Hold an endless stream in bounded memory.",
    "quantizers": "Give each token discrete codes.",
    "layers": "Drop or merge visual tokens inside the layers of a language model.",
    "other packages": "Registered by installed packages.",
}


def signature(name: str) -> str:
    """How the class is called: `Tome(keep: float | int | str = 0.25)`."""
    kind = registry.get(name)
    inside = inspect.signature(kind, eval_str=True).replace(return_annotation=inspect.Signature.empty)
    return f"{kind.__name__}{inside}"


def markdown(docstring: str) -> str:
    """A docstring as Markdown: its sections ("Args:") become headings, their entries lists."""
    lines = []
    in_section = False
    for line in docstring.splitlines():
        entry = re.fullmatch(r" {4}(\w[\w, ]*): (.*)", line)
        if re.fullmatch(r"(Args|Attributes|Returns|Raises):", line):
            in_section = True
            lines += [f"**{line[:-1]}**", ""]
        elif in_section and entry:
            lines.append(f"* `{entry[1]}`: {entry[2]}")
        else:
            in_section = in_section and (not line or line.startswith(" "))
            lines.append(f"  {line.strip()}" if in_section and line else line)
    return "\n".join(lines)


def page(name: str) -> str:
    """The page of one method."""
    about = describe(name)
    facts = {
        "kind": registry.kind_of(name),
        "stage": f"{about['stage']}, {STAGES[about['stage']]}",
        "needs": "; ".join(f"`{cue}`, {CUES[cue]}" for cue in about["needs"]) or "nothing beside the tokens",
        "count": "" if about["stage"] == "llm" else about["budget"],
        "streaming": "" if about["stage"] == "llm" else about["streaming"],
        "trained": "yes" if about["trainable"] else "no",
        "paper": about["paper"],
        "cost": about["cost"],
        "license": about["license"],
    }
    table = "\n".join(f"| {key} | {value.replace('|', chr(92) + '|')} |" for key, value in facts.items() if value)
    return f"""# {name}

```python
{signature(name)}
```

{markdown(about["description"])}

| | |
|---|---|
{table}
"""


def index(names: list[str]) -> str:
    """All methods by kind, each with its first sentence."""
    parts = ["# Methods\n"]
    for kind, what in KINDS.items():
        rows = [f"* [`{name}`]({name}.md): {describe(name)['summary']}" for name in names if kind_of(name) == kind]
        if rows:
            parts += [f"## {kind.capitalize()}\n", f"{what}\n", *rows, ""]
    return "\n".join(parts)


def kind_of(name: str) -> str:
    """The kind of a method, one of `KINDS`."""
    kind = registry.kind_of(name)
    assert kind in KINDS, f"docs/generate.py has no line for the kind {kind}"
    return kind


def write(folder: Path) -> list[str]:
    """Writes all pages and the index, and removes pages of methods that are gone; returns the names."""
    names = [*registry.names(), *registry.layer_names()]
    folder.mkdir(parents=True, exist_ok=True)
    texts: dict[str, Any] = {f"{name}.md": page(name) for name in names} | {"index.md": index(names)}
    for name, text in texts.items():
        with whole_file(folder / name) as path:
            path.write_text(text, encoding="utf-8")
    for old in folder.glob("*.md"):
        if old.name not in texts:
            old.unlink()
    return names


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    print(f"{target}: {len(write(target))} methods")
