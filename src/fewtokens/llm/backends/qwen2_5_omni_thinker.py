"""The thinkers of Qwen2.5-Omni and Qwen3-Omni: positions in absolute time, shared with audio. arXiv 2503.20215."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fewtokens.llm.backends.base import Backend


class Qwen25OmniThinker(Backend):
    """Rows of a video: T/2 x H x W, without the audio of the video."""

    name = "qwen2_5_omni_thinker"

    def original_positions(self, model: Any, prompt: dict[str, Any], mask: Tensor) -> Tensor:
        if prompt.get("use_audio_in_video"):
            raise ValueError(
                f"{self.name}: the rows of a video alternate with those of its audio; pass use_audio_in_video=False"
            )
        lengths, features = prompt.get("audio_feature_lengths"), prompt.get("feature_attention_mask")
        if lengths is None and features is not None:
            lengths = features.sum(1)
        named = {"second_per_grids": prompt.get("video_second_per_grid"), "audio_seqlens": lengths}
        return super().original_positions(model, prompt | named, mask)

    def consumed(self, model: Any) -> set[str]:
        return super().consumed(model) | {"video_second_per_grid"}
