"""PaddleOCR-VL: the projector merges 2 x 2 patches, which the tower has in raster order. arXiv 2510.14528."""

from __future__ import annotations

from fewtokens.llm.backends.base import Backend


class PaddleOCRVL(Backend):
    """Rows of a video, which is a sequence of images: T x H x W."""

    name = "paddleocr_vl"
    raster = True
