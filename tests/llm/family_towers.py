"""What methods can do in the vision tower and the language model of each family, found on its tiny models.

    python -m tests.llm.family_towers

writes the columns of `fewtokens llm-families`, with the newest transformers that is supported;
test_tower_families.py and test_inside_families.py compare them.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fewtokens.llm.families as table
from fewtokens.core.attention_rule import AttentionRule
from fewtokens.core.method import Reducer
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.llm import compress
from fewtokens.llm.families import FAMILIES
from fewtokens.llm.layers.hooks import language_model
from fewtokens.llm.layers.kinds import inside_note
from tests.llm.families import Prompt, build, folders, layered, prompt

CUES = ("attention", "keys", "shift", "pixels")
FILE = Path(table.__file__).with_name("family_towers.json")
# Images in tiles, which form no video.
IMAGES_ONLY = ("llava_next",)


@dataclass(frozen=True)
class Columns:
    """The columns of a family: the cues that methods can read, and whether the tower skips and merges patches."""

    cues: tuple[str, ...]
    skips: bool
    merges: bool


class Read(Reducer):
    """Keeps every token, and the cue that it read."""

    attention_rule: AttentionRule

    def __init__(self, cue: str, rule: AttentionRule = AttentionRule()) -> None:
        super().__init__()
        self.cue, self.rule, self.attention_rule = cue, rule, rule
        self.values: list[Tensor] = []

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.cue,)

    def plan(self, tokens: Tokens, **cues: Tensor) -> Plan:
        assert cues[self.cue].shape[:2] == (tokens.B, tokens.N)
        self.values += list(cues[self.cue])
        return Plan.identity(tokens)


class First(Reducer):
    """Keeps the first third of the cells, chosen before encoding."""

    stage = "pixels"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("pixels",)

    def plan(self, tokens: Tokens, *, pixels: Tensor) -> Plan:
        return Plan.keep(torch.arange(tokens.N)[None] < tokens.N // 3)


class Pairs(Reducer):
    """Merges the first two tokens of each frame after the first block."""

    stage = "encoder"

    def plan(self, tokens: Tokens, *, layer: int, depth: int) -> Plan:
        if layer:
            return Plan.identity(tokens)
        labels = (torch.arange(tokens.N) - 1).clamp(min=0)
        return Plan.group(labels.expand(tokens.B, -1), tokens, tokens.N)


def example(folder: str) -> Prompt:
    return prompt(folder, ("text", 3), ("image",) if folder in IMAGES_ONLY else ("video", 3), ("text", 4))


def read(folder: str, method: Read) -> list[Tensor]:
    """The cue [S,...] of each grid of an example."""
    one, kind = example(folder), Pipeline([method])
    both: tuple[Any, Any] = (Pipeline([]), kind) if folder in IMAGES_ONLY else (kind, False)
    compress(build(folder), one.inputs, both[0], images=both[1], items=one.items)
    return method.values


def columns_of(folder: str) -> Columns:
    """The columns of a family, by running methods on its tiny model."""
    model, one, cues = build(folder), example(folder), []
    for cue in CUES:
        try:
            cues.append(cue) if read(folder, Read(cue)) else None
        except ValueError:
            continue
    if folder in IMAGES_ONLY:
        return Columns(tuple(cues), False, False)
    skips = False
    if "pixels" in cues:
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            compress(model, one.inputs, [First()], items=one.items)
        skips = not any("encodes all patches" in str(warning.message) for warning in raised)
    try:
        (tokens,) = compress(model, one.inputs, [Pairs()], items=one.items).tokens
        merges = tokens.grid.cells > tokens.N
    except ValueError:
        merges = False
    return Columns(tuple(cues), skips, merges)


def tested() -> list[str]:
    """The folders of the families that work, of the installed transformers."""
    return [family.folder for family in FAMILIES if family.works and family.folder in folders()]


def main() -> None:
    """Writes the columns; families that the installed transformers does not have keep theirs."""
    old = json.loads(FILE.read_text()) if FILE.exists() else {}
    with torch.no_grad():
        for family in FAMILIES:
            if family.folder in tested():
                inside = inside_note(language_model(layered(family.folder))) or "all"
                old[family.name] = vars(columns_of(family.folder)) | {"inside": inside}
    lines = [f"  {json.dumps(name)}: {json.dumps(old[name])}" for name in sorted(old)]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
