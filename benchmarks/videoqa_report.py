"""Tables and plot of `videoqa.py`, whose step `report` calls `write`.

python benchmarks/videoqa_report.py    # renders results/videoqa.md again from videoqa.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import RESULTS, describe, markdown_table
from fewtokens.core.files import atomic_file
from fewtokens.core.registry import BASELINES
from fewtokens.show import method_styles
from fewtokens.show.plots import save_plot

Rows = dict[str, dict[str, Any]]
CAPTION = (
    "2,000 questions on synthetic clips, a small video language model, not retrained. Budgets: 12, 32, 64 tokens. "
    "The baselines (gray, dashed), token_dynamics, and the best other methods at 32 tokens."
)


def write(results: dict[str, Any], folder: Path) -> None:
    """Writes videoqa.json, .md and .png."""
    folder.mkdir(exist_ok=True)
    with atomic_file(folder / "videoqa.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")
    if results["zeroshot"]:
        draw(results["zeroshot"], folder / "videoqa.png", (12, 32, 64), 256, CAPTION)
    write_page(results, folder)


def write_page(results: dict[str, Any], folder: Path) -> None:
    """Writes videoqa.md, with the plot if it exists."""
    facts = describe(results["machine"])
    parts = [f"# Accuracy of a video language model with few tokens\n\n`python benchmarks/videoqa.py`; {facts}\n"]
    parts.append(guessing(results["text_only"]))
    rows = results["zeroshot"]
    if rows:
        prefill = ", ".join(f"{k} tokens {value:.0f}" for k, value in results["prefill_gflops"].items())
        parts += [zeroshot(rows), f"Prefill of a language model with the shape of Qwen2-7B, GFLOPs: {prefill}.\n"]
        at_32 = {name(key): row for key, row in rows.items() if key.endswith("@32") or key == "full"}
        parts.append(by_kind("Without retraining, 32 tokens", at_32))
        if (folder / "videoqa.png").is_file():
            parts.append("![Accuracy by number of tokens kept, without retraining](videoqa.png)\n")
    for key, title in (
        ("finetune", "After equal further training, 32 tokens unless noted"),
        ("longer", "After four times as much further training, 32 tokens"),
        ("ablation", "The base and the map of Token Dynamics, with renumbered positions"),
    ):
        if results[key]:
            rows = over_seeds(results[key])
            parts += [trained(title, rows), by_kind(title, rows)]
    with atomic_file(folder / "videoqa.md") as temporary:
        temporary.write_text("\n".join(parts))
    print("\n".join(parts))


def name(key: str) -> str:
    return key.partition("@")[0]


def percent(value: float) -> float:
    return round(100 * value, 1)


def ranked(rows: Rows, score: Callable[[str], float]) -> list[str]:
    """Keys with all tokens first, then the baselines, then by score."""
    return sorted(rows, key=lambda key: (key != "full", name(key) not in BASELINES, -score(key)))


def guessing(scores: dict[str, Any]) -> str:
    rows = [
        {"type": kind, "text only, %": percent(part["accuracy"]), "chance, %": percent(part["chance"])}
        for kind, part in {"all": scores["all"], **scores["kinds"]}.items()
    ]
    return f"## Without the video\n\nAccuracy of a guesser that sees only the text.\n\n{markdown_table(rows)}\n"


def zeroshot(rows: Rows) -> str:
    methods: Rows = {name(key): row for key, row in rows.items() if key.endswith("@32")}
    table = []
    for method in ranked(methods, lambda key: methods[key]["accuracy"]):
        at = {k: rows.get(f"{method}@{k}") for k in (12, 32, 64)}
        scores = {f"{k} tokens": None if row is None else percent(row["accuracy"]) for k, row in at.items()}
        density, reducing = round(methods[method]["tokdense"], 3), methods[method]["reduce_ms"]
        table.append({"method": method, **scores, "TokDense at 32": density, "reduce, ms per video": reducing})
    full = percent(rows["full"]["accuracy"])
    text = (
        f"## Without retraining: accuracy in %\n\nWith all 256 tokens: {full} %. Milliseconds here and below are for "
        "one core while the other was busy; answer, ms was partly measured under higher load and is not reliable. "
        "Methods that require the encoder's attention or keys are excluded, because the reduction is "
        f"after the projector.\n\n{markdown_table(table)}\n"
    )
    others = [
        {"row": key, "tokens": round(row["tokens"], 2), "accuracy, %": percent(row["accuracy"])}
        for key, row in rows.items()
        if "adaptive" in key or "renumbered" in key
    ]
    if others:
        text += "\nAdaptive length, and renumbered positions (all others keep the positions of their cells):\n\n"
        text += markdown_table(others) + "\n"
    return text


def over_seeds(rows: Rows) -> Rows:
    """Means over seeds, with half the range of the accuracy, by name."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for key, row in rows.items():
        groups.setdefault(key.partition("#")[0], []).append(row)
    means = {}
    for key, group in groups.items():
        accuracies = [row["accuracy"] for row in group]
        means[key] = {
            "accuracy": statistics.mean(accuracies),
            "spread": (max(accuracies) - min(accuracies)) / 2 if len(group) > 1 else None,
            "seeds": len(group),
            "tokens": statistics.mean(row["tokens"] for row in group),
            "tokdense": statistics.mean(row["tokdense"] for row in group),
            "answer_ms": statistics.median(row["answer_ms"] for row in group),
            "kinds": {kind: statistics.mean(row["kinds"][kind] for row in group) for kind in group[0]["kinds"]},
        }
    return means


def trained(title: str, rows: Rows) -> str:
    table = [
        {
            "method": key,
            "tokens": round(rows[key]["tokens"], 2),
            "accuracy, %": percent(rows[key]["accuracy"]),
            "± half the range": None if rows[key]["spread"] is None else percent(rows[key]["spread"]),
            "seeds": rows[key]["seeds"],
            "TokDense": round(rows[key]["tokdense"], 3),
            "answer, ms": rows[key]["answer_ms"],
        }
        for key in ranked(rows, lambda key: rows[key]["accuracy"])
    ]
    return f"## {title}\n\n{markdown_table(table)}\n"


def by_kind(title: str, rows: Rows) -> str:
    table = [
        {"method": key, **{kind: percent(value) for kind, value in rows[key]["kinds"].items()}}
        for key in ranked(rows, lambda key: rows[key]["accuracy"])
    ]
    return f"### {title}: accuracy by type of question, in %\n\n{markdown_table(table)}\n"


def draw(rows: Rows, path: Path, budgets: tuple[int, int, int], cells: int, caption: str) -> bool:
    """Plots accuracy over tokens: the baselines, token_dynamics, and the six best others at the second budget."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    middle = {name(key): row["accuracy"] for key, row in rows.items() if key.endswith(f"@{budgets[1]}")}
    # Of methods with the same accuracy only the first.
    others = {value: method for method, value in reversed(middle.items()) if method not in BASELINES}
    best = [others[value] for value in sorted(others, reverse=True)[:6]]
    figure, axis = plt.subplots(figsize=(9.5, 6), layout="constrained")
    styles = method_styles(middle)
    shown = dict.fromkeys([*BASELINES, *best, "token_dynamics"])
    for method in [method for method in shown if method in middle]:
        points = [row for k in budgets if (row := rows.get(f"{method}@{k}"))]
        width = 2.5 if method == "token_dynamics" else 1.4
        tokens, accuracies = [row["tokens"] for row in points], [100 * row["accuracy"] for row in points]
        axis.plot(tokens, accuracies, linewidth=width, label=method, **styles[method])
    axis.axhline(100 * rows["full"]["accuracy"], color="black", linewidth=1, label=f"all {cells} tokens")
    axis.set(xlabel=f"visual tokens that remain of {cells}", ylabel="correct answers (%)", xscale="log")
    axis.set_xticks(budgets, [str(k) for k in budgets])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    save_plot(figure, path, title="Correct answers from few visual tokens", caption=caption)
    plt.close(figure)
    return True


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write_page(json.loads((RESULTS / "videoqa.json").read_text()), RESULTS)
