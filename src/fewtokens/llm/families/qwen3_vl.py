"""Qwen3-VL: seconds in words between the frames, and DeepStack features for the first layers. arXiv 2511.21631."""

from fewtokens.llm.families.qwen2_vl import Qwen2VL
from fewtokens.llm.family import HALF


class Qwen3VL(Qwen2VL):
    """Rows of a video: T/2 runs of H/32 x W/32, with time stamps between them; DeepStack is merged by the same plan."""

    name = "qwen3_vl"
    mean, std = HALF, HALF
