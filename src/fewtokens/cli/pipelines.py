"""Builds videos, methods and pipelines from command-line options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fewtokens.cli.command import Mode
from fewtokens.cli.console import note
from fewtokens.cli.options import EncoderOptions, MethodOptions, ReadOptions, RunOptions, SelectOptions

if TYPE_CHECKING:
    from fewtokens.core.encoder import Encoder
    from fewtokens.core.pipeline import Pipeline
    from fewtokens.jobs.sources import Part
    from fewtokens.video import Video

PATCHES = Mode(
    "patches", lambda values: values["encoder"] == "patches", ("batch",),
    "have no effect with --encoder patches, which encodes all frames in one pass",
)  # fmt: skip


def parse_keep(keep: str | None) -> float | int | str | None:
    """Parses a budget: 0.1 is a fraction, 32 a count, 8/frame a count per frame, as in a spec."""
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


def _accepts_keep(spec: str) -> bool:
    """Whether a method of the chain accepts `keep` and its spec does not set it."""
    from fewtokens.core import registry

    links = registry.parse(spec)
    return any(
        registry.accepts_default_keep(name, arguments, last=number == len(links) - 1)
        for number, (name, arguments) in enumerate(links)
    )


def make_methods(options: MethodOptions, seed: int, dim: int | None) -> list[Any]:
    """Builds the methods of a spec with the budget and seed of the command line; notes untrained methods on stderr.

    Raises:
        ValueError: an invalid spec, or a --keep that has no effect.
    """
    import torch

    from fewtokens.core import registry
    from fewtokens.core.method import Method

    budget = parse_keep(options.keep)
    if budget is not None and not _accepts_keep(options.spec):
        raise ValueError(f"--keep has no effect: no method in {options.spec!r} takes its budget from --keep")
    defaults: dict[str, Any] = {"seed": seed, "keep": budget, "dim": dim}
    torch.manual_seed(seed)
    arguments = {name: value for name, value in defaults.items() if value is not None}
    methods = registry.build(options.spec, **arguments) if options.spec.strip() else []
    for method in methods:
        if getattr(method, "untrained", False):
            note(f"{method.name} has random weights:", "load trained ones with checkpoint='FILE' in the spec")
        if isinstance(method, Method):
            method.eval()
    return methods


def make_pipeline(method: MethodOptions, encoding: EncoderOptions, run: RunOptions) -> Pipeline:
    """Builds the pipeline that the options specify.

    Raises:
        ValueError: an invalid option or spec, or a --keep that has no effect.
    """
    (pipeline,) = make_pipelines([method.spec], method.keep, encoding, run)
    return pipeline


def make_pipelines(specs: Sequence[str], keep: str | None, encoding: EncoderOptions, run: RunOptions) -> list[Pipeline]:
    """Builds a pipeline for each spec, all with the same encoder; see `make_pipeline`."""
    parse_keep(keep)  # an invalid budget is reported before torch is imported and weights are read
    from fewtokens.core.pipeline import Pipeline
    from fewtokens.encoders import load_encoder, pick_device

    encoder: Encoder = load_encoder(encoding.encoder, device=run.device, dtype=encoding.dtype, batch=encoding.batch)
    pipelines = [Pipeline(make_methods(MethodOptions(spec, keep), run.seed, encoder.dim), encoder) for spec in specs]
    for pipeline in pipelines:
        if pipeline.selector is not None:
            raise ValueError(
                f"{pipeline.selector.name} selects frames; give it as --select to tokenize or ask, not in --with"
            )
        pipeline.methods.to(pick_device(run.device))
    return pipelines


def check_reading(options: ReadOptions) -> None:
    """Raises ValueError if both --frames and --fps are given; called before torch is imported."""
    if options.frames is not None and options.fps is not None:
        raise ValueError("give --frames or --fps, not both")


def within_part(options: ReadOptions, part: Part | None) -> ReadOptions:
    """Returns options whose start and end, relative to a part of a file, are relative to the file."""
    if part is None:
        return options
    first = part[0] or 0.0
    ends = (part[1], None if options.end is None else first + options.end)
    return replace(
        options, start=first + options.start, end=min((end for end in ends if end is not None), default=None)
    )


def read_video(
    path: str | Path,
    options: ReadOptions,
    progress: Callable[[int, int], None] | None = None,
    selecting: Mapping[str, Any] = MappingProxyType({}),
) -> Video:
    """Reads the frames that the options specify. Default: 16 frames. `progress`, `selecting`: see `fewtokens.read`."""
    check_reading(options)
    from fewtokens.core.inputs import DEFAULT_FRAMES
    from fewtokens.selection import read

    evenly = options.frames is None and options.fps is None and not selecting
    return read(
        path,
        **selecting,
        frames=DEFAULT_FRAMES if evenly else options.frames,
        fps=options.fps,
        size=options.size,
        start=options.start,
        end=options.end,
        video_stream=options.video_stream,
        allow_truncated=options.allow_truncated,
        progress=progress,
    )


def selection_of(
    options: SelectOptions, question: str | None, run: RunOptions, *, session: bool = False
) -> dict[str, Any]:
    """Returns the arguments of `fewtokens.read` that select frames, with the scorer loaded; {} without --select.

    `session`: whether they are for a `Session`, which makes the scorer "model" itself.

    Raises:
        ValueError: the spec is invalid, a question or a scorer is missing, or the scorer cannot be loaded.
    """
    if options.select is None:
        return {}
    from fewtokens.selection import load_scorer
    from fewtokens.selection.choose import check_cues, load_selector

    selector = load_selector(options.select)
    check_cues(selector, question, options.scorer)
    if options.scorer is not None and not {"relevance", "features"} & set(selector.needs):
        raise ValueError(f"--scorer has no effect: {selector.name} selects by time alone")
    if selector.learned and not selector.arguments.get("checkpoint"):
        note(f"{selector.name} has random weights:", "load trained ones with checkpoint='FILE' in the spec")
    scorer: Any = options.scorer
    if scorer is not None and not (session and scorer == "model"):
        scorer = load_scorer(scorer, device=run.device)
    near = {"near": options.near} if options.near else {}
    return {"select": selector, "question": question, "scorer": scorer, **near}


def plain_selection(selects: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `selection_of` as plain values, for saved settings."""
    return {name: getattr(value, "spec", getattr(value, "id", value)) for name, value in selects.items()}


def check_no_selector(specs: Sequence[str]) -> None:
    """Raises ValueError if a chain starts with a method that selects frames, for which there is --select."""
    from fewtokens.core import registry

    for spec in specs:
        name = registry.parse(spec)[0][0]
        if name in registry.selector_names():
            raise ValueError(f"{name} selects frames; give it as --select, not in --with")


def current_names(reading: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the reading saved in a token file; earlier versions called `video_stream` `stream`."""
    return {"video_stream" if name == "stream" else name: value for name, value in reading.items()}


def made_with(pipeline: Pipeline) -> dict[str, Any]:
    """The spec and the encoder of tokens, for a header; with the dtype of the encoder if it is not float32."""
    import torch

    assert pipeline.encoder is not None
    dtype = pipeline.encoder.dtype
    named = {} if dtype == torch.float32 else {"dtype": str(dtype).removeprefix("torch.")}
    return {"spec": pipeline.spec, "encoder": pipeline.encoder.describe(), **named}


def with_defaults(reading: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a reading with the number of frames that is read if none is given, and what selects them, to compare."""
    given = [reading.get(name) for name in ("frames", "fps", "select")]
    frames = 16 if given == [None, None, None] else reading.get("frames")
    return {"select": None, "question": None, "scorer": None, "near": 0.0, **reading, "frames": frames}


def comma_separated(texts: str | Sequence[str]) -> list[str]:
    """Splits comma-separated texts into their parts: ["a, b", "c"] becomes ["a", "b", "c"]."""
    return [
        part.strip()
        for text in ([texts] if isinstance(texts, str) else texts)
        for part in text.split(",")
        if part.strip()
    ]
