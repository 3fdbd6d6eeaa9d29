"""Time to first token, tokens per second and memory at the size of LLaVA-OneVision-0.5B, vision tower included.

    python benchmarks/onevision_cost.py                      # 8 and 16 frames in float32, 10 minutes on 2 cores
    python benchmarks/onevision_cost.py --dtype bfloat16 --frames 32
    python benchmarks/onevision_cost.py --gpu                # 32 and 128 frames in bfloat16 on a CUDA device
    python benchmarks/onevision_cost.py --quick              # 2 frames, a few layers: whether everything runs

The model has the published configuration, SigLIP-so400m with 26 layers at 384 px and Qwen2-0.5B, and random weights,
which do not affect the cost. A real clip (../shared/data or $FEWTOKENS_DATA) is read, resized, encoded to 14 x 14
tokens per frame, reduced and answered with 8 tokens; each part is measured at 100, 50, 25, 10 and 5 % of the tokens:

* `uniform` and `tome` read the features of all patches; `visionzip` also reads attention and keys of the tower.
* `rlt` decides from the pixels, so that the tower encodes only the patches of the cells that it keeps (at least one
  frame of them).
* `fastv` drops tokens inside the language model, before layer 2.

Methods that need the same run of the tower share it, and its time. Each number of frames has its own process, which
loads the model and answers one small prompt before the measurements. Memory is the highest resident memory (on CUDA:
allocated memory) of a part above that of the loaded model after this prompt, which requires Linux. --json FILE writes
the rows there instead of to results/; --quick writes nothing else.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import fewtokens
from common import RESULTS, machine, write
from fewtokens.llm.attach import layer_hooks
from fewtokens.llm.backends.base import backend_of
from fewtokens.llm.chains import as_pipeline, split_chain
from fewtokens.llm.cues import attention_rule, needed_cues
from fewtokens.llm.interface import cache_of
from fewtokens.llm.prompt_editor import edit_prompts
from fewtokens.llm.tower_patches import patches_of_cells
from fewtokens.llm.tower_run import TowerMethods
from fewtokens.llm.visuals import encode_visuals, reduce_visuals
from fewtokens.show.colors import method_styles
from fewtokens.show.plots import save_plot
from video_llm_speed import VIDEO, Timestamps, llava_onevision

DATA = Path(os.environ.get("FEWTOKENS_DATA") or Path(__file__).parents[2] / "shared" / "data")
CLIP = "clips/vtest.avi"
SHARES = (0.5, 0.25, 0.1, 0.05)
SPECS = {
    "all tokens": "", "uniform": "uniform(keep={})", "tome": "tome(keep={})", "fastv": "fastv(keep={}, layer=2)",
    "visionzip": "visionzip(keep={})", "rlt": "rlt(keep={})",
}  # fmt: skip
TEXT_TOKENS, NEW_TOKENS = 40, 8
# A part is measured up to three times, until this many seconds have passed.
REPEATS, SECONDS = 3, 2
MIB = 2**20
# The parts of the time to first token, in order, with their colors in the plot.
PARTS = {"preprocess": "#8a8a8a", "tower": "#2458a6", "reduce": "#e08e0b", "prefill": "#2e8b57"}


def model_of(dtype: torch.dtype, quick: bool) -> Any:
    """The model with the configuration of llava-hf/llava-onevision-qwen2-0.5b-ov-hf, 0.9 billion parameters."""
    tower, layers, vocabulary = (2, 4, 1000) if quick else (26, 24, 152_000)
    return llava_onevision(
        {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": tower, "num_attention_heads": 16,
         "image_size": 384, "patch_size": 14},
        {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": layers, "num_attention_heads": 14,
         "num_key_value_heads": 2, "vocab_size": vocabulary},
        dtype,
        tie_word_embeddings=True,
    )  # fmt: skip


class Meter:
    """Time and peak memory of a part of the run; memory is counted above that at the last call of `start`."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.start()

    def start(self) -> None:
        """Counts memory from now on."""
        self._reset()
        self.base = torch.cuda.memory_allocated() if self.cuda else _resident("VmRSS")

    def _reset(self) -> None:
        """Lets the peak start from the current memory."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            return
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that the process still holds
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def __call__(self, run: Callable[[], Any]) -> tuple[float, float, Any]:
        """Median seconds, peak memory in MiB, and the result."""
        times: list[float] = []
        self._reset()
        while len(times) < REPEATS and sum(times) < SECONDS:
            result = None
            begin = time.perf_counter()
            result = run()
            if self.cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
        peak = torch.cuda.max_memory_allocated() if self.cuda else _resident("VmHWM")
        return statistics.median(times), (peak - self.base) / MIB, result


def _resident(name: str) -> int:
    """A value of /proc/self/status, such as VmHWM, the peak resident memory, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def inputs_of(model: Any, frames: int) -> dict[str, Any]:
    """The prompt with the clip, read and preprocessed."""
    backend = backend_of(model)
    processor: Any = SimpleNamespace(preprocess_config=backend.defaults(model.config), placeholder="#")
    prepared = backend.prepare(model, processor, fewtokens.read(DATA / CLIP, frames=frames))
    text = torch.randint(10, 900, (TEXT_TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    ids = torch.tensor([[*text[:10], *[VIDEO] * len(prepared.text), *text[10:]]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **prepared.inputs}
    moved = {name: value.to(model.device) for name, value in inputs.items()}
    return moved | {"pixel_values_videos": moved["pixel_values_videos"].to(model.dtype)}


def generate(model: Any, inputs: dict[str, Any], inside: Any) -> dict[str, float]:
    """Seconds of the prefill and of each further token, and the bytes of the cache afterwards."""
    stamps = Timestamps()
    with layer_hooks(model, inside)():
        out = model.generate(
            **inputs,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            streamer=stamps,
            return_dict_in_generate=True,
        )
    prompt, first, *_, last = stamps.seconds
    stored = [part for layer in cache_of(out).layers for part in (layer.keys, layer.values)]
    return {
        "prefill": first - prompt,
        "token": (last - first) / (NEW_TOKENS - 1),
        "cache": sum(part.numel() * part.element_size() for part in stored),
    }


def tower_runs(frames: int) -> list[list[tuple[str, float]]]:
    """The methods and shares of tokens that read the same run of the vision tower."""
    shares = sorted({max(share, 1 / frames) for share in SHARES}, reverse=True)  # rlt keeps at least the first frame
    return [
        [("all tokens", 1.0), *((method, share) for method in ("uniform", "tome", "fastv") for share in SHARES)],
        [("visionzip", share) for share in SHARES],
        *([("rlt", share)] for share in shares),
    ]


@torch.no_grad()
def measure(frames: int, dtype: torch.dtype, quick: bool) -> list[dict[str, Any]]:
    """One row per method and share of tokens."""
    model = model_of(dtype, quick)
    meter, backend = Meter(model.device), backend_of(model)
    _say(f"{frames} frames, a model of {sum(p.numel() for p in model.parameters()) / 1e6:.0f} million parameters")

    def encode(inputs: dict[str, Any], spec: str) -> Any:
        pipeline = as_pipeline(split_chain(spec, model)[0], model)
        needs, methods = {"video": needed_cues(pipeline)}, TowerMethods.of(pipeline)
        return encode_visuals(backend, model, inputs, needs=needs, rule=attention_rule(pipeline), methods=methods)

    def answer(inputs: dict[str, Any], encoded: Any, spec: str) -> dict[str, Any]:
        before, inside = split_chain(spec, model)
        pipeline = as_pipeline(before, model)

        def reduce() -> Any:
            reduced = reduce_visuals(backend, model, pipeline, inputs, encoded)
            return edit_prompts(backend, model, inputs, encoded, reduced)

        seconds, reduce_peak, edited = meter(reduce)
        runs: list[dict[str, float]] = []
        _, peak, _ = meter(lambda: runs.append(generate(model, edited.inputs, inside)))
        median = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        return {"tokens": edited.tokens[0].N, "reduce": seconds, "peak": max(reduce_peak, peak), **median}

    small = inputs_of(model, 1)
    answer(small, encode(small, ""), "")
    meter.start()
    preprocess, _, inputs = meter(lambda: inputs_of(model, frames))
    side, vision = backend.side(model), model.config.vision_config
    patch_grid = (frames, *[vision.image_size // vision.patch_size] * 2)
    rows: list[dict[str, Any]] = []
    for run in tower_runs(frames):
        encoded = None  # frees that of the run before
        spec = SPECS[run[0][0]].format(run[0][1])
        tower, tower_peak, encoded = meter(lambda spec=spec: encode(inputs, spec))
        cells = encoded["video"].visuals[0].encoded
        read = torch.ones(frames, side, side) if cells is None else cells.reshape(frames, side, side)
        patches = float(patches_of_cells(read, patch_grid).float().mean())
        for method, share in run:
            out = answer(inputs, encoded, SPECS[method].format(share))
            rows.append(
                {
                    "method": method, "kept, %": 100 * share,
                    "tokens": int(share * frames * side**2 + 0.5) if method == "fastv" else out["tokens"],
                    "patches encoded, %": 100 * patches, "preprocess, s": preprocess, "tower, s": tower,
                    "reduce, s": out["reduce"], "prefill, s": out["prefill"],
                    "first token, s": preprocess + tower + out["reduce"] + out["prefill"],
                    "tokens per s": 1 / out["token"], "cache, MiB": out["cache"] / MIB,
                    "tower's memory, MiB": tower_peak, "language model's memory, MiB": out["peak"],
                }
            )  # fmt: skip
            shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in rows[-1].items()}
            _say(", ".join(f"{name} {value}" for name, value in shown.items()))
    return rows


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def plot(name: str, frames: str, rows: list[dict[str, Any]], caption: str) -> None:
    """The parts of the time to first token, tokens per second, and memory."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (bars, speed, memory) = plt.subplots(1, 3, figsize=(14, 6), layout="constrained", width_ratios=(1.5, 1, 1))
    labels = [f"{row['method']}, {row['kept, %']:.3g} %" if row["kept, %"] < 100 else row["method"] for row in rows]
    left = [0.0] * len(rows)
    for part, color in PARTS.items():
        values = [row[f"{part}, s"] for row in rows]
        bars.barh(labels, values, left=left, color=color, label=part)
        left = [start + value for start, value in zip(left, values, strict=True)]
    bars.invert_yaxis()
    bars.set(xlabel="time to first token (s)")
    bars.legend(fontsize=8)
    full, *others = rows
    methods = list(dict.fromkeys(row["method"] for row in others))
    styles = method_styles(methods)
    panels = (
        (speed, "tokens per s", "further tokens per second"),
        (memory, "language model's memory, MiB", "memory of the language model above its weights (MiB)"),
    )
    for axis, key, label in panels:
        for method in methods:
            points = [(row["kept, %"], row[key]) for row in (full, *others) if row["method"] in (method, "all tokens")]
            axis.plot(*zip(*points, strict=True), label=method, **styles[method])
        axis.set(xscale="log", xlabel="visual tokens kept (%)", ylabel=label, ylim=(0, None))
        axis.set_xticks([100 * share for share in (1.0, *SHARES)], [f"{100 * share:g}" for share in (1.0, *SHARES)])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    memory.legend(fontsize=8)
    title = f"Cost of an answer of a model of the size of LLaVA-OneVision-0.5B, {frames}"
    save_plot(figure, RESULTS / f"{name}.png", title=title, caption=caption)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="32 and 128 frames in bfloat16 on a CUDA device")
    parser.add_argument("--frames", type=int, nargs="+", help="numbers of frames (default: 8 16; with --gpu 32 128)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32; with --gpu bfloat16")
    parser.add_argument("--quick", action="store_true", help="2 frames and a few layers, to see whether it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there instead of to results/")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.gpu and not torch.cuda.is_available():
        sys.exit("--gpu requires a CUDA device")
    frames = args.frames or ([2] if args.quick else [32, 128] if args.gpu else [8, 16])
    if min(frames) < 1:
        parser.error("--frames must be at least 1")
    dtype = args.dtype or ("bfloat16" if args.gpu else "float32")
    if args.run:
        print(json.dumps(measure(frames[0], getattr(torch, dtype), args.quick)))
        return
    if not DATA.is_dir():
        print("onevision_cost: skipped, requires $FEWTOKENS_DATA")
        return
    start = time.perf_counter()
    tables: dict[str, list[dict[str, Any]]] = {}
    for count in frames:
        options = ["--frames", str(count), "--dtype", dtype, *["--gpu"] * args.gpu, *["--quick"] * args.quick]
        command = [sys.executable, "-W", "ignore", __file__, *options, "--run"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        tables[f"{count} frames"] = json.loads(done.stdout.splitlines()[-1])
        _say(f"{time.perf_counter() - start:.0f} s")
    if args.json:
        report = {"machine": machine(), "dtype": dtype, "rows": tables}
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if args.json or args.quick:
        return
    name = "onevision_cost_gpu" if torch.cuda.is_available() else "onevision_cost"
    facts = (
        f"SigLIP-so400m at 384 px and Qwen2-0.5B with random weights in {dtype}, batch 1, a prompt of {TEXT_TOKENS} "
        f"text tokens, {machine()['gpu'] or machine()['cpu']}."
    )
    largest = list(tables)[-1]
    plot(name, largest, tables[largest], f"{facts} rlt encodes only some patches; fastv drops tokens before layer 2.")
    write(
        name,
        "Cost of an answer at the size of LLaVA-OneVision-0.5B, vision tower included",
        " ".join(["python benchmarks/onevision_cost.py", *sys.argv[1:]]),
        tables,
        f"{facts} First token: the sum of preprocessing (reading the clip included), tower with projector, reduction "
        f"and prefill. Medians of up to {REPEATS} runs; parts of more than {SECONDS} s run once. Memory: the peak of a "
        "part above that of the loaded model. The tokens of fastv are those from layer 2 on; the caches of its first "
        "layers have all.",
        images=(f"{name}.png",),
        digits=3,
    )


if __name__ == "__main__":
    main()
