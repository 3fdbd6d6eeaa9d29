"""Writes the overlay of one video as an image or a video."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fewtokens.core.checks import check_overlay
from fewtokens.core.tokens import Tokens
from fewtokens.show.labels import shorten
from fewtokens.show.overlay import maps, overlay, overlay_parts
from fewtokens.show.sheet import draw_contact_sheet
from fewtokens.video import write
from fewtokens.video.sound import Sound

MOST = 12  # frames on a .png


def write_overlay(
    path: str | Path,
    frames: Tensor,
    tokens: Tokens,
    *,
    times: Tensor | None = None,
    fps: float = 8.0,
    style: str = "fill",
    name: str = "",
    sound: Sound | None = None,
) -> Path:
    """Draws the regions of the tokens over the frames.

    Args:
        path: .png (up to 12 frames in a grid), .mp4 or .gif. `write_page` writes a page.
        frames: uint8 [T,3,H,W].
        tokens: of this video, B=1.
        times: of the frames in seconds, for the captions.
        fps: frames per second of a .mp4 or .gif.
        style: see `overlay`; or "maps": the attribution weights of each token (`fewtokens.show.overlay.maps`).
        name: of the clip, for the title of a .png.
        sound: of an .mp4, see `fewtokens.video.write`.

    Returns:
        The path.

    Raises:
        ValueError: the suffix or the style is unknown.
    """
    check_overlay(path, style)
    if style == "maps":
        images, captions, columns = maps(frames, tokens, times=times)
        text = (
            f"{_describe(frames, tokens, columns)} Below each frame the attribution weights of its tokens, from the "
            "smallest weight of the token in this frame (black) to the largest (white)."
        )
        return draw_contact_sheet(
            images, captions, path, title=_title(tokens, name), caption=text, columns=columns, most=len(images)
        )
    if Path(path).suffix == ".png":
        regions = overlay(frames, tokens, style)
        captions = [f"frame {n}" if times is None else f"{float(times[n]):.2f} s" for n in range(len(frames))]
        text = f"{_describe(frames, tokens, min(len(frames), MOST))} {_legend(tokens, style)}"
        return draw_contact_sheet(regions, captions, path, title=_title(tokens, name), caption=text, most=MOST)
    return write(path, overlay_parts(frames, tokens, style), fps, sound=sound)


def _title(tokens: Tokens, name: str) -> str:
    """The method, and the clip if it has a name."""
    spec = shorten(str(tokens.meta.get("spec", "")))
    return f"{spec} on {name}" if name else spec


def _describe(frames: Tensor, tokens: Tokens, shown: int) -> str:
    """The budget, the size of the clip and the number of frames shown in one sentence."""
    count, cells = int(tokens.count[0]), tokens.grid.cells
    T, _, height, width = frames.shape
    part = f", {shown} of {T} frames shown" if shown < T else ""
    return (
        f"{count:,} tokens of {cells:,} cells ({100 * count / cells:.1f} %), {T} frames of {width} x {height} pixels"
        f"{part}."
    )


def _legend(tokens: Tokens, style: str) -> str:
    """What colors and lines mean, without those that these tokens do not have."""
    assignment = tokens.assignment[0].cpu()
    cells = torch.bincount(assignment[assignment >= 0], minlength=1)
    parts = []
    if style == "mean":
        parts.append("Each token has the mean color of its pixels over all frames.")
    if style == "fill" and bool((cells > 1).any()):
        if _runs_only(tokens):
            parts.append("A color is one token for one position in several frames.")
        else:
            parts.append("A color is one token of several cells, the same in all frames.")
    if style == "fill" and bool((cells == 1).any()):
        parts.append("No tint: one token for one cell.")
    if style != "mean":
        parts.append("Lines: borders between tokens, black on bright pixels and white on dark ones.")
    if bool((assignment < 0).any()):
        parts.append("Dark: dropped.")
    return " ".join(parts)


def _runs_only(tokens: Tokens) -> bool:
    """Whether each token represents a single position of the frame, over one or more frames."""
    assignment = tokens.assignment[0].cpu()
    cells = (assignment >= 0).nonzero().flatten()
    position, ids = cells % tokens.grid.cells_per_frame, assignment[cells]
    first, last = (
        torch.zeros(tokens.N, dtype=torch.long).scatter_reduce(0, ids, position, reduce, include_self=False)
        for reduce in ("amin", "amax")
    )
    return torch.equal(first, last)
