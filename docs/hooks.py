"""Hooks of MkDocs: pages that come from other folders, the navigation that follows from them, links out of docs/.

`expand` and the readers of notebooks need no MkDocs, so that the tests run them too.
"""

from __future__ import annotations

import json
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
RESULTS = ROOT / "benchmarks" / "results"
# Parts of the repository whose pages are generated: links to them, which work in a clone and on GitHub, lead to
# the pages in the site.
_GENERATED = {
    "src/fewtokens/methods": "methods/index.md",
    "src/fewtokens/cli": "reference/commands.md",
    "src/fewtokens/llm/families.py": "reference/llm_families.md",
    "src/fewtokens/tokenizers/presets": "reference/tokenizer_presets.md",
}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def title_of(page: Path) -> str:
    """The first heading of a Markdown file, or its name."""
    found = re.search(r"^# (.+)$", page.read_text(encoding="utf-8"), re.M)
    return found[1].strip() if found else page.stem


def _by_title(path: Path) -> tuple[bool, str]:
    """The quickstart first."""
    return path.stem != "quickstart", path.stem


def pages_of(folder: str) -> list[Any]:
    """The entries of the navigation for a folder: grouped by the headings of its index.md, else sorted by name."""
    if folder == "results":
        return [{title_of(path): f"results/{path.name}"} for path in sorted(RESULTS.glob("*.md"))]
    if folder == "notebooks":
        return [f"notebooks/{path.stem}.md" for path in sorted((DOCS / folder).glob("*.ipynb"), key=_by_title)]
    paths = sorted((DOCS / folder).glob("*.md"))
    index = [f"{folder}/index.md"] if (DOCS / folder / "index.md") in paths else []
    text = (DOCS / folder / "index.md").read_text(encoding="utf-8") if index else ""
    groups: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("## "):
            groups[line[3:]] = []
        elif groups and (entry := re.match(r"\* \[.+?\]\((\w+\.md)\)", line)):
            groups[list(groups)[-1]].append(f"{folder}/{entry[1]}")
    listed = {page for pages in groups.values() for page in pages}
    others = [f"{folder}/{path.name}" for path in paths if path.stem != "index"]
    return [
        *index,
        *({title: pages} for title, pages in groups.items() if pages),
        *(p for p in others if p not in listed),
    ]


def expand(nav: list[Any]) -> list[Any]:
    """The navigation with every entry `folder/*` replaced by the pages of that folder."""
    entries: list[Any] = []
    for entry in nav:
        if not isinstance(entry, dict):
            entries.append(entry)
            continue
        ((title, value),) = entry.items()
        if isinstance(value, list):
            entries.append({title: expand(value)})
        elif value.endswith("/*"):
            if pages := pages_of(value.removesuffix("/*")):
                entries.append({title: pages})
        else:
            entries.append(entry)
    return entries


def leaves(nav: list[Any]) -> Iterator[str]:
    """The pages of a navigation, as paths inside docs/."""
    for entry in nav:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(value, list):
            yield from leaves(value)
        else:
            yield value


def external() -> dict[str, Path]:
    """Pages and images that other folders of the repository hold, by their path in the site."""
    files = {f"results/{path.name}": path for path in RESULTS.iterdir() if path.suffix in (".md", ".png", ".svg")}
    return files | {"changelog.md": ROOT / "CHANGELOG.md"}


def notebook_page(path: Path) -> str:
    """A Jupyter notebook as Markdown: text, code, and printed output; images are embedded as data.

    Links to other notebooks lead to their pages.
    """
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.md)", source))
        elif cell["cell_type"] == "code":
            parts.append(f"```python\n{source}\n```")
            parts += filter(None, map(_output, cell.get("outputs", [])))
    title, *rest = parts if parts and parts[0].startswith("# ") else [f"# {path.stem}", *parts]
    heading, _, text = title.partition("\n")
    return "\n\n".join([heading, f"[Download this notebook]({path.name})", text.strip(), *rest]) + "\n"


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f"![output](data:image/png;base64,{''.join(data['image/png']).strip()})"
    if "text/html" in data:
        return "".join(data["text/html"])
    text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
    return f"```text\n{text}\n```" if text else ""


def commands_page() -> str:
    """The page of the command line; see docs/commands.py."""
    sys.path.insert(0, str(DOCS))
    import commands

    return commands.page()


def families_page() -> str:
    """The page of the families of video language models; see fewtokens/llm/families.py."""
    from fewtokens.llm.families import FAMILIES, TESTED

    def cell(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, tuple):
            return " ".join(value)
        return str(value or "").replace("|", "\\|").replace("<", "&lt;")

    rows = [family.row() for family in FAMILIES]
    names = [key for key in rows[0] if key not in ("works", "reason")]
    parts = [
        "# Families of video language models",
        "Every model of transformers that takes precomputed features (`mm_encoder_outputs`). A tiny random model of "
        f"each was tested with transformers {TESTED}; `fewtokens llm-families` prints this table.",
        "* `video`: it takes videos; otherwise a video is a sequence of images.\n"
        "* `axes`: the number of axes of positions; 1 is a count of the tokens.\n"
        "* `time_text`: the text of a time in the prompt, with … for the rows of a frame.\n"
        "* `prompts`: `fewtokens ask`, `Session` and `Processor` make its prompts. For others, use `AutoProcessor` of "
        "transformers and pass its output to `attach` or `compress_inputs`.\n"
        "* `cues`: of the pixels and of the vision tower, for the methods that need them.\n"
        "* `skips`: the tower leaves out the patches that methods of the stage `pixels` do not keep.\n"
        "* `merges`: methods of the stage `encoder` act between the blocks of the tower.\n"
        "* `inside`: what methods inside the language model can do.",
    ]
    for title, works in (("Supported", True), ("Not supported", False)):
        shown = [row for row in rows if row["works"] is works]
        columns = [*names, "reason"] if works else ["name", "reason"]
        lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [f"| `{row['name']}` | {' | '.join(cell(row[key]) for key in columns[1:])} |" for row in shown]
        parts += [f"## {title}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def tokenizers_page() -> str:
    """The tokenizers of papers: a table, and a section for each."""
    from fewtokens.cli.tokenizers import describe, describe_tiny
    from fewtokens.tokenizers import list_tokenizers

    rows = [describe(name) | describe_tiny(name) for name in list_tokenizers()]

    def number(value: float | None) -> str:
        return "varies" if value is None else f"{value:,.0f}"

    parts = [
        "# Tokenizers of papers",
        "Generated from [src/fewtokens/tokenizers/presets](../../src/fewtokens/tokenizers/presets); "
        "`fewtokens tokenizers` prints this table. Tokens and bits are those of the clip, frames x height x width: "
        "17x256x256, or what the tokenizer accepts of it. Parameters are counted.",
        "\n".join([
            "| name | clip | tokens | bits | M parameters | license |",
            "|---|---|---|---|---|---|",
            *(
                f"| [`{row['name']}`](#{row['name']}) | {row['clip']} | {number(row['tokens'])} | "
                f"{number(row['bits'])} | {row['parameters_m']:.4g} | {row['license']} |"
                for row in rows
            ),
        ]),
    ]  # fmt: skip
    for row in rows:
        published = {
            "tokens": row["published_tokens"], "M parameters": row["published_parameters_m"], **row["figures"],
        }  # fmt: skip
        facts = [f"* {name}: {value}" for name, value in published.items() if value is not None]
        parts += [
            f"## {row['name']}",
            f"{row['paper']}.",
            row["differs"],
            f"Published for {row['published_clip']}:" if facts else "",
            "\n".join(facts),
            f"```\n{row['spec']}\n```",
            f"The size for a CPU, {row['tiny']['parameters_m']:.2g} M parameters, clips of {row['tiny']['clip']}:",
            f"```\n{row['tiny']['spec']}\n```",
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def rewrite_links(text: str, page: str, repository: str | None) -> str:
    """Links out of docs/ as the site has them.

    Pages and images of `external` and folders of `_GENERATED` become links inside the site. Other files of the
    repository become links to `repository`, or text if the site has no repository.

    Args:
        text: Markdown.
        page: the path of the page in the site.
        repository: the address of the repository, or None.
    """
    inside = {path.resolve(): name for name, path in external().items()}
    inside |= {ROOT / folder: name for folder, name in _GENERATED.items()}
    source = external().get(page, DOCS / page)
    base = posixpath.dirname(page)

    def replace(match: re.Match[str]) -> str:
        mark, label, target = match.groups()
        if re.match(r"\w+:|#", target):
            return match[0]
        path, _, anchor = target.partition("#")
        resolved = (source.parent / path).resolve()
        anchor = f"#{anchor}" if anchor else ""
        if resolved in inside:
            return f"{mark}[{label}]({posixpath.relpath(inside[resolved], base or '.')}{anchor})"
        if resolved.is_relative_to(DOCS):
            return f"{mark}[{label}]({posixpath.relpath(resolved.relative_to(DOCS).as_posix(), base or '.')}{anchor})"
        if not resolved.exists():
            return match[0]  # for the check of links to report
        if repository is None:
            return label
        return f"{mark}[{label}]({repository.rstrip('/')}/blob/main/{resolved.relative_to(ROOT).as_posix()}{anchor})"

    # Fenced code stays unchanged.
    parts = re.split(r"(^```.*?^```$)", text, flags=re.S | re.M)
    return "".join(part if n % 2 else _LINK.sub(replace, part) for n, part in enumerate(parts))


def on_config(config: Any) -> Any:
    config.nav = expand(config.nav)
    return config


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for name, path in external().items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    files.append(File.generated(config, "reference/llm_families.md", content=families_page()))
    files.append(File.generated(config, "reference/tokenizer_presets.md", content=tokenizers_page()))
    for path in sorted((DOCS / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=notebook_page(path)))
    return files


def plain_pipes(text: str) -> str:
    """Tables whose code spans have `|` where GitHub requires an escaped one; Python-Markdown would show the escape."""
    return re.sub(
        r"^\|.*\|$",
        lambda row: re.sub(r"`[^`]+`", lambda code: code[0].replace("\\|", "|"), row[0]),
        text,
        flags=re.M,
    )


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    return plain_pipes(rewrite_links(markdown, page.file.src_uri, config.repo_url))
