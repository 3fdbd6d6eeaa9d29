"""Step3: an image is one grid; with local patches, their grids come before it in the same entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fewtokens.llm.backends.base import Backend
from fewtokens.llm.backends.rows import RowLayout


class Step3p7(Backend):
    """Rows of a video, which is a sequence of images: T x H x W. Images with local patches are left whole."""

    name = "step3p7"

    def layouts(
        self, model: Any, modality: str, inputs: dict[str, Any], entries: Sequence[Tensor]
    ) -> Sequence[RowLayout | None]:
        counts = inputs.get("num_local_patches")
        counts = [0] * len(entries) if counts is None else counts
        layouts = super().layouts(model, modality, inputs, entries)
        return [None if int(count) else layout for count, layout in zip(counts, layouts, strict=True)]
