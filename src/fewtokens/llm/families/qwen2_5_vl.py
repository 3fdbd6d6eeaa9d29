"""Qwen2.5-VL: as Qwen2-VL, with windows in the encoder and positions in absolute time. arXiv 2502.13923."""

from fewtokens.llm.families.qwen2_vl import Qwen2VL


class Qwen25VL(Qwen2VL):
    """Rows of a video: T/2 x H/28 x W/28, in raster order."""

    name = "qwen2_5_vl"
