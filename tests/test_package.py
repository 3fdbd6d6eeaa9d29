"""What is installed: extras that the code uses, and the recipes that repeat pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from fewtokens.cli.doctor import _MODULES
from fewtokens.version import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# transformers renders chat templates with it.
INDIRECT = {"jinja2"}


def test_every_dependency_is_imported():
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    lines = [line for extra, each in EXTRAS.items() if extra not in ("dev", "docs", "all") for line in each]
    names = {Requirement(line).name for line in [*PROJECT["dependencies"], *lines]} - {"fewtokens"} - INDIRECT
    modules = {name: _MODULES.get(name, name) for name in names}
    unused = [n for n, module in modules.items() if not re.search(rf'(import|from) {module}\b|"{module}[".]', source)]
    assert not unused


def test_all_extras_are_in_all():
    (line,) = EXTRAS["all"]
    # vLLM needs another transformers.
    assert Requirement(line).extras | {"hf", "vllm", "dev", "docs", "all"} == set(EXTRAS)


def test_conda_recipe():
    recipe = (ROOT / "packaging/conda/recipe.yaml").read_text(encoding="utf-8")
    assert f'version: "{__version__}"' in recipe
    run = recipe.partition("  run:\n")[2].partition("\ntests:")[0]
    expected = [f"python {PROJECT['requires-python']}"]
    for line in map(Requirement, PROJECT["dependencies"]):
        expected.append(f"{'pytorch' if line.name == 'torch' else line.name} {line.specifier}")
    assert re.findall(r"- (.*)", run) == expected


def test_dockerfile():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (extras,) = re.findall(r'ARG EXTRAS="(.*)"', text)
    assert set(extras.split(",")) < set(EXTRAS)
    copied = [name for line in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.M) for name in line.split()]
    assert copied and all((ROOT / name).exists() for name in copied)
    kept = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.M)
    assert set(copied) <= set(kept)


def test_citation():
    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
