"""Kills commands at random times and checks that rerunning them gives the result of an uninterrupted run.

    python benchmarks/kills.py [--kills 100] [--seed 0] [--only tokenize,train] [--work benchmarks/runs/kills]

Each command runs once undisturbed. Then, repeatedly, it is started in a new folder, killed one to three times (mostly
SIGKILL, sometimes SIGTERM or SIGINT; at a random time or right after a write), and finally left to finish. Every rerun
must exit with 0 and produce the same files: tensors bit-equal, texts equal except for times, nothing left over. The
inputs are generated: small videos, images and networks with random weights. Kill times come from the seed; how far a
process is at that time depends on the machine.

About 100 kills take half an hour on one core, most of it for starting Python. Interrupted campaigns resume. The exit
code is 1 if a rerun did not complete, differs, or left files behind.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from common import write
from fewtokens.core.files import append_row, read_rows
from fewtokens.video import synthetic
from fewtokens.video import write as write_video

WORK = Path(__file__).parent / "runs" / "kills"
SIGNALS = (signal.SIGKILL,) * 8 + (signal.SIGTERM, signal.SIGINT)
# Names of temporary files that a kill may leave behind.
LEFTOVER = re.compile(r"^\.fewtokens-|^\.tmp|^tmp|\.tmp$|\.partial$|\.incomplete$")
# Names of values that differ between runs.
MEASURED = re.compile(
    r"(^|[ _,])(ms|milliseconds|s|seconds|time|times|waiting|memory|rss|mb|mib|gib|date)([ _,(]|$)|±", re.IGNORECASE
)


@dataclass(frozen=True)
class Case:
    """One command.

    Attributes:
        name: name in the table.
        words: arguments of the command; "IN/" represents the inputs, "OUT" the output.
        trains: whether it writes parameters.
        measured: suffixes of files that contain times, which only have to exist.
    """

    name: str
    words: str
    trains: bool = False
    measured: tuple[str, ...] = ()


_TRAINING = "--device cpu --set log_every=1 --set eval_every=1"
CASES = (
    Case("tokenize", "tokenize IN/videos/*.mp4 --with tome(keep=0.2) --frames 12 --size 64 --out OUT"),
    Case("tokenize --chunked", "tokenize IN/long.mp4 --chunked --chunk 8 --with evs(tau=0.3) --size 64 --out OUT"),
    Case(
        "bench", "bench IN/videos --with evs,rlt --keep 0.3,0.1 --frames 6 --size 64 --repeats 1 --out OUT",
        measured=(".md", ".html", ".png", ".csv"),
    ),
    Case("train", f"train classify vit_nano8 --data IN/images --size 16 --batch 8 --epochs 5 {_TRAINING} "
         "--set save_every=4 --workers 2 --out OUT", trains=True),
    Case("train tobo", f"train tobo IN/frames --size 16 --batch 4 --steps 24 {_TRAINING} --set save_every=5 "
         "--workers 1 --set patch_size=8 --set dim=16 --set num_heads=2 --set depth=1 --set decoder_depth=1 "
         "--set shown=2 --set visits=4 --set max_gap=4 --out OUT", trains=True),
    Case("train video-llm", "train video-llm --data IN/talks/train.jsonl --encoder IN/vit --llm IN/llm --pool 2 "
         f"--with tome(keep=4) --frames 4 --size 32 --batch 2 {_TRAINING} --set steps=16 --set save_every=4 "
         "--set lr=0.01 --set workers=1 --val IN/talks/train.jsonl --out OUT", trains=True),
    Case("train frames", "train frames IN/videos --size 32 --out OUT"),
    Case("eval davis", "eval davis --data IN/DAVIS --encoder patches --score-size native --write-videos --device cpu "
         "--out OUT"),
)  # fmt: skip


def make_inputs(folder: Path) -> Path:
    """Writes everything that the commands read, once."""
    done = folder / "complete"
    if done.exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in range(5):
        write_video(
            folder / "videos" / f"{number}.mp4", synthetic("pan", frames=24, size=(64, 96), seed=number).frames, 10
        )
        write_video(
            folder / "talks" / f"{number}.mp4", synthetic("digits", frames=6, size=(32, 32), seed=number).frames, 6
        )
    write_video(folder / "long.mp4", synthetic("pan", frames=160, size=(64, 96), seed=9).frames, 10)
    random_numbers = np.random.default_rng(0)
    for channel, label in enumerate(("red", "green", "blue")):
        (folder / "images" / label).mkdir(parents=True)
        for number in range(12):
            pixels = random_numbers.integers(0, 90, (24, 30, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(folder / "images" / label / f"{number}.png")
    (folder / "frames").mkdir()
    for number in range(4):
        frames = synthetic("pan", frames=10, size=(24, 24), seed=number).frames
        np.save(folder / "frames" / f"{number}.npy", frames.permute(0, 2, 3, 1).numpy())
    _make_davis(folder / "DAVIS")
    turns = [{"from": "human", "value": "<image>\nwhat is it"}, {"from": "gpt", "value": "a digit"}]
    lines = [json.dumps({"id": str(n), "video": f"{n}.mp4", "conversations": turns}) for n in range(5)]
    (folder / "talks" / "train.jsonl").write_text("\n".join(lines) + "\n")
    done.touch()
    return folder


def _make_davis(root: Path) -> None:
    """Four sequences of a moving square."""
    names = ("one", "two", "three", "four")
    for number, name in enumerate(names):
        for part in ("JPEGImages", "Annotations"):
            (root / part / "480p" / name).mkdir(parents=True)
        for t in range(6):
            mask = np.zeros((64, 96), dtype=np.uint8)
            mask[16:48, 8 + 8 * t : 40 + 8 * t] = 1
            image = Image.fromarray(mask)
            image.putpalette([*range(256)] * 3)
            image.save(root / "Annotations" / "480p" / name / f"{t:05}.png")
            Image.fromarray(mask * 100 + 40 + number).save(root / "JPEGImages" / "480p" / name / f"{t:05}.jpg")
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("\n".join(names) + "\n")


def _make_networks(folder: Path) -> None:
    """A DINOv2 and a Llama with random weights, in the format of transformers."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    vocabulary = Tokenizer(models.WordLevel(unk_token="<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary.train_from_iterator(
        ["what is it a digit USER : ASSISTANT :"], trainers.WordLevelTrainer(special_tokens=special)
    )
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    hf.Dinov2Model(
        hf.Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=8, image_size=32)
    ).save_pretrained(folder / "vit")
    hf.LlamaForCausalLM(
        hf.LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    ).save_pretrained(folder / "llm")  # fmt: skip
    tokenizer.save_pretrained(folder / "llm")


def start(case: Case, inputs: Path, out: Path) -> subprocess.Popen[str]:
    """Starts the command in a separate process."""
    words = [word.replace("OUT", str(out)) for word in case.words.split()]
    words = [
        argument
        for word in words
        for argument in (
            map(str, sorted(inputs.glob(word[3:]))) if "*" in word else (word.replace("IN/", f"{inputs}/"),)
        )
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "fewtokens", *words], env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def watch(out: Path, process: subprocess.Popen[str]) -> Iterator[tuple[float, int]]:
    """Yields elapsed seconds and the number of changes of the folder, every few milliseconds while a process runs."""
    start_time, changes, before = time.monotonic(), 0, _listing(out)
    while process.poll() is None:
        now = _listing(out)
        changes, before = changes + (now != before), now
        yield time.monotonic() - start_time, changes
        time.sleep(0.002)


def _listing(out: Path) -> list[tuple[str, int, int]]:
    entries = []
    for folder, _, names in os.walk(out):
        for name in names:
            try:
                stat = os.stat(os.path.join(folder, name))
            except OSError:  # deleted in the meantime
                continue
            entries.append((os.path.join(folder, name), stat.st_size, stat.st_mtime_ns))
    return sorted(entries)


@dataclass(frozen=True)
class Reference:
    """An undisturbed run: its folder, seconds, number of changes of the folder, and seconds until the first."""

    out: Path
    seconds: float
    changes: int
    first: float


def make_reference(case: Case, inputs: Path, out: Path) -> Reference:
    """Runs a command to its end, or reads the record of an earlier run."""
    note = out.with_suffix(".json")
    if not note.exists():
        shutil.rmtree(out, ignore_errors=True)
        process = start(case, inputs, out)
        seconds, changes, first = 0.0, 0, 0.0
        for seconds, changes in watch(out, process):
            first = first or (seconds if changes else 0.0)
        if process.wait() != 0:
            raise SystemExit(f"{case.name} exits with {process.returncode} if undisturbed: {_last_line(process)}")
        note.write_text(json.dumps([seconds, changes, first]))
    return Reference(out, *json.loads(note.read_text()))


def _last_line(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    lines = [line for line in process.stderr.read().splitlines() if line.strip()]
    return lines[-1] if lines else ""


def attack(case: Case, inputs: Path, reference: Reference, out: Path, rng: random.Random) -> dict[str, Any] | None:
    """Kills one process at a random time; None if it had finished before."""
    signal_number = rng.choice(SIGNALS)
    at_write = rng.random() < 0.6
    threshold: float = rng.randint(1, max(1, reference.changes)) if at_write else rng.uniform(0.5, 1.0)
    pause = rng.uniform(0, 0.02)
    # By time: from the middle of the start-up, which only imports, to the usual end.
    deadline = reference.first * 0.5 + (reference.seconds - reference.first * 0.5) * 2 * (threshold - 0.5)
    process = start(case, inputs, out)
    seconds = 0.0
    for seconds, changes in watch(out, process):
        if (changes >= threshold) if at_write else (seconds >= deadline):
            time.sleep(pause)
            process.send_signal(signal_number)
            break
    code = process.wait(timeout=600)
    # A worker of a data loader whose parent is killed while it starts takes process 1 for its parent, and never ends.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    _last_line(process)
    if code == 0:
        return None
    trigger = "write" if at_write else "time"
    return {"signal": signal.Signals(signal_number).name, "at": trigger, "second": round(seconds, 2), "code": code}


def trial(case: Case, inputs: Path, reference: Reference, out: Path, rng: random.Random) -> dict[str, Any]:
    """One to three kills in one folder, then a run to the end; returns the comparison with the reference."""
    shutil.rmtree(out, ignore_errors=True)
    kills = [attack(case, inputs, reference, out, rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
    process = start(case, inputs, out)
    try:
        _, errors = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        process.kill()
        errors = "hangs"
    messages = [] if process.returncode == 0 else [(errors.strip().splitlines() or [""])[-1]]
    leftovers, differing, parameters = compare(reference.out, out, case)
    return {
        "case": case.name, "kills": [kill for kill in kills if kill], "complete": process.returncode == 0,
        "errors": messages, "differing": differing, "leftovers": leftovers, "bit-equal": parameters,
    }  # fmt: skip


def compare(expected: Path, actual: Path, case: Case) -> tuple[list[str], list[str], bool | None]:
    """Leftover files, differences, and whether all parameters are bit-equal (None if there are none)."""
    expected_names, names = (
        {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} for root in (expected, actual)
    )
    stray = {str(path.relative_to(actual)) for path in actual.rglob("*") if LEFTOVER.search(path.name)}
    leftovers = sorted((names - expected_names) | stray)
    differing = [f"{name}: missing" for name in sorted(expected_names - names)]
    equal: bool | None = None
    for name in sorted(expected_names & names):
        if Path(name).suffix in case.measured:
            continue
        a, b = expected / name, actual / name
        if name.endswith(".safetensors"):
            difference = _tensor_difference(a, b)
            equal = (equal is not False) and not difference
        else:
            difference = "" if content(a, case, expected) == content(b, case, actual) else "differs"
        if difference:
            differing.append(f"{name}: {difference}")
    return leftovers, differing, equal if case.trains else None


def content(path: Path, case: Case, root: Path) -> Any:
    """The part of a file that must be equal: everything except for times and the path of its folder."""
    if path.suffix in (".json", ".jsonl"):
        text = path.read_text().replace(str(root), "OUT")
        return [unmeasured(json.loads(line)) for line in (text.splitlines() if path.suffix == ".jsonl" else [text])]
    if path.suffix in (".html", ".md", ".txt", ".csv"):
        # Pages contain times.
        return re.sub(r"\d+(\.\d+)?(e-?\d+)?", "#", path.read_text().replace(str(root), "OUT"))
    return path.read_bytes()


def unmeasured(value: Any) -> Any:
    """Values without those whose name means a time or memory."""
    if isinstance(value, dict):
        return {name: unmeasured(entry) for name, entry in value.items() if not MEASURED.search(name)}
    if isinstance(value, list):
        return [unmeasured(entry) for entry in value]
    return value


def _tensor_difference(a: Path, b: Path) -> str:
    with safe_open(a, framework="pt") as first, safe_open(b, framework="pt") as second:
        names = set(first.keys())
        if names != set(second.keys()):
            return "different tensors"
        for name in sorted(names):
            x, y = first.get_tensor(name), second.get_tensor(name)
            if x.dtype != y.dtype or x.shape != y.shape or x.numpy().tobytes() != y.numpy().tobytes():
                return f"{name} is not bit-equal"
        heads = [unmeasured(json.loads((file.metadata() or {}).get("fewtokens", "{}"))) for file in (first, second)]
    return "" if heads[0] == heads[1] else "different header"


def campaign(
    cases: Sequence[Case], kills: int, work: Path, seed: int = 0, log: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Trials of each command until it has been killed `kills` times; those of an interrupted campaign count."""
    inputs = make_inputs(work / "material")
    if any("IN/llm" in case.words for case in cases) and not (inputs / "llm" / "tokenizer.json").exists():
        _make_networks(inputs)  # requires transformers and takes seconds
    trials = work / f"trials-{seed}.jsonl"
    rows = read_rows(trials)
    for case in cases:
        reference = make_reference(case, inputs, work / "whole" / case.name.replace(" ", "_"))
        log(f"{case.name}: {reference.seconds:.1f} s undisturbed, {reference.changes} changes of its folder")
        own = [row for row in rows if row["case"] == case.name]
        index = len(own)
        while sum(len(row["kills"]) for row in own) < kills and index < 4 * kills:
            start_time = time.monotonic()
            out = work / "trials" / f"{case.name.replace(' ', '_')}-{index}"
            row = trial(case, inputs, reference, out, random.Random(f"{seed} {case.name} {index}"))
            append_row(trials, row)
            own.append(row)
            rows.append(row)
            index += 1
            fine = row["complete"] and not row["differing"] and not row["leftovers"]
            if fine:
                shutil.rmtree(out)
            hits = ", ".join(f"{kill['signal']} {kill['second']} s" for kill in row["kills"]) or "finished before"
            trouble = "; ".join(
                [*row["errors"], *row["differing"], *(f"leftover: {name}" for name in row["leftovers"])]
            )
            done = sum(len(row["kills"]) for row in own)
            seconds = time.monotonic() - start_time
            log(f"  {case.name} {done}/{kills}: {hits}: {'fine' if fine else trouble} ({seconds:.0f} s)")
    return rows


def summarize(cases: Sequence[Case], trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per command."""
    rows = []
    for case in cases:
        own = [row for row in trials if row["case"] == case.name and row["kills"]]
        kills = [kill for row in own for kill in row["kills"]]
        seconds = [kill["second"] for kill in kills]
        writing = sum(kill["at"] == "write" for kill in kills)
        count = {name: sum(kill["signal"] == name for kill in kills) for name in ("SIGKILL", "SIGTERM", "SIGINT")}
        rows.append({
            "command": case.name, "kills": len(kills),
            "signals": ", ".join(f"{times} {name}" for name, times in count.items() if times),
            "kill times": f"{min(seconds):.1f} to {max(seconds):.1f} s, {writing} at a write" if kills else "",
            "reruns": len(own), "complete": sum(row["complete"] for row in own),
            "equal": sum(not row["differing"] for row in own), "leftovers": sum(len(row["leftovers"]) for row in own),
            "bit-equal": f"{sum(row['bit-equal'] is True for row in own)}" if case.trains else None,
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--kills", type=int, default=100, help="total number of kills, spread over the commands (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument("--only", default="", help="comma-separated names of commands (default: all)")
    parser.add_argument("--work", type=Path, default=WORK, help="directory of inputs and trials")
    options = parser.parse_args()
    known = {case.name: case for case in CASES}
    if unknown := [name for name in options.only.split(",") if name and name not in known]:
        parser.error(f"unknown command {', '.join(unknown)}; commands: {', '.join(known)}")
    cases = [known[name] for name in options.only.split(",") if name] or list(CASES)
    work = options.work.resolve()
    trials = campaign(cases, -(-options.kills // len(cases)), work, options.seed, lambda line: print(line, flush=True))
    rows = summarize(cases, trials)
    failures = [
        f"{row['case']}: {line}"
        for row in trials
        for line in [*row["errors"], *row["differing"], *(f"leftover: {name}" for name in row["leftovers"])]
    ]
    notes = (
        "Expected: all reruns complete and equal, no leftovers, all parameters bit-equal. A rerun follows one to three "
        "kills in the same folder. Equal: every tensor, and every text except for times."
    )
    if failures:
        notes += "\n\nFailures:\n\n" + "\n".join(f"* {line}" for line in dict.fromkeys(failures))
    if not options.only:
        write("kills", "Commands killed at random times, then run again", f"python benchmarks/kills.py --kills "
              f"{options.kills} --seed {options.seed}", rows, notes)  # fmt: skip
    else:
        print(json.dumps(rows, indent=1), notes)
    sys.exit(bool(failures) or not all(row["complete"] == row["reruns"] for row in rows))


if __name__ == "__main__":
    main()
