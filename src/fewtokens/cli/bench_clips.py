"""The clips of `fewtokens bench`: which there are, how they are read and measured, and what an earlier run measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from fewtokens.cli.options import ReadOptions
from fewtokens.cli.pipelines import read_video
from fewtokens.cli.resume import append_row, check_source, distinct_names, read_rows, source_now, unique_paths

if TYPE_CHECKING:
    from fewtokens.core.encoder import Encoder
    from fewtokens.evaluation.bench import EncodedItem, Item


class Row(TypedDict):
    """Keys that a row of an earlier run must have."""

    clip: str
    method: str
    keep: float | int | str
    vector: list[Any]


class _SourceRow(TypedDict):
    clip: str
    source: dict[str, Any]


def find_clips(videos: Sequence[Path], davis: Path | None) -> list[tuple[str, Path, list[Path] | None]]:
    """Returns a distinct name, the file and the masks of each clip.

    Raises:
        ValueError: a folder without videos.
    """
    from fewtokens.data.dense_sets import check_paired, davis_sequences
    from fewtokens.data.listing import VIDEOS

    files: list[Path] = []
    for video in videos:
        if not video.is_dir():
            files.append(video)
            continue
        inside = sorted(file for file in video.iterdir() if file.suffix.lower() in VIDEOS)
        if not inside:
            raise ValueError(f"{video}: no videos in this folder ({', '.join(sorted(VIDEOS))})")
        files += inside
    clips: list[tuple[Path, list[Path] | None]] = [(file, None) for file in unique_paths(files)]
    if davis is not None:
        sequences, _ = davis_sequences(davis, "all")
        for sequence in sequences:
            check_paired(sequence)
        clips += [(sequence.images[0].parent, sequence.labels) for sequence in sequences]
    names = distinct_names([path for path, _ in clips])
    return [(name, path, masks) for name, (path, masks) in zip(names, clips, strict=True)]


def check_clips(
    target: Path, sources: Sequence[tuple[str, Path, list[Path] | None]]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Saves the source of each clip, or compares it with the source that an earlier run saved in this folder.

    Returns:
        The sources by clip name, and the errors of clips that cannot be read, by clip name.

    Raises:
        ValueError: the folder contains results of another file, or of an earlier state of this one.
    """
    notes = {row["clip"]: row["source"] for row in read_rows(target / "sources.jsonl", _SourceRow)}
    measured = {row["clip"] for row in read_rows(target / "rows.jsonl", Row)}
    broken = {}
    new = []
    for name, path, masks in sources:
        try:
            source = source_now(path)
            if masks:
                labels = source_now(masks[0].parent)
                source["bytes"] += labels["bytes"]
                source["mtime_ns"] = max(source["mtime_ns"], labels["mtime_ns"])
        except (ValueError, OSError) as error:
            broken[name] = str(error)
            continue
        if name in measured:
            check_source(f"{name} in {target}", notes.get(name), source, "give another --out")
        elif notes.get(name) != source:
            new.append({"clip": name, "source": source})
    for row in new:
        append_row(target / "sources.jsonl", row)
        notes[row["clip"]] = row["source"]
    return notes, broken


def select_shown(sources: Sequence[tuple[str, Path, list[Path] | None]], shown: int) -> set[str]:
    """Returns the clips to show on the page: the first ones, with at least one labeled clip if there is any."""
    names = [name for name, *_ in sources]
    labeled = [name for name, _, masks in sources if masks]
    first = names[:shown]
    if shown and labeled and not set(first) & set(labeled):
        first[-1] = labeled[0]
    return set(first)


def read_clip(name: str, path: Path, masks: list[Path] | None, frames: int, size: int) -> Item:
    """Reads a clip, and the masks of the same frames."""
    from fewtokens.data.masks import read_masks
    from fewtokens.evaluation.bench import Item

    video = read_video(path, ReadOptions(frames=frames, size=size))
    truth = None
    if masks:
        # Frame rate of a folder of images.
        indices = [round(float(second) * (video.fps or 25)) for second in video.times]
        truth = read_masks([masks[index] for index in indices])
    return Item(name, video.frames, video.times, truth)


def read_selected(name: str, path: Path, size: int, selects: dict[str, Any]) -> Item:
    """Reads the frames of a clip that a selector chooses."""
    from fewtokens.evaluation.bench import Item

    video = read_video(path, ReadOptions(size=size), None, selects)
    return Item(name, video.frames, video.times)


def score_row(
    job: tuple[str, str, float | int | str], encoded: EncodedItem, selected: EncodedItem | None, select: str | None,
    encoder: Encoder, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Measures a row: a method at a budget on a clip, or on the frames of it that a selector chooses.

    Args:
        job: from `fewtokens.evaluation.bench.jobs`.
        encoded: the clip.
        selected: its frames that the selector chooses, if there is one.
        select: spec of the selector.
        encoder: the encoder of both.
        options: of `fewtokens.evaluation.bench.measure`.
    """
    from fewtokens.evaluation.bench import measure

    name, spec, keep = job
    if selected is None or not spec.startswith(f"{select} | "):
        return measure(encoded, encoder, spec, keep, **options)
    row = measure(selected, encoder, spec.removeprefix(f"{select} | "), keep, **options | {"shown": False})
    return row | {"clip": name, "method": spec, "spec": f"{select} | {row['spec']}"}


def thumbnails(item: Item) -> tuple[Any, list[str]]:
    """Returns small copies of the frames that the page shows, with captions."""
    import torch.nn.functional as F

    from fewtokens.evaluation.bench import shown_frame_indices

    indices = shown_frame_indices(len(item.frames))
    frames = item.frames[indices]
    height, width = (max(1, round(side * 360 / max(360, frames.shape[3]))) for side in frames.shape[2:])
    small = F.interpolate(frames.float(), (height, width), mode="bilinear", antialias=True).round().clamp(0, 255).byte()
    captions = [f"frame {n}" if item.times is None else f"{float(item.times[n]):.2f} s" for n in indices]
    return small, captions
