"""Kills the commands at random moments and checks that the same command then ends as one that was never killed.

    python benchmarks/kills.py [--kills 100] [--seed 0] [--only tokenize,train] [--work benchmarks/runs/kills]

For each command: it runs once undisturbed; then, again and again, it is started in a folder of its own, killed one to
three times (mostly SIGKILL, sometimes SIGTERM or SIGINT; at a random moment, or just when it writes), and at last left
to end. Every rerun must end with 0, with the same files: tensors bit-equal, texts equal but for times, nothing left
over. All it needs it makes: small videos, pictures, networks of random weights. Moments come from the seed; where a
process is at such a moment depends on the machine.

About 100 kills cost half an hour of one core, most of it starting Python. A stopped campaign goes on with the trials
that are missing. It ends with 1 where a rerun did not complete, differed, or left something.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from common import write
from fewtokens.core.files import add_row, read_rows
from fewtokens.video import synthetic
from fewtokens.video import write as write_video

WORK = Path(__file__).parent / "runs" / "kills"
SIGNALS = (signal.SIGKILL,) * 8 + (signal.SIGTERM, signal.SIGINT)
# Names of what a kill may leave.
LEFT = re.compile(r"^\.fewtokens-|^\.tmp|^tmp|\.tmp$|\.partial$|\.incomplete$")
# Numbers that no two runs share, by the names they have.
MEASURED = re.compile(
    r"(^|[ _,])(ms|milliseconds|s|seconds|time|times|waiting|memory|rss|mb|mib|gib|date)([ _,(]|$)|±", re.IGNORECASE
)


@dataclass(frozen=True)
class Case:
    """One command.

    Attributes:
        name: in the table.
        words: of the command; "IN/" stands for the material, "OUT" for what it writes.
        trains: whether its result is parameters.
        measured: files that show times, so that they are only looked for.
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
    Case("train", f"train classify vit_nano8 --data IN/pictures --size 16 --batch 8 --epochs 5 {_TRAINING} "
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


def make_material(folder: Path) -> Path:
    """Everything that the commands read; made once."""
    done = folder / "made"
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
        (folder / "pictures" / label).mkdir(parents=True)
        for number in range(12):
            pixels = random_numbers.integers(0, 90, (24, 30, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(folder / "pictures" / label / f"{number}.png")
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
    """Four sequences of a square that moves."""
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


def _make_parts(folder: Path) -> None:
    """A DINOv2 and a Llama of random weights, saved as transformers saves them."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words.train_from_iterator(
        ["what is it a digit USER : ASSISTANT :"], trainers.WordLevelTrainer(special_tokens=special)
    )
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
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


def start(case: Case, material: Path, out: Path) -> subprocess.Popen[str]:
    """The real command, in a process of its own."""
    words = [word.replace("OUT", str(out)) for word in case.words.split()]
    words = [
        each
        for word in words
        for each in (
            map(str, sorted(material.glob(word[3:]))) if "*" in word else (word.replace("IN/", f"{material}/"),)
        )
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "fewtokens", *words], env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def looks(out: Path, process: subprocess.Popen[str]) -> Iterator[tuple[float, int]]:
    """Every few milliseconds while a process lives: seconds since now, and how often its folder has changed."""
    begun, changes, before = time.monotonic(), 0, _listing(out)
    while process.poll() is None:
        now = _listing(out)
        changes, before = changes + (now != before), now
        yield time.monotonic() - begun, changes
        time.sleep(0.002)


def _listing(out: Path) -> list[tuple[str, int, int]]:
    found = []
    for folder, _, names in os.walk(out):
        for name in names:
            try:
                stat = os.stat(os.path.join(folder, name))
            except OSError:  # gone by now
                continue
            found.append((os.path.join(folder, name), stat.st_size, stat.st_mtime_ns))
    return sorted(found)


@dataclass(frozen=True)
class Reference:
    """An undisturbed run: its folder, seconds, how often the folder changed, and seconds until it did first."""

    out: Path
    seconds: float
    changes: int
    first: float


def make_reference(case: Case, material: Path, out: Path) -> Reference:
    """Runs a command to its end, or says how long it took before."""
    note = out.with_suffix(".json")
    if not note.exists():
        shutil.rmtree(out, ignore_errors=True)
        process = start(case, material, out)
        seconds, changes, first = 0.0, 0, 0.0
        for seconds, changes in looks(out, process):
            first = first or (seconds if changes else 0.0)
        if process.wait() != 0:
            raise SystemExit(f"{case.name}: ends with {process.returncode} undisturbed: {_last(process)}")
        note.write_text(json.dumps([seconds, changes, first]))
    return Reference(out, *json.loads(note.read_text()))


def _last(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    lines = [line for line in process.stderr.read().splitlines() if line.strip()]
    return lines[-1] if lines else ""


def attack(case: Case, material: Path, reference: Reference, out: Path, draw: random.Random) -> dict[str, Any] | None:
    """One process, killed at a moment that is drawn; None where it had ended before."""
    number = draw.choice(SIGNALS)
    at_write = draw.random() < 0.6
    moment: float = draw.randint(1, max(1, reference.changes)) if at_write else draw.uniform(0.5, 1.0)
    pause = draw.uniform(0, 0.02)
    # By time: after the half of the start that only imports, up to the usual end.
    late = reference.first * 0.5 + (reference.seconds - reference.first * 0.5) * 2 * (moment - 0.5)
    process = start(case, material, out)
    seconds = 0.0
    for seconds, changes in looks(out, process):
        if (changes >= moment) if at_write else (seconds >= late):
            time.sleep(pause)
            process.send_signal(number)
            break
    code = process.wait(timeout=600)
    _last(process)
    if code == 0:
        return None
    what = "write" if at_write else "time"
    return {"signal": signal.Signals(number).name, "at": what, "second": round(seconds, 2), "code": code}


def trial(case: Case, material: Path, reference: Reference, out: Path, draw: random.Random) -> dict[str, Any]:
    """One to three kills in one folder, then a run to the end: what became of it."""
    shutil.rmtree(out, ignore_errors=True)
    kills = [attack(case, material, reference, out, draw) for _ in range(draw.choice((1, 1, 1, 2, 3)))]
    process = start(case, material, out)
    try:
        _, said = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        process.kill()
        said = "hangs"
    wrong = [] if process.returncode == 0 else [(said.strip().splitlines() or [""])[-1]]
    left, differing, parameters = compare(reference.out, out, case)
    return {
        "case": case.name, "kills": [kill for kill in kills if kill], "complete": process.returncode == 0,
        "said": wrong, "differing": differing, "left": left, "bit-equal": parameters,
    }  # fmt: skip


def compare(expected: Path, found: Path, case: Case) -> tuple[list[str], list[str], bool | None]:
    """What is left over, what differs, and whether all parameters are bit-equal (None: there are none)."""
    there, here = (
        {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} for root in (expected, found)
    )
    stray = {str(path.relative_to(found)) for path in found.rglob("*") if LEFT.search(path.name)}
    left = sorted((here - there) | stray)
    differing = [f"{name}: missing" for name in sorted(there - here)]
    equal: bool | None = None
    for name in sorted(there & here):
        if Path(name).suffix in case.measured:
            continue
        a, b = expected / name, found / name
        if name.endswith(".safetensors"):
            says = _tensors_differ(a, b)
            equal = (equal is not False) and not says
        else:
            says = "" if content(a, case, expected) == content(b, case, found) else "differs"
        if says:
            differing.append(f"{name}: {says}")
    return left, differing, equal if case.trains else None


def content(path: Path, case: Case, root: Path) -> Any:
    """What must be equal of a file: all of it, but for times and its own folder."""
    if path.suffix in (".json", ".jsonl"):
        text = path.read_text().replace(str(root), "OUT")
        return [unmeasured(json.loads(line)) for line in (text.splitlines() if path.suffix == ".jsonl" else [text])]
    if path.suffix in (".html", ".md", ".txt", ".csv"):
        # A page tells how long data was waited for.
        return re.sub(r"\d+(\.\d+)?(e-?\d+)?", "#", path.read_text().replace(str(root), "OUT"))
    return path.read_bytes()


def unmeasured(value: Any) -> Any:
    """Plain values without those that are times or memory by their name."""
    if isinstance(value, dict):
        return {name: unmeasured(entry) for name, entry in value.items() if not MEASURED.search(name)}
    if isinstance(value, list):
        return [unmeasured(entry) for entry in value]
    return value


def _tensors_differ(a: Path, b: Path) -> str:
    with safe_open(a, framework="pt") as first, safe_open(b, framework="pt") as second:
        names = set(first.keys())
        if names != set(second.keys()):
            return "other tensors"
        for name in sorted(names):
            x, y = first.get_tensor(name), second.get_tensor(name)
            if x.dtype != y.dtype or x.shape != y.shape or x.numpy().tobytes() != y.numpy().tobytes():
                return f"{name} is not bit-equal"
        heads = [unmeasured(json.loads((file.metadata() or {}).get("fewtokens", "{}"))) for file in (first, second)]
    return "" if heads[0] == heads[1] else "another header"


def campaign(
    cases: Sequence[Case], kills: int, work: Path, seed: int = 0, say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Trials of each command until each has had so many kills; those of a stopped campaign count."""
    material = make_material(work / "material")
    if any("IN/llm" in case.words for case in cases) and not (material / "llm" / "tokenizer.json").exists():
        _make_parts(material)  # needs transformers, and seconds
    log = work / f"trials-{seed}.jsonl"
    made = read_rows(log)
    for case in cases:
        reference = make_reference(case, material, work / "whole" / case.name.replace(" ", "_"))
        say(f"{case.name}: {reference.seconds:.1f} s undisturbed, {reference.changes} changes of its folder")
        mine = [row for row in made if row["case"] == case.name]
        number = len(mine)
        while sum(len(row["kills"]) for row in mine) < kills and number < 4 * kills:
            begun = time.monotonic()
            out = work / "trials" / f"{case.name.replace(' ', '_')}-{number}"
            row = trial(case, material, reference, out, random.Random(f"{seed} {case.name} {number}"))
            add_row(log, row)
            mine.append(row)
            made.append(row)
            number += 1
            fine = row["complete"] and not row["differing"] and not row["left"]
            if fine:
                shutil.rmtree(out)
            hits = ", ".join(f"{kill['signal']} {kill['second']} s" for kill in row["kills"]) or "too late"
            trouble = "; ".join([*row["said"], *row["differing"], *(f"left: {name}" for name in row["left"])])
            done = sum(len(each["kills"]) for each in mine)
            took = time.monotonic() - begun
            say(f"  {case.name} {done}/{kills}: {hits}: {'fine' if fine else trouble} ({took:.0f} s)")
    return made


def summarise(cases: Sequence[Case], made: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each command."""
    rows = []
    for case in cases:
        mine = [row for row in made if row["case"] == case.name and row["kills"]]
        kills = [kill for row in mine for kill in row["kills"]]
        seconds = [kill["second"] for kill in kills]
        writing = sum(kill["at"] == "write" for kill in kills)
        count = {name: sum(kill["signal"] == name for kill in kills) for name in ("SIGKILL", "SIGTERM", "SIGINT")}
        rows.append({
            "command": case.name, "kills": len(kills),
            "signals": ", ".join(f"{number} {name}" for name, number in count.items() if number),
            "moments": f"{min(seconds):.1f} to {max(seconds):.1f} s, {writing} at a write" if kills else "",
            "reruns": len(mine), "complete": sum(row["complete"] for row in mine),
            "equal": sum(not row["differing"] for row in mine), "leftovers": sum(len(row["left"]) for row in mine),
            "bit-equal": f"{sum(row['bit-equal'] is True for row in mine)}" if case.trains else None,
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="in all, spread over the commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="names of commands, with commas")
    parser.add_argument("--work", type=Path, default=WORK)
    asked = parser.parse_args()
    known = {case.name: case for case in CASES}
    if unknown := [name for name in asked.only.split(",") if name and name not in known]:
        parser.error(f"--only names {', '.join(unknown)}; there are {', '.join(known)}")
    cases = [known[name] for name in asked.only.split(",") if name] or list(CASES)
    work = asked.work.resolve()
    made = campaign(cases, -(-asked.kills // len(cases)), work, asked.seed, lambda line: print(line, flush=True))
    rows = summarise(cases, made)
    trouble = [
        f"{row['case']}: {line}"
        for row in made
        for line in [*row["said"], *row["differing"], *(f"left {name}" for name in row["left"])]
    ]
    notes = (
        "Expected: as many complete and equal as reruns, no leftovers, all parameters bit-equal. A rerun follows one "
        "to three kills in the same folder. Equal: tensor by tensor, texts but for times."
    )
    if trouble:
        notes += "\n\nTrouble:\n\n" + "\n".join(f"* {line}" for line in dict.fromkeys(trouble))
    if not asked.only:
        write("kills", "Commands killed at random moments, and run again", f"python benchmarks/kills.py --kills "
              f"{asked.kills} --seed {asked.seed}", rows, notes)  # fmt: skip
    else:
        print(json.dumps(rows, indent=1), notes)
    sys.exit(bool(trouble) or not all(row["complete"] == row["reruns"] for row in rows))


if __name__ == "__main__":
    main()
