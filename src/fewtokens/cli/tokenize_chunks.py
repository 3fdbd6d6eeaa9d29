"""`fewtokens tokenize --chunked`: reads a video chunk by chunk."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from fewtokens.cli.console import log
from fewtokens.cli.pipelines import current_names, made_with
from fewtokens.cli.resume import check_request, check_source, report_damaged, source_now

if TYPE_CHECKING:
    from fewtokens.core.pipeline import Pipeline


def tokenize_chunks(
    pipeline: Pipeline, video: Path, folder: Path, reading: dict[str, Any], seed: int, overwrite: bool,
    progress: Callable[[int, int | None], None] | None,
) -> dict[str, Any]:  # fmt: skip
    """Tokenizes one video of any length into a folder: one file per chunk, events.jsonl and, at the end, stream.json.

    A folder without stream.json is unfinished and is written again, as is a damaged one. `progress` is called with
    the seconds processed and the seconds in total.

    Raises:
        ValueError: a method that is not causal, or a chain that cannot be streamed; a finished folder of another video
            or of other settings; a folder with other .safetensors files.
    """
    from fewtokens.core import files
    from fewtokens.core.ahead import iterate_ahead
    from fewtokens.core.streaming import SceneTrigger, Streaming, drop_ratios, finish
    from fewtokens.video import stream

    assert pipeline.encoder is not None
    run = Streaming(pipeline)
    request = {**made_with(pipeline), "reading": reading, "seed": seed}
    source = source_now(video)
    files.sweep(folder)
    if (folder / "stream.json").exists() and not overwrite and (earlier := _meta(folder)) is not None:
        check_source(folder, earlier.get("source"), source, "give --overwrite, or another --out")
        check_request(folder, earlier, request)
        return {"video": str(video), "out": str(folder), "skipped": True}
    folder.mkdir(parents=True, exist_ok=True)
    for old in [folder / "stream.json", *_old_chunks(folder), folder / "events.jsonl"]:
        old.unlink(missing_ok=True)

    start = time.perf_counter()
    trigger = SceneTrigger(reading["events"])
    pipeline.encoder.progress = None
    names: list[str] = []
    totals = {"frames": 0, "cells": 0, "tokens": 0, "bytes": 0}
    events = []
    chunks = stream(
        video,
        chunk=reading["chunk"],
        fps=reading["fps"],
        size=reading["size"],
        start=reading["start"],
        end=reading["end"],
        video_stream=reading["video_stream"],
        allow_truncated=reading["allow_truncated"],
    )
    with iterate_ahead(chunks) as parts:
        for part in parts:
            tokens = run(part.frames, part.times).to("cpu")
            name = f"{len(names):06}.safetensors"
            tokens.save(folder / name, spec=pipeline.spec)
            assert tokens.grid.times is not None
            for second, drop in zip(tokens.grid.times.tolist(), drop_ratios(tokens).tolist(), strict=True):
                # The first frame of a video has no previous frame, so nothing in it can be dropped.
                if (totals["frames"] or second > float(tokens.grid.times[0])) and trigger(drop):
                    events.append({"seconds": round(second, 3), "drop": round(drop, 4)})
                    log.print(f"{_clock(second)}  scene changes ({100 * drop:.0f} % dropped)", highlight=False)
            names.append(name)
            totals["frames"] += len(part)
            totals["cells"] += tokens.grid.cells
            totals["tokens"] += int(tokens.count[0])
            totals["bytes"] += (folder / name).stat().st_size
            if progress is not None:
                ends = [end for end in (reading["end"], part.duration) if end is not None]
                progress(round(float(part.times[-1])), round(min(ends)) if ends else None)
    files.write_text(folder / "events.jsonl", "".join(json.dumps(event) + "\n" for event in events))
    finish(folder, names, pipeline.spec, {**request, "source": {**source, "name": video.stem}})
    seconds = round(time.perf_counter() - start, 3)
    log.print(f"{escape(str(folder))}: {len(names)} chunks, {len(events)} events", highlight=False)
    return {"video": str(video), "out": str(folder), "skipped": False, **totals, "events": events, "seconds": seconds}


def _meta(folder: Path) -> dict[str, Any] | None:
    """Returns the source and settings of a finished folder, or None if a part of it is damaged or missing."""
    from fewtokens.core import files
    from fewtokens.core.streaming import read_stream_info

    try:
        facts = read_stream_info(folder)
        for name in facts["chunks"]:
            files.load_header(folder / Path(name).name, "tokens")
    except ValueError as error:
        report_damaged(error)
        return None
    meta = facts["meta"]
    return meta | {"reading": current_names(meta["reading"])} if isinstance(meta.get("reading"), dict) else meta


def _old_chunks(folder: Path) -> list[Path]:
    """Returns the chunks of an earlier run in a folder.

    Raises:
        ValueError: a file with the name of a chunk contains the tokens of a whole video.
    """
    from fewtokens.core import files

    chunks = [path for path in folder.glob("*.safetensors") if re.fullmatch(r"[0-9]{6,}", path.stem)]
    for path in chunks:
        try:
            meta = files.load_header(path)["meta"]
        except (ValueError, KeyError):
            continue
        if isinstance(meta, dict) and "source" in meta:
            raise ValueError(f"{path} contains the tokens of a whole video; give --chunked another --out")
    return chunks


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes):02}:{rest:05.2f}"
