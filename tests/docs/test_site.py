"""What the documentation site is built from: navigation, links, pages of methods, reference; `make docs` builds it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fewtokens.core import registry
from tests.helpers.pages import ROOT

yaml = pytest.importorskip("yaml")
DOCS = ROOT / "docs"


def module(name: str) -> ModuleType:
    """A script of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def test_the_navigation_names_every_page_once():
    hooks = module("hooks")
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = [page for page in hooks.leaves(hooks.expand(nav)) if not page.startswith("methods/")]
    written = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if path.parent != DOCS / "methods"]
    written += [name for name in hooks.external() if name.endswith(".md")]
    written += ["reference/commands.md", "reference/llm_families.md", "reference/tokenizer_presets.md"]
    written += [f"notebooks/{path.stem}.md" for path in (DOCS / "notebooks").glob("*.ipynb")]
    assert sorted(listed) == sorted(written)


def test_no_page_is_loaded_from_another_host():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert config["strict"] is True and config["theme"]["font"] is False
    assert not config.get("extra_javascript")
    for kind in ("nav", "links"):
        assert set(config["validation"][kind].values()) == {"warn"}


def test_links_of_the_sources_lead_somewhere():
    assert module("check_links").check_sources() == []


def test_broken_links_are_found(tmp_path):
    check = module("check_links")
    (tmp_path / "other.html").write_text('<h1 id="top">x</h1>')
    (tmp_path / "index.html").write_text(
        '<a href="other.html#top">a</a> <a href="other.html#gone">b</a> <a href="gone.html">c</a> <a href="#here">d</a>'
        '<p id="here"></p> <img src="https://example.org/x.png"> <a href="https://example.org/">e</a>'
        '<a href="ftp:x">f</a>'
    )
    problems = check.check_site(tmp_path)
    assert [line.split(": ")[1] for line in problems] == [
        "other.html#gone", "gone.html", "https://example.org/x.png", "ftp:x",
    ]  # fmt: skip
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("[a](docs/a.md#one-two) [b](docs/a.md#three) [c](gone.md) `[d](e)`\n")
    (tmp_path / "CONTRIBUTING.md").write_text("[a](https://arxiv.org/abs/2210.09461) [b](https://x)\n")
    (tmp_path / "docs" / "a.md").write_text("# One `two`\n\n```\n[x](gone.md)\n```\n")
    problems = check.check_sources(tmp_path)
    assert [line.split(": ")[1] for line in problems] == ["docs/a.md#three", "gone.md", "https://x"]


def test_links_out_of_docs_become_links_of_the_site():
    hooks = module("hooks")
    text = "[a](../../benchmarks/results/family.md#x) [`b`](../../benchmarks/family.py) [c](comparison.md) [d](https://e.org)"
    assert hooks.rewrite_links(text, "studies/comparison.md", None) == (
        "[a](../results/family.md#x) `b` [c](comparison.md) [d](https://e.org)"
    )
    generated = "[a](../../src/fewtokens/methods) [b](../../src/fewtokens/cli)"
    assert hooks.rewrite_links(generated, "guides/stream.md", None) == (
        "[a](../methods/index.md) [b](../reference/commands.md)"
    )
    linked = hooks.rewrite_links("[b](../benchmarks/family.py)\n```\n[x](../y)\n```\n", "a.md", "https://host/us/it/")
    assert linked == "[b](https://host/us/it/blob/main/benchmarks/family.py)\n```\n[x](../y)\n```\n"


def test_a_notebook_becomes_a_page(tmp_path):
    path = tmp_path / "n.ipynb"
    path.write_text(
        '{"cells": [{"cell_type": "markdown", "source": ["# Title\\n", "Text."]}, {"cell_type": "code",'
        ' "source": "x = 1", "outputs": [{"text": ["1\\n"]}, {"data": {"image/png": "AAAA", "text/plain": "y"}}]}]}'
    )
    page = module("hooks").notebook_page(path)
    assert page.startswith("# Title\n\n[Download this notebook](n.ipynb)\n\nText.\n\n```python\nx = 1\n```")
    assert "```text\n1\n```" in page and "data:image/png;base64,AAAA" in page


def test_pages_of_two_methods_with_and_without_an_image(tmp_path):
    module("generate").write(tmp_path, only=["tome", "fastv"])
    assert {path.name for path in tmp_path.iterdir()} == {"index.md", "tome.md", "tome.webp", "fastv.md"}
    tome, fastv = ((tmp_path / f"{name}.md").read_text(encoding="utf-8") for name in ("tome", "fastv"))
    assert "![tome on a clip](tome.webp)" in tome and "409 tokens of 4,096 patches" in tome
    assert "No image: it acts inside the layers" in fastv
    for heading in ("## Arguments", "## Measured", "## In a video language model", "## Fidelity"):
        assert heading in tome
    assert "| 10 % | `tome` | 10.0 % | 0.986 | 0.974 | 49.6 |" in tome
    assert "| 32 | 30.0 | 31.8 |" in tome
    assert "https://arxiv.org/abs/2210.09461" in tome
    from PIL import Image

    with Image.open(tmp_path / "tome.webp") as image:
        assert image.width > 600 and len({tuple(image.getpixel((x, 300))) for x in range(0, 600, 7)}) > 10


def test_every_measured_row_belongs_to_a_method():
    measured = module("measured")
    names = {*registry.every_name(), "full"}
    for row in measured._read("family")["all"]:
        assert measured._spec(row["method"]).split("(")[0] in names
    for name in (
        "representation_shift",
        "representation_shift_in_encoder",
        "merge_windows_in_encoder",
        "tome_in_encoder",
    ):
        assert f"`{name}" in measured.bench(name)


def test_the_reference_names_modules_that_exist_and_all_public_names():
    import fewtokens

    pages = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md")}
    modules = re.findall(r"^::: ([\w.]+)$", "\n".join(pages.values()), re.M)
    assert len(modules) == len(set(modules)) > 60
    for each in modules:
        assert Path(ROOT / "src" / each.replace(".", "/")).with_suffix(".py").exists(), each
    listed = re.findall(r"\[`fewtokens\.(\w+)`\]\[([\w.]+)\.\1\]", pages["index.md"])
    assert {name for name, _ in listed} == {*fewtokens.__all__} - {"__version__"}
    assert {where for _, where in listed} <= set(modules)


def test_the_page_of_commands_has_every_verb_and_option():
    from fewtokens.cli.verbs import every_verb, find

    page = module("commands").page()
    parts = dict(re.findall(r"^###? ([\w -]+)\n(.*?)(?=^###? |\Z)", page, re.S | re.M))
    for names in every_verb():
        part, verb = parts[" ".join(names)], find(*names)
        for option in (option for each in verb.command(names[-1], "").params for option in each.opts):
            assert not option.startswith("--") or f"`{option}`" in part, (names, option)
        assert all(example in part for example in verb.examples)
    assert "](#train-tobo)" in parts["train"]


def documented_constants(name: str) -> set[str]:
    """The constants of a module with a docstring below them."""
    body = ast.parse((ROOT / "src" / name.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")).body
    return {
        target.id
        for node, below in pairwise(body)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(below, ast.Expr)
        if isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }


def public_names() -> list[tuple[str, str, Any]]:
    """(package, name, object) of every name in `__all__` of fewtokens and its packages; the commands have a page."""
    import fewtokens

    packages = [each.name for each in pkgutil.walk_packages(fewtokens.__path__, "fewtokens.") if each.ispkg]
    names = []
    for package in ["fewtokens", *packages]:
        if package.startswith("fewtokens.cli"):
            continue
        module = importlib.import_module(package)
        names += [(package, name, getattr(module, name)) for name in getattr(module, "__all__", ())]
    return [entry for entry in names if entry[1] != "__version__"]


def test_every_public_name_is_in_the_reference():
    pages = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md"))
    modules = set(re.findall(r"^::: ([\w.]+)$", pages, re.M))
    names = public_names()
    assert len(names) > 80
    missing = []
    for package, name, value in names:
        if inspect.isclass(value) or inspect.isfunction(value):
            if value.__module__ not in modules or not inspect.getdoc(value):
                missing.append(f"{package}.{name}, defined in {value.__module__}")
        elif not any(
            name in documented_constants(module) and getattr(importlib.import_module(module), name) is value
            for module in modules
            if module.startswith((package, "fewtokens.core."))
        ):
            missing.append(f"{package}.{name}: a constant without a docstring below it, or in no page")
    assert missing == []


def test_entries_for_several_names_are_separated():
    text = "A.\n\nArgs:\n    mean, std: of the\n        pixels.\n    x: one.\n\nReturns:\n    a, b: not an entry.\n"
    assert module("docstrings").separate(text).splitlines()[2:] == [
        "Args:", "    mean: of the", "        pixels.", "    std: of the", "        pixels.", "    x: one.", "",
        "Returns:", "    a, b: not an entry.",
    ]  # fmt: skip
    text = "A.\n\nClass attributes:\n    a: 1.\n\nAttributes:\n    b: 2.\n"
    assert module("docstrings").separate(text) == "A.\n\nAttributes:\n    a: 1.\n    b: 2."


def test_docstrings_keep_their_characters():
    docstrings = module("docstrings")
    assert docstrings.escape("S = T*H*W, `a*b`, ``x`*y``, _x, x_, x_y, <a>") == (
        "S = T\\*H\\*W, `a*b`, ``x`*y``, \\_x, x\\_, x_y, &lt;a>"
    )
    text = (
        "Cells [B*T,P+H*W].\n\n    few(**inputs)\n\n    more(*a)\n\nText of `a *\nb` * c.\n\n"
        "Args:\n    *args: T*H.\n    x: [B*T],\n        a*b.\n\n```\na*b\n```\n"
    )
    assert docstrings.literal(text) == (
        "Cells [B\\*T,P+H\\*W].\n\n    few(**inputs)\n\n    more(*a)\n\nText of `a *\nb` \\* c.\n\n"
        "Args:\n    *args: T\\*H.\n    x: [B\\*T],\n        a\\*b.\n\n```\na*b\n```"
    )


def test_no_docstring_loses_characters_in_the_reference():
    """Every docstring with Markdown rendered: the text outside of code has as many asterisks as the source."""
    markdown = pytest.importorskip("markdown")
    docstrings = module("docstrings")
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                html = markdown.markdown(docstrings.literal(text))
                assert html.count("*") == text.count("*"), (path.name, text)
