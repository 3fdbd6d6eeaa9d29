"""Small tokenizers on real clips: what each keeps at equal bits, equal steps and equal data.

    python benchmarks/reconstruction.py WORK frames   # decodes the clips at a short side of 72 pixels
    python benchmarks/reconstruction.py WORK train    # trains every row that is not in WORK yet; --only
    python benchmarks/reconstruction.py WORK uses     # label propagation and a linear probe with the features of codes
    python benchmarks/reconstruction.py WORK report   # scores the trained ones, writes results/reconstruction.*
    python benchmarks/reconstruction.py WORK pictures # draws reconstructions of generated clips

Data: the clips of $FEWTOKENS_DATA/clips and /real/train. DAVIS sequences are never trained on; they and every fifth of
the other clips, in order of their names, are held out (the 20 sign language clips share rooms and signers, so that the
held-out ones are of known scenes). Clips of 9 x 64 x 64, batch 4, the same number of steps for every row, and a
learning rate of 2e-3, but 5e-4 for learned queries.

192 tokens in a grid of 3 x 8 x 8, or 192 queries; of 16 bits (3,066 a clip, 0.083 per pixel) in the comparison of
networks and methods, of 10 bits in that of quantizers. Some of these are trained with three seeds, and some longer.
Presets have their tiny size, with its own number of tokens and bits, and their own losses. `mean_frame`, `area_pooling`
at these bits, x264 and x265 are in the table. An interrupted run resumes. `report` keeps the earlier numbers of rows
that are not in WORK; `pictures` needs all rows.

Cost, on one core: half a minute to 8 minutes for each row and seed of 600 steps, about 2 hours for all; 3 minutes for
the report.
Expect: linear layers before convolutions, transformers and queries after so few steps, VQ and FSQ before BSQ and LFQ,
and every row 3 dB or more below x265.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from common import RESULTS, write
from fewtokens.core import files
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.plan import Plan
from fewtokens.data.dense_sets import davis_sequences
from fewtokens.data.footage import Footage, find_footage
from fewtokens.encoders import load_encoder
from fewtokens.evaluation import dense
from fewtokens.evaluation.label_propagation import make_protocol
from fewtokens.evaluation.reconstruction.compare import Clip, ClipProtocol, compare, read_clips
from fewtokens.evaluation.reconstruction.metrics import evaluate
from fewtokens.evaluation.reconstruction.rate_distortion import RatePoint
from fewtokens.show.rate_distortion import draw_rate_distortion
from fewtokens.show.strips import draw_strips
from fewtokens.tokenizers import Tokenizer, load_tokenizer
from fewtokens.train.tokenizer import train_tokenizer
from fewtokens.train.tokenizer_recipe import make_tokenizer_recipe
from fewtokens.video import synthetic

CLIP = (9, 64, 64)
STEPS, LONG, BATCH = 600, 3000, 4
_CONV = "causal_conv(24) | {} > causal_conv(width=24)"
_TRANSFORMER = (
    "tubelet_transformer(128, stride=(4, 8, 8), layers=(('block_causal', 3),), heads=4, first_frame=True) | {} > "
    "tubelet_transformer(width=128, stride=(4, 8, 8), layers=(('block_causal', 3),), heads=4, first_frame=True)"
)


_WINDOWS = _TRANSFORMER.replace("('block_causal', 3)", "('window4', 2), ('time', 2)", 1).replace(
    "('block_causal', 3)", "('time', 2), ('space', 2)"
)
_LINEAR_FSQ = "tubelet(192, stride=(3, 8, 8)) | {} > tubelet(stride=(3, 8, 8))"
_LINEAR = "tubelet_transformer(128, stride=(3, 8, 8), layers=(('full', 3),), heads=4)"
_FLOW = "patch_flow(stride=(3, 8, 8), width=128, depth=3, blocks=2, target='x')"
_QUERIES = (
    "tubelet(128, stride=(3, 8, 8)) | learned_queries(192, num_layers=3, heads=4) | {} > "
    "mask_tokens(width=128, stride=(3, 8, 8), num_tokens=192, num_layers=3, heads=4)"
)


_PRESETS = (
    "hitvideo", "cosmos_dv4x8x8", "omnitokenizer_vq", "c_vivit", "bsq_vit_18", "one_d_piece", "coda", "revq", "fqgan",
    "imagefolder", "tokenflow", "dualtoken",
)  # fmt: skip
# Tokenizers of single frames with a grid of 8 x 8 pixels, whose features label propagation can use.
_PER_FRAME = ("dualtoken", "fqgan", "tokenflow", "coda")
_SEQUENCES = ("blackswan", "bmx-trees", "car-shadow", "dog")


@dataclass(frozen=True)
class Row:
    """One row of the table: a tokenizer and the part of the study that it belongs to."""

    group: str
    spec: str
    recipe: dict[str, Any] = field(default_factory=dict)
    seeds: int = 1


def rows() -> dict[str, Row]:
    """The rows by name."""
    fsq = "fsq((8, 8, 8, 5, 5, 5))"
    longer = {"steps": LONG}
    # With the learning rate of the others, 2e-3, queries decode the same frame for all clips.
    slow = {"lr": 5e-4}
    table = {
        "conv fsq": Row("networks", _CONV.format(fsq), seeds=3),
        # Quantizers inside one network, 10 bits a token.
        "conv fsq 10": Row("quantizers", _CONV.format("fsq((8, 5, 5, 5))"), seeds=3),
        "conv vq 10": Row("quantizers", _CONV.format("vq(1024)"), seeds=3),
        "conv residual vq 5 + 5": Row("quantizers", _CONV.format("residual_vq(32, levels=2)")),
        "conv product vq 5 + 5": Row("quantizers", _CONV.format("product_vq(32, groups=2)"), seeds=3),
        "conv lfq 10": Row("quantizers", _CONV.format("lfq(10)"), seeds=3),
        "conv bsq 10": Row("quantizers", _CONV.format("bsq(10)"), seeds=3),
        "conv continuous": Row("continuous", _CONV.format("gaussian(4)")),
        # Encoders and decoders, with the same quantizer.
        "transformer fsq": Row("networks", _TRANSFORMER.format(fsq), seeds=3),
        "windows fsq": Row("networks", _WINDOWS.format(fsq)),
        "queries fsq": Row("networks", _QUERIES.format(fsq), slow),
        "transformer to flow fsq": Row("networks", f"{_LINEAR} | {fsq} > {_FLOW}"),
        "linear fsq": Row("networks", _LINEAR_FSQ.format(fsq), seeds=3),
        # A tail of the tokens is dropped in training, so that any number of them can be decoded.
        "queries fsq tail drop": Row("prefixes", _QUERIES.format(f"{fsq} | tail_drop(192)"), slow),
        "conv residual vq 32 x 3": Row("prefixes", _CONV.format("residual_vq(32, levels=3)")),
        "conv residual vq dropout": Row("prefixes", _CONV.format("residual_vq(32, levels=3, level_dropout=True)")),
        # Methods between encoder and quantizer.
        "conv tome fsq": Row("methods", _CONV.format(f"tome(keep=0.5) | {fsq}")),
        "conv uniform fsq": Row("methods", _CONV.format(f"uniform(keep=0.5) | {fsq}")),
        "conv tokenlearner fsq": Row("methods", _CONV.format(f"tokenlearner('32/frame') | {fsq}")),
        # Longer training.
        "queries fsq, longer": Row("longer", _QUERIES.format(fsq), longer | slow),
        "linear fsq, longer": Row("longer", _LINEAR_FSQ.format(fsq), longer),
        "conv fsq, longer": Row("longer", _CONV.format(fsq), longer),
        "queries tail drop, longer": Row("longer", _QUERIES.format(f"{fsq} | tail_drop(192)"), longer | slow),
        "transformer fsq, longer": Row("longer", _TRANSFORMER.format(fsq), longer),
        "conv residual vq dropout, longer": Row(
            "longer", _CONV.format("residual_vq(32, levels=3, level_dropout=True)"), longer
        ),
    }
    # Presets at their tiny size, with its own number of tokens and bits, and their own losses.
    return table | {name: Row("presets", name, slow if name == "one_d_piece" else {}) for name in _PRESETS}


def split(work: Path) -> tuple[list[Footage], list[Footage]]:
    """The decoded clips to train on, and those held out."""
    items = sorted(find_footage(work / "frames").items, key=lambda item: Path(item.path).name)
    davis = [item for item in items if Path(item.path).name.startswith("davis_")]
    others = [item for item in items if item not in davis]
    held_out = others[4::5]
    return [item for item in others if item not in held_out], [*davis, *held_out]


def run_folder(work: Path, name: str, seed: int) -> Path:
    """The folder of a trained row."""
    return work / "runs" / name.replace(" ", "_") / str(seed)


def step_frames(options: argparse.Namespace) -> None:
    """Decodes the clips."""
    data = Path(os.environ.get("FEWTOKENS_DATA", "../shared/data"))
    for folder in ("clips", "real/train"):
        subprocess.run(
            [sys.executable, "-m", "fewtokens", "train", "frames", str(data / folder), "--size", "72", "--out",
             str(options.work / "frames" / folder)],
            check=True,
        )  # fmt: skip


def step_train(options: argparse.Namespace) -> None:
    """Trains the rows."""
    training, _ = split(options.work)
    settings = {
        "frames": CLIP[0], "size": CLIP[1], "steps": STEPS, "batch": BATCH, "lr": 2e-3, "workers": 0, "visits": 8,
        "save_minutes": 2.0, "save_every": 10**6, "eval_every": 10**6, "log_every": 50, "max_gap": 2,
    }  # fmt: skip
    for name, row in rows().items():
        for seed in range(row.seeds):
            out = run_folder(options.work, name, seed)
            if (out / "done.json").exists() or (options.only and name not in options.only):
                continue
            recipe = make_tokenizer_recipe(row.spec, **{**settings, **row.recipe, "seed": seed})
            start = time.perf_counter()
            report = train_tokenizer(training, recipe, out, device="cpu")
            seconds = time.perf_counter() - start
            files.write_json(out / "done.json", {"steps": report.steps, "seconds": seconds, "scores": report.scores})
            print(f"{name}, seed {seed}: {seconds:.0f} s, {report.scores}", flush=True)


def step_uses(options: argparse.Namespace) -> None:
    """Scores features of codes by label propagation on four DAVIS sequences and a linear probe of ten hand signs."""
    data = Path(os.environ.get("FEWTOKENS_DATA", "../shared/data"))
    protocol = make_protocol("davis", "A", ["size=short 240", "radius=10", "context=7"])
    sequences, _ = davis_sequences(data / "davis2016" / "DAVIS", "all")
    folders = {
        name: run_folder(options.work, name, 0) / "tokenizer" for name in (*_PER_FRAME, "conv fsq", "linear fsq")
    }
    rows = []
    for name in ("patches", *folders):
        row: dict[str, Any] = {"features": name}
        if name in ("patches", *_PER_FRAME):
            encoder = load_encoder("patches", patch_size=8) if name == "patches" else load_encoder(str(folders[name]))
            encode = dense.encode_with(Pipeline("", encoder))
            scores = [dense.davis(files, encode, protocol).row for files in sequences if files.name in _SEQUENCES]
            row["J&F"] = dense.davis_summary(scores)[1]["native"]["j_and_f_mean"]
        command = ["eval", "linear", "--data", str(data / "sign_digits" / "Dataset"), "--size", "64", "--json"]
        more = [] if name == "patches" else ["--encoder", str(folders[name])]
        probe = subprocess.run(
            [sys.executable, "-m", "fewtokens", *command, *more], capture_output=True, text=True, check=True
        )
        row["linear probe"] = json.loads(probe.stdout)["top1"]
        rows.append(row)
        print(row, flush=True)
    files.write_json(options.work / "uses.json", rows)


# Of the rows whose codes are in an order; the first two are not trained for it.
_PREFIXES = (
    "queries fsq, longer", "conv residual vq 32 x 3", "queries fsq tail drop", "queries tail drop, longer",
    "conv residual vq dropout", "conv residual vq dropout, longer", "one_d_piece",
)  # fmt: skip


@torch.no_grad()
def score_prefixes(tokenizers: dict[str, Tokenizer], clips: Sequence[Clip]) -> list[dict[str, Any]]:
    """PSNR with the first codes only: a 32nd to all of the tokens, or 1 to all of the levels of each token."""
    table = []
    for name in (name for name in _PREFIXES if name in tokenizers):
        tokenizer = tokenizers[name]
        encoded = [tokenizer.encode(clip.frames) for clip in clips]
        quantizer = tokenizer.quantizer
        assert quantizer is not None
        levels = len(quantizer.codebook_sizes)
        parts = {max(1, round(encoded[0].N * 2**-k)) for k in range(6)} if levels == 1 else set(range(1, levels + 1))
        for kept in sorted(parts):
            bits, psnr = 0.0, 0.0
            for clip, tokens in zip(clips, encoded, strict=True):
                if levels > 1:
                    assert tokens.codes is not None
                    codes = tokens.codes.masked_fill(torch.arange(levels) >= kept, -1)
                    tokens = tokens.replace(codes=codes)
                else:
                    tokens = tokens.apply(Plan.keep(tokens.mask & (torch.arange(tokens.N) < kept)))
                bits += float(tokenizer.bits(tokens).sum()) / len(clips)
                psnr += evaluate(clip.frames.float() / 255, tokenizer.decode(tokens)[0])["psnr"] / len(clips)
            table.append({
                "name": name, "kept": kept, "unit": "levels" if levels > 1 else "tokens",
                "bits_per_pixel": bits / math.prod(CLIP), "psnr": psnr,
            })  # fmt: skip
    return table


def step_report(options: argparse.Namespace) -> None:
    """Scores the trained rows and writes the table, the plot and the pictures."""
    _, held_out = split(options.work)
    protocol = ClipProtocol(*CLIP[:2], gap=2)
    clips, broken = read_clips(held_out, protocol)
    assert not broken, broken
    names = [
        (name, seed)
        for name, row in rows().items()
        for seed in range(row.seeds)
        if (run_folder(options.work, name, seed) / "done.json").exists()
    ]
    loaded = {}
    for name, seed in names:
        loaded[name, seed] = load_tokenizer(run_folder(options.work, name, seed) / "tokenizer", device="cpu")
    first = {name: tokenizer for (name, seed), tokenizer in loaded.items() if seed == 0}
    scored = compare(list(first.items()), clips, protocol)
    scores = {(row["name"], 0): row for row in scored["rows"] if row["kind"] == "tokenizer"}
    for key, tokenizer in loaded.items():
        if key[1]:
            (scores[key], *_) = compare([(key[0], tokenizer)], clips, protocol, codecs=(), curves=False)["rows"]
    table: list[dict[str, Any]] = []
    for name in first:
        seeds = [scores[key] for key in scores if key[0] == name]
        psnr = [row["psnr"] for row in seeds]
        done = files.read_json(run_folder(options.work, name, 0) / "done.json")
        same_bits = {row["name"]: row for row in scored["rows"] if row["at"] == name}
        table.append({
            "name": name, "group": rows()[name].group,
            "parameters": sum(p.numel() for p in first[name].parameters()), "tokens": seeds[0]["tokens"],
            "bits_per_pixel": seeds[0]["bits_per_pixel"],
            "entropy_bits_per_pixel": seeds[0].get("entropy_bits_per_pixel"),
            "psnr": sum(psnr) / len(psnr), "psnr_spread": max(psnr) - min(psnr), "seeds": len(psnr),
            "ssim": sum(row["ssim"] for row in seeds) / len(seeds),
            "temporal_error": sum(row["temporal_error"] for row in seeds) / len(seeds),
            "usage": seeds[0].get("usage"), "perplexity": seeds[0].get("perplexity"),
            "area_pooling": same_bits["area_pooling"]["psnr"], "x264": same_bits["x264"]["psnr"],
            "x265": same_bits["x265"]["psnr"], "x265_above_target": same_bits["x265"]["above_target"],
            "steps": done["steps"], "minutes": done["seconds"] / 60,
        })  # fmt: skip
    path = RESULTS / "reconstruction.json"
    earlier: dict[str, list[dict[str, Any]]] = files.read_json(path)["rows"] if path.exists() else {}
    table = keep_others(table, earlier.get("Tokenizers", []))
    references = [
        {
            "name": row["name"], "at": row["at"] or "-", "bits_per_pixel": row["bits_per_pixel"],
            "header_bits_per_pixel": row["header_bits"] / math.prod(CLIP),
            **{name: row[name] for name in ("psnr", "psnr_clip", "ssim", "temporal_error")},
        }
        for row in scored["rows"]
        if row["kind"] != "tokenizer" and (not row["at"] or "crf" in row["at"])
    ]  # fmt: skip
    plotted = [row for row in table if row["group"] in ("networks", "presets")]
    points = [RatePoint(row["name"], row["bits_per_pixel"], {"psnr": row["psnr"]}) for row in plotted]
    points += [RatePoint(row["name"], row["bits_per_pixel"], {"psnr": row["psnr"]}) for row in references]
    steps = f"{STEPS} steps of {BATCH} clips ({LONG} if longer)"
    caption = (
        f"{len(clips)} held-out clips of 9 x 64 x 64, {steps}; bits of codes by formula, of codecs without headers."
    )
    draw_rate_distortion(points, "psnr", RESULTS / "reconstruction.png", caption=caption)
    prefixes = keep_others(score_prefixes(first, clips), earlier.get("The first codes only", []))
    measured = options.work / "uses.json"
    uses = files.read_json(measured) if measured.exists() else earlier["Features of codes"]
    curves = [RatePoint(row["name"], row["bits_per_pixel"], {"psnr": row["psnr"]}) for row in prefixes]
    draw_rate_distortion(
        curves, "psnr", RESULTS / "reconstruction_prefixes.png", title="The first codes only",
        caption=f"{len(clips)} held-out clips; the first tokens of queries, the first levels of residual codes.",
    )  # fmt: skip
    write(
        "reconstruction",
        "Small tokenizers at equal bits",
        "python benchmarks/reconstruction.py WORK frames|train|report",
        {
            "Tokenizers": table,
            "The first codes only": prefixes,
            "Features of codes": uses,
            "Codecs and simple reconstructions": references,
        },
        f"{caption} PSNR is the mean over frames, psnr_spread the range over the seeds. area_pooling, x264 and x265 "
        "are their PSNR at the bits of the row; x265_above_target is the share of clips for which x265 does not reach "
        f"so few bits. Held out: {', '.join(Path(clip.name).stem for clip in clips)}.",
        ["reconstruction.png", "reconstruction_prefixes.png", "reconstruction_clips.png"],
    )


def keep_others(new: list[dict[str, Any]], earlier: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """New lines of a table, and the earlier ones of other tokenizers, in the order of the rows."""
    names = list(rows())
    others = [line for line in earlier if line["name"] not in {line["name"] for line in new}]
    return sorted([*new, *others], key=lambda line: names.index(line["name"]))


@torch.no_grad()
def step_pictures(options: argparse.Namespace) -> None:
    """Draws the middle frames of generated clips, since the real ones are not part of this repository."""
    shown = [synthetic(kind, frames=CLIP[0], size=CLIP[1:]).frames for kind in ("static", "pan", "shapes", "glyphs")]
    middle = CLIP[0] // 2
    strips = [("original", torch.stack([clip[middle] for clip in shown]))]
    for name, row in rows().items():
        if row.group not in ("networks", "longer", "presets"):
            continue
        tokenizer = load_tokenizer(run_folder(options.work, name, 0) / "tokenizer", device="cpu")
        decoded = [tokenizer.decode(tokenizer.encode(clip))[0, middle] for clip in shown]
        strips.append((name.replace(" ", "\n", 1), (torch.stack(decoded) * 255).round().byte()))
    draw_strips(
        strips, RESULTS / "reconstruction_clips.png", title="Reconstructions", side=72,
        caption=f"The middle frame of generated clips; trained on real ones for {STEPS} steps ({LONG} if longer).",
    )  # fmt: skip


def main() -> None:
    steps = {name.removeprefix("step_"): function for name, function in globals().items() if name.startswith("step_")}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder of frames and runs")
    parser.add_argument("step", choices=list(steps), metavar="STEP", help=", ".join(steps))
    parser.add_argument("--only", nargs="*", default=[], help="names of rows")
    options = parser.parse_args()
    steps[options.step](options)


if __name__ == "__main__":
    main()
