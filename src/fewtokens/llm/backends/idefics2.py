"""Idefics2: a perceiver resampler returns 64 rows for each image. arXiv 2405.02246."""

from __future__ import annotations

from fewtokens.llm.backends.base import Backend


class Idefics2(Backend):
    """Rows of a video, which is a sequence of images: T x 1 x n."""

    name = "idefics2"
    latents = True
