"""`fewtokens doctor`: checks the installation."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec
from typing import Any

import typer
from rich.markup import escape

from fewtokens.cli.command import verb
from fewtokens.cli.console import log, out
from fewtokens.cli.options import JsonOption
from fewtokens.cli.tables import print_json, table

# Module names of the packages whose name differs from it.
_MODULES = {
    "pillow": "PIL",
    "huggingface-hub": "huggingface_hub",
    "vector-quantize-pytorch": "vector_quantize_pytorch",
    "scikit-learn": "sklearn",
    "rerun-sdk": "rerun",
    "gymnasium-robotics": "gymnasium_robotics",
}
# For the project itself; all of the others.
_OMITTED = ("dev", "docs", "all")
_BEFORE_RELEASE = "Until the first release, write '.[x]' for 'fewtokens[x]' in a clone of the repository."
_DECODERS = ("h264", "hevc", "av1", "vp9", "mpeg4", "gif", "ffv1")


@verb("fewtokens doctor", "fewtokens doctor --json")
def doctor(as_json: JsonOption = False) -> None:
    """Check the installation and optional dependencies: what is missing, and how to get it."""
    report = examine()
    if as_json:
        print_json(report)
    else:
        _show(report)
    if report["missing"]:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """Returns versions, devices, decoders and packages.

    "missing" lists the required packages that are not installed, or too old. An installed package of an extra that does
    not fit its bounds has a "problem" too.
    """
    import torch

    bounds: dict[str, dict[str, Any]] = {}
    for extra, requirement in _requirements():
        each = bounds.setdefault(requirement.name, {})
        each[extra] = each.get(extra, requirement.specifier) & requirement.specifier
    # The extras that a package belongs to, the one with the fewest packages first.
    sizes = {extra: sum(extra in each for each in bounds.values()) for each in bounds.values() for extra in each}
    packages: dict[str, dict[str, Any]] = {}
    for name, each in bounds.items():
        extras = sorted(each, key=lambda extra: (extra != "", sizes[extra], extra))
        installed = _version(name)
        unfit = [extra for extra in extras if installed is None or not each[extra].contains(installed, True)]
        if not unfit:
            problem = None
        elif installed is None:
            problem = f"missing: {_command(extras[0])}"
        else:
            problem = f"must be {each[unfit[0]]}: {_command(unfit[0])}"
        packages[name] = {
            "extra": extras[0],
            "extras": extras,
            "module": _MODULES.get(name, name),
            "version": installed,
            "problem": problem,
        }
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {
        "fewtokens": _version("fewtokens"),
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "devices": devices,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "decoders": _decoders(),
        "packages": packages,
        "missing": [name for name, entry in packages.items() if not entry["extra"] and entry["problem"]],
    }


def _requirements() -> Iterator[tuple[str, Any]]:
    """Yields each requirement of the package with its extra, or "", and those of the extras that an extra includes."""
    from packaging.requirements import Requirement

    lines = [Requirement(line) for line in requires("fewtokens") or []]
    extras = [name for name in metadata("fewtokens").get_all("Provides-Extra") or [] if name not in _OMITTED]
    for extra in ["", *extras]:
        included, pending = {""}, [extra]
        while pending:
            included.add(current := pending.pop())
            for line in lines:
                active = line.marker is None or line.marker.evaluate({"extra": current})
                optional = line.marker is not None and "extra" in str(line.marker)
                if not active or optional != bool(current):
                    continue
                if line.name == "fewtokens":
                    pending += line.extras - included
                else:
                    yield extra, line


def _command(extra: str) -> str:
    return f"pip install 'fewtokens[{extra}]'" if extra else "pip install --force-reinstall fewtokens"


def _version(package: str) -> str | None:
    if package != "fewtokens" and find_spec(_MODULES.get(package, package)) is None:
        return None
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _decoders() -> dict[str, bool]:
    if find_spec("av") is None:
        return dict.fromkeys(_DECODERS, False)
    import av

    return {name: name in av.codecs_available for name in _DECODERS}


def _show(report: dict[str, Any]) -> None:
    facts = {
        "fewtokens": report["fewtokens"],
        "Python": report["python"],
        "system": report["system"],
        "devices": ", ".join(report["devices"]),
        "threads": f"{report['threads']} of {report['cores']} cores",
        "video": ", ".join(
            f"{name}{'' if available else ' (missing)'}" for name, available in report["decoders"].items()
        ),
    }
    for name, value in facts.items():
        out.print(f"[bold]{name:<10}[/bold] {value}", highlight=False, soft_wrap=True)
    rows = []
    for name, entry in report["packages"].items():
        state = " ".join(filter(None, (entry["version"], entry["problem"])))
        rows.append({"package": name, "extra": entry["extra"] or "(required)", "version": state})
    out.print(table("Packages", rows))
    complete = not any(entry["problem"] for entry in report["packages"].values())
    if not complete:
        out.print(escape(_BEFORE_RELEASE), style="dim", highlight=False)
    if report["missing"]:
        log.print(f"[red]missing:[/red] {', '.join(report['missing'])}")
    elif complete:
        out.print("All packages are installed.", style="green")
    else:
        out.print("All required packages are installed. Extras are optional.", style="green")
