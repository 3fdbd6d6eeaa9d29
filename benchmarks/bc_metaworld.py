"""Behavior cloning with frozen encoders on one Meta-World task, with the same demonstrations for every encoder.

    python benchmarks/bc_metaworld.py tobo=runs/tobo/model mae=runs/mae/model    # any number of NAME=FOLDER or hub ids
    python benchmarks/bc_metaworld.py tobo=runs/tobo/model --task metaworld/hammer --demos 25 --rollouts 25 --seeds 3

Three baselines are always included: a ViT-Ti/16 with random weights, raw pixels (32 x 32), and the robot's own states
only. Requires `pip install 'fewtokens[sim]'`.

Cost at the defaults (112 px, 10 demonstrations, 3 seeds, 3 evaluations of 20 episodes with at most 200 steps): up to
36,000 steps per encoder at about 10 ms of one core for rendering, physics and the policy, plus the encoder's time per
frame. Interrupted runs resume, and the results keep the rows of other encoders with the same settings. These are not
the environments of the papers: success rates can be compared with each other, but not with published tables.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from common import RESULTS, joined, write
from fewtokens.data import demonstrations
from fewtokens.encoders import ViT, ViTConfig, VitEncoder, load_encoder
from fewtokens.evaluation.cloning_protocol import Cloning, make_protocol
from fewtokens.evaluation.cloning_run import Report, Source, run
from fewtokens.evaluation.simulate import NOTE, make_environment, record
from fewtokens.show.sheet import draw_contact_sheet
from fewtokens.video import read

PIXELS = 32


def random_encoder() -> VitEncoder:
    """A ViT-Ti/16 with random weights."""
    torch.manual_seed(0)
    return VitEncoder(ViT(ViTConfig(dim=192, depth=12, num_heads=3)).eval(), name="random ViT-Ti/16, seed 0")


def record_once(task: str, protocol: Cloning, horizon: int, hold: int, path: Path) -> Path:
    """The file of the expert's demonstrations, recorded if it does not exist."""
    if not path.is_file():
        environment = make_environment(task, horizon=horizon)
        episodes = record(environment, protocol.demos, protocol.render, hold=hold)
        demonstrations.write(path, episodes, task=task, camera=environment.camera, proprio=environment.proprio)
        environment.close()
    return path


def row(name: str, protocol: Cloning, report: Report) -> dict[str, Any]:
    best = [seed["best"] for seed in report.seeds]
    return {
        "encoder": name,
        "feature": protocol.feature,
        "success, %": report.mean,
        "± (95 %)": report.half_width,
        "lowest seed": min(best),
        "highest seed": max(best),
        "training error": sum(seed["loss"] for seed in report.seeds) / len(best),
    }


def print_progress(name: str, title: str, done: int, total: int) -> None:
    if done % 100 == 0 or done == total:
        print(f"{name}: {title} {done}/{total}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoders", nargs="*", metavar="NAME=ENCODER", help="encoders to compare: a folder or hub id")
    parser.add_argument("--task", default="metaworld/hammer", help="environment (default: %(default)s)")
    parser.add_argument("--demos", type=int, default=10, help="expert demonstrations (default: %(default)s)")
    parser.add_argument("--rollouts", type=int, default=20, help="episodes per evaluation (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=60, help="training epochs (default: %(default)s)")
    parser.add_argument(
        "--size", type=int, default=112, help="size of the rendered images in pixels (default: %(default)s)"
    )
    parser.add_argument("--horizon", type=int, default=200, help="maximum steps per episode (default: %(default)s)")
    parser.add_argument("--hold", type=int, default=10, help="steps recorded after success (default: %(default)s)")
    parser.add_argument(
        "--work", type=Path, default=Path("bc_metaworld"), help="output directory of the runs (default: %(default)s)"
    )
    options = parser.parse_args()
    if find_spec("metaworld") is None:
        print("skipped: Meta-World is not installed (pip install 'fewtokens[sim]')")
        return
    protocol = make_protocol(
        "small", demos=options.demos, rollouts=options.rollouts, epochs=options.epochs,
        every=max(1, options.epochs // 3), render=options.size, crop=options.size,
    )  # fmt: skip
    shape = f"{options.task.replace('/', '-')}_{options.demos}_{options.size}_{options.horizon}_{options.hold}"
    demos = record_once(options.task, protocol, options.horizon, options.hold, options.work / f"{shape}.safetensors")

    contestants: list[tuple[str, Any, Cloning]] = []
    for text in options.encoders:
        name, sign, path = text.partition("=")
        if not sign:
            raise SystemExit(f"an encoder must be NAME=FOLDER, got {text}")
        contestants.append((name, load_encoder(path), protocol))
    contestants += [
        ("random ViT-Ti/16", random_encoder(), protocol),
        (f"pixels, {PIXELS} x {PIXELS}", load_encoder("patches"),
         replace(protocol, feature="cells", render=PIXELS, crop=PIXELS)),
        ("robot's own states", None, replace(protocol, feature="none")),
    ]  # fmt: skip
    rows, source = [], Source(task=options.task, data=demos, horizon=options.horizon)
    for index, (name, encoder, settings) in enumerate(contestants):
        folder = options.work / f"{shape}_{re.sub(r'[^0-9A-Za-z]+', '-', name)}"
        report = run(
            settings, encoder, source, seeds=options.seeds, folder=folder, progress=partial(print_progress, name)
        )
        rows.append(row(name, settings, report))
        if index == 0 and (film := folder / "seed_0.mp4").is_file():
            shown = read(film, frames=6)
            draw_contact_sheet(
                shown.frames,
                [f"step {20 * float(t):.0f}" for t in shown.times],
                RESULTS / "bc_metaworld.png",
                title=f"Episodes of the cloned policy with {name}, seed 0",
                caption=f"{shape}: {len(shown.frames)} frames, evenly spread over the episodes.",
                columns=2,
            )
    notes = (
        f"{options.demos} demonstrations by the scripted expert, camera corner4, {options.size} px. Input of the "
        "policy: features of 3 frames with their differences (FLARE) and 4 robot states. "
        f"{options.epochs} epochs; best of 3 evaluations of {options.rollouts} episodes with at most {options.horizon} "
        f"steps; success in any step counts; {options.seeds} seeds. These are {NOTE}. "
        f"Image: episodes of {contestants[0][0]}, seed 0."
    )
    # Local paths stay out of the report.
    flags = " ".join(f"--{name} {value}" for name, value in vars(options).items() if name not in ("encoders", "work"))
    command = f"python benchmarks/bc_metaworld.py NAME=FOLDER ... {flags}"
    images = ["bc_metaworld.png"] if (RESULTS / "bc_metaworld.png").is_file() else []
    rows = joined("bc_metaworld", command, rows)
    write("bc_metaworld", f"Behavior cloning on {options.task}", command, rows, notes, images)


if __name__ == "__main__":
    main()
