"""All training-free methods on real clips and DAVIS sequences, with `fewtokens bench`.

    python benchmarks/family.py [FOLDER]
    python benchmarks/family.py FOLDER clips    # one part (clips or davis); then run once without parts for the report
    python benchmarks/family.py --report        # only writes family.md and the plots of results/family.json again

Reads ../shared/data (or $FEWTOKENS_DATA). With DINOv2 ViT-S/14: ten clips of 32 frames at 168 px (about 250 cells per
frame) and eight DAVIS sequences of 32 frames at 196 px (14 x 25 cells), both sampled uniformly over time; 25, 10, 5 and
2 % of the tokens; each method with the defaults of its paper. J and F come from label propagation (protocol A, radius
proportional to the rows of the grid) at the native size and at 480x880. Times are medians of two runs on clips and
single runs on sequences, with one thread (OMP_NUM_THREADS=1), so that the parts clips and davis can run in parallel.

About three and a half hours on one core; interrupted runs resume. Writes results/family.json (means over all, over
clips and over sequences), family.md and the plots. Expected: see docs/studies/comparison.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import RESULTS, describe, machine, markdown_table
from fewtokens.core.grid import Grid
from fewtokens.core.keys import current_keys, heading
from fewtokens.core.legacy import current_spec
from fewtokens.core.registry import BASELINES
from fewtokens.evaluation.bench import FULL, chain
from fewtokens.evaluation.summary import as_markdown, best_methods, describe_columns, read_results, summarize
from fewtokens.show.plots import draw_trade_off

# Names of earlier versions.
EARLIER = {"representation_shift": "representation_shift_in_encoder"}
MEASURES = ("cosine", "rare_cosine", "j_and_f", "total_ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS / "family", help="output directory of the runs")
    parser.add_argument("parts", nargs="*", metavar="PART", help="clips, davis or both (default: each in turn)")
    parser.add_argument("--report", action="store_true", help="only write family.md and the plots of family.json again")
    options = parser.parse_args()
    if options.report:
        write_report(json.loads((RESULTS / "family.json").read_text()))
        return
    folder, parts = options.folder.resolve(), options.parts or ["clips", "davis", "both"]
    if unknown := set(parts) - {"clips", "davis", "both"}:
        parser.error(f"PART must be clips, davis or both, got {', '.join(sorted(unknown))}")
    root = Path(os.environ.get("FEWTOKENS_DATA") or Path(__file__).parents[2] / "shared" / "data").resolve()
    os.environ["OMP_NUM_THREADS"] = "1"
    inputs = {"clips": ["clips"], "davis": ["--davis", "davis2016/DAVIS"]}
    inputs["both"] = [*inputs["clips"], *inputs["davis"]]
    for part in parts:
        arguments = ["--encoder", "weights/dinov2-small", "--frames", "32", "--size", "168", "--davis-size", "196"]
        arguments += ["--repeats", "1" if part == "davis" else "2", "--show", "1" if part == "davis" else "3"]
        command = [sys.executable, "-m", "fewtokens", "bench", *inputs[part], *arguments, "--out", str(folder)]
        subprocess.run(command, cwd=root, check=True)
    if "both" in parts:
        report(folder)


def report(folder: Path) -> None:
    results = read_results(folder / "results.json")
    # results.json has no mean token per clip, so neighbor agreement is only in the summary over all clips.
    rows = [row | {"vector": [1.0]} for row in results["rows"]]
    tables = {
        "all": results["summary"],
        "clips": summarize([row for row in rows if "j_and_f" not in row]),
        "sequences": summarize([row for row in rows if "j_and_f" in row]),
    }
    for name in ("clips", "sequences"):
        for line in tables[name]:
            line.pop("neighbor_agreement", None), line.pop("rank_correlation", None)
    hardware = machine()
    data = {"machine": hardware, "settings": results["settings"], "about": results["about"], **tables}
    write_report(data)


def write_report(data: dict[str, Any]) -> None:
    """Writes family.json with labels, family.md and the plots."""
    for name in ("all", "clips", "sequences"):
        data[name] = [
            {"keep": line["keep"], "method": line["method"], "label": ""} | line | {"label": label(line)}
            for line in data[name]
        ]
    (RESULTS / "family.json").write_text(json.dumps(data, indent=1) + "\n")
    summary = data["all"]
    facts = describe(data["machine"])
    text = "# Training-free methods on real clips\n\n`python benchmarks/family.py`\n\n" + facts
    settings = data["settings"]
    text += (
        f"\n\nEncoder {settings['encoder']['id']}, {summary[0]['clips']} clips of up to {settings['frames']} frames. "
    )
    text += 'The mark "+ tome" follows from the number of tokens that a method plans for 32 frames.\n\n'
    text += "".join(f"- {line}\n" for line in describe_columns(summary))
    ranking = [
        {
            "budget": f"{100 * keep:g} %",
            "measure": heading(measure),
            "best five": ", ".join(f"`{name}`" for name in names),
        }
        for measure in MEASURES
        for keep, names in best_methods(summary, measure).items()
    ]
    text += "\n## Best five methods\n\n" + markdown_table(ranking) + "\n"
    text += "\n## Compared with the baselines\n\n" + markdown_table(standing(summary)) + "\n\n"
    text += as_markdown(summary)
    text += "".join(f"\n![{name}](family_{name}.png)\n" for name in draw(data))
    (RESULTS / "family.md").write_text(text)
    print(text[:4000])


def label(line: dict[str, Any]) -> str:
    """The method, followed by "+ tome" if it needs tome at this budget, from the numbers of tokens that it plans.

    The answer is the same for the grids of all clips here, which have 32 frames.
    """
    if line["method"] == FULL:
        return FULL
    spec = current_spec(EARLIER.get(line["method"], line["method"]))
    stages = len(chain(spec, line["keep"], Grid(32, 14, 25)))
    return line["method"] + (" + tome" if stages > spec.count("|") + 1 else "")


def draw(results: dict[str, Any]) -> list[str]:
    """Draws the plots of family.json; returns their names."""
    encoder = Path(results["settings"]["encoder"]["id"]).name
    clips = f"{results['all'][0]['clips']} clips of up to {results['settings']['frames']} frames"
    about = {"j_and_f": f"J&F on the sequences of DAVIS-2016; tokens and times on all {clips}"}
    rows = []
    for row in current_keys(results["all"]):
        method = row["method"] if row["method"] == FULL else current_spec(EARLIER.get(row["method"], row["method"]))
        method = method.removesuffix("()")
        mark = " + tome" if row["label"].endswith(" + tome") else ""
        rows.append(row | {"method": method, "label": method + mark})
    plots = []
    for measure in MEASURES[:3]:
        plots.append(measure.replace("j_and_f", "JF"))
        caption = f"{about.get(measure, clips)}, encoder {encoder}, {results['machine']['cores']} CPU cores."
        path = RESULTS / f"family_{plots[-1]}.png"
        draw_trade_off(rows, measure, path, baselines=BASELINES, full=FULL, caption=caption)
    return plots


def standing(summary: list[dict]) -> list[dict]:
    """The number of budgets at which each method beats random and downsample, and all five baselines."""
    budgets = [keep for keep in dict.fromkeys(line["keep"] for line in summary) if keep != 1.0]
    at = {(line["keep"], line["method"]): line for line in summary}
    rows = []
    for method in dict.fromkeys(line["method"] for line in summary):
        if method == "full" or method in BASELINES:
            continue
        row = {"method": f"`{method}`"}
        for measure in MEASURES[:3]:
            wins = {"two": 0, "five": 0}
            for keep in budgets:
                score = at[keep, method][measure]
                rivals = {name: at[keep, name][measure] for name in BASELINES}
                wins["two"] += score > max(rivals["random"], rivals["downsample"])
                wins["five"] += score > max(rivals.values())
            row[f"{heading(measure)}: above random, downsample"] = f"{wins['two']} of {len(budgets)}"
            row[f"{heading(measure)}: above all five"] = f"{wins['five']} of {len(budgets)}"
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
