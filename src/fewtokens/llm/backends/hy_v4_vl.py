"""HY V4: the tower has patches in raster order; a convolution merges 2 x 2, and a newline follows each row of cells."""

from __future__ import annotations

from fewtokens.llm.backends.base import Backend


class HYV4(Backend):
    """Rows of a video: T x H x (W + 1), the last of each row of cells a newline."""

    name = "hy_v4_vl"
    raster = True
