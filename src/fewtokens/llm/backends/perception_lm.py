"""PerceptionLM: frames are encoded like tiles; a video is encoded by the encoder of images. arXiv 2504.13180."""

from __future__ import annotations

from typing import Any

from fewtokens.llm.backends.base import Backend


class PerceptionLM(Backend):
    """Rows of a video: T times a square of cells."""

    name = "perception_lm"
    needs_items = False

    def encode(self, model: Any, modality: str, inputs: dict[str, Any]) -> Any:
        if modality == "video":
            inputs = {"pixel_values": inputs["pixel_values_videos"]}
        return super().encode(model, "image", inputs)
