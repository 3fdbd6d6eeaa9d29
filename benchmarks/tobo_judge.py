"""Evaluation of the encoders of `tobo_small.py`: label propagation on DAVIS and a linear probe on hand signs.

    python benchmarks/tobo_judge.py --work WORK                     # all finished runs; resumes
    python benchmarks/tobo_judge.py --work WORK --only "tobo; mae; random weights" --seeds 0

Three baselines are included: an encoder with random weights, raw pixels, and the DINOv2 ViT-S/14 of $FEWTOKENS_DATA.
All use a grid of 30 x 55 cells (240 x 440 pixels for patches of 8, 420 x 770 for 14, 480 x 880 for the pixels), and so
the same number of context cells and the same radius. Masks are scored at their native size on the eight DAVIS-2016
sequences there, none of which was used for training. Encoders run in bfloat16, similarities are float32. The probe is
logistic regression on class tokens and on mean features at 64 px. The ablations are evaluated only with protocol A.

Each evaluation is a separate `fewtokens eval` command, whose JSON is kept in WORK/judged. About 6 minutes per encoder
on 2 cores. Rows of encoders that are not evaluated now (excluded by --only, or trained elsewhere) are kept in the
results, and so are the images if the masks of one of them are missing. Behavior cloning is `bc_metaworld.py` with the
same folders; the report includes its table if results/bc_metaworld.json exists.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from common import RESULTS, joined, write
from fewtokens.core.files import atomic_file
from fewtokens.core.keys import current_keys
from fewtokens.data.footage import find_footage
from fewtokens.data.masks import read_masks
from fewtokens.data.pairs import PairData, collate_pairs, mask_noise
from fewtokens.networks.pretrained import load_pretraining, save_encoder
from fewtokens.networks.pretraining import ToBo, ToBoConfig
from fewtokens.show.objects import overlay_objects
from fewtokens.show.strips import draw_strips
from fewtokens.train.pretraining import own_and_swapped, reconstructions
from fewtokens.video.images import read_image
from tobo_small import ABLATIONS, DATA, NETWORK, RUNS, SHORT, STEPS, chosen, folder_of, recipe_of

DAVIS = DATA / "davis2016" / "DAVIS"
SHOWN = ("car-roundabout", "car-shadow", "dog", "scooter-black", "breakdance")
PROTOCOLS = ("A", "B")
GRID = (30, 55)
COMMAND = "python benchmarks/tobo_small.py frames train --work WORK; python benchmarks/tobo_judge.py --work WORK"
BASELINES = ("random weights", "pixels", "DINOv2 ViT-S/14")
NAMES = (*RUNS, *BASELINES)
# What the rows do not show.
EARLIER = (
    "rsp was trained and evaluated on 2026-11-28, with one thread. Its step was timed on a busy machine, right after "
    "one of tobo (0.79 and 0.55 s), so its core minutes are not comparable and are omitted. Behavior cloning was not "
    "repeated with the released RSP: its row is from an earlier network (one more layer in prior and posterior, one "
    "projection into the decoder, noise of 0.1). All networks were initialized with a bias of 0 in the patch "
    "embedding; the released code keeps PyTorch's default."
)
# Pairs per DAVIS sequence for the losses on unseen videos; the path of a loss whose name differs from the objective.
UNSEEN = 24
PATHS = {"siam_mae": "siam", "crop_mae": "siam"}


def random_encoder(work: Path, seed: int) -> Path:
    """The network of the runs with random weights."""
    folder = work / f"random-{seed}"
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(seed)
        save_encoder(ToBo(ToBoConfig(**NETWORK, image_size=(64, 64))), folder)
    return folder


def contestants(work: Path, only: list[str], seeds: list[int]) -> list[tuple[str, int, str, int, int]]:
    """(name, seed, encoder, patch size, image size of the probe)."""
    candidates = [(name, seed, folder_of(work, name, seed) / "model", 8, 64) for name in RUNS for seed in seeds]
    done = [(name, seed, str(folder), patch, size) for name, seed, folder, patch, size in candidates if folder.is_dir()]
    random, pixels, dino = BASELINES
    done += [(random, seed, str(random_encoder(work, seed)), 8, 64) for seed in seeds]
    done += [(pixels, 0, "patches", 16, 64), (dino, 0, str(DATA / "weights" / "dinov2-small"), 14, 98)]
    return [entry for entry in done if entry[0] in only]


def run_command(path: Path, *arguments: str) -> dict[str, Any]:
    """The --json output of a fewtokens command, cached in `path`."""
    if not path.exists():
        done = subprocess.run([sys.executable, "-m", "fewtokens", *arguments, "--json"], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"fewtokens {' '.join(arguments)}: {done.stderr.strip()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.write_text(done.stdout)
    return current_keys(json.loads(path.read_text()))


def judged_folder(work: Path, name: str, seed: int) -> Path:
    return work / "judged" / f"{re.sub(r'[^0-9A-Za-z]+', '_', name)}-{seed}"


def judge(work: Path, name: str, seed: int, encoder: str, patch: int, size: int) -> dict[str, Any]:
    """All scores of one encoder, in %."""
    folder = judged_folder(work, name, seed)
    rows, columns = (cells * patch for cells in GRID)
    scores: dict[str, Any] = {}
    for protocol in PROTOCOLS if name not in ABLATIONS else PROTOCOLS[:1]:
        answer = run_command(
            folder / f"davis_{protocol}.json", "eval", "davis", "--data", str(DAVIS), "--split",
            "all", "--encoder", encoder, "--dtype", "bfloat16", "--protocol", protocol, "--set",
            f"size={rows}x{columns}", "--out", str(folder / protocol),
        )  # fmt: skip
        scores[f"J&F, {protocol}"] = answer["scores"]["native"]["j_and_f_mean"]
        scores[f"sequences, {protocol}"] = {line["sequence"]: line["j_and_f_mean"] for line in answer["sequences"]}
    pools = () if name in ABLATIONS else ("mean",) if encoder == "patches" else ("class", "mean")
    for pool in pools:
        answer = run_command(
            folder / f"linear_{pool}.json", "eval", "linear", "--encoder", encoder, "--data",
            str(DATA / "sign_digits" / "Dataset"), "--size", str(size), "--feature", pool,
        )  # fmt: skip
        scores[f"linear, {pool}"] = next(value for key, value in answer.items() if key.endswith("top1"))
    if name in RUNS:
        scores |= unseen(RUNS[name][0], Path(encoder))
        recipe = json.loads((Path(encoder).parent / "settings.json").read_text())
        path = work / "cost.json"
        if path.exists():
            cost = json.loads(path.read_text())
            objective, changes = RUNS[name]
            # A changed objective has a different time per step; without a measurement the column stays empty.
            if seconds := cost.get(name if changes else objective):
                scores["core minutes"] = seconds * recipe["steps"] / 60
    return scores


@cache
def unseen_samples(objective: str) -> dict[str, Any]:
    """A batch of samples of an objective from the DAVIS sequences; consecutive samples are of different sequences."""
    items = find_footage(DAVIS / "JPEGImages").items
    data = PairData(items, recipe_of(objective, 0, STEPS, 1, 0).pairing, visits=UNSEEN)
    return collate_pairs([data[number] for number in range(len(data))])


@torch.no_grad()
def unseen(objective: str, folder: Path) -> dict[str, float]:
    """The loss on unseen videos (1 is an uninformative prediction), and with the source of another sequence."""
    model, batch = load_pretraining(folder), unseen_samples(objective)
    scores = own_and_swapped(model, batch["frames"], mask_noise(batch["seeds"], model.config.patches))
    path = PATHS.get(objective, objective)
    named = {"unseen loss": f"{path}_own", "unseen loss, swapped": f"{path}_swapped"}
    return {name: scores[key] for name, key in named.items() if key in scores}


def table(judged: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row per encoder, with the columns that any of them has."""
    columns = (*(f"J&F, {protocol}" for protocol in PROTOCOLS), "linear, class", "linear, mean", "unseen loss",
               "unseen loss, swapped", "core minutes")  # fmt: skip
    columns = tuple(
        column for column in columns if any(column in scores for group in judged.values() for scores in group)
    )
    rows = []
    for name, group in judged.items():
        row: dict[str, Any] = {"encoder": name, "seeds": len(group)}
        for column in columns:
            values = [scores[column] for scores in group if column in scores]
            row[column] = round(statistics.mean(values), 2) if values else None
            if column.startswith("J&F") and any(len(seeds) > 1 for seeds in judged.values()):
                row["± " + column] = round((max(values) - min(values)) / 2, 2) if len(values) > 1 else None
        rows.append(row)
    return rows


def sequences(judged: dict[str, list[dict[str, Any]]], protocol: str) -> list[dict[str, Any]]:
    column = f"sequences, {protocol}"
    return [
        {"encoder": name}
        | {clip: round(statistics.mean(scores[column][clip] for scores in group), 1) for clip in group[0][column]}
        for name, group in judged.items()
        if column in group[0]
    ]


def draw_masks(shown: list[tuple[str, Path]], path: Path) -> None:
    """Draws the masks that encoders propagate to one frame of some sequences, with the ground truth as an outline."""
    rows = []
    for name, folder in shown:
        images = []
        for sequence in SHOWN:
            frames = sorted((DAVIS / "JPEGImages" / "480p" / sequence).glob("*.jpg"))
            frame = frames[round(0.6 * len(frames))]
            file = f"{frame.stem}.png"
            masks = read_masks([folder / "A" / "masks" / sequence / file])
            truth = read_masks([DAVIS / "Annotations" / "480p" / sequence / file])
            images.append(overlay_objects(read_image(frame, None).frames, masks, truth))
        rows.append((name, torch.cat(images)))
    draw_strips(
        rows,
        path,
        title="Label propagation on DAVIS-2016 with frozen encoders",
        caption=f"Masks at 60 % of {', '.join(SHOWN)}; ground truth outlined in white.",
    )


def draw_reconstructions(folder: Path, path: Path) -> None:
    """Draws reconstructions by Token Bottleneck of pairs from unseen videos."""
    batch = unseen_samples("tobo")
    model, frames = load_pretraining(folder), batch["frames"][:8]
    noise = mask_noise(batch["seeds"][:8], model.config.patches)
    with torch.no_grad():
        draw_strips(
            reconstructions(model, frames, noise),
            path,
            title="Token Bottleneck on pairs of unseen DAVIS frames",
            caption="The target is predicted from its visible patches and the source.",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="directory of tobo_small.py")
    parser.add_argument("--only", help=f"encoders, separated by ';' (default: all): {'; '.join(NAMES)}")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated seeds (default: %(default)s)")
    options = parser.parse_args()
    only = chosen(options.only, NAMES)
    judged: dict[str, list[dict[str, Any]]] = {}
    for name, seed, *rest in contestants(options.work, only, [int(text) for text in options.seeds.split(",")]):
        judged.setdefault(name, []).append(judge(options.work, name, seed, *rest))
        print(name, seed, {key: value for key, value in judged[name][-1].items() if key.startswith("J&F")}, flush=True)
    full, short = ({name: judged[name] for name in judged if (name in ABLATIONS) == part} for part in (False, True))
    tables = {"All": table(full), f"Ablations: {SHORT:.3g} of the steps, one setting changed": table(short)}
    tables |= {f"J&F per sequence, protocol {p}": sequences(full, p) for p in PROTOCOLS}
    tables = {head: joined("tobo_small", COMMAND, rows, head, NAMES) for head, rows in tables.items()}
    cloned = RESULTS / "bc_metaworld.json"
    if cloned.exists():
        tables["Behavior cloning"] = json.loads(cloned.read_text())["rows"]
    shown = [(row["encoder"], judged_folder(options.work, row["encoder"], 0)) for row in tables["All"]]
    if all((folder / PROTOCOLS[0]).is_dir() for _, folder in shown):
        draw_masks(shown, RESULTS / "tobo_small.png")
    tobo = folder_of(options.work, "tobo", 0) / "model"
    if tobo.is_dir():
        draw_reconstructions(tobo, RESULTS / "tobo_small_rebuilt.png")
    write(
        "tobo_small", "Token Bottleneck and related objectives, pre-trained at equal compute",
        COMMAND, {head: rows for head, rows in tables.items() if rows},
        "Means over seeds; ± is half the range. All encoders use a grid of 30 x 55 cells; masks are scored at the "
        "native size. Unseen loss: loss of the objective's main path (ToBo: from one token) on pairs of DAVIS "
        "sequences, where 1 is an uninformative prediction; swapped: with the source of another sequence. It is not "
        "comparable between objectives, which mask different fractions. Core minutes: time per step on one idle core, "
        "times the number of steps. First image: protocol A at 60 % of each sequence, with the ground truth outlined "
        "in white. Second image: pairs of unseen videos reconstructed by ToBo. " + EARLIER,
        [file for file in ("tobo_small.png", "tobo_small_rebuilt.png") if (RESULTS / file).is_file()],
    )  # fmt: skip


if __name__ == "__main__":
    main()
