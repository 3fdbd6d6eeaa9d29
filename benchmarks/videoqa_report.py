"""Tables and curves of `videoqa.py`; called by its step `report`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import markdown_table
from fewtokens.core.files import whole_file
from fewtokens.core.registry import BASELINES
from fewtokens.data.videoqa import KINDS
from fewtokens.show import method_styles
from fewtokens.show.plots import save_plot

Rows = dict[str, dict[str, Any]]


def write(found: dict[str, Any], folder: Path) -> None:
    """results/videoqa.json, .md and .png."""
    folder.mkdir(exist_ok=True)
    with whole_file(folder / "videoqa.json") as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")
    where = ", ".join(f"{key} {value}" for key, value in found["machine"].items() if value is not None)
    parts = [f"# What each method keeps for a language model\n\n`python benchmarks/videoqa.py`; {where}\n"]
    parts.append(guessing(found["text_only"]))
    zero = found["zeroshot"]
    if zero:
        told = ", ".join(f"{k} tokens {value:.0f}" for k, value in found["prefill_gflops"].items())
        parts += [zeroshot(zero), f"Prefill in a language model of Qwen2-7B's shape, GFLOPs: {told}.\n"]
        at_32 = {name(key): row for key, row in zero.items() if key.endswith("@32") or key == "full"}
        parts.append(by_kind("Not retrained, 32 tokens", at_32))
        if draw(zero, folder / "videoqa.png"):
            parts.append("![Answers right by tokens kept, not retrained](videoqa.png)\n")
    for key, title in (
        ("finetune", "After equal further training, 32 tokens where no other count is said"),
        ("longer", "After four times as much further training, 32 tokens"),
        ("ablation", "The base and the map of Token Dynamics, positions renumbered"),
    ):
        if found[key]:
            rows = over_seeds(found[key])
            parts += [trained(title, rows), by_kind(title, rows)]
    with whole_file(folder / "videoqa.md") as temporary:
        temporary.write_text("\n".join(parts))
    print("\n".join(parts))


def name(key: str) -> str:
    return key.partition("@")[0]


def percent(value: float) -> float:
    return round(100 * value, 1)


def ranked(rows: Rows, score: Callable[[str], float]) -> list[str]:
    """Everything first, then the baselines, then the best."""
    return sorted(rows, key=lambda key: (key != "full", name(key) not in BASELINES, -score(key)))


def guessing(found: dict[str, Any]) -> str:
    rows = [
        {"kind": kind, "guesser, %": percent(part["accuracy"]), "chance, %": percent(part["chance"])}
        for kind, part in {"all": found["all"], **found["kinds"]}.items()
    ]
    return f"## The questions alone\n\nA guesser that sees texts and never clips.\n\n{markdown_table(rows)}\n"


def zeroshot(rows: Rows) -> str:
    methods: Rows = {name(key): row for key, row in rows.items() if key.endswith("@32")}
    table = []
    for method in ranked(methods, lambda key: methods[key]["accuracy"]):
        at = {k: rows.get(f"{method}@{k}") for k in (12, 32, 64)}
        scores = {f"{k} tokens": None if row is None else percent(row["accuracy"]) for k, row in at.items()}
        density, reducing = round(methods[method]["tokdense"], 3), methods[method]["reduce_ms"]
        table.append({"method": method, **scores, "TokDense at 32": density, "reduce, ms a video": reducing})
    full = percent(rows["full"]["accuracy"])
    text = (
        f"## Not retrained: answers right, in %\n\nWith all 256 tokens: {full} %. Milliseconds here and below are of "
        "one core, the other one busy; answer, ms was partly taken beside more than that, and tells little. Methods "
        "that need an encoder's attention or keys are not there: reduction is "
        f"after the projector.\n\n{markdown_table(table)}\n"
    )
    others = [
        {"row": key, "tokens": round(row["tokens"], 2), "right, %": percent(row["accuracy"])}
        for key, row in rows.items()
        if "adaptive" in key or "renumbered" in key
    ]
    if others:
        text += "\nOf adaptive length, and with positions renumbered (all others keep those of their cells):\n\n"
        text += markdown_table(others) + "\n"
    return text


def over_seeds(rows: Rows) -> Rows:
    """Means over seeds, with half the range of the accuracy, by name."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for key, row in rows.items():
        groups.setdefault(key.partition("#")[0], []).append(row)
    made = {}
    for key, group in groups.items():
        accuracies = [row["accuracy"] for row in group]
        made[key] = {
            "accuracy": statistics.mean(accuracies),
            "spread": (max(accuracies) - min(accuracies)) / 2 if len(group) > 1 else None,
            "seeds": len(group),
            "tokens": statistics.mean(row["tokens"] for row in group),
            "tokdense": statistics.mean(row["tokdense"] for row in group),
            "answer_ms": statistics.median(row["answer_ms"] for row in group),
            "kinds": {kind: statistics.mean(row["kinds"][kind] for row in group) for kind in KINDS},
        }
    return made


def trained(title: str, rows: Rows) -> str:
    table = [
        {
            "method": key,
            "tokens": round(rows[key]["tokens"], 2),
            "right, %": percent(rows[key]["accuracy"]),
            "± half of the range": None if rows[key]["spread"] is None else percent(rows[key]["spread"]),
            "seeds": rows[key]["seeds"],
            "TokDense": round(rows[key]["tokdense"], 3),
            "answer, ms": rows[key]["answer_ms"],
        }
        for key in ranked(rows, lambda key: rows[key]["accuracy"])
    ]
    return f"## {title}\n\n{markdown_table(table)}\n"


def by_kind(title: str, rows: Rows) -> str:
    table = [
        {"method": key, **{kind: percent(rows[key]["kinds"][kind]) for kind in KINDS}}
        for key in ranked(rows, lambda key: rows[key]["accuracy"])
    ]
    return f"### {title}: by kind of question, in %\n\n{markdown_table(table)}\n"


def draw(rows: Rows, path: Path) -> bool:
    """Accuracy over tokens: the baselines, token_dynamics, and the best others at 32."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    at_32 = {name(key): row["accuracy"] for key, row in rows.items() if key.endswith("@32")}
    # Of methods with one and the same result the first.
    others = {value: method for method, value in reversed(at_32.items()) if method not in BASELINES}
    best = [others[value] for value in sorted(others, reverse=True)[:6]]
    figure, axis = plt.subplots(figsize=(9.5, 6), layout="constrained")
    styles = method_styles(at_32)
    for method in [*BASELINES, *dict.fromkeys([*best, "token_dynamics"])]:
        points = [row for k in (12, 32, 64) if (row := rows.get(f"{method}@{k}"))]
        width = 2.5 if method == "token_dynamics" else 1.4
        tokens, accuracies = [row["tokens"] for row in points], [100 * row["accuracy"] for row in points]
        axis.plot(tokens, accuracies, linewidth=width, label=method, **styles[method])
    axis.axhline(100 * rows["full"]["accuracy"], color="black", linewidth=1, label="all 256 tokens")
    axis.set(xlabel="visual tokens that remain of 256", ylabel="correct answers (%)", xscale="log")
    axis.set_xticks([12, 32, 64], ["12", "32", "64"])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    caption = (
        "2,000 questions on synthetic clips, a small video language model, not retrained. Budgets: 12, 32, 64 tokens. "
        "The baselines (gray, dashed), token_dynamics, and the best other methods at 32 tokens."
    )
    save_plot(figure, path, title="Correct answers from few visual tokens", caption=caption)
    plt.close(figure)
    return True
