"""The rows of a method in the committed results: benchmarks, questions on videos, fidelity to published code."""

from __future__ import annotations

import json
import statistics
import sys
from functools import cache
from pathlib import Path
from typing import Any

from fewtokens.core.legacy import current_spec

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
# What family.json calls by a name that another method has today.
_EARLIER = {"representation_shift": "representation_shift_in_encoder"}
# The columns of the page and the keys of family.json.
_BENCH = {
    "tokens kept": "retention",
    "cosine": "cosine",
    "rare cosine": "rare_cosine",
    "J&F": "j_and_f",
    "method, ms": "method_ms",
    "frames to tokens, ms": "total_ms",
}


@cache
def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _spec(name: str) -> str:
    return current_spec(_EARLIER.get(name, name))


def _label(row: dict[str, Any]) -> str:
    """The method of a row of family.json, with tome if it was added to reach the budget."""
    return f"`{_spec(row['method'])}`" + (" + `tome`" if row["label"].endswith("+ tome") else "")


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return ""
    if column in ("tokens kept", "J&F"):
        return f"{100 * value:.1f}" + (" %" if column == "tokens kept" else "")
    return f"{value:.3f}" if "cosine" in column else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def table(head: list[str], rows: list[list[str]], *, text: int = 1) -> str:
    """A Markdown table whose first `text` columns are text, the others numbers."""
    lines = [head, ["---"] * text + ["---:"] * (len(head) - text), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def machine() -> str:
    """The processor, its cores and the date of the comparison of the training-free methods."""
    about = _read("family")["machine"]
    return f"{about['cpu']}, {about['cores']} cores, {about['date']}"


def at_budget(name: str, keep: float) -> list[str]:
    """Cosine, rare cosine, J&F and the time of a method with its defaults in that comparison, empty where not run."""
    columns = ("cosine", "rare cosine", "J&F", "method, ms")
    rows = [row for row in _read("family")["all"] if row["keep"] == keep and row["label"] == row["method"]]
    values = next((row for row in rows if _spec(row["method"]) == name), {})
    return [_cell(column, values.get(_BENCH[column])) for column in columns]


def bench(name: str) -> str:
    """The rows of the method and of `random` in the comparison of the training-free methods, or ""."""
    rows = [row for row in _read("family")["all"] if _spec(row["method"]).split("(")[0] == name]
    if not rows:
        return ""
    if name != "random":
        budgets = {row["keep"] for row in rows}
        rows += [row for row in _read("family")["all"] if row["method"] == "random" and row["keep"] in budgets]
    rows.sort(key=lambda row: (-row["keep"], row["method"] == "random", row["method"]))
    lines = [[f"{100 * row['keep']:g} %", _label(row), *(_cell(c, row[k]) for c, k in _BENCH.items())] for row in rows]
    about = (
        "DINOv2 ViT-S/14, ten clips and eight DAVIS sequences of 32 frames each, 2 CPU cores. How it was measured: "
        "[The training-free methods compared](../studies/comparison.md).\n\n"
        "* cosine: mean cosine similarity between reconstructed and full features, -1 to 1. Higher is better.\n"
        "* rare cosine: the same in the 5 % of cells least similar to the mean of their frame. Higher is better.\n"
        "* J&F: label propagation on eight sequences of DAVIS-2016, in percent (53.1 with all tokens). Higher is "
        "better.\n"
        "* method, ms: time of the method alone. Empty for methods that run before or inside the encoder.\n"
        "* frames to tokens, ms: the encoder and the method. Lower is better.\n"
    )
    if any(row["label"].endswith("+ tome") for row in rows):
        about += (
            "* + `tome`: the method cannot reach this budget, so `tome` merged its tokens down to it. The row measures "
            "both.\n"
        )
    about += "\n"
    return about + table(["budget", "method", *_BENCH], lines, text=2)


def questions(name: str) -> str:
    """The accuracy of a small video language model with tokens of this method, or ""."""
    results = _read("videoqa")
    lines = []
    for count in (12, 32, 64):
        without = results["zeroshot"].get(f"{name}@{count}")
        runs = [f"{name}@{count}#{seed}" for seed in range(3)] + (
            [f"{name}#{s}" for s in range(3)] if count == 32 else []
        )
        trained = [results["finetune"][run]["accuracy"] for run in runs if run in results["finetune"]]
        if without or trained:
            lines.append(
                [
                    str(count),
                    f"{100 * without['accuracy']:.1f}" if without else "",
                    f"{100 * statistics.mean(trained):.1f}" if trained else "",
                ]
            )
    if not lines:
        return ""
    about = (
        "Correct answers in percent on 2,000 questions about synthetic clips, by a small video language model. It "
        f"scores {100 * results['zeroshot']['full']['accuracy']:.1f} % with all 256 visual tokens; random guessing "
        "scores 18.4 %. How it was measured: [In a video language model](../studies/video_llm.md).\n\n"
    )
    return about + table(["tokens of 256", "without retraining", "after 100 further steps"], lines)


def fidelity(name: str) -> str:
    """The comparison of the method with its published code, the reason that there is none, or ""."""
    rows = [row for row in _read("fidelity")["rows"] if row["method"] == name]
    measured = [row for row in rows if row["equal"] is not None]
    if not rows:
        return ""
    if not measured:
        return f"No comparison with published code: {rows[0]['why']}.\n"
    lines = [
        [
            f"`{row['reference']}` @{row['commit']}",
            row["settings"],
            "100 %" if row["equal"] == 1 else f"{100 * row['equal']:.2f} %",
            f"{row['difference']:.1e}",
            row["why"] or "no difference",
        ]
        for row in measured
    ]
    about = (
        "Both run on the same features of three real clips. Equal tokens: the fraction of tokens that both have; "
        "difference: the largest absolute difference between equal tokens. How it was measured: "
        "[Fidelity to published code](../studies/fidelity.md).\n\n"
    )
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    head = ["published code", "settings", "equal tokens", "difference", "reason for the difference"]
    return about + table(head, lines, text=len(head))


def speed(name: str) -> str:
    """The speed and memory of the method next to its published code, or ""."""
    path = RESULTS / "peers.json"
    rows = [row for row in _read("peers")["rows"] if row["method"] == name] if path.exists() else []
    if not rows:
        return ""
    sys.path.insert(0, str(RESULTS.parent))
    from reasons import shown_reasons

    lines = []
    for row in rows:
        threads = "GPU" if row["device"] == "cuda" else f"{row['threads']} CPU thread{'s' * (row['threads'] > 1)}"
        lines.append(
            [
                f"`{row['reference']}`",
                row["task"] + (f", {row['frames']} frames" if row["frames"] else ""),
                threads,
                f"{row['ratio']:.2f} ({row['low']:.2f}-{row['high']:.2f})",
                "" if row["equal_tokens"] is None else f"{100 * row['equal_tokens']:.4g} %",
                "" if row["memory_ratio"] is None else f"{row['memory_ratio']:.2f}",
                shown_reasons(row),
            ]
        )
    about = (
        "Ratio: time of the published code divided by ours, median (lowest to highest) of alternating runs in one "
        "process; above 1, ours is faster. Memory: theirs divided by ours. How it was measured: "
        "[Speed next to published code](../studies/speed.md).\n\n"
    )
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    head = ["published code", "task", "device", "ratio", "equal tokens", "memory", "reason"]
    return about + table(head, lines, text=len(head))
