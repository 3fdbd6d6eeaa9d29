"""Speed and memory of tokenizers: next to diffusers, of small parts, of long videos, and of the command.

    python benchmarks/tokenizer_speed.py                  # all tables
    python benchmarks/tokenizer_speed.py --only network   # network, published, parts, overhead, long or command

* network: our VidTok next to `diffusers.AutoencoderVidTok` with the same weights, which must give the same latents and
  frames: encoding, decoding, and forward and backward, of several widths and sizes.
* published: the same at the published width, at 5 x 64 x 64, one thread.
* parts: a part next to a naive form of it with the same result.
* overhead: `Tokenizer.encode` and `decode` next to the bare network of a tiny tokenizer.
* long: 1, 3 and 10 minutes of 64 x 64 at 25 frames/s in chunks, each in a separate process whose
  heap returns memory at once (with the defaults of glibc, its fragments grow by tens of MiB in 10 minutes).
* command: time of `fewtokens encode` for help, for an error and for one clip of 17 frames.

Ours and theirs alternate; each runs once before. Ratio: their time divided by ours, per repeat, as median (lowest to
highest). Memory: peak of tensors above the inputs, counted from what operations return. Tables that do not run stay as
they were.

Cost: about 25 minutes and 3 GB on 2 idle cores. Expect: ratios of at least 1, or a reason next to them; memory that is
flat from 1 to 10 minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import RESULTS, write
from fewtokens.core.tokens import Tokens
from fewtokens.profiling.memory import peak_memory
from fewtokens.tokenizers import Tokenizer
from fewtokens.tokenizers.blocks.causal_conv import CausalConv3d
from fewtokens.tokenizers.blocks.residual import ConvNorm, ResBlock
from fewtokens.tokenizers.chunks import decode_chunks, encode_chunks
from fewtokens.tokenizers.parts import GridDecoder, to_signed
from fewtokens.tokenizers.released.vidtok import vidtok_spec, vidtok_tensors

Run = Callable[[], Any]
Rows = Iterator[dict[str, Any]]
# Width, frames and pixels.
SIZES = ((32, 9, 64), (32, 17, 128), (64, 9, 64))
SMALL = "causal_conv(24) | fsq((8, 8, 8, 5)) > causal_conv(width=24)"
TINY = "causal_conv(4) | fsq((8, 8, 8, 5)) > causal_conv(width=4)"
FPS = 25
_SAME = "Most of the time is in the same gradients of PyTorch; the spread reaches above 1, and the cores were shared."
# Reasons of ratios below 1, by table and task.
REASONS: dict[tuple[str, str], str] = {
    ("network", "encode, train"): _SAME,
    ("network", "decode, train"): _SAME,
    ("parts", "convolution 3x1x1, train"): (
        "With two threads the copy of each frame's neighbors costs more than it saves; a whole block gains."
    ),
    ("overhead", "encode"): "The bare network neither checks nor pads frames, and has no quantizer or codes.",
    ("overhead", "decode"): "The bare network neither checks codes nor looks them up, and does not clamp frames.",
}


def compare(table: str, task: str, ours: Run, theirs: Run, repeats: int) -> dict[str, Any]:
    """Times and peak memory of two runs, at the current number of threads."""
    ours(), theirs()
    times = [(_seconds(ours), _seconds(theirs)) for _ in range(repeats)]
    ratios = sorted(other / own for own, other in times)
    own, other = (statistics.median(column) for column in zip(*times, strict=True))
    memory = [peak_memory(run, torch.device("cpu")) / 2**20 for run in (ours, theirs)]
    ratio = statistics.median(ratios)
    return {
        "threads": torch.get_num_threads(),
        "ours, ms": 1000 * own,
        "theirs, ms": 1000 * other,
        "ratio": round(ratio, 3),
        "spread": f"{ratios[0]:.2f}-{ratios[-1]:.2f}",
        "ours, MiB": round(memory[0], 1),
        "theirs, MiB": round(memory[1], 1),
        "reason": REASONS.get((table, task), "") if ratio < 1 else "",
    }


def _seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def vidtok(width: int) -> tuple[Tokenizer, nn.Module]:
    """Our tokenizer and theirs, with the same random weights."""
    import diffusers

    torch.manual_seed(0)
    config = {"z_channels": 3, "codebook_size": 512, "regularizer": "fsq", "double_z": False}
    theirs = diffusers.AutoencoderVidTok(ch=width, ch_mult=[1, 2, 4, 4], num_res_blocks=2, **config).eval()
    ours = Tokenizer.from_spec(vidtok_spec(dict(theirs.config), "config.json")).eval()
    ours.load_state_dict(vidtok_tensors(ours, theirs.state_dict(), "model"))
    return ours, theirs


def vidtok_runs(width: int, frames: int, pixels: int) -> dict[str, tuple[Run, Run]]:
    """Encoding and decoding, ours and theirs; the results are equal."""
    ours, theirs = vidtok(width)
    t, y, x = ours.encoder.stride
    video = torch.rand(1, 3, frames, pixels, pixels) * 2 - 1
    # Their encoder does not repeat the first frame itself.
    front = torch.cat([video[:, :, :1].expand(-1, -1, t - 1, -1, -1), video], 2)
    cells = torch.randn(1, ours.decoder.dim, 1 + (frames - 1) // t, pixels // y, pixels // x)
    assert isinstance(ours.decoder, GridDecoder)
    pixels_of = ours.decoder.pixels_of
    runs: dict[str, tuple[Run, Run]] = {
        "encode": (lambda: ours.encoder.latents(video), lambda: theirs.encoder(front)),
        "decode": (lambda: pixels_of(cells), lambda: theirs.decode(cells)),
    }
    with torch.no_grad():
        for own, other in runs.values():
            torch.testing.assert_close(own(), other(), atol=1e-4, rtol=1e-4)
    return runs


def vidtok_rows(table: str, sizes: Sequence[tuple[int, int, int]], threads: Sequence[int], repeats: int) -> Rows:
    for size in sizes:
        forward = vidtok_runs(*size)
        train = {f"{task}, train": (_backward(own), _backward(other)) for task, (own, other) in forward.items()}
        head = dict(zip(("width", "frames", "pixels"), size, strict=True))
        for count in threads:
            torch.set_num_threads(count)
            for task, runs in (forward | train).items():
                with torch.set_grad_enabled(task in train):
                    numbers = compare(table, task, *runs, repeats)
                yield {"task": task, **head, "frames/s": 1000 * size[1] / numbers["ours, ms"], **numbers}


def _backward(run: Run) -> Run:
    return lambda: run().square().mean().backward()


def part_rows(threads: Sequence[int], repeats: int) -> Rows:
    """Parts next to naive forms: a 3-D convolution for each, a copy to normalize, a loop over frames."""
    torch.manual_seed(0)
    x = torch.randn(1, 64, 9, 32, 32).contiguous(memory_format=torch.channels_last_3d)
    space, over_time = CausalConv3d(64, 64, (1, 3, 3)), CausalConv3d(64, 64, (3, 1, 1))
    cube, norm = CausalConv3d(64, 64), ConvNorm(64)
    block = ResBlock(64, 64, ((1, 3, 3), (3, 1, 1)))
    plain = x.contiguous()

    def convolve(layer: CausalConv3d, x: Tensor) -> Tensor:
        past = x[:, :, :1].expand(-1, -1, layer.kernel_size[0] - 1, -1, -1)
        edges = [(k - 1) // 2 for k in layer.kernel_size[:0:-1] for _ in range(2)]
        return F.conv3d(F.pad(torch.cat([past, x], 2), edges), layer.weight, layer.bias)

    def normalize(layer: ConvNorm, x: Tensor) -> Tensor:
        mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
        weight, bias = (value[:, None, None, None] for value in (layer.norm.weight, layer.norm.bias))
        return F.silu((x - mean) / (variance + 1e-6).sqrt() * weight + bias)

    def residual(x: Tensor) -> Tensor:
        first, a, second, b = block.layers
        return x + convolve(b, normalize(second, convolve(a, normalize(first, x))))

    cases: dict[str, tuple[Run, Run]] = {
        "convolution 1x3x3": (lambda: space(x), lambda: convolve(space, plain)),
        "convolution 3x1x1": (lambda: over_time(x), lambda: convolve(over_time, plain)),
        "convolution 3x3x3": (lambda: cube(x), lambda: convolve(cube, plain)),
        "normalization": (lambda: norm(x), lambda: normalize(norm, plain)),
        "residual block": (lambda: block(x), lambda: residual(plain)),
    }
    for count in threads:
        torch.set_num_threads(count)
        for task, (own, other) in cases.items():
            with torch.no_grad():
                torch.testing.assert_close(own(), other(), atol=1e-4, rtol=1e-4)
                yield {"task": task} | compare("parts", task, own, other, 5 * repeats)
            task = f"{task}, train"
            yield {"task": task} | compare("parts", task, _backward(own), _backward(other), 5 * repeats)


def overhead_rows(repeats: int) -> Rows:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_spec(TINY).eval()
    frames = torch.randint(0, 256, (1, 17, 3, 64, 64), dtype=torch.uint8)
    tokens = tokenizer.encode(frames)
    assert tokenizer.quantizer is not None and isinstance(tokenizer.decoder, GridDecoder)
    pixels_of = tokenizer.decoder.pixels_of
    cells = tokenizer.quantizer.restore(tokens).unmerge().movedim(-1, 1)
    runs: dict[str, tuple[Run, Run]] = {
        "encode": (
            lambda: tokenizer.encode(frames),
            lambda: tokenizer.encoder.latents(to_signed(frames).transpose(1, 2)),
        ),
        "decode": (lambda: tokenizer.decode(tokens), lambda: pixels_of(cells)),
    }
    with torch.no_grad():
        for task, (own, other) in runs.items():
            yield {"task": task} | compare("overhead", task, own, other, 10 * repeats)


def long_rows() -> Rows:
    """Each length and direction in a separate process, since the peak memory of a process only grows."""
    for minutes in (1, 3, 10):
        for task in ("encode", "decode"):
            command = [sys.executable, __file__, "--long", task, str(minutes)]
            # Memory that is freed returns to the system, so that fragments of the heap do not count.
            heap = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
            yield json.loads(subprocess.run(command, capture_output=True, check=True, text=True, env=heap).stdout)


def measure_long(task: str, minutes: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_spec(SMALL).eval()
    count = 60 * FPS * minutes
    if task == "encode":
        chunk = torch.randint(0, 256, (30, 3, 64, 64), dtype=torch.uint8)
        chunks = (chunk for _ in range(count // 30))
        warm = encode_chunks(tokenizer, [chunk])
        run: Iterator[Any] = encode_chunks(tokenizer, chunks)
    else:
        rows = 1 + -(-(count - 1) // 4)
        cells = Tokens.from_cells(torch.zeros(1, rows, 8, 8, tokenizer.encoder.dim))
        codes = torch.randint(0, 5, (1, cells.N, len(tokenizer.codebook_sizes)))
        tokens = cells.replace(codes=codes, meta={"size": [count, 64, 64]})
        warm = decode_chunks(tokenizer, tokens)
        run = decode_chunks(tokenizer, tokens)
    next(iter(warm))
    before, start = _peak(), time.perf_counter()
    for _ in run:
        pass
    seconds = time.perf_counter() - start
    return {
        "task": task,
        "minutes": minutes,
        "frames": count,
        "frames/s": count / seconds,
        "MiB above one chunk": round(_peak() - before, 1),
        "MiB of the process": round(_peak(), 1),
    }


def _peak() -> float:
    """Peak resident memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def command_rows(repeats: int) -> Rows:
    from fewtokens.video.writer import write as write_video

    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        write_video(clip, torch.randint(0, 256, (17, 3, 64, 64), dtype=torch.uint8), fps=FPS)
        encode = ["encode", str(clip), "--tokenizer", SMALL, "--out", "clip.safetensors"]
        commands = {
            "encode --help": ["encode", "--help"],
            "encode missing.mp4": ["encode", "missing.mp4", "--tokenizer", SMALL, "--out", "o.safetensors"],
            "encode clip.mp4": encode,
        }
        for name, arguments in commands.items():
            seconds, used = [], []
            for _ in range(repeats + 1):
                Path(folder, "clip.safetensors").unlink(missing_ok=True)
                before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
                code = subprocess.run(
                    [sys.executable, "-m", "fewtokens", *arguments], cwd=folder, capture_output=True, check=False
                ).returncode
                seconds.append(time.perf_counter() - start)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            # The first run fills the bytecode cache.
            yield {
                "command": f"fewtokens {name}",
                "exit code": code,
                "s": statistics.median(seconds[1:]),
                "spread": f"{min(seconds[1:]):.2f}-{max(seconds[1:]):.2f}",
                "CPU s": statistics.median(used[1:]),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables: dict[str, tuple[str, Callable[[int], Rows]]] = {
        "network": ("VidTok next to diffusers", lambda n: vidtok_rows("network", SIZES, args.threads, n)),
        "published": ("The published width", lambda n: vidtok_rows("published", ((128, 5, 64),), (1,), min(n, 3))),
        "parts": ("Parts next to a naive form", lambda n: part_rows(args.threads, n)),
        "overhead": ("A whole tokenizer next to its bare network", overhead_rows),
        "long": ("Long videos in chunks", lambda n: long_rows()),
        "command": ("The command", command_rows),
    }
    parser.add_argument("--only", choices=tables, action="append", help="tables to measure (default: all)")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each measurement (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="threads of the tables network and parts"
    )
    parser.add_argument("--long", nargs=2, metavar=("TASK", "MINUTES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.long:
        print(json.dumps(measure_long(args.long[0], int(args.long[1]))))
        return
    path = RESULTS / "tokenizer_speed.json"
    rows: dict[str, list[dict[str, Any]]] = json.loads(path.read_text())["rows"] if path.exists() else {}
    for name in args.only or tables:
        title, measure = tables[name]
        rows[title] = list(measure(args.repeats))
        ordered = {title: rows[title] for title, _ in tables.values() if title in rows}
        write("tokenizer_speed", "Speed and memory of tokenizers", COMMAND, ordered, NOTES, digits=4)


COMMAND = "python benchmarks/tokenizer_speed.py"
NOTES = (
    "Ratio: their time divided by ours, per repeat, median, with the lowest and highest as spread; above 1, ours is "
    "faster. MiB: peak of tensors above the inputs, or of the resident memory of a process. frames/s: of ours."
)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
