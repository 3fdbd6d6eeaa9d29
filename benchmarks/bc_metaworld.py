"""What frozen encoders let a robot do: behaviour cloning on one Meta-World task, the same demonstrations for all.

    python benchmarks/bc_metaworld.py tobo=runs/tobo/model mae=runs/mae/model        # NAME=FOLDER or hub id, any number
    python benchmarks/bc_metaworld.py tobo=runs/tobo/model --task metaworld/hammer --demos 25 --rollouts 25 --seeds 3

Beside them, for honesty: a ViT-Ti/16 of random weights, raw pixels (32 x 32 of them), and the robot's own states alone.
Needs `pip install 'fewtokens[sim]'`. Cost at the defaults (112 px, 10 demonstrations, 3 seeds, 3 evaluations of 20
episodes of at most 200 steps): up to 36,000 steps an encoder, each about 10 ms of one core for rendering, physics and
the policy, and beside it what the encoder takes for a frame. It goes on where it was stopped, and rows of other
encoders that were made with the same settings stay in the results. These are not the environments of the papers:
numbers compare with each other and with no published table.
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
from fewtokens.evaluation.simulate import NOTE, make, record
from fewtokens.show.sheet import draw_contact_sheet
from fewtokens.video import read

PIXELS = 32


def random_encoder() -> VitEncoder:
    """A ViT-Ti/16 as it is drawn."""
    torch.manual_seed(0)
    return VitEncoder(ViT(ViTConfig(dim=192, depth=12, num_heads=3)).eval(), name="random ViT-Ti/16, seed 0")


def recorded(task: str, protocol: Cloning, horizon: int, hold: int, path: Path) -> Path:
    """The expert's demonstrations, made once."""
    if not path.is_file():
        environment = make(task, horizon=horizon)
        made = record(environment, protocol.demos, protocol.render, hold=hold)
        demonstrations.write(path, made, task=task, camera=environment.camera, proprio=environment.proprio)
        environment.close()
    return path


def row(name: str, protocol: Cloning, report: Report) -> dict[str, Any]:
    best = [one["best"] for one in report.seeds]
    return {
        "encoder": name,
        "feature": protocol.feature,
        "success, %": report.mean,
        "± (95 %)": report.half,
        "lowest seed": min(best),
        "highest seed": max(best),
        "training error": sum(one["loss"] for one in report.seeds) / len(best),
    }


def tell(name: str, title: str, done: int, total: int) -> None:
    if done % 100 == 0 or done == total:
        print(f"{name}: {title} {done}/{total}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoders", nargs="*", metavar="NAME=ENCODER")
    parser.add_argument("--task", default="metaworld/hammer")
    parser.add_argument("--demos", type=int, default=10)
    parser.add_argument("--rollouts", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--horizon", type=int, default=200)
    parser.add_argument("--hold", type=int, default=10)
    parser.add_argument("--work", type=Path, default=Path("bc_metaworld"), help="folder of the runs")
    options = parser.parse_args()
    if find_spec("metaworld") is None:
        print("left out: Meta-World is not installed (pip install 'fewtokens[sim]')")
        return
    protocol = make_protocol(
        "small", demos=options.demos, rollouts=options.rollouts, epochs=options.epochs,
        every=max(1, options.epochs // 3), render=options.size, crop=options.size,
    )  # fmt: skip
    shape = f"{options.task.replace('/', '-')}_{options.demos}_{options.size}_{options.horizon}_{options.hold}"
    demos = recorded(options.task, protocol, options.horizon, options.hold, options.work / f"{shape}.safetensors")

    contestants: list[tuple[str, Any, Cloning]] = []
    for text in options.encoders:
        name, sign, where = text.partition("=")
        if not sign:
            raise SystemExit(f"an encoder is written NAME=FOLDER, got {text}")
        contestants.append((name, load_encoder(where), protocol))
    contestants += [
        ("random ViT-Ti/16", random_encoder(), protocol),
        (f"pixels, {PIXELS} x {PIXELS}", load_encoder("patches"),
         replace(protocol, feature="cells", render=PIXELS, crop=PIXELS)),
        ("robot's own states", None, replace(protocol, feature="none")),
    ]  # fmt: skip
    rows, source = [], Source(task=options.task, data=demos, horizon=options.horizon)
    for number, (name, encoder, its) in enumerate(contestants):
        folder = options.work / f"{shape}_{re.sub(r'[^0-9A-Za-z]+', '-', name)}"
        report = run(its, encoder, source, seeds=options.seeds, folder=folder, progress=partial(tell, name))
        rows.append(row(name, its, report))
        if number == 0 and (film := folder / "seed_0.mp4").is_file():
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
        f"{options.demos} demonstrations of the scripted expert, camera corner4, {options.size} px; 3 frames, their "
        f"features' differences (FLARE), 4 states of the robot; {options.epochs} epochs, the best of 3 evaluations of "
        f"{options.rollouts} episodes of at most {options.horizon} steps, success in any step; {options.seeds} seeds. "
        f"These are {NOTE}. The picture: episodes of {contestants[0][0]}, seed 0."
    )
    # Where somebody's encoders and runs lie is nobody's concern.
    flags = " ".join(f"--{name} {value}" for name, value in vars(options).items() if name not in ("encoders", "work"))
    command = f"python benchmarks/bc_metaworld.py NAME=FOLDER ... {flags}"
    pictures = ["bc_metaworld.png"] if (RESULTS / "bc_metaworld.png").is_file() else []
    rows = joined("bc_metaworld", command, rows)
    write("bc_metaworld", f"Behaviour cloning on {options.task}", command, rows, notes, pictures)


if __name__ == "__main__":
    main()
