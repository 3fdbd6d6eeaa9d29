"""Tokenizers by the names of their papers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch

from fewtokens.core.tokenizer_syntax import check_preset, part_names
from fewtokens.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Preset:
    """A tokenizer of a paper: its parts, how it is trained, and what was published about it.

    A preset is the value `PRESET` of a file of `fewtokens.tokenizers.presets`, whose name is that of the tokenizer.

    Attributes:
        spec: the parts at the published size.
        clip: frames, height and width that it was published for; of other signals see `SignalTokenizer`.
        tiny: the parts at a size that trains on a CPU.
        tiny_clip: frames, height and width of its training clips.
        window, tiny_window: longest video that is encoded at once; None for any length.
        kind: class of the tokenizer; a subclass of `Tokenizer` if it has further objectives or other parts.
        recipe: settings of training that differ from the defaults, by name.
        paper: citation, in one line.
        license: license of the authors' code or weights, in one line.
        tokens: published number of tokens of `clip`, or None.
        parameters: published number of parameters in millions, or None.
        figures: published results by name, as text.
        differs: where this implementation differs from the paper or its code, and what we fixed because the paper
            leaves it open; in one paragraph.
    """

    spec: str
    clip: tuple[int, int, int]
    tiny: str
    tiny_clip: tuple[int, int, int]
    paper: str
    license: str
    window: int | None = None
    tiny_window: int | None = None
    kind: type[Tokenizer] = Tokenizer
    recipe: Mapping[str, Any] = field(default_factory=dict)
    tokens: int | None = None
    parameters: float | None = None
    figures: Mapping[str, str] = field(default_factory=dict)
    differs: str = ""

    @property
    def source(self) -> str:
        """What the tokenizer encodes: "video" (and images), "occupancy", "audio" or "points"."""
        return self.kind.source


def list_tokenizers() -> list[str]:
    """Returns the names of all presets."""
    return list(part_names("presets"))


def get_preset(name: str) -> Preset:
    """Returns a preset by name.

    Raises:
        ValueError: there is none of this name; the message suggests similar names.
    """
    check_preset(name)
    preset = import_module(f"fewtokens.tokenizers.presets.{name}").PRESET
    assert isinstance(preset, Preset)
    return preset


def create_tokenizer(name: str, *, tiny: bool = False, seed: int | None = None) -> Tokenizer:
    """Builds a tokenizer with random parameters.

        tokenizer = create_tokenizer("vidtok_fsq_262144")
        tokenizer = create_tokenizer("larp", tiny=True)
        tokenizer = create_tokenizer("tubelet(64, stride=(4, 8, 8)) | fsq > tubelet(stride=(4, 8, 8))")

    Args:
        name: a preset, see `list_tokenizers`, or the spec of a tokenizer.
        tiny: whether to build a preset at the size that trains on a CPU instead of the published one.
        seed: random seed of the parameters. Default: the state of the generator of torch.

    Raises:
        ValueError: the name or spec is invalid.
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        if ">" in name:
            tokenizer = Tokenizer.from_spec(name)
        else:
            preset = get_preset(name)
            spec, window = (preset.tiny, preset.tiny_window) if tiny else (preset.spec, preset.window)
            tokenizer = preset.kind.from_spec(spec, window=window)
            tokenizer.title = name
    if seed is not None:
        tokenizer.origin = {"name": name, "tiny": tiny, "seed": seed}
    return tokenizer
