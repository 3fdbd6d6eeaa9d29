"""GLM-5 Next: videos have the placeholder of images, between their start and end tokens."""

from __future__ import annotations

from fewtokens.llm.backends.base import Backend


class Glm5Next(Backend):
    """Rows of a video: T/2 runs of cells, with the time between them."""

    name = "glm5_next"
    video_spans = True
