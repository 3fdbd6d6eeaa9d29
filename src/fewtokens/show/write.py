"""One video's overlay as a picture or a video."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from fewtokens.core.tokens import Tokens
from fewtokens.show.overlay import STYLES, maps, overlay
from fewtokens.show.sheet import draw_contact_sheet

SUFFIXES = (".png", ".html", ".mp4", ".gif")


def check_overlay(path: str | Path, style: str) -> None:
    """Raises ValueError for a suffix or a style that cannot be drawn, before any work is done."""
    if Path(path).suffix not in SUFFIXES:
        raise ValueError(f"{path}: what is shown ends in {', '.join(SUFFIXES)}")
    if style not in (*STYLES, "maps"):
        raise ValueError(f"style must be one of {', '.join(STYLES)}, maps, got {style!r}")
    if style == "maps" and Path(path).suffix != ".png":
        raise ValueError(f"{path}: maps are drawn as a .png")


def write_overlay(
    path: str | Path,
    frames: Tensor,
    tokens: Tokens,
    *,
    times: Tensor | None = None,
    fps: float = 8.0,
    style: str = "fill",
) -> Path:
    """Draws the regions of the tokens over the frames.

    Args:
        path: .png (up to 12 frames side by side), .mp4 or .gif. A page is written by `write_page`.
        frames: uint8 [T,3,H,W].
        tokens: of this video, B=1.
        times: seconds of the frames, for the captions.
        fps: of the video.
        style: see `overlay`; or "maps": the soft weights of each token (`fewtokens.show.overlay.maps`).

    Raises:
        ValueError: another suffix or style.
    """
    check_overlay(path, style)
    if style == "maps":
        pictures, titles, columns = maps(frames, tokens)
        return draw_contact_sheet(pictures, titles, path, columns=columns, most=len(pictures))
    drawn = overlay(frames, tokens, style)
    if Path(path).suffix == ".png":
        captions = [f"frame {n}" if times is None else f"{float(times[n]):.2f} s" for n in range(len(frames))]
        return draw_contact_sheet(drawn, captions, path)
    from fewtokens.video import write

    return write(path, drawn, fps)
