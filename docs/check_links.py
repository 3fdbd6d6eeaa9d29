"""Checks links: of the built site, and of the Markdown files that are read without it.

    python docs/check_links.py [SITE]     # default: site; "-" checks the Markdown files only

In the site every `href` and `src` of every page leads to a file, and every fragment to an element with that id. In
README.md, CONTRIBUTING.md and docs/, notebooks included, every relative link leads to a file, and every fragment to a
heading. Addresses of other hosts are checked for their form only, and the site may not load anything from them.
"""

from __future__ import annotations

import json
import re
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[1]
_LOADS = {"img", "script", "iframe", "source", "video", "audio", "embed"}


class _Page(HTMLParser):
    """The links and the ids of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids |= {value for key in ("id", "name") if (value := values.get(key))}
        # A canonical address loads nothing.
        loads = tag in _LOADS or (
            tag == "link" and values.get("rel") in ("stylesheet", "preload", "icon", "preconnect")
        )
        for key in ("href", "src"):
            if (value := values.get(key)) is not None:
                self.links.append(("load" if loads else "link", value))


@cache
def _page(path: Path) -> _Page:
    return _Page(path.read_text(encoding="utf-8"))


def _problem_of_address(link: str) -> str | None:
    parts = urlsplit(link)
    if parts.scheme in ("data", "mailto", "javascript"):
        return None
    if parts.scheme not in ("https", "http") or not re.fullmatch(r"[\w.-]+\.[a-z]{2,}(:\d+)?", parts.netloc):
        return "not a well-formed address"
    return None


def check_site(site: Path) -> list[str]:
    """The problems of a built site, one line for each."""
    problems = []
    pages = sorted(site.rglob("*.html"))
    if not pages:
        return [f"{site}: no pages"]
    for page in pages:
        where = page.relative_to(site)
        for use, link in _page(page).links:
            parts = urlsplit(link)
            if parts.scheme or link.startswith("//"):
                if problem := _problem_of_address(link):
                    problems.append(f"{where}: {link}: {problem}")
                elif use == "load" and parts.scheme != "data":
                    problems.append(f"{where}: {link}: loaded from another host")
                continue
            # 404.html is served for any path, so its links begin at the root.
            base = site if parts.path.startswith("/") else page.parent
            target = page if not parts.path else (base / unquote(parts.path).lstrip("/")).resolve()
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                problems.append(f"{where}: {link}: no such file in the site")
            elif parts.fragment and target.suffix == ".html":
                ids = _page(target).ids
                # "__" ids belong to the theme's own switches.
                if unquote(parts.fragment) not in ids and parts.fragment != "__skip":
                    problems.append(f"{where}: {link}: no such anchor")
    return problems


def _slug(heading: str) -> str:
    """The anchor that GitHub and Python-Markdown give a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


@cache
def _anchors(path: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
    return {_slug(heading) for heading in re.findall(r"^#+ (.+?)(?: \{#.*\})?$", text, re.M)} | set(
        re.findall(r"\{#([\w-]+)", text)
    )


def sources(root: Path = ROOT) -> list[Path]:
    """The Markdown files and notebooks whose links are checked, without the generated pages of methods."""
    docs = [path for path in sorted((root / "docs").rglob("*.md")) if path.parent != root / "docs" / "methods"]
    return [root / "README.md", root / "CONTRIBUTING.md", *docs, *sorted((root / "docs").rglob("*.ipynb"))]


def _text(path: Path) -> str:
    """The Markdown of a file; of a notebook its text cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
    return text


def check_sources(root: Path = ROOT) -> list[str]:
    """The problems of the Markdown files, one line for each."""
    problems = []
    methods = root / "docs" / "methods"
    for path in sources(root):
        where = path.relative_to(root)
        text = re.sub(r"^```.*?^```$", "", _text(path), flags=re.S | re.M)
        text = re.sub(r"`[^`\n]*`", "`", text)
        for link in re.findall(r"\]\(([^()\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text):
            parts = urlsplit(link)
            if parts.scheme:
                if problem := _problem_of_address(link):
                    problems.append(f"{where}: {link}: {problem}")
                continue
            target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            # In the site only: pages of methods, which other pages reach by a link to the folder of their code (see
            # docs/hooks.py), except for a heading of a page, and pages of notebooks.
            if parts.fragment and target.parent == methods:
                continue
            if target.parent.name == "notebooks" and target.suffix == ".md":
                continue
            if not target.exists():
                problems.append(f"{where}: {link}: no such file")
            elif parts.fragment and target.suffix == ".md" and parts.fragment not in _anchors(target):
                problems.append(f"{where}: {link}: no such heading")
    return problems


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "site")
    found = check_sources() + ([] if folder == "-" else check_site(Path(folder).resolve()))
    print("\n".join(found) or "all links resolve")
    sys.exit(bool(found))
