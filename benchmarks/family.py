"""The whole training-free family on the real clips and DAVIS sequences, by `fewtokens bench`.

    python benchmarks/family.py [FOLDER]
    python benchmarks/family.py plots       only draws the plots of results/family.json again

Reads ../shared/data (or $FEWTOKENS_DATA). With DINOv2's ViT-S/14 there: ten clips of 32 frames at 168 px (about 250
cells a frame), eight DAVIS sequences of 32 frames at 196 px (14 x 25 cells), spread evenly over each; 25, 10, 5 and
2 % of the tokens; every method at its paper's defaults. J and F by label propagation (protocol A, its radius in
proportion to the rows of the grid) at the native size and at 480x880. Times on clips are medians of two runs, on
sequences single runs; one thread each (OMP_NUM_THREADS=1), so that two parts may run side by side. About three and a
half hours of one core; a stopped run goes on where it was. To share the work, start it twice, one with `clips` and one
with `davis` as the second argument, and at last without.

Writes results/family.json (means over all, over clips, over sequences), family.md, and the plots.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import RESULTS, machine, markdown_table
from fewtokens.core.keys import current_keys, heading
from fewtokens.core.legacy import current_spec
from fewtokens.core.registry import BASELINES
from fewtokens.evaluation.bench import FULL
from fewtokens.evaluation.summary import best, read_results, summarise
from fewtokens.show.plots import draw_trade_off

MEASURES = ("cosine", "rare_cosine", "j_and_f", "total_ms")


def main() -> None:
    if sys.argv[1:] == ["plots"]:
        draw(json.loads((RESULTS / "family.json").read_text()))
        return
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else RESULTS / "family").resolve()
    parts = sys.argv[2:] or ["clips", "davis", "both"]
    root = Path(os.environ.get("FEWTOKENS_DATA") or Path(__file__).parents[2] / "shared" / "data").resolve()
    os.environ["OMP_NUM_THREADS"] = "1"
    what = {"clips": ["clips"], "davis": ["--davis", "davis2016/DAVIS"]}
    what["both"] = [*what["clips"], *what["davis"]]
    for part in parts:
        words = ["--encoder", "weights/dinov2-small", "--frames", "32", "--size", "168", "--davis-size", "196"]
        words += ["--repeats", "1" if part == "davis" else "2", "--show", "1" if part == "davis" else "3"]
        command = [sys.executable, "-m", "fewtokens", "bench", *what[part], *words, "--out", str(folder)]
        subprocess.run(command, cwd=root, check=True)
    if "both" in parts:
        report(folder)


def report(folder: Path) -> None:
    found = read_results(folder / "results.json")
    # A clip's vector is not in the results, so agreement of neighbors is taken from the summary over all.
    rows = [row | {"vector": [1.0]} for row in found["rows"]]
    tables = {
        "all": found["summary"],
        "clips": summarise([row for row in rows if "j_and_f" not in row]),
        "sequences": summarise([row for row in rows if "j_and_f" in row]),
    }
    for name in ("clips", "sequences"):
        for line in tables[name]:
            line.pop("neighbor_agreement", None), line.pop("rank_correlation", None)
    where = machine()
    plain = {"machine": where, "settings": found["settings"], "about": found["about"], **tables}
    (RESULTS / "family.json").write_text(json.dumps(plain, indent=1) + "\n")
    facts = ", ".join(f"{key} {value}" for key, value in where.items() if value is not None)
    text = "# The training-free family on real clips\n\n`python benchmarks/family.py`\n\n" + facts
    text += f"\n\n{found['about']}\n"
    first = [
        {
            "budget": f"{100 * keep:g} %",
            "measure": heading(measure),
            "best five": ", ".join(f"`{name}`" for name in names),
        }
        for measure in MEASURES
        for keep, names in best(found["summary"], measure).items()
    ]
    text += "\n## The five best\n\n" + markdown_table(first) + "\n"
    text += "\n## Against the baselines\n\n" + markdown_table(standing(found["summary"])) + "\n"
    _, head, rest = (folder / "results.md").read_text().partition("\n## ")
    text += head + rest
    text += "".join(f"\n![{name}](family_{name}.png)\n" for name in draw(plain))
    (RESULTS / "family.md").write_text(text)
    print(text[:4000])


def draw(results: dict[str, Any]) -> list[str]:
    """Draws the plots of family.json; returns their names."""
    encoder = Path(results["settings"]["encoder"]["id"]).name
    clips = f"{results['all'][0]['clips']} clips of up to {results['settings']['frames']} frames"
    about = {"j_and_f": f"J&F on the sequences of DAVIS-2016; tokens and times on all {clips}"}
    # Names of earlier versions.
    names = {"representation_shift": "representation_shift_in_encoder"}
    rows = []
    for row in current_keys(results["all"]):
        method = row["method"] if row["method"] == FULL else current_spec(names.get(row["method"], row["method"]))
        rows.append(row | {"method": method.removesuffix("()")})
    plots = []
    for measure in MEASURES[:3]:
        plots.append(measure.replace("j_and_f", "JF"))
        caption = f"{about.get(measure, clips)}, encoder {encoder}, {results['machine']['cores']} CPU cores."
        path = RESULTS / f"family_{plots[-1]}.png"
        draw_trade_off(rows, measure, path, baselines=BASELINES, full=FULL, caption=caption)
    return plots


def standing(summary: list[dict]) -> list[dict]:
    """For each method at how many budgets it is above random and downsample, and above all five baselines."""
    budgets = [keep for keep in dict.fromkeys(line["keep"] for line in summary) if keep != 1.0]
    at = {(line["keep"], line["method"]): line for line in summary}
    rows = []
    for method in dict.fromkeys(line["method"] for line in summary):
        if method == "full" or method in BASELINES:
            continue
        row = {"method": f"`{method}`"}
        for measure in MEASURES[:3]:
            above = {"two": 0, "five": 0}
            for keep in budgets:
                own = at[keep, method][measure]
                rivals = {name: at[keep, name][measure] for name in BASELINES}
                above["two"] += own > max(rivals["random"], rivals["downsample"])
                above["five"] += own > max(rivals.values())
            row[f"{heading(measure)}: above random, downsample"] = f"{above['two']} of {len(budgets)}"
            row[f"{heading(measure)}: above all five"] = f"{above['five']} of {len(budgets)}"
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
