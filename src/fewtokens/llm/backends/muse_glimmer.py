"""Muse Glimmer: after the tower a pixel shuffle merges 2 x 2 patches, which it has in raster order."""

from __future__ import annotations

from fewtokens.llm.backends.base import Backend


class MuseGlimmer(Backend):
    """Rows of a video: T x H x W, with the time before each frame."""

    name = "muse_glimmer"
    raster = True
