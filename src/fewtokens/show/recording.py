"""A recording for the viewer of Rerun (.rrd): frames, regions of tokens, their centers and counts over time."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.checks import check_comparison
from fewtokens.core.files import atomic_file
from fewtokens.core.keys import heading
from fewtokens.core.tokens import Tokens
from fewtokens.show.overlay import cells_in_frame, overlay_parts, token_colors, token_map
from fewtokens.show.types import Clip, Result

# Class ids are 16 bit; 0 is a dropped cell.
_CLASSES = 65_535
_QUALITY = 95  # of JPEG frames


def write_recording(clip: Clip, path: str | Path) -> Path:
    """Writes a clip and its results as a recording, which `rerun FILE.rrd` shows.

    Timelines are `time`, in seconds, if the clip has times, and `frame`. Entities, with one folder per result, named
    after it:

    * `frames`, `NAME/overlay` (see `overlay`), `NAME/reconstruction`: images, as JPEGs of quality 95;
    * `NAME/regions`: segmentation image, transparent until its opacity is raised in the viewer; class 0 is dropped,
      class 1 + n is token n (modulo 65,535), which the label of the class names;
    * `NAME/centers`: the tokens with cells in the frame, as points at the mean of these cells, in pixels; the area of a
      point is a sixteenth of that of the cells, and its label names the token and its size over all frames;
    * `NAME/tokens_in_frame`: number of these tokens;
    * `NAME/about`: spec and numbers, as text.

    Args:
        clip: with at least one result. Results of the same name are numbered.
        path: of the .rrd.

    Returns:
        The path.

    Raises:
        ValueError: there is no result, or rerun-sdk is not installed.
    """
    check_comparison(path, len(clip.results))
    import rerun
    from rerun import blueprint

    names = [result.name for result in clip.results]
    if len(set(names)) < len(names):
        names = [f"{number} {name}" for number, name in enumerate(names, 1)]
    folders = [f"/{rerun.escape_entity_path_part(name)}" for name in names]
    with atomic_file(path) as temporary:
        recording = rerun.RecordingStream("fewtokens")
        recording.save(temporary)
        recording.set_log_time_enabled(False)
        recording.set_log_tick_enabled(False)
        # Leaving the block completes the file.
        with recording:
            recording.send_recording_name(clip.name)
            for folder, result in zip(folders, clip.results, strict=True):
                recording.log(folder, rerun.AnnotationContext(_classes(result.tokens)), static=True)
                text = rerun.TextDocument(_about(clip, result), media_type=rerun.MediaType.MARKDOWN)
                recording.log(f"{folder}/about", text, static=True)
            drawn = [overlay_parts(clip.frames, result.tokens) for result in clip.results]
            overlays = zip(*(chain.from_iterable(parts) for parts in drawn), strict=True)
            for number, (frame, images) in enumerate(zip(clip.frames, overlays, strict=True)):
                recording.set_time("frame", sequence=number)
                if clip.times is not None:
                    recording.set_time("time", duration=float(clip.times[number]))
                recording.log("frames", _image(rerun, frame))
                for folder, result, image in zip(folders, clip.results, images, strict=True):
                    recording.log(f"{folder}/overlay", _image(rerun, image))
                    _log_frame(rerun, recording, folder, clip, result, number)
            views = [
                view
                for name, folder, result in zip(names, folders, clip.results, strict=True)
                for view in _views(blueprint, name, folder, result)
            ]
            counts = blueprint.TimeSeriesView(
                name="tokens in frame", contents=[f"{folder}/tokens_in_frame" for folder in folders]
            )
            layout = blueprint.Vertical(blueprint.Grid(*views), counts, row_shares=[4, 1])
            recording.send_blueprint(blueprint.Blueprint(layout))
    return Path(path)


def _log_frame(rerun: Any, recording: Any, folder: str, clip: Clip, result: Result, number: int) -> None:
    T, _, height, width = clip.frames.shape
    tokens, part = result.tokens, slice(number, number + 1)
    regions = token_map(tokens, T, height, width, part)[0]
    classes = torch.where(regions < 0, 0, regions % _CLASSES + 1)
    recording.log(f"{folder}/regions", rerun.SegmentationImage(classes.numpy().astype("uint16"), opacity=0.0))
    ids, centers, radii = _centers(tokens, number * tokens.grid.T // T, height, width)
    sizes = tokens.sizes[0].cpu()[ids].tolist()
    points = rerun.Points2D(
        centers.numpy(),
        radii=radii.numpy(),
        colors=(token_colors(tokens.N)[ids] * 255).byte().numpy(),
        labels=[f"token {n}: {size:g} cells" for n, size in zip(ids.tolist(), sizes, strict=True)],
        show_labels=False,
    )
    recording.log(f"{folder}/centers", points)
    recording.log(f"{folder}/tokens_in_frame", rerun.Scalars(len(ids)))
    if result.frames is not None:
        recording.log(f"{folder}/reconstruction", _image(rerun, result.frames[number]))


def _image(rerun: Any, frame: Tensor) -> Any:
    return rerun.Image(frame.permute(1, 2, 0).cpu().numpy()).compress(jpeg_quality=_QUALITY)


def _centers(tokens: Tokens, row: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens with cells in a frame of the grid, their centers (x,y) and radii in pixels: [n], [n,2], [n]."""
    _, H, W = tokens.grid.shape
    y, x, found, index, count = cells_in_frame(tokens, row)
    middle = torch.stack([(x + 0.5) * width / W, (y + 0.5) * height / H], 1)
    centers = torch.zeros(len(found), 2).index_add_(0, index, middle) / count[:, None]
    area = count * (height / H) * (width / W) / 16
    return found, centers, (area / torch.pi).sqrt()


def _classes(tokens: Tokens) -> list[tuple[int, str, tuple[int, ...]]]:
    """Id, label and color of each class."""
    rows = (token_colors(min(int(tokens.count[0]), _CLASSES)) * 255).round().int().tolist()
    return [(0, "dropped", (0, 0, 0)), *((n + 1, f"token {n}", tuple(color)) for n, color in enumerate(rows))]


def _about(clip: Clip, result: Result) -> str:
    numbers = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in result.numbers.items()}
    rows = "\n".join(f"| {heading(name)} | {value} |" for name, value in numbers.items())
    return (
        f"# {clip.name}\n\n`{result.spec}`\n\n{clip.describe()}.\n\n| | |\n|---|---|\n{rows}\n\n"
        "A color is one token of several cells, the same in every frame; no tint is one token for one cell; dark is "
        "dropped.\n"
    )


def _views(blueprint: Any, name: str, folder: str, result: Result) -> list[Any]:
    views = [
        blueprint.Spatial2DView(name=name, contents=[f"{folder}/{part}" for part in ("overlay", "regions", "centers")]),
        blueprint.TextDocumentView(name=f"{name}: numbers", origin=f"{folder}/about"),
    ]
    if result.frames is not None:
        # Second, between the tokens and the numbers.
        views.insert(1, blueprint.Spatial2DView(name=f"{name}: reconstruction", contents=[f"{folder}/reconstruction"]))
    return views
