"""Aria: a resampler with learned queries, as many as the number of patches specifies. arXiv 2410.05993."""

from __future__ import annotations

from fewtokens.llm.backends.base import Backend


class Aria(Backend):
    """Rows of a video, which is a sequence of images: T x 1 x n."""

    name = "aria"
    latents = True
