"""Builds the wheel and the sdist, and tests them in fresh environments: the base package, and each extra alone.

    make test-package
    python packaging/check.py --extras show,onnx     # only these; "": only the base package
    python packaging/check.py --python python3.13    # one interpreter

Of Python 3.11, 3.12 and 3.13, those that are on PATH; the report names the others. In each environment:

* `pip check`, `fewtokens --version`, and `fewtokens doctor`, which must find each package of the extra;
* the import of every module: one that fails must fail because of a package of another extra;
* base only: `fewtokens demo`, the help of every command, and a wheel built from the sdist with the same files.

The extra `vllm` has a separate test, `make test-vllm`. Cost: some 2 minutes and 1 GB for each environment, one after
another. Exit code 1 if a check fails.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("python3.11", "python3.12", "python3.13")
# Not for users (dev, docs); needs another torch (vllm).
OMITTED = ("dev", "docs", "vllm")

# Runs in the fresh environment. Prints the packages whose absence stops modules from being imported.
IMPORT_ALL = """
import importlib, json, pkgutil, sys
import fewtokens
missing = {}
for module in pkgutil.walk_packages(fewtokens.__path__, "fewtokens."):
    if module.name.rpartition(".")[2] == "__main__":
        continue
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        missing[module.name] = error.name or str(error)
print(json.dumps(missing))
"""


class Failure(Exception):
    """A check that failed, with the output of its command."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", help="interpreter (default: 3.11, 3.12 and 3.13 on PATH)")
    parser.add_argument("--extras", help="comma-separated extras (default: all but vllm, and none)")
    args = parser.parse_args()
    known = [extra for extra in extras() if extra not in OMITTED]
    chosen = args.extras.split(",") if args.extras is not None else ["", *known]
    if unknown := sorted(set(chosen) - {"", *known}):
        parser.error(f"no extra {', '.join(unknown)}; there are {', '.join(known)}")
    found = [name for name in args.python or VERSIONS if runs(name)]
    absent = [name for name in args.python or VERSIONS if name not in found]
    if not found:
        parser.error(f"none of {', '.join(absent)} runs")

    failed = 0
    with tempfile.TemporaryDirectory(prefix="fewtokens-package-") as folder:
        work = Path(folder)
        wheel, sdist = build(work / "dist")
        print(f"{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB; {sdist.name}, {sdist.stat().st_size / 1e6:.1f} MB")
        for interpreter in found:
            for extra in chosen:
                start = time.perf_counter()
                try:
                    result = check(interpreter, extra, wheel, sdist, work / "environment")
                except Failure as failure:
                    failed += 1
                    result = f"FAILED\n{failure}"
                label = f"fewtokens[{extra}]" if extra else "fewtokens"
                print(f"{interpreter}  {label:<24} {time.perf_counter() - start:5.0f} s  {result}", flush=True)
    if absent:
        print(f"not tested, because not on PATH or without effect there: {', '.join(absent)}")
    sys.exit(failed > 0)


def runs(interpreter: str) -> bool:
    """Whether an interpreter is on PATH and starts; managers of versions have placeholders for those not chosen."""
    return bool(shutil.which(interpreter)) and subprocess.run([interpreter, "-V"], capture_output=True).returncode == 0


def extras() -> list[str]:
    """Returns the names of the extras in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return list(project["optional-dependencies"])


def build(folder: Path) -> tuple[Path, Path]:
    """Builds the wheel and the sdist, and checks what they contain."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    wheel, sdist = next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))
    names = set(zipfile.ZipFile(wheel).namelist())
    # Files that are no modules, or stray into the wheel unnoticed.
    needed = {"fewtokens/py.typed", "fewtokens/show/page.html", "fewtokens/llm/family_towers.json"}
    if lost := needed - names:
        raise SystemExit(f"the wheel lacks {', '.join(sorted(lost))}")
    if stray := [name for name in names if not name.startswith(("fewtokens/", "fewtokens-"))]:
        raise SystemExit(f"the wheel has files outside the package: {', '.join(stray[:5])}")
    return wheel, sdist


def check(interpreter: str, extra: str, wheel: Path, sdist: Path, folder: Path) -> str:
    """Installs the wheel with one extra, or none, in a fresh environment and tests it; returns what was found."""
    run(interpreter, "-m", "venv", "--clear", folder)
    scripts = folder / ("Scripts" if sys.platform == "win32" else "bin")
    python, command = scripts / "python", scripts / "fewtokens"
    requirement = f"fewtokens[{extra}] @ {wheel.as_uri()}" if extra else str(wheel)
    run(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", requirement)
    run(python, "-m", "pip", "check")
    run(command, "--version")
    report = json.loads(run(command, "doctor", "--json"))
    packages = report["packages"]
    if wrong := [name for name, entry in packages.items() if entry["problem"] and extra in entry["extras"]]:
        raise Failure(f"doctor misses {', '.join(wrong)} after the installation of [{extra}]")
    # lmms-eval imports us.
    unknown = set(imports(python).values()) - {entry["module"] for entry in packages.values()} - {"lmms_eval"}
    if unknown:
        raise Failure(f"modules cannot be imported for lack of {', '.join(sorted(unknown))}, which no extra has")
    if not extra:
        check_base(python, command, wheel, sdist, folder)
    installed = sum(entry["version"] is not None for entry in packages.values())
    return f"passed; {installed} of {len(packages)} packages"


def imports(python: Path) -> dict[str, str]:
    """Returns the modules that cannot be imported, with the top-level package that each lacks."""
    failed = json.loads(run(python, "-c", IMPORT_ALL).splitlines()[-1])
    return {module: name.partition(".")[0] for module, name in failed.items()}


def check_base(python: Path, command: Path, wheel: Path, sdist: Path, folder: Path) -> None:
    """Tests the commands, and that the sdist builds the same wheel."""
    run(command, "demo", "--out", folder / "demo", "--frames", 4, "--size", 64)
    for verb in run(python, "-c", "from fewtokens.cli.verbs import VERBS; print(*VERBS)").split():
        run(command, verb, "--help")
    run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "rebuilt", sdist)
    rebuilt = next((folder / "rebuilt").glob("*.whl"))
    if different := set(zipfile.ZipFile(rebuilt).namelist()) ^ set(zipfile.ZipFile(wheel).namelist()):
        raise Failure(f"the wheel from the sdist differs in {', '.join(sorted(different)[:5])}")


def run(*arguments: object) -> str:
    """Runs a command outside the checkout and returns its output; raises `Failure` with it if it fails."""
    texts = [str(argument) for argument in arguments]
    done = subprocess.run(texts, capture_output=True, text=True, encoding="utf-8", cwd=tempfile.gettempdir())
    if done.returncode:
        raise Failure(f"$ {' '.join(texts)}\n{(done.stdout + done.stderr).strip()[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
