"""`fewtokens doctor`: checks the installation."""

from __future__ import annotations

import os
import platform
import re
from collections import Counter
from importlib.metadata import PackageNotFoundError, requires, version
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
    "gymnasium-robotics": "gymnasium_robotics",
}
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
    """Returns versions, devices, decoders and packages; "missing" lists required packages that are not installed."""
    import torch

    extras: dict[str, list[str]] = {}
    for line in requires("fewtokens") or []:
        # As in: accelerate>=1.2; extra == 'train'
        requirement, _, marker = line.partition(";")
        extra = marker.split("==")[1].strip(" '\"") if "extra" in marker else ""
        if extra not in ("dev", "docs") and not requirement.startswith("fewtokens"):
            extras.setdefault(re.split(r"[^\w.-]", requirement.strip())[0], []).append(extra)
    # An extra that includes another lists the same packages; a package is listed under the smaller one.
    sizes = Counter(extra for each in extras.values() for extra in each)
    packages: dict[str, dict[str, str | None]] = {
        name: {"extra": min(each, key=lambda extra: (extra != "", sizes[extra])), "version": _version(name)}
        for name, each in extras.items()
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
        "missing": [name for name, entry in packages.items() if not entry["extra"] and not entry["version"]],
    }


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
        extra = entry["extra"]
        command = f"pip install 'fewtokens[{extra}]'" if extra else "pip install --force-reinstall fewtokens"
        rows.append(
            {"package": name, "extra": extra or "(required)", "version": entry["version"] or f"missing: {command}"}
        )
    out.print(table("Packages", rows))
    if not all(entry["version"] for entry in report["packages"].values()):
        out.print(escape(_BEFORE_RELEASE), style="dim", highlight=False)
    if report["missing"]:
        log.print(f"[red]missing:[/red] {', '.join(report['missing'])}")
    elif all(entry["version"] for entry in report["packages"].values()):
        out.print("All packages are installed.", style="green")
    else:
        out.print("All required packages are installed. Extras are optional.", style="green")
