"""SmolVLM: a video is pictures in a row with their time before each. arXiv 2504.05299."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fewtokens.llm.family import Family, Visual, grouped_blocks, to_unit_pixels


class SmolVLM(Family):
    """Rows of a video: T runs of 8 x 8 (512 px), with words between them. Pictures of zeros are padding."""

    name = "smolvlm"
    needs_items = True

    def visuals(
        self, model: nn.Module, modality: str, outputs: Any, inputs: dict[str, Any], items: Sequence[Any], pixels: bool
    ) -> list[Visual]:
        size: int = model.base_model.image_seq_len  # type: ignore[union-attr, assignment]
        blocks = [block for row in outputs.pooler_output for block in row.split(size)]
        frames = None
        if pixels:
            pictures = inputs["pixel_values"].flatten(0, 1)
            frames = to_unit_pixels(pictures[pictures.flatten(1).any(1)], self.mean, self.std)
        return grouped_blocks(blocks, items, frames, self.name)
