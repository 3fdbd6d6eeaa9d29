"""From options to videos, methods and pipelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewtokens.cli.command import Mode
from fewtokens.cli.console import note
from fewtokens.cli.options import EncoderOptions, MethodOptions, ReadOptions, RunOptions

if TYPE_CHECKING:
    from fewtokens.core.encoder import Encoder
    from fewtokens.core.pipeline import Pipeline
    from fewtokens.video import Video

PATCHES = Mode(
    "patches", lambda values: values["encoder"] == "patches", ("batch",),
    "is for networks; --encoder patches takes all frames at once",
)  # fmt: skip


def parse_keep(keep: str | None) -> float | int | str | None:
    """0.1 is a share, 32 a count, 8/frame a count for each frame, as in a spec string."""
    from fewtokens.core.budget import Budget

    if keep is None:
        return None
    value: Any = keep
    for number in (int, float):
        with suppress(ValueError):
            value = number(keep)
            break
    try:
        return Budget.parse(value).keep
    except ValueError as error:
        raise ValueError(f"--{error}") from None


def _takes_keep(spec: str) -> bool:
    """Whether some method of the chain leaves its budget open."""
    from fewtokens.core import registry

    links = registry.parse(spec)
    return any(
        registry.leaves_keep_open(name, arguments, last=number == len(links) - 1)
        for number, (name, arguments) in enumerate(links)
    )


def make_methods(options: MethodOptions, seed: int, dim: int | None) -> list[Any]:
    """The methods of a spec, with what the command line adds; says which ones have random weights.

    Raises:
        ValueError: also if --keep would reach no method.
    """
    import torch

    from fewtokens.core import registry
    from fewtokens.core.method import Method

    budget = parse_keep(options.keep)
    if budget is not None and not _takes_keep(options.spec):
        raise ValueError(
            f"--keep {options.keep} would change nothing: no method in {options.spec!r} leaves its budget open"
        )
    defaults: dict[str, Any] = {"seed": seed, "keep": budget, "dim": dim}
    torch.manual_seed(seed)
    known = {name: value for name, value in defaults.items() if value is not None}
    methods = registry.build(options.spec, **known) if options.spec.strip() else []
    for method in methods:
        if getattr(method, "untrained", False):
            note(f"{method.name} has random weights:", "give it trained ones by checkpoint='FILE'")
        if isinstance(method, Method):
            method.eval()
    return methods


def make_pipeline(method: MethodOptions, encoding: EncoderOptions, run: RunOptions) -> Pipeline:
    """The pipeline that the options describe.

    Raises:
        ValueError: also if --keep would reach no method.
    """
    from fewtokens.core.pipeline import Pipeline
    from fewtokens.encoders import load_encoder, pick_device

    parse_keep(method.keep)  # a wrong one is reported before weights are read
    encoder: Encoder = load_encoder(encoding.encoder, device=run.device, dtype=encoding.dtype, batch=encoding.batch)
    pipeline = Pipeline(make_methods(method, run.seed, encoder.dim), encoder)
    pipeline.methods.to(pick_device(run.device))
    return pipeline


def read_video(path: str | Path, options: ReadOptions) -> Video:
    """Reads as the options say; 16 frames by default."""
    from fewtokens.video import read

    if options.frames is not None and options.fps is not None:
        raise ValueError("give --frames or --fps, not both")
    return read(
        path,
        frames=16 if options.frames is None and options.fps is None else options.frames,
        fps=options.fps,
        size=options.size,
        start=options.start,
        end=options.end,
        video_stream=options.video_stream,
        allow_truncated=options.allow_truncated,
    )


def current_names(reading: Mapping[str, Any]) -> dict[str, Any]:
    """How a video was read, as a token file notes it; earlier versions called `video_stream` `stream`."""
    return {"video_stream" if name == "stream" else name: value for name, value in reading.items()}


def comma_separated(texts: str | Sequence[str]) -> list[str]:
    """The parts of lists like "a, b", which may be given several times."""
    return [
        part.strip()
        for text in ([texts] if isinstance(texts, str) else texts)
        for part in text.split(",")
        if part.strip()
    ]
