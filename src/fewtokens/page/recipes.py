"""The command lines and the Python code that make the files of a comparison again, without the page."""

from __future__ import annotations

import shlex
from pathlib import Path

from fewtokens.page.workbench import SIDES, Comparison, Workbench


def clip_name(comparison: Comparison, folder: Path | None) -> str:
    """Returns the path of the clip as it was given to the page; of an upload its name, since the copy is temporary."""
    path = comparison.encoded.video.path
    assert path is not None
    return path if folder is not None and Path(path).parent == folder else comparison.name


def command(comparison: Comparison, bench: Workbench, folder: Path | None) -> str:
    """Returns command lines that write the picture and both files of tokens."""
    words = [clip_name(comparison, folder), "--encoder", comparison.request.encoder]
    words += ["--frames", str(bench.frames), "--size", str(bench.size), "--seed", str(bench.seed)]
    if words[0].startswith("-"):
        words[0] = f"./{words[0]}"
    specs = [part for result in comparison.results for part in ("--with", result.name)]
    lines = [["fewtokens", "show", *words, *specs, "--out", "comparison.png"]]
    for side, result in zip(SIDES, comparison.results, strict=True):
        lines.append(["fewtokens", "tokenize", *words, "--with", result.name, "--out", f"{side}.safetensors"])
    return "\n".join(shlex.join(line) for line in lines)


def python(comparison: Comparison, bench: Workbench, folder: Path | None) -> str:
    """Returns Python code that writes the same files."""
    left, right = (result.name for result in comparison.results)
    settings = f"encoder={comparison.request.encoder!r}, frames={bench.frames}, size={bench.size}, seed={bench.seed}"
    return "\n".join(
        [
            "import fewtokens",
            "import fewtokens.show",
            "",
            f"clip = {clip_name(comparison, folder)!r}",
            f"left, right = {left!r}, {right!r}",
            f"settings = dict({settings})",
            'fewtokens.show.compare(clip, [left, right], "comparison.png", **settings)',
            'fewtokens.tokenize(clip, left, **settings).save("left.safetensors")',
            'fewtokens.tokenize(clip, right, **settings).save("right.safetensors")',
        ]
    )
