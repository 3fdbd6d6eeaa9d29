"""What models with positions (t, h, w) share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.cell_pixels import packed_pixels
from fewtokens.core.grid import Grid
from fewtokens.serve.contract import served_pipeline
from fewtokens.serve.mrope import Medium, append_positions, offset_after, place, prompt_positions, split_positions
from fewtokens.serve.vllm.processor import FewTokensProcessor
from fewtokens.serve.vllm.settings import normalization, spec_of


def merged_grid(config: Any, size: Sequence[int]) -> Grid:
    """The grid of rows of an image or video of (t, h, w) patches."""
    merge = config.vision_config.spatial_merge_size
    return Grid(size[0], size[1] // merge, size[2] // merge)


class PatchProcessor(FewTokensProcessor):
    """A mixin for processors that return the number of patches of a video."""

    def grid(self, item: Any) -> Grid:
        return merged_grid(self.info.get_hf_config(), item["video_grid_thw"].data.tolist())


class FewTokensMRope:
    """A mixin, before a model of the Qwen family in the bases of a class."""

    config: Any
    model_config: Any
    spec: str | None

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.spec = spec_of(vllm_config.model_config)

    def extent(self, feature: Any) -> int:
        """The number of positions that an image or video takes in the prompt."""
        raise NotImplementedError

    def grid_of(self, feature: Any) -> Grid:
        """The grid of rows of an image or video in a prompt."""
        return merged_grid(self.config, feature.data[f"{feature.modality}_grid_thw"].data.tolist())

    def side(self, feature: Any) -> int:
        """The longer side of its frames, in cells."""
        grid = self.grid_of(feature)
        return max(grid.H, grid.W)

    def pixels(self, video_input: Any, sizes: Sequence[Sequence[int]]) -> list[Tensor | None]:
        """The cue `pixels` of each video, if the spec needs it."""
        assert self.spec is not None
        if "pixels" not in served_pipeline(self.spec).needs:
            return [None] * len(sizes)
        vision, (mean, std) = self.config.vision_config, normalization(self.model_config)
        packed = video_input["pixel_values_videos"].split([t * h * w for t, h, w in sizes])
        merged = vision.spatial_merge_size**2
        return [packed_pixels(patches, len(patches) // merged, vision.patch_size, mean, std) for patches in packed]

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        if self.spec is None:
            return super().get_mrope_input_positions(input_tokens, mm_features)  # type: ignore[misc]
        features = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        media = [Medium(f.mm_position.offset, f.mm_position.length, self.extent(f)) for f in features]
        return prompt_positions(len(input_tokens), media)

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        if self.spec is None:
            return super().recompute_mrope_positions(  # type: ignore[misc]
                input_ids, multimodal_embeddings, mrope_positions, num_computed_tokens
            )
        if not multimodal_embeddings:  # a chunk of text, or a token of the answer
            return [], mrope_positions, offset_after(mrope_positions)
        pieces = [split_positions(rows) for rows in multimodal_embeddings]
        ids = torch.as_tensor(input_ids)
        placeholders = (ids == self.config.image_token_id) | (ids == self.config.video_token_id)
        placed = place(mrope_positions, placeholders, pieces, num_computed_tokens)
        return [piece.rows for piece in pieces], placed, offset_after(placed)

    def _postprocess_image_embeds_evs(self, image_embeds_split: Any, image_input: Any) -> tuple[Tensor, ...]:
        if self.spec is None:
            return super()._postprocess_image_embeds_evs(image_embeds_split, image_input)  # type: ignore[misc]
        return tuple(
            append_positions(rows, merged_grid(self.config, size).positions(rows.device).long())
            for rows, size in zip(image_embeds_split, image_input["image_grid_thw"].tolist(), strict=True)
        )
