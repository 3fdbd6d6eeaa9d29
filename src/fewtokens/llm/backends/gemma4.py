"""Gemma 4: patches with their places, three by three of which are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fewtokens.llm.backends.base import Backend
from fewtokens.llm.backends.rows import Shape


class Gemma4(Backend):
    """Rows of a video: T runs of cells, after the time of each frame.

    All rows of a run attend to each other, as `mm_token_type_ids` tells the model, so these are shortened with the ids.
    """

    name = "gemma4"

    def shapes(self, model: Any, modality: str, inputs: dict[str, Any], count: int) -> Sequence[Shape] | None:
        places = inputs[f"{modality}_position_ids"]
        frames = inputs["num_frames_per_video"].tolist() if modality == "video" else [1] * len(places)
        first = torch.tensor([0, *frames]).cumsum(0)[:-1]
        sizes = (places.amax(1)[first.to(places.device)] + 1).tolist()
        return [(T, height, width) for T, (width, height) in zip(frames, sizes, strict=True)]

    def merges(self, model: Any, modality: str, inputs: dict[str, Any], count: int) -> Sequence[int | None]:
        return [model.config.vision_config.pooling_kernel_size] * count
